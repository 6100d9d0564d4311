//! The machine as traits: disks and partitions of the kernel, locks, the journal. Tests run the engine against other
//! implementations.

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
pub(crate) mod outside;
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

/// Proof that this process holds the lock of the disk: every function that changes the disk takes a reference to it. The
/// lock ends when this is dropped, or when the process ends in any way.
pub struct DiskLock(#[allow(dead_code, reason = "held for its Drop")] Box<dyn Any + Send + Sync>);

impl DiskLock {
    /// Wraps a guard that holds the lock until it is dropped.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Box::new(guard))
    }
}

/// The systemd machine id (machine-id(5)); empty: this machine has none.
pub fn machine_id() -> String {
    std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned()
}

/// Purpose for which a slot is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; other users do not matter.
    Read,
    /// Reading and writing, refused while the partition is mounted or claimed.
    Exclusive,
    /// Reading and writing the record of a slot that may be running (the record lies after the file system).
    Record,
}

/// Source argument of mount(2) for the file system in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// The kernel's node of the partition.
    Node(PathBuf),
    /// A part of a disk or image file whose partitions the kernel does not show: a loop device is needed.
    Window(PathBuf, Extent),
}

/// The machine that carries the disk.
pub trait Machine: Send + Sync {
    /// Name of the disk in messages: the path that the user gave.
    fn name(&self) -> &str;

    /// The whole disk.
    fn disk(&self) -> Arc<dyn BlockDevice>;

    /// Takes the lock of the disk; waits a few seconds for another holder.
    fn lock(&self) -> Result<DiskLock>;

    /// Whether another process holds the lock now. For `status` only; no decision depends on it.
    fn is_locked(&self) -> Result<bool>;

    /// Opens a partition: through the kernel's node if there is one, else as a part of the disk.
    fn open_partition(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>>;

    /// Source from which the file system in a partition can be mounted.
    fn mount_source(&self, partition: &Partition) -> Result<MountSource>;

    /// The user of a partition (mount, swap, another layer that claims it); `None` if it is idle.
    ///
    /// # Errors
    /// [`Error::UseUnknown`] if that cannot be found out.
    fn in_use(&self, partition: &Partition) -> Result<Option<String>>;

    /// Writable mount point of the file system in a partition; `None` if there is none.
    fn written_by(&self, _partition: &Partition) -> Result<Option<String>> {
        Ok(None)
    }

    /// The partition among `candidates` that this machine runs from; `table` has all partitions of the disk. Unknown for
    /// image files, and for disks that this machine did not boot from.
    fn booted_from(&self, candidates: &[Partition], table: &[Partition]) -> Result<Booted>;

    /// Whether kexec_load(2) has loaded a kernel that has not been started yet.
    fn kexec_is_loaded(&self) -> bool {
        false
    }

    /// The EFI variables of the machine that boots this disk.
    ///
    /// # Errors
    /// [`Error::NoEfi`] if there are none.
    fn firmware(&self) -> Result<&dyn efivars::Variables> {
        let problem = "this machine has none".to_owned();
        Err(Error::NoEfi { dir: efivars::EFIVARS.into(), problem })
    }

    /// Whether this is an image file: no machine runs from it, and verbs assume that the slot that boots next is running.
    fn is_image(&self) -> bool;
}
