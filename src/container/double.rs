//! A test double of the runtime, without containers: its clock advances only by pauses, and it fails on demand.

use std::any::Any;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::runtime::{Exit, Running, Runtime, Stopped};
use crate::device::{BlockDevice, MemoryDevice, Region};
use crate::engine::SoftwareImage;
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::host::{Access, Booted, DiskLock, Machine, MountSource};
use crate::units::{BlockSize, Group, Slot};

/// Fault at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The step fails, once.
    Once,
    /// The process dies before the step: containers live on, except those at their gate.
    Killed,
    /// The machine loses power before the step: no container lives on.
    PowerCut,
}

/// Counts the steps of runtime and disk together, and makes one of them fail.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Number of the step and its fault; `None`: no fault.
    pub(super) plan: Option<(usize, Fault)>,
    /// Number of steps so far.
    pub(super) steps: usize,
    /// The fault after which every step fails.
    pub(super) dead: Option<Fault>,
}

pub(super) type Shared = Arc<Mutex<Faults>>;

/// Whether the next step fails.
fn fails(faults: &Shared) -> bool {
    let mut faults = faults.lock().unwrap();
    if faults.dead.is_some() {
        return true;
    }
    faults.steps += 1;
    match faults.plan {
        Some((at, fault)) if at == faults.steps => {
            if fault != Fault::Once {
                faults.dead = Some(fault);
            }
            true
        }
        _ => false,
    }
}

/// The containers of a simulated machine. They outlive the double: a clone of `containers` is passed to the next one.
pub(super) struct Double {
    pub(super) faults: Shared,
    pub(super) containers: Arc<Mutex<Vec<Running>>>,
    /// Versions that never become healthy.
    pub(super) sick: Vec<String>,
    gated: Mutex<Vec<Running>>,
    clock: Mutex<Duration>,
    /// Versions in the order of their starts.
    pub(super) starts: Mutex<Vec<String>>,
}

impl Double {
    pub(super) fn new(faults: &Shared, containers: &Arc<Mutex<Vec<Running>>>, sick: &[&str]) -> Self {
        Self {
            faults: Arc::clone(faults),
            containers: Arc::clone(containers),
            sick: sick.iter().map(|&version| version.to_owned()).collect(),
            gated: Mutex::default(),
            clock: Mutex::default(),
            starts: Mutex::default(),
        }
    }

    fn step(&self, slot: Slot, what: &str) -> Result<()> {
        *self.clock.lock().unwrap() += Duration::from_millis(100);
        if fails(&self.faults) {
            return Err(Error::ContainerStart { slot, problem: format!("the double fails at {what}") });
        }
        Ok(())
    }
}

impl Runtime for Double {
    fn lock(&self) -> Result<Box<dyn Any>> {
        Ok(Box::new(()))
    }

    fn running(&self) -> Result<Vec<Running>> {
        Ok(self.containers.lock().unwrap().clone())
    }

    fn arrange(&self, image: &SoftwareImage) -> Result<Running> {
        self.step(image.slot, "arrange")?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let running = Running {
            id: format!("{}-{count}-{}", image.slot, image.version),
            slot: image.slot,
            version: image.version.clone(),
            blake3: image.blake3,
        };
        self.gated.lock().unwrap().push(running.clone());
        Ok(running)
    }

    fn release(&self, arranged: &Running) -> Result<()> {
        let mut gated = self.gated.lock().unwrap();
        let before = gated.len();
        gated.retain(|one| one != arranged);
        assert_ne!(gated.len(), before, "released without having been arranged");
        let mut containers = self.containers.lock().unwrap();
        assert!(containers.is_empty(), "two programs at once: {containers:?} and {arranged:?}");
        self.step(arranged.slot, "release")?;
        containers.push(arranged.clone());
        self.starts.lock().unwrap().push(arranged.version.clone());
        Ok(())
    }

    fn stop(&self, running: &Running) -> Result<Stopped> {
        self.step(running.slot, "stop")
            .map_err(|e| Error::ContainerStop { slot: running.slot, problem: e.to_string() })?;
        self.gated.lock().unwrap().retain(|one| one != running);
        self.containers.lock().unwrap().retain(|one| one != running);
        Ok(Stopped::Gracefully)
    }

    fn probe(&self, running: &Running) -> Result<(), String> {
        *self.clock.lock().unwrap() += Duration::from_millis(1);
        if self.sick.contains(&running.version) {
            return Err("it is sick".to_owned());
        }
        let runs = self.containers.lock().unwrap().contains(running);
        if runs { Ok(()) } else { Err("it does not run".to_owned()) }
    }

    fn exit(&self, _ended: &Running) -> Option<Exit> {
        None
    }

    fn openings(&self, _running: Option<&Running>) -> Vec<String> {
        Vec::new()
    }

    fn clock(&self) -> Duration {
        *self.clock.lock().unwrap()
    }

    fn pause(&self, time: Duration) {
        *self.clock.lock().unwrap() += time;
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let faults = self.faults.lock().unwrap();
        if faults.dead.is_none() && !std::thread::panicking() {
            assert!(self.gated.lock().unwrap().is_empty(), "a container was left at its gate");
        }
    }
}

/// A disk in memory whose lock, which every change takes first, is a step that can fail.
pub(super) struct FaultyDisk {
    device: Arc<MemoryDevice>,
    faults: Shared,
    /// The running containers, whose slots the engine sees as mounted.
    containers: Arc<Mutex<Vec<Running>>>,
}

impl FaultyDisk {
    pub(super) fn new(bytes: &[u8], faults: &Shared, containers: &Arc<Mutex<Vec<Running>>>) -> Self {
        Self {
            device: Arc::new(MemoryDevice::new(bytes.to_vec(), BlockSize::B512)),
            faults: Arc::clone(faults),
            containers: Arc::clone(containers),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.device.snapshot()
    }
}

impl Machine for FaultyDisk {
    fn name(&self) -> &str {
        "the disk in memory"
    }

    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }

    fn lock(&self) -> Result<DiskLock> {
        if fails(&self.faults) {
            let source = std::io::Error::other("the double fails at the disk");
            return Err(Error::Sync { what: "the disk".to_owned(), source });
        }
        Ok(DiskLock::new(()))
    }

    fn is_locked(&self) -> Result<bool> {
        Ok(false)
    }

    fn open_partition(&self, partition: &Partition, _access: Access) -> Result<Box<dyn BlockDevice>> {
        Ok(Box::new(Region::new(self.disk(), partition.extent).unwrap()))
    }

    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        Ok(MountSource::Window("memory".into(), partition.extent))
    }

    fn in_use(&self, partition: &Partition) -> Result<Option<String>> {
        let runs = |one: &&Running| partition.name == Group::Software.partition_name(one.slot);
        Ok(self.containers.lock().unwrap().iter().find(runs).map(|one| one.id.clone()))
    }

    fn booted_from(&self, _candidates: &[Partition], _table: &[Partition]) -> Result<Booted> {
        Ok(Booted::Unknown { why: "it is in memory".to_owned() })
    }

    fn is_image(&self) -> bool {
        true
    }
}
