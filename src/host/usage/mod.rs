//! Users of a partition: the one place that decides whether a range of bytes of a disk may be written.
//!
//! ```text
//!   disk or image file, range ──▶ aliases: every device that exposes these bytes
//!                                   │  partitions, kpartx, loop devices over any of them, by device and inode
//!                                   ▼
//!   each alias: named by a table? (mounts of all namespaces, swap, holders) ──▶ else: does an exclusive open succeed?
//! ```
//!
//! The tables give names. The exclusive open gives certainty, since it also finds users that no table shows: a file system
//! that was unmounted lazily, a mount in a namespace that may not be inspected. Neither alone is enough.

mod aliases;

use std::io;
use std::path::Path;

use super::kernel::{Kernel, Namespace, Node};
use crate::device::{self, AlignedBuf, BlockDevice, Direct, Identity, Mode};
use crate::gpt::{Header, Table};
use crate::units::{BlockSize, ByteOffset, Extent, Guid, Lba};
use aliases::Aliases;

/// The disk whose partitions are examined.
#[derive(Debug, Clone)]
pub(crate) enum Disk {
    /// An image file.
    File(std::path::PathBuf),
    /// A block device.
    Block(Node),
}

/// Whether a range of a disk is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Usage {
    /// Not in use.
    Idle,
    /// In use by this user, named for messages.
    By(String),
    /// It cannot be found out, for this reason.
    Unknown(String),
}

/// Questions to the kernel that need an open of a device; tests have a double.
pub(crate) trait KernelQuery {
    /// The backing file or device of the loop device at `node`.
    fn below(&self, node: &Path) -> io::Result<Identity>;

    /// Whether another process or layer holds a block device exclusively.
    fn is_claimed(&self, node: &Path) -> io::Result<bool>;

    /// The PARTUUIDs of the partitions of the disk at `node`, by its table.
    fn partuuids(&self, node: &Path) -> io::Result<Vec<Guid>>;

    /// Whether this process itself holds the disk exclusively, so that exclusive opens of it and of its partitions fail.
    fn holds_disk(&self) -> bool {
        false
    }
}

/// The devices of this machine.
pub(crate) struct Devices {
    /// Whether this process holds the disk exclusively.
    pub(crate) holds_disk: bool,
}

impl KernelQuery for Devices {
    fn below(&self, node: &Path) -> io::Result<Identity> {
        Identity::below(node)
    }

    fn is_claimed(&self, node: &Path) -> io::Result<bool> {
        device::is_claimed(node)
    }

    fn partuuids(&self, node: &Path) -> io::Result<Vec<Guid>> {
        let disk = Direct::open(node, Mode::Read, BlockSize::B512).map_err(io::Error::other)?;
        let block = disk.block_size();
        let mut raw = AlignedBuf::zeroed(block.bytes() as usize);
        disk.read_at(&mut raw, ByteOffset(block.bytes().into()))?;
        let header = Header::decode(&raw, Lba(1)).map_err(|fault| io::Error::other(fault.to_string()))?;
        let at = header.entries_lba.offset(block).ok_or(io::ErrorKind::InvalidData)?;
        let len = (header.array_blocks() as usize).saturating_mul(block.bytes() as usize);
        let mut entries = AlignedBuf::zeroed(len);
        disk.read_at(&mut entries, at)?;
        let entries = entries.get(..header.array_len()).ok_or(io::ErrorKind::InvalidData)?.to_vec();
        let table = Table::new(header, entries).map_err(|fault| io::Error::other(fault.to_string()))?;
        Ok(table.partitions().into_iter().map(|partition| partition.guid).collect())
    }

    fn holds_disk(&self) -> bool {
        self.holds_disk
    }
}

/// The user of the part `extent` of `disk`, which is its partition `number`.
pub(crate) fn of(kernel: &Kernel, ask: &dyn KernelQuery, disk: &Disk, number: u32, extent: Extent) -> Usage {
    let unseen = |what: &Path, e: io::Error| Usage::Unknown(format!("{}: {e}", what.display()));
    if !kernel.shows_block_devices() {
        let problem = format!("{} shows no block devices; is sysfs mounted there?", kernel.sys.display());
        return Usage::Unknown(problem);
    }
    let aliases = match Aliases::find(kernel, ask, disk, number, extent) {
        Ok(aliases) => aliases,
        Err(e) => return unseen(&kernel.sys, e),
    };
    let namespaces = match kernel.namespaces() {
        Ok(namespaces) => namespaces,
        Err(e) => return unseen(&kernel.proc, e),
    };
    let named =
        aliases.devices.iter().find_map(|alias| name(kernel, &namespaces, &alias.node, &alias.foreign));
    if let Some(by) = named {
        return Usage::By(by);
    }
    let mut doubts = aliases.doubts;
    for alias in aliases.devices.iter().filter(|alias| alias.exclusive) {
        let node = alias.node.path.display();
        match ask.is_claimed(&alias.node.path) {
            Ok(false) => {}
            Ok(true) => {
                return Usage::By(format!(
                    "the kernel refuses exclusive access to {node} (mounted where it is not seen, unmounted lazily while a process still uses it, or held by another program)"
                ));
            }
            // No medium, or detached in the meantime.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(nix::libc::ENXIO | nix::libc::ENODEV | nix::libc::ENOMEDIUM)
                ) => {}
            Err(e) => doubts.push(format!("{node}, through which it can be reached, cannot be opened: {e}")),
        }
    }
    match doubts.into_iter().next() {
        Some(doubt) => Usage::Unknown(doubt),
        None => Usage::Idle,
    }
}

/// The user of a device by the tables of the kernel. `foreign`: devices stacked on it that are not its own partitions.
fn name(kernel: &Kernel, namespaces: &[Namespace], node: &Node, foreign: &[String]) -> Option<String> {
    let named = node.path.display();
    for namespace in namespaces {
        // By number; by name for btrfs, whose mounts have an anonymous number.
        let mount = namespace.mounts.iter().find(|m| {
            m.number == node.number || (m.source.starts_with('/') && kernel.is_same(m.source.as_ref(), node))
        });
        let Some(mount) = mount else { continue };
        let place = namespace.process.map(|process| {
            format!(" in the mount namespace of process {process} ({})", kernel.process_name(process))
        });
        return Some(format!("{named} is mounted at {}{}", mount.target, place.unwrap_or_default()));
    }
    if kernel.swaps().iter().any(|swap| kernel.is_same(swap, node)) {
        return Some(format!("{named} is swap space"));
    }
    foreign.first().map(|holder| format!("{named} is claimed by {holder}"))
}

#[cfg(test)]
mod tests;
