//! The machine behind traits: disks and partitions of the kernel, the state file. The engine
//! is tested against other implementations.

mod booted;
pub mod cmdline;
pub mod efivars;
#[cfg(test)]
mod fake_kernel;
pub(crate) mod files;
pub mod health;
pub mod journal;
pub mod kernel;
pub mod kexec;
pub mod load;
mod local;
mod lock;
pub mod mountinfo;
pub mod notify;
pub mod program;
pub(crate) mod reread;
pub mod signals;
pub mod signer;
pub mod trust;
mod usage;

pub use booted::Booted;
pub use local::LocalDisk;

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::units::Extent;

/// Proof that this process owns the disk: who changes anything asks for a reference to it. The lock ends
/// when this is dropped or the process dies, however it dies.
pub struct DiskLock(#[allow(dead_code, reason = "held for its Drop")] Box<dyn Any + Send + Sync>);

impl DiskLock {
    /// Wraps whatever holds the lock until it is dropped.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Box::new(guard))
    }
}

/// What a slot is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; other users do not matter.
    Read,
    /// Reading and writing, refused while the partition is mounted or claimed.
    Exclusive,
    /// Reading and writing the record of a slot that may be running (it lies behind the file system).
    Record,
}

/// What to give to mount(2) for the file system in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// The kernel's node of the partition.
    Node(PathBuf),
    /// A part of a disk or image file whose partitions the kernel does not show: it takes a loop device.
    Window(PathBuf, Extent),
}

/// The machine that carries the disk.
pub trait Machine: Send + Sync {
    /// What the disk is called in messages: the path that the user gave.
    fn name(&self) -> &str;

    /// The whole disk.
    fn disk(&self) -> Arc<dyn BlockDevice>;

    /// Takes the lock of the disk, waiting a moment for a holder to end.
    fn lock(&self) -> Result<DiskLock>;

    /// Whether somebody holds the lock now. `status` asks; nothing is decided by the answer.
    fn is_locked(&self) -> Result<bool>;

    /// Opens a partition: through the kernel's node where there is one, else as a window onto the disk.
    fn open_partition(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>>;

    /// How the file system in a partition can be mounted.
    fn mount_source(&self, partition: &Partition) -> Result<MountSource>;

    /// By whom a partition is in use (mounted, swap, claimed by another layer), if it is.
    ///
    /// # Errors
    /// [`Error::UseUnknown`] where that cannot be told.
    fn in_use(&self, partition: &Partition) -> Result<Option<String>>;

    /// Where the file system in a partition is mounted so that it can be written, if it is.
    fn written_by(&self, _partition: &Partition) -> Result<Option<String>> {
        Ok(None)
    }

    /// From which partition among `candidates` this machine runs, where anything says so; `table` are all of the disk. Unknown on disk images and on
    /// disks that this machine did not boot from.
    fn booted_from(&self, candidates: &[Partition], table: &[Partition]) -> Result<Booted>;

    /// Whether a kernel is loaded that kexec is about to start.
    fn kexec_is_loaded(&self) -> bool {
        false
    }

    /// The variables of the firmware that boots this disk.
    ///
    /// # Errors
    /// [`Error::NoEfi`] where there are none.
    fn firmware(&self) -> Result<&dyn efivars::Variables> {
        let problem = "this machine has none".to_owned();
        Err(Error::NoEfi { dir: efivars::EFIVARS.into(), problem })
    }

    /// Whether this is an image file: no machine runs from it, and verbs take the slot that boots next as the one that
    /// would run.
    fn is_image(&self) -> bool;
}
