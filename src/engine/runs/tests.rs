//! What runs after each verb that could mislead: no guess is shown as a fact.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};

use crate::boot::BootFlag;
use crate::bundle::{Bundle, Trust};
use crate::device::{BlockDevice, MemoryDevice, Region};
use crate::engine::{Engine, Policy, PrepareOptions};
use crate::error::Result;
use crate::gpt::Partition;
use crate::host::efivars::{MemoryVariables, Variables};
use crate::host::journal::MemoryJournal;
use crate::host::{Access, Booted, DiskLock, Machine, MountSource};
use crate::init::{InitSpec, init};
use crate::pack::{Destination, PackSpec, pack};
use crate::progress::{Cancel, Silent};
use crate::slot::{Content, Layout, Mark, Record, Verdict};
use crate::source::{InputTimeout, open_source};
use crate::state::{KnownBy, RunningSlot, SlotState};
use crate::units::{Blake3, BlockSize, Group, MIB, Slot};

use Group::{Platform, Software};
use Slot::{A, B};

/// The disk of a machine of which the kernel names the slot that runs; `None`: an image.
pub(super) struct Memory {
    device: Arc<MemoryDevice>,
    booted: Mutex<Option<Slot>>,
    /// Names of partitions that are mounted.
    used: Mutex<Vec<&'static str>>,
    variables: MemoryVariables,
}

impl Memory {
    pub(super) fn new(bytes: &[u8], booted: Option<Slot>) -> Self {
        let device = Arc::new(MemoryDevice::new(bytes.to_vec(), BlockSize::B512));
        let variables = MemoryVariables::new([]);
        Self { device, booted: Mutex::new(booted), used: Mutex::default(), variables }
    }
}

impl Machine for Memory {
    fn name(&self) -> &str {
        "the disk in memory"
    }
    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }
    fn lock(&self) -> Result<DiskLock> {
        Ok(DiskLock::new(()))
    }
    fn is_locked(&self) -> Result<bool> {
        Ok(false)
    }
    fn open_partition(&self, partition: &Partition, _: Access) -> Result<Box<dyn BlockDevice>> {
        Ok(Box::new(Region::new(self.disk(), partition.extent).unwrap()))
    }
    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        Ok(MountSource::Window("memory".into(), partition.extent))
    }
    fn in_use(&self, partition: &Partition) -> Result<Option<String>> {
        let used = self.used.lock().unwrap();
        Ok(used.iter().find(|name| **name == partition.name).map(|_| "a mount".to_owned()))
    }
    fn booted_from(&self, _: &[Partition], _: &[Partition]) -> Result<Booted> {
        Ok(match *self.booted.lock().unwrap() {
            Some(slot) => Booted::Known { index: usize::from(slot == B), by: "the test".to_owned() },
            None => Booted::Unknown { why: "neither the kernel nor a flag shows it".to_owned() },
        })
    }
    fn is_image(&self) -> bool {
        self.booted.lock().unwrap().is_none()
    }
    fn firmware(&self) -> Result<&dyn Variables> {
        Ok(&self.variables)
    }
}

pub(super) struct Fixtures {
    /// 1.0 in slot a, good, nothing in slot b.
    pub(super) disk: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Fixtures {
    pub(super) fn bundle(&self, version: &str) -> Bundle {
        let source =
            open_source(&self.dir.path().join(version), InputTimeout::default(), &Cancel::default()).unwrap();
        Bundle::open(source, &Trust::dangerously_unsigned()).unwrap()
    }

    /// What a slot holds after a prepare of that release, with that mark.
    pub(super) fn content(&self, version: &str, group: Group, verdict: Option<Verdict>) -> Content {
        let bundle = self.bundle(version);
        let layout =
            Layout::new(bundle.manifest(), group, bundle.release().record_len(), MIB, "slot").unwrap();
        let release = bundle.release().clone();
        let record = Record { release, layout, origin: version.to_owned(), unsigned: true };
        Content::Whole(Box::new(record), verdict.map(|verdict| Mark::new(verdict, "the test says it")))
    }
}

pub(super) fn fixtures() -> &'static Fixtures {
    static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        // Beside the test program: a tmpfs may know no O_DIRECT.
        let own = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(own.parent().unwrap()).unwrap();
        // 1.5 is 1.0 with other software, 2.1 brings no software.
        for (version, platform, software) in
            [("1.0", 1, Some("s1")), ("1.5", 1, Some("s2")), ("2.0", 2, Some("s3")), ("2.1", 2, None)]
        {
            let file = |name: &str, bytes: Vec<u8>| {
                let path = dir.path().join(name);
                fs::write(&path, bytes).unwrap();
                path
            };
            let spec = PackSpec {
                product: "demo".into(),
                version: version.into(),
                min_version: None,
                needs_platform: None,
                epoch: 0,
                created: 0,
                platform: Some(file("platform", vec![platform; 100_000])),
                software: software.map(|text: &str| file("software", text.repeat(3000).into())),
                firmware: Vec::new(),
                key: None,
                level: 1,
                frame_size: 1 << 16,
                jobs: NonZeroUsize::new(1),
            };
            let to = dir.path().join(version);
            pack(&spec, Destination::New(&to), &Silent, &Cancel::default()).unwrap();
        }
        let mut made = Fixtures { disk: Vec::new(), dir };
        let disk = made.dir.path().join("disk");
        let spec = InitSpec {
            disk: disk.clone(),
            size: None,
            slot_size: MIB,
            software_size: Some(MIB),
            reserve: MIB,
            sector_size: BlockSize::B512,
            boot_flag: BootFlag::Priority,
            force: false,
            bundle: Some(made.bundle("1.0")),
            into: vec![A],
            dry_run: false,
        };
        init(spec, &Silent, &Cancel::default()).unwrap();
        made.disk = fs::read(&disk).unwrap();
        made
    })
}

/// A machine in the middle of its life.
struct World {
    memory: Memory,
    journal: MemoryJournal,
    started: Option<Blake3>,
    container: bool,
}

impl World {
    fn new() -> Self {
        let memory = Memory::new(&fixtures().disk, Some(A));
        Self { memory, journal: MemoryJournal::default(), started: None, container: false }
    }

    fn engine(&self) -> Engine<'_> {
        let policy =
            Policy { software_started: self.started, container: self.container, ..Policy::default() };
        Engine::new(&self.memory, &self.journal, policy)
    }

    fn prepare(&self, version: &str) {
        let options = PrepareOptions { jobs: NonZeroUsize::new(1), ..PrepareOptions::default() };
        self.engine().prepare(fixtures().bundle(version), &options, &Silent).unwrap();
    }

    fn commit(&self, version: &str) {
        self.prepare(version);
        self.engine().commit(false).unwrap();
    }

    /// The software of 1.5 runs beside the platform of 1.0, for good.
    fn with_new_software() -> Self {
        let world = Self::new();
        world.commit("1.5");
        world.engine().mark_good(None).unwrap();
        world
    }

    fn boots(&self, slot: Option<Slot>) {
        *self.memory.booted.lock().unwrap() = slot;
    }

    /// Its tries used up, a platform slot is left by the boot loader.
    fn gives_up(&self, slot: Slot) {
        let view = self.engine().view().unwrap();
        let number = view.held(Platform, slot).unwrap().partition.number;
        let table = view.table.with_attributes(number, view.table.attributes(number).with_tries(0));
        let lock = DiskLock::new(());
        crate::commit::switch(&*self.memory.disk(), &lock, &view.loaded, &table).unwrap();
    }

    /// What is shown as running: versions of platform and software, and which release names the whole.
    #[track_caller]
    fn shows(&self, platform: &str, software: &str) {
        let report = self.engine().slots().unwrap();
        let version =
            |group| report.running(group).and_then(|slot| slot.version.clone()).unwrap_or("unknown".into());
        assert_eq!(
            (version(Platform).as_str(), version(Software).as_str()),
            (platform, software),
            "{:?}",
            report.runs
        );
        for slot in &report.slots {
            assert!(!(slot.state == SlotState::Bad && slot.boots_next), "bad and next: {slot:?}");
        }
    }

    fn software(&self) -> RunningSlot {
        self.engine().slots().unwrap().runs.software
    }
}

#[test]
fn what_is_selected_does_not_run_before_its_reboot() {
    let world = World::new();
    world.shows("1.0", "1.0");
    world.commit("2.0");
    world.shows("1.0", "1.0");
    world.boots(Some(B));
    world.shows("2.0", "2.0");
    assert_eq!(world.software(), RunningSlot::Known(B, KnownBy::Platform));
    world.engine().mark_good(None).unwrap();
    world.shows("2.0", "2.0");
    assert_eq!(world.software(), RunningSlot::Known(B, KnownBy::Selected));
}

#[test]
fn new_software_stays_while_a_platform_waits_for_its_reboot() {
    // With software of its own in the bundle, and without.
    for release in ["2.0", "2.1"] {
        let world = World::with_new_software();
        world.shows("1.0", "1.5");
        world.prepare(release);
        world.shows("1.0", "1.5");
        world.engine().commit(false).unwrap();
        world.shows("1.0", "1.5");
        assert_eq!(world.engine().slots().unwrap().newest_running().unwrap().version.as_deref(), Some("1.5"));
    }
}

#[test]
fn after_a_fallback_the_release_that_failed_is_not_shown() {
    for release in ["2.0", "2.1"] {
        let world = World::with_new_software();
        world.commit(release);
        world.boots(Some(B));
        world.shows(release, if release == "2.0" { "2.0" } else { "1.5" });
        world.gives_up(B);
        world.boots(Some(A));
        world.shows("1.0", "1.5");
        let failed = world.engine().failed_trial().unwrap().unwrap();
        assert_eq!(failed.version, release);
        let next = |group| {
            let slots = world.engine().slots().unwrap().slots;
            slots
                .into_iter()
                .find(|slot| slot.group == group && slot.boots_next)
                .and_then(|slot| slot.version)
        };
        // As the flags of the software stand until the fallback is settled, and after that.
        assert_eq!((next(Platform).as_deref(), next(Software).as_deref()), (Some("1.0"), Some("1.5")));
        world.engine().mark_good(None).unwrap();
        world.shows("1.0", "1.5");
        assert_eq!((next(Platform).as_deref(), next(Software).as_deref()), (Some("1.0"), Some("1.5")));
        assert!(world.engine().failed_trial().unwrap().is_some(), "it stays visible");
    }
}

/// Neither a container nor a command that restarts it: until it is restarted by hand, the old software runs.
#[test]
fn software_on_trial_runs_when_something_shows_that_it_was_started() {
    let mut world = World::new();
    world.commit("1.5");
    world.shows("1.0", "1.0");
    assert_eq!(world.software(), RunningSlot::Known(A, KnownBy::Before));
    let details = world.engine().status().unwrap().details;
    assert_eq!(details, "1.5 (unsigned) is selected in software_b; restart the software to start it");
    // In use beside the old one: a swap arranges it.
    for (used, version) in
        [(vec!["software_a"], "1.0"), (vec!["software_a", "software_b"], "1.0"), (vec!["software_b"], "1.5")]
    {
        *world.memory.used.lock().unwrap() = used;
        world.shows("1.0", version);
    }
    assert_eq!(world.software(), RunningSlot::Known(B, KnownBy::Use));
    world.memory.used.lock().unwrap().clear();
    // Of another release nothing was said.
    world.started = Some(Blake3([7; 32]));
    world.shows("1.0", "1.0");
    world.started = Some(fixtures().bundle("1.5").manifest().digest());
    world.shows("1.0", "1.5");
    assert_eq!(world.software(), RunningSlot::Known(B, KnownBy::Caller));
    world.started = None;
    world.engine().software_back(B, "its probe failed").unwrap();
    world.shows("1.0", "1.0");
}

/// The health of the platform says nothing of software that was never started: `mark-good` leaves it on trial.
#[test]
fn software_that_was_not_started_is_not_marked_good() {
    let state = |world: &World| {
        let slots = world.engine().slots().unwrap().slots;
        let of = |group| slots.iter().find(|slot| (slot.group, slot.slot) == (group, B)).unwrap().state;
        (of(Platform), of(Software))
    };
    // A container runs the software, and none does; or the old software is in use, and the new one is not.
    for (container, used) in [(true, None), (false, Some("software_a"))] {
        for release in ["1.5", "2.0"] {
            let mut world = World::new();
            world.container = container;
            world.commit(release);
            world.boots(Some(if release == "2.0" { B } else { A }));
            *world.memory.used.lock().unwrap() = used.into_iter().collect();
            let done = world.engine().mark_good(None).unwrap().done;
            if release == "1.5" {
                let text = "nothing to do: software_b has not been started yet; restart the software to start it, or go back by 'qstage roll-back'";
                assert_eq!(done, text);
            } else {
                assert_eq!((done.as_str(), state(&world).0), ("platform_b proved good", SlotState::Good));
            }
            assert_eq!(state(&world).1, SlotState::Trial, "{container} {release}");
            // Once it was started it is.
            *world.memory.used.lock().unwrap() = vec!["software_b"];
            assert_eq!(world.engine().mark_good(None).unwrap().done, "software_b proved good");
        }
    }
}

/// Nothing runs from an image; what would is shown where it is good.
#[test]
fn an_image_shows_what_would_run_and_no_trial() {
    let world = World::new();
    world.boots(None);
    world.shows("1.0", "1.0");
    assert!(world.engine().slots().unwrap().slots.iter().all(|slot| !slot.booted));
    world.commit("2.0");
    world.shows("unknown", "unknown");
    let details = world.engine().status().unwrap().details;
    assert_eq!(details, "2.0 (unsigned) is selected in platform_b; reboot to start it");
}
