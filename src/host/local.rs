//! A disk of this machine, or an image file of a disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::booted::{Booted, Facts};
use super::efivars::{Directory, EFIVARS, Variables};
use super::kernel::{Kernel, Node};
use super::usage::{self, Devices, Disk, Usage};
use super::{Access, DiskLock, Machine, MountSource, booted, lock};
use crate::device::{self, AlignedBuf, BlockDevice, Direct, Mode, Region};
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::units::{BlockSize, ByteOffset, Extent, Group, Guid, Slot};

/// A whole disk that Linux knows, or an image file.
pub struct LocalDisk {
    name: String,
    device: Arc<Direct>,
    mode: Mode,
    disk: Disk,
    kernel: Kernel,
    efivars: Option<Directory>,
    assume_unused: bool,
}

/// Whether a GPT header lies at its place for sectors of this size, and none at the place for 512-byte sectors: with those,
/// byte 4096 may lie in an entry array. A read error counts as no; the caller's own open reports it.
fn has_header(path: &Path, block: BlockSize) -> bool {
    let read = || -> Result<bool> {
        let device = Direct::open(path, Mode::Read, block)?;
        let mut bytes = AlignedBuf::zeroed(8192);
        device::read(&device, "the partition table", &mut bytes, ByteOffset(0))?;
        let header = |at: u32| bytes[at as usize..].starts_with(b"EFI PART");
        Ok(header(block.bytes()) && !header(512))
    };
    read().unwrap_or(false)
}

impl LocalDisk {
    /// Opens the disk at `path`, with [`Mode::Read`] or [`Mode::Write`]; [`Mode::Claim`] fails while any of its partitions
    /// is in use. `file_block` is the sector size of an image file; `None`: the size at which a partition table is found.
    pub fn open(path: &Path, mode: Mode, file_block: Option<BlockSize>) -> Result<Self> {
        let found = || if has_header(path, BlockSize::B4096) { BlockSize::B4096 } else { BlockSize::B512 };
        Self::open_on(Kernel::default(), path, mode, file_block.unwrap_or_else(found))
    }

    fn open_on(kernel: Kernel, path: &Path, mode: Mode, file_block: BlockSize) -> Result<Self> {
        let mut device = Direct::open(path, mode, file_block)?;
        let failed = |source| Error::Open { path: path.to_owned(), source };
        // A path of a multipath device: the kernel demands that the multipath device is used, which has the partitions.
        while let Some(above) = device.number().and_then(|number| kernel.multipath_of(number)) {
            device = Direct::open(&above.path, mode, file_block)?;
        }
        let disk = match device.number() {
            None => Disk::File(path.to_owned()),
            Some(number) => {
                // Nothing else on this machine would read a partition table inside a partition.
                if let Some(whole) = kernel.disk_of(number).map_err(failed)? {
                    return Err(Error::Argument {
                        what: path.display().to_string(),
                        problem: format!("is a partition; give its disk, {}", whole.path.display()),
                    });
                }
                Disk::Block(kernel.node(number).map_err(failed)?)
            }
        };
        let (size, block) = (device.len(), device.block_size().bytes());
        tracing::debug!("disk {}: {disk:?}, {size} bytes in blocks of {block}", path.display());
        // The EFI variables of this machine are not about an image.
        let efivars = matches!(disk, Disk::Block(_)).then(|| Directory::new(EFIVARS.into()));
        Ok(Self {
            name: path.display().to_string(),
            device: Arc::new(device),
            mode,
            disk,
            kernel,
            efivars,
            assume_unused: false,
        })
    }

    /// Reads EFI variables from `dir`; `None`: from this machine's efivarfs.
    #[must_use]
    pub fn with_efivars(self, dir: Option<PathBuf>) -> Self {
        Self { efivars: dir.map(Directory::new).or(self.efivars), ..self }
    }

    /// Sets whether a slot counts as unused if its use is unknown. A slot that is known to be in use stays refused.
    #[must_use]
    pub fn assuming_unused(self, assume_unused: bool) -> Self {
        Self { assume_unused, ..self }
    }

    /// Refuses a disk of which any part is in use: for verbs that replace its table. [`Mode::Claim`] alone does not notice
    /// loop devices over the disk, and an image file cannot be claimed.
    ///
    /// # Errors
    /// [`Error::SlotInUse`].
    pub fn check_idle(&self) -> Result<()> {
        let all = Extent { at: ByteOffset(0), len: self.device.len() };
        match self.usage(0, all) {
            Usage::By(by) => Err(Error::SlotInUse { partition: self.name.clone(), by }),
            Usage::Idle | Usage::Unknown(_) => Ok(()),
        }
    }

    fn usage(&self, number: u32, extent: Extent) -> Usage {
        let ask = Devices { holds_disk: self.mode == Mode::Claim };
        usage::of(&self.kernel, &ask, &self.disk, number, extent)
    }

    /// The files that the methods of [`Machine`] open later: first the nodes of this disk and its partitions, then the nodes
    /// of devices that may expose bytes of it (loop devices).
    pub fn nodes(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let mut own = vec![PathBuf::from(&self.name), self.device.path().to_owned()];
        let partitions = |disk| {
            let direct = self.kernel.partitions(disk).unwrap_or_default();
            let mapped = self.kernel.mapped_partitions(disk).into_iter().map(|(_, node)| node);
            direct.into_iter().chain(mapped).map(|node| node.path)
        };
        if let Disk::Block(node) = &self.disk {
            own.push(node.path.clone());
            own.extend(partitions(node.number));
        }
        // Copies of this disk are looked for in the tables of others only if the kernel does not report PARTUUID.
        let copies = match &self.disk {
            Disk::Block(node) if !self.kernel.reports_partuuid() => {
                let named = |slot| {
                    self.kernel.others_with_partition(Group::Platform.partition_name(slot), node.number)
                };
                Slot::BOTH.into_iter().flat_map(named).map(|node| node.path).collect()
            }
            _ => Vec::new(),
        };
        let loops = self.kernel.loops();
        let others = loops
            .into_iter()
            .flat_map(|l| partitions(l.node.number).chain([l.node.path]).collect::<Vec<_>>());
        (own, others.chain(copies).collect())
    }

    /// The kernel's node of a partition; `None` if the disk has no partition nodes at all: image files, loop devices, a table
    /// that the kernel could not read. If it has other nodes but not this one, or one at another place, kernel and table
    /// disagree, and that is an error.
    fn node(&self, partition: &Partition) -> Result<Option<Node>> {
        let Disk::Block(disk) = &self.disk else { return Ok(None) };
        // Mappings by kpartx hold the disk, and while they do, the kernel refuses its own nodes to everybody.
        let mapped = self.kernel.mapped_partitions(disk.number);
        if let Some((_, node)) = mapped.into_iter().find(|(number, _)| *number == partition.number) {
            return self.checked_mapping(node, partition).map(Some);
        }
        let nodes = self.kernel.partitions(disk.number).map_err(|e| self.asking(e))?;
        checked_node(&nodes, partition)
    }

    /// Checks a mapping, whose place on the disk sysfs does not report: it must have the size of the partition, and its first
    /// and last block must equal those on the disk. (The last block of an installed slot is the footer of its record.)
    fn checked_mapping(&self, node: Node, partition: &Partition) -> Result<Node> {
        let at = node.path.display();
        let size = self.kernel.size(node.number).unwrap_or(0);
        if size != partition.extent.len {
            let problem = format!("{at} has {size} bytes, the table says {}", partition.extent.len);
            return Err(mismatch(partition, problem));
        }
        let mapping = Direct::open(&node.path, Mode::Read, self.device.block_size())?;
        let unit = u64::from(self.device.block_size().bytes());
        for inside in [0, partition.extent.len.saturating_sub(unit)] {
            let mut blocks = [AlignedBuf::zeroed(unit as usize), AlignedBuf::zeroed(unit as usize)];
            device::read(&mapping, &partition.name, &mut blocks[0], ByteOffset(inside))?;
            let place = ByteOffset(partition.extent.at.0.saturating_add(inside));
            device::read(&*self.device, &partition.name, &mut blocks[1], place)?;
            if blocks[0][..] != blocks[1][..] {
                let problem = format!("{at} does not show byte {place} of the disk at its byte {inside}");
                return Err(mismatch(partition, problem));
            }
        }
        Ok(node)
    }

    fn asking(&self, source: std::io::Error) -> Error {
        Error::Open { path: self.device.path().to_owned(), source }
    }

    fn window(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>> {
        if access != Access::Read && self.mode == Mode::Read {
            return Err(Error::Internal { what: format!("{} was opened for reading only", self.name) });
        }
        let (extent, unit) = (partition.extent, u64::from(self.device.block_size().bytes()));
        if !extent.at.0.is_multiple_of(unit) || !extent.len.is_multiple_of(unit) {
            return Err(Error::Unaligned { partition: label(partition), at: extent.at.0, unit });
        }
        match Region::new(self.disk(), extent) {
            Some(region) => Ok(Box::new(region)),
            None => Err(Error::GptUnsupported {
                disk: self.name.clone(),
                problem: format!(
                    "{} ({} bytes at {}) ends after the disk, which has {} bytes",
                    label(partition),
                    extent.len,
                    extent.at,
                    self.device.len()
                ),
            }),
        }
    }
}

impl Machine for LocalDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device) as Arc<dyn BlockDevice>
    }

    fn lock(&self) -> Result<DiskLock> {
        lock::exclusive(self.device.path(), &self.kernel.proc, lock::LOCK_WAIT).map(DiskLock::new)
    }

    fn is_locked(&self) -> Result<bool> {
        lock::is_held_by_another(self.device.path())
    }

    fn open_partition(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>> {
        let node = self.node(partition)?;
        // O_EXCL alone is not enough: a loop device over the node does not claim it, and without a node there is nothing to
        // claim.
        if access == Access::Exclusive
            && let Some(by) = self.in_use(partition)?
        {
            return Err(Error::SlotInUse { partition: label(partition), by });
        }
        let Some(node) = node else { return self.window(partition, access) };
        let mode = match access {
            Access::Read => Mode::Read,
            Access::Record => Mode::Write,
            Access::Exclusive => Mode::Claim,
        };
        let device = Direct::open(&node.path, mode, self.device.block_size())?;
        // The node was found by name; the open file must be the device that was meant.
        if device.number() != Some(node.number) || device.len() != partition.extent.len {
            return Err(mismatch(
                partition,
                format!(
                    "{} is device {} with {} bytes, the kernel says {} with {} bytes",
                    node.path.display(),
                    device.number().map_or_else(|| "-".to_owned(), |n| n.to_string()),
                    device.len(),
                    node.number,
                    partition.extent.len
                ),
            ));
        }
        Ok(Box::new(device))
    }

    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        Ok(match self.node(partition)? {
            Some(node) => MountSource::Node(node.path),
            None => MountSource::Window(self.device.path().to_owned(), partition.extent),
        })
    }

    fn in_use(&self, partition: &Partition) -> Result<Option<String>> {
        match self.usage(partition.number, partition.extent) {
            Usage::Idle => Ok(None),
            Usage::By(by) => Ok(Some(by)),
            Usage::Unknown(_) if self.assume_unused => Ok(None),
            Usage::Unknown(problem) => Err(Error::UseUnknown { partition: label(partition), problem }),
        }
    }

    fn written_by(&self, partition: &Partition) -> Result<Option<String>> {
        let Some(node) = self.node(partition)? else { return Ok(None) };
        let target = self.kernel.writable_mount(node.number).map_err(|e| self.asking(e))?;
        Ok(target.map(|target| format!("mounted at {target}")))
    }

    fn kexec_is_loaded(&self) -> bool {
        !self.is_image() && self.kernel.kexec_is_loaded()
    }

    fn firmware(&self) -> Result<&dyn Variables> {
        let none = || Error::Argument {
            what: "--boot-flag efi".to_owned(),
            problem: format!("{} is an image file and has no firmware; give --efivars DIR", self.name),
        };
        self.efivars.as_ref().map(|dir| dir as &dyn Variables).ok_or_else(none)
    }

    fn is_image(&self) -> bool {
        matches!(self.disk, Disk::File(_))
    }

    fn booted_from(&self, candidates: &[Partition], table: &[Partition]) -> Result<Booted> {
        let Disk::Block(disk) = &self.disk else {
            return Ok(Booted::Unknown { why: "it is an image file, which no machine runs from".to_owned() });
        };
        // Without EFI variables there is no such evidence.
        let variables = self.efivars.as_ref().and_then(|dir| dir.read().ok()).unwrap_or_default();
        let loaded_from: Vec<Guid> = variables.loaded_from().into_iter().chain(variables.stub()).collect();
        let ask = Devices { holds_disk: self.mode == Mode::Claim };
        let (kernel, loaded_from) = (&self.kernel, loaded_from.as_slice());
        Ok(booted::find(&Facts { kernel, ask: &ask, disk, candidates, table, loaded_from }))
    }
}

/// The node of `partition` among those of its disk; its extent must agree with the table.
fn checked_node(nodes: &[Node], partition: &Partition) -> Result<Option<Node>> {
    let own = nodes.iter().find_map(|node| {
        node.partition.filter(|(number, _)| *number == partition.number).map(|(_, extent)| (node, extent))
    });
    match own {
        None if nodes.is_empty() => Ok(None),
        None => Err(mismatch(
            partition,
            "the kernel knows other partitions of this disk, but not this one".to_owned(),
        )),
        Some((node, extent)) if extent == partition.extent => Ok(Some(node.clone())),
        Some((node, extent)) => Err(mismatch(
            partition,
            format!(
                "the kernel has {} at byte {} with {} bytes, the table at byte {} with {} bytes",
                node.path.display(),
                extent.at,
                extent.len,
                partition.extent.at,
                partition.extent.len
            ),
        )),
    }
}

fn mismatch(partition: &Partition, problem: String) -> Error {
    Error::KernelTable { partition: label(partition), problem }
}

fn label(partition: &Partition) -> String {
    format!("partition {} '{}'", partition.number, partition.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_taken_only_where_kernel_and_table_agree() {
        let extent = |at, len| Extent { at: ByteOffset(at), len };
        let partition = Partition {
            number: 2,
            name: "platform_a".to_owned(),
            guid: Guid::NIL,
            extent: extent(1 << 20, 1 << 20),
        };
        let node = |number, extent| Node {
            number: format!("259:{number}").parse().unwrap(),
            path: format!("/dev/p{number}").into(),
            partition: Some((number, extent)),
        };
        let (good, other) = (node(2, partition.extent), node(1, partition.extent));
        assert_eq!(checked_node(&[], &partition).unwrap(), None);
        assert_eq!(checked_node(&[other.clone(), good.clone()], &partition).unwrap(), Some(good));
        for wrong in [other, node(2, extent(1 << 20, 2 << 20)), node(2, extent(2 << 20, 1 << 20))] {
            let error = checked_node(&[wrong], &partition).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_KERNEL_TABLE");
        }
    }
}
