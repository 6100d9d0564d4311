//! Block devices as the kernel reports them, in `/proc`, `/sys` and `/dev`.

mod namespaces;
mod stack;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mount};
use crate::device::DeviceNumber;
use crate::device::number::value;
use crate::units::{ByteOffset, Extent};

pub use namespaces::Namespace;

/// Unit of sysfs in bytes, whatever the sector size of the disk (Documentation/ABI/stable/sysfs-block).
const SYSFS_SECTOR: u64 = 512;

/// Mount points of the kernel's file systems; temporary directories in tests.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), dev: "/dev".into() }
    }
}

/// A block device that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its device number.
    pub number: DeviceNumber,
    /// Its file below `/dev`.
    pub path: PathBuf,
    /// Number in the table and extent on the disk in bytes, as the kernel sees them; `None` if it is no partition.
    pub partition: Option<(u32, Extent)>,
}

/// A disk as the boot-time selector sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its file below `/dev`.
    pub path: PathBuf,
    /// Whether it is a USB stick, a card, or another removable medium.
    pub is_removable: bool,
    /// Its directory below `/sys/devices`, which says where it is attached.
    pub place: PathBuf,
}

/// A loop device that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// The loop device.
    pub node: Node,
    /// The backing file or device.
    pub backing: PathBuf,
    /// The part of the backing file that it exposes; length 0 means "to the end".
    pub extent: Extent,
}

impl Kernel {
    /// Whether sysfs lists block devices at all: in a container `/sys` may be missing or empty.
    pub fn shows_block_devices(&self) -> bool {
        self.sys.join("dev/block").is_dir()
    }

    /// The device with that number.
    pub fn node(&self, number: DeviceNumber) -> io::Result<Node> {
        self.node_in(&number.sysfs(&self.sys))
    }

    /// The disk that holds a partition; `None` for a disk.
    pub fn disk_of(&self, partition: DeviceNumber) -> io::Result<Option<Node>> {
        let dir = partition.sysfs(&self.sys);
        if !dir.join("partition").exists() {
            return Ok(None);
        }
        self.node_in(&dir.canonicalize()?.join("..")).map(Some)
    }

    /// Disks of non-zero size that are not a part of another device (RAID, multipath), in the order of their names.
    pub fn drives(&self) -> Vec<Drive> {
        let block = self.sys.join("block");
        let own = |dir: &Path| {
            value::<u64>(&dir.join("size")).is_ok_and(|size| size > 0)
                && names(&dir.join("holders")).is_empty()
        };
        let dirs = names(&block).into_iter().map(|name| block.join(name)).filter(|dir| own(dir));
        dirs.filter_map(|dir| {
            let place = dir.canonicalize().ok()?;
            // Many USB sticks report that they are fixed, and a card that it cannot be removed from its reader.
            let usb = place.iter().any(|part| part.to_string_lossy().starts_with("usb"));
            let card = fs::read_to_string(dir.join("device/type")).is_ok_and(|kind| kind.trim() == "SD");
            let is_removable = usb || card || value::<u8>(&dir.join("removable")).is_ok_and(|yes| yes == 1);
            Some(Drive { path: self.node_in(&dir).ok()?.path, is_removable, place })
        })
        .collect()
    }

    /// The partitions of a disk for which the kernel has nodes.
    pub fn partitions(&self, disk: DeviceNumber) -> io::Result<Vec<Node>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(disk.sysfs(&self.sys))? {
            let dir = entry?.path();
            if dir.join("partition").exists() {
                found.push(self.node_in(&dir)?);
            }
        }
        Ok(found)
    }

    /// The loop devices that are attached.
    pub fn loops(&self) -> Vec<Loop> {
        let block = self.sys.join("block");
        names(&block)
            .iter()
            .filter(|name| name.starts_with("loop"))
            .filter_map(|name| {
                let dir = block.join(name);
                // Without this file the device is not attached.
                let backing = fs::read_to_string(dir.join("loop/backing_file")).ok()?;
                let extent = Extent {
                    at: ByteOffset(value(&dir.join("loop/offset")).ok()?),
                    len: value(&dir.join("loop/sizelimit")).ok()?,
                };
                let backing = backing.trim_end_matches('\n').into();
                Some(Loop { node: self.node_in(&dir).ok()?, backing, extent })
            })
            .collect()
    }

    /// The mounts that this process sees.
    pub fn mounts(&self) -> io::Result<Vec<Mount>> {
        fs::read_to_string(self.proc.join("self/mountinfo")).map(|text| mountinfo::mounts(&text))
    }

    /// A writable mount point of the file system on a device, as this process sees it; `None` if there is none.
    pub fn writable_mount(&self, number: DeviceNumber) -> io::Result<Option<String>> {
        fs::read_to_string(self.proc.join("self/mountinfo")).map(|text| mountinfo::writable(&text, number))
    }

    /// The active swap devices and files; none if the kernel has no swap.
    pub fn swaps(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        mountinfo::swaps(&text).into_iter().map(PathBuf::from).collect()
    }

    /// Whether kexec_load(2) has loaded a kernel that has not been started yet.
    pub fn kexec_is_loaded(&self) -> bool {
        value::<u8>(&self.sys.join("kernel/kexec_loaded")).is_ok_and(|loaded| loaded == 1)
    }

    /// The kernel's command line; empty where it cannot be read.
    pub fn cmdline(&self) -> String {
        fs::read_to_string(self.proc.join("cmdline")).unwrap_or_default()
    }

    /// Device numbers of all partitions whose `uevent` has `key=value`, compared without case as the kernel compares
    /// `PARTUUID`. Empty if the kernel does not report the key (`PARTUUID`: since 6.10).
    pub fn with_uevent(&self, key: &str, wanted: &str) -> Vec<DeviceNumber> {
        let dir = self.sys.join("class/block");
        names(&dir)
            .iter()
            .map(|name| dir.join(name))
            .filter(|dir| uevent(dir, key).is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
            .filter_map(|dir| value(&dir.join("dev")).ok())
            .collect()
    }

    /// Whether the kernel reports the PARTUUID of partitions in `uevent`: since 6.10.
    pub fn reports_partuuid(&self) -> bool {
        let dir = self.sys.join("class/block");
        names(&dir).iter().any(|name| uevent(&dir.join(name), "PARTUUID").is_some())
    }

    /// The other disks with a partition of this name; neither `disk` nor the devices that it is made of.
    pub fn others_with_partition(&self, name: &str, disk: DeviceNumber) -> Vec<Node> {
        let own = self.slaves(disk);
        let named = self.with_uevent("PARTNAME", name).into_iter();
        let disks = named.filter_map(|partition| self.disk_of(partition).ok().flatten());
        disks.filter(|found| found.number != disk && !own.contains(&found.number)).collect()
    }

    /// The block device that a path names; links are followed.
    pub fn number_of(&self, path: &Path) -> Option<DeviceNumber> {
        let dir = self.sys.join("class/block");
        let mut nodes = names(&dir).into_iter().filter_map(|name| self.node_in(&dir.join(name)).ok());
        nodes.find(|node| self.is_same(path, node)).map(|node| node.number)
    }

    /// A path from a table of the kernel, below this `/dev`.
    pub(crate) fn in_dev(&self, named: &Path) -> PathBuf {
        named.strip_prefix("/dev").map_or_else(|_| named.to_owned(), |inside| self.dev.join(inside))
    }

    /// Whether a path from a table of the kernel names this device; links such as `/dev/disk/by-partuuid/…` are followed.
    pub fn is_same(&self, named: &Path, node: &Node) -> bool {
        let named = self.in_dev(named);
        named == node.path
            || matches!((named.canonicalize(), node.path.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }

    fn node_in(&self, dir: &Path) -> io::Result<Node> {
        let name = uevent(dir, "DEVNAME")
            .ok_or_else(|| io::Error::other(format!("{}: no DEVNAME in uevent", dir.display())))?;
        let partition = if dir.join("partition").exists() {
            let bytes = |file: &str| value::<u64>(&dir.join(file)).map(|n| n.saturating_mul(SYSFS_SECTOR));
            let extent = Extent { at: ByteOffset(bytes("start")?), len: bytes("size")? };
            Some((value(&dir.join("partition"))?, extent))
        } else {
            None
        };
        Ok(Node { number: value(&dir.join("dev"))?, path: self.dev.join(name), partition })
    }
}

/// Whether two paths name the same file. A path from sysfs may belong to another mount namespace, or end in " (deleted)":
/// then it names nothing here and equals nothing.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn uevent(dir: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join("uevent")).ok()?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, found)| found.to_owned())
}

/// The sorted names in a directory; none if it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
