//! Swap and start against every fault at every step, with a disk in memory and a test double of the runtime.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::double::{Double, Fault, Faults, FaultyDisk, Shared};
use super::{
    Config, Judge, Rendezvous, Running, restart, restart_dry_run, start, start_dry_run, stop, stop_dry_run,
    swap, swap_dry_run, swap_together,
};
use crate::boot::BootFlag;
use crate::bundle::{Bundle, Trust};
use crate::engine::{Change, Engine, Policy, PrepareOptions};
use crate::host::journal::{Journal, MemoryJournal};
use crate::init::{InitSpec, init};
use crate::pack::{Destination, PackSpec, pack};
use crate::progress::{Cancel, Silent};
use crate::source::{InputTimeout, open_source};
use crate::state::SlotState;
use crate::units::{BlockSize, Group, MIB, Slot};

/// Three disks: 1.0 runs; the same with 1.1 prepared (software only); the same with 2.0 prepared (platform too).
struct Disks {
    prepared: Vec<u8>,
    platform: Vec<u8>,
}

fn disks() -> &'static Disks {
    static DISKS: OnceLock<Disks> = OnceLock::new();
    DISKS.get_or_init(|| {
        // Beside the test program: a tmpfs may not support O_DIRECT.
        let own = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(own.parent().unwrap()).unwrap();
        let bundle = |version: &str, platform: u8| {
            let at = |name: &str| dir.path().join(format!("{name}-{version}"));
            fs::write(at("platform"), vec![platform; 100_000]).unwrap();
            fs::write(at("software"), version.repeat(1000)).unwrap();
            let spec = PackSpec {
                product: "demo".into(),
                version: version.into(),
                min_version: None,
                needs_platform: None,
                epoch: 0,
                created: 0,
                platform: Some(at("platform")),
                software: Some(at("software")),
                firmware: Vec::new(),
                key: None,
                level: 1,
                frame_size: 1 << 16,
                jobs: None,
            };
            pack(&spec, Destination::New(&at("bundle")), &Silent, &Cancel::default()).unwrap();
            Bundle::open(
                open_source(&at("bundle"), InputTimeout::default(), &Cancel::default()).unwrap(),
                &Trust::dangerously_unsigned(),
            )
            .unwrap()
        };
        let disk = dir.path().join("disk");
        let spec = InitSpec {
            disk: disk.clone(),
            size: None,
            slot_size: MIB,
            software_size: Some(MIB),
            reserve: crate::units::MIB,
            sector_size: BlockSize::B512,
            boot_flag: BootFlag::Priority,
            force: false,
            bundle: Some(bundle("1.0", 1)),
            into: vec![Slot::A],
            dry_run: false,
        };
        init(spec, &Silent, &Cancel::default()).unwrap();
        let factory = fs::read(&disk).unwrap();
        let prepare = |bundle: Bundle| {
            let world = World::new(&factory, &[], None);
            world.engine().prepare(bundle, &PrepareOptions::default(), &Silent).unwrap();
            world.disk.bytes()
        };
        Disks { prepared: prepare(bundle("1.1", 1)), platform: prepare(bundle("2.0", 2)) }
    })
}

/// A machine between two crashes: what survives a crash is passed to the next value.
struct World {
    disk: FaultyDisk,
    double: Double,
    journal: MemoryJournal,
    policy: Policy,
    faults: Shared,
    containers: Arc<Mutex<Vec<Running>>>,
    config: Config,
}

impl World {
    fn new(disk: &[u8], sick: &[&str], fault: Option<(usize, Fault)>) -> Self {
        Self::with(disk, sick, fault, Vec::new())
    }

    fn with(disk: &[u8], sick: &[&str], fault: Option<(usize, Fault)>, running: Vec<Running>) -> Self {
        let faults: Shared = Arc::new(Mutex::new(Faults { plan: fault, ..Faults::default() }));
        let containers = Arc::new(Mutex::new(running));
        let config = Config { deadline: Duration::from_secs(3), ..Config::new(vec!["/app".to_owned()]) };
        Self {
            disk: FaultyDisk::new(disk, &faults, &containers),
            double: Double::new(&faults, &containers, sick),
            journal: MemoryJournal::default(),
            policy: Policy { booted: Some(Slot::A), ..Policy::default() },
            faults,
            containers,
            config,
        }
    }

    /// The prepared disk with 1.0 running from it.
    fn prepared(sick: &[&str], fault: Option<(usize, Fault)>, old_runs: bool) -> Self {
        let world = Self::new(&disks().prepared, &[], None);
        if old_runs {
            world.start().unwrap();
        }
        let running = world.running();
        Self::with(&disks().prepared, sick, fault, running)
    }

    /// The machine after its process died, or after a power cut.
    fn after(&self, fault: Fault, sick: &[&str]) -> Self {
        let running = if fault == Fault::PowerCut { Vec::new() } else { self.running() };
        Self::with(&self.disk.bytes(), sick, None, running)
    }

    fn engine(&self) -> Engine<'_> {
        Engine::new(&self.disk, &self.journal, self.policy.clone())
    }

    fn swap(&self) -> crate::Result<super::SwapReport> {
        swap(&self.engine(), &self.double, &self.config, &Silent)
    }

    fn start(&self) -> crate::Result<super::StartReport> {
        start(&self.engine(), &self.double, &self.config, &Silent, Judge::Start)
    }

    fn running(&self) -> Vec<Running> {
        self.containers.lock().unwrap().clone()
    }

    /// The version of the only container that runs.
    fn runs(&self) -> String {
        let running = self.running();
        assert_eq!(running.len(), 1, "{running:?}");
        running[0].version.clone()
    }

    /// The version of the software that is shown as running.
    fn shown(&self) -> Option<String> {
        self.engine().slots().unwrap().running(Group::Software).and_then(|slot| slot.version.clone())
    }

    fn slot(&self, group: Group, slot: Slot) -> crate::state::SlotReport {
        let all = self.engine().slots().unwrap().slots;
        all.into_iter().find(|one| (one.group, one.slot) == (group, slot)).unwrap()
    }

    /// Selected software slot, states of a and b.
    fn software(&self) -> (Option<Slot>, SlotState, SlotState) {
        let [a, b] = Slot::BOTH.map(|slot| self.slot(Group::Software, slot));
        let next = [&a, &b].into_iter().find(|one| one.boots_next).map(|one| one.slot);
        assert!([&a, &b].iter().all(|one| !(one.boots_next && one.state == SlotState::Bad)), "{a:?} {b:?}");
        (next, a.state, b.state)
    }

    fn steps(&self) -> usize {
        self.faults.lock().unwrap().steps
    }
}

const AFTER_SWAP: (Option<Slot>, SlotState, SlotState) = (Some(Slot::B), SlotState::Good, SlotState::Good);
const AFTER_BACK: (Option<Slot>, SlotState, SlotState) = (Some(Slot::A), SlotState::Good, SlotState::Bad);

#[test]
fn a_swap_and_a_swap_back() {
    let good = World::prepared(&[], None, true);
    let report = good.swap().unwrap();
    assert_eq!((good.runs().as_str(), good.software()), ("1.1", AFTER_SWAP));
    assert_eq!(good.shown().as_deref(), Some("1.1"));
    // The time of the double's steps stop and release, and one millisecond of the probe.
    assert_eq!(report.downtime_ms, Some(201.0));
    let sick = World::prepared(&["1.1"], None, true);
    let error = sick.swap().unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_SWAPPED_BACK");
    assert_eq!((sick.runs().as_str(), sick.software()), ("1.0", AFTER_BACK));
    assert_eq!(sick.shown().as_deref(), Some("1.0"), "the release that failed is not what runs");
    let disk = crate::commit::load(&*crate::host::Machine::disk(&sick.disk), "x").unwrap();
    let key = disk.table().unwrap().header().disk_guid.to_string();
    assert_eq!(sick.journal.load(&key).last_error.unwrap().code, error.code());
    assert_eq!(sick.journal.history(&key).last().unwrap().verb, "swap");
}

/// What a dry run prints is what is written: by the commit, and in each of the two ways in which the swap may end. It changes
/// neither the disk nor a container.
#[test]
fn dry_runs_print_what_is_written() {
    let world = World::prepared(&[], None, true);
    let (bytes, steps) = (world.disk.bytes(), world.steps());
    let indented = |plan: Vec<String>| plan.into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>();
    let contains = |all: &[String], part: &[String]| all.windows(part.len()).any(|lines| lines == part);
    let swap = swap_dry_run(&world.engine(), &world.double, &world.config).unwrap();
    assert!(swap.dry_run && swap.next_step == "nothing");
    assert_eq!((world.disk.bytes() == bytes, world.steps(), world.runs().as_str()), (true, steps, "1.0"));
    assert!(contains(&swap.plan, &world.engine().commit(true).unwrap().plan));
    // Between the flip and the verdict.
    world.engine().commit(false).unwrap();
    for change in
        [Change::SoftwareGood(Slot::B), Change::SoftwareBack(Slot::B, "its container is not healthy")]
    {
        let plan = world.engine().dry_run(&change).unwrap().plan;
        assert!(plan.len() > 3 && contains(&swap.plan, &indented(plan)), "{change:?}: {:#?}", swap.plan);
    }
    let order = ["container: arrange 1.1", "container: stop 1.0", "container: start the program of 1.1"];
    let at = order.map(|begin| swap.plan.iter().position(|line| line.starts_with(begin)).unwrap());
    assert!(at.is_sorted(), "{:#?}", swap.plan);

    // The start of what is selected by now: it counts a try first.
    let counted = world.engine().dry_run(&Change::SoftwareTry(Slot::B)).unwrap().plan;
    let start = start_dry_run(&world.engine(), &world.double, &world.config, Judge::Start).unwrap();
    assert!(counted.len() > 3 && start.plan.starts_with(&counted), "{:#?}", start.plan);
    let elsewhere = start_dry_run(&world.engine(), &world.double, &world.config, Judge::Elsewhere).unwrap();
    assert!(!elsewhere.plan.iter().any(|line| line.contains("mark of")), "{:#?}", elsewhere.plan);
    world.engine().software_try(Slot::B).unwrap();
    for change in
        [Change::SoftwareGood(Slot::B), Change::SoftwareBack(Slot::B, "its container is not healthy")]
    {
        let plan = world.engine().dry_run(&change).unwrap().plan;
        assert!(contains(&start.plan, &indented(plan)), "{change:?}: {:#?}", start.plan);
    }
    let restart = restart_dry_run(&world.engine(), &world.double, &world.config, Judge::Start).unwrap();
    assert!(!restart.plan.iter().any(|line| line.contains("write LBA")), "{:#?}", restart.plan);
    let stop = stop_dry_run(&world.engine(), &world.double).unwrap();
    assert_eq!(stop.plan, ["container: stop 1.0 (software slot a)"]);
    assert_eq!(world.runs(), "1.0");
}

/// After one failure at any step some container serves, and a start makes flags and container agree.
#[test]
fn one_failure_anywhere_leaves_a_service() {
    let mut codes = BTreeSet::new();
    for sick in [&[][..], &["1.1"]] {
        for old_runs in [true, false] {
            let clean = World::prepared(sick, None, old_runs);
            let _ = clean.swap();
            let steps = clean.steps();
            assert!(steps >= 4, "{steps}");
            for at in 1..=steps {
                let world = World::prepared(sick, Some((at, Fault::Once)), old_runs);
                let result = world.swap();
                let told = format!("step {at} of {steps}, sick {sick:?}, old runs {old_runs}: {result:?}");
                // The failure had an effect: it is reported, or a second attempt ended in the swap back.
                assert!(result.is_err(), "{told}");
                codes.extend(result.err().map(|error| error.code()));
                let running = world.running();
                assert!(running.len() <= 1, "{told}");
                let unstoppable = told.contains("fails at stop");
                if old_runs && !unstoppable {
                    let serves = running.first().is_some_and(|one| !sick.contains(&one.version.as_str()));
                    assert!(serves, "{told}: {running:?}");
                }
                let next = World::with(&world.disk.bytes(), sick, None, running);
                let converged = next.start();
                let selected = next.software();
                assert!(converged.is_ok(), "{told}; then {converged:?}");
                let expected = if selected.0 == Some(Slot::B) { "1.1" } else { "1.0" };
                assert_eq!(next.runs(), expected, "{told}");
                assert!(!sick.contains(&expected), "{told}");
                let state = if selected.0 == Some(Slot::B) { selected.2 } else { selected.1 };
                assert_eq!(state, SlotState::Good, "{told}");
            }
        }
    }
    println!("{codes:?}");
    for code in ["UPGRADE_ERROR_CONTAINER_START", "UPGRADE_ERROR_SWAPPED_BACK", "UPGRADE_ERROR_SWAP_BACK"] {
        assert!(codes.contains(code), "{code} is not among {codes:?}");
    }
}

#[test]
fn a_failure_to_start_or_stop_is_reported() {
    let empty = World::new(&disks().prepared, &["1.0", "1.1"], None);
    assert_eq!(empty.start().unwrap_err().code(), "UPGRADE_ERROR_CONTAINER_UNHEALTHY");
    let world = World::prepared(&[], Some((1, Fault::Once)), true);
    let error = stop(&world.engine(), &world.double).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_CONTAINER_STOP", "{error}");
}

/// The process dies, or the power fails, before any step. The next start converges: to the new version if it was committed
/// and is healthy, else to the old one.
#[test]
fn a_crash_anywhere_converges() {
    let mut forward = 0;
    let mut back = 0;
    for sick in [&[][..], &["1.1"]] {
        for fault in [Fault::Killed, Fault::PowerCut] {
            let clean = World::prepared(sick, None, true);
            let _ = clean.swap();
            for at in 1..=clean.steps() {
                let world = World::prepared(sick, Some((at, fault)), true);
                world.swap().unwrap_err();
                let next = world.after(fault, sick);
                let committed = next.software().0 == Some(Slot::B);
                next.start().unwrap_or_else(|e| panic!("{fault:?} at {at}, sick {sick:?}: {e}"));
                let expected = if committed && sick.is_empty() { "1.1" } else { "1.0" };
                assert_eq!(next.runs(), expected, "{fault:?} at {at}, sick {sick:?}");
                let selected = next.software();
                assert_eq!(selected.0, Some(if expected == "1.1" { Slot::B } else { Slot::A }));
                assert_ne!(selected.2, SlotState::Trial, "{fault:?} at {at}: the trial has ended");
                if expected == "1.1" { forward += 1 } else { back += 1 }
            }
        }
    }
    assert!(forward > 3 && back > 10, "{forward} {back}: the cases are not what they are meant to be");
}

/// A version that crashes the machine at each start gets as many tries as the policy says; each is counted on disk before it
/// begins.
#[test]
fn a_version_that_crashes_the_machine_runs_out_of_tries() {
    let committed = World::prepared(&[], None, false);
    committed.engine().commit(false).unwrap();
    let mut disk = committed.disk.bytes();
    let mut started = Vec::new();
    for _ in 0..10 {
        let world = World::new(&disk, &[], None);
        let image = world.engine().software_selected().unwrap();
        started.push(image.version.clone());
        if image.version == "1.0" {
            break;
        }
        // Steps of a start on trial: count the try, arrange, release; the power cut comes before the mark.
        world.faults.lock().unwrap().plan = Some((4, Fault::PowerCut));
        world.start().unwrap_err();
        assert_eq!(*world.double.starts.lock().unwrap(), ["1.1"]);
        disk = world.disk.bytes();
    }
    assert_eq!(started, ["1.1", "1.1", "1.1", "1.0"]);
    let world = World::new(&disk, &[], None);
    world.start().unwrap();
    assert_eq!(world.runs(), "1.0");
}

/// While the platform is on trial, its health check judges both: a start decides nothing, not even on the last try.
#[test]
fn the_platforms_trial_decides_for_both() {
    let world = World::new(&disks().platform, &[], None);
    world.engine().commit(false).unwrap();
    let mut disk = world.disk.bytes();
    for left in [2, 1, 0] {
        let mut booted = World::new(&disk, &[], None);
        booted.policy.booted = Some(Slot::B);
        booted.start().unwrap();
        assert_eq!(booted.runs(), "2.0");
        let software = booted.slot(Group::Software, Slot::B);
        assert_eq!((software.tries, software.successful), (left, false));
        assert_eq!(software.state, SlotState::Trial, "{left} tries left, and it runs");
        // Another start, for example by an operator, changes nothing.
        booted.start().unwrap();
        assert_eq!((booted.runs().as_str(), booted.slot(Group::Software, Slot::B).tries), ("2.0", left));
        disk = booted.disk.bytes();
        if left == 0 {
            booted.engine().mark_good(None).unwrap();
            assert_eq!(booted.software(), AFTER_SWAP, "marked good on its last try");
            assert_eq!(booted.slot(Group::Platform, Slot::B).state, SlotState::Good);
        }
    }
}

/// The loader fell back to the old platform: the software of the new release does not run on it.
#[test]
fn the_software_follows_the_platform_back() {
    let world = World::new(&disks().platform, &[], None);
    world.engine().commit(false).unwrap();
    // Booted a although b is selected: the tries of b are used up, or its kernel did not start.
    let fallen = World::new(&world.disk.bytes(), &[], None);
    fallen.start().unwrap();
    assert_eq!(fallen.runs(), "1.0");
}

/// What the others say.
struct Others {
    go: bool,
    keep: bool,
}

impl Rendezvous for Others {
    fn ready(&self) -> crate::Result<()> {
        if self.go { Ok(()) } else { Err(crate::Error::Cancelled) }
    }

    fn healthy(&self) -> Result<(), String> {
        if self.keep { Ok(()) } else { Err("node 3: it is not well".to_owned()) }
    }
}

#[test]
fn a_swap_with_others_goes_as_they_say() {
    for (go, keep, wanted) in [
        (false, true, Err("UPGRADE_ERROR_CANCELLED")),
        (true, false, Err("UPGRADE_ERROR_SWAPPED_BACK")),
        (true, true, Ok(())),
    ] {
        let world = World::prepared(&[], None, true);
        let others = Others { go, keep };
        let result = swap_together(&world.engine(), &world.double, &world.config, &Silent, &others);
        if let Err(error) = &result {
            assert!(!go || error.to_string().contains("node 3: it is not well"), "{error}");
        }
        assert_eq!(result.map(|_| ()).map_err(|error| error.code()), wanted);
        let version = if wanted.is_ok() { "1.1" } else { "1.0" };
        assert_eq!(world.runs(), version, "{go} {keep}");
    }
}

/// Else a start at boot would decide what all nodes are to decide together.
#[test]
fn a_start_that_is_no_judge_leaves_the_trial_open() {
    let world = World::new(&disks().prepared, &[], None);
    world.engine().commit(false).unwrap();
    let started = start(&world.engine(), &world.double, &world.config, &Silent, Judge::Elsewhere).unwrap();
    assert_eq!(started.version, "1.1");
    assert_eq!(world.engine().software_selected().unwrap().state, SlotState::Trial);
    start(&world.engine(), &world.double, &world.config, &Silent, Judge::Start).unwrap();
    assert_eq!(world.engine().software_selected().unwrap().state, SlotState::Good);
}

#[test]
fn a_platform_upgrade_is_no_swap() {
    let world = World::new(&disks().platform, &[], None);
    assert_eq!(world.swap().unwrap_err().code(), "UPGRADE_ERROR_NEEDS_REBOOT");
    assert_eq!(world.software().0, Some(Slot::A));
    let nothing = World::prepared(&[], None, true);
    nothing.swap().unwrap();
    assert_eq!(nothing.swap().unwrap_err().code(), "UPGRADE_ERROR_NOT_PREPARED");
    assert_eq!(nothing.runs(), "1.1");
}

#[test]
fn restart_and_stop_change_no_flag() {
    let world = World::prepared(&[], None, true);
    let before = world.disk.bytes();
    let report = restart(&world.engine(), &world.double, &world.config, &Silent, Judge::Start).unwrap();
    assert_eq!((report.version.as_str(), report.downtime_ms), ("1.0", Some(201.0)));
    let id = world.running()[0].id.clone();
    world.start().unwrap();
    assert_eq!(world.running()[0].id, id, "what runs as it should is left alone");
    stop(&world.engine(), &world.double).unwrap();
    assert!(world.running().is_empty());
    assert!(stop(&world.engine(), &world.double).unwrap().is_empty());
    restart(&world.engine(), &world.double, &world.config, &Silent, Judge::Start).unwrap();
    assert_eq!(world.runs(), "1.0");
    assert!(before == world.disk.bytes(), "a restart writes to the disk");
}
