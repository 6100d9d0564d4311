//! Block devices by the kernel's numbers, and the properties of their queues in sysfs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::stat::{major, minor};

use crate::units::BlockSize;

/// Number of a block device, printed and parsed as `major:minor`: its name under `/sys/dev/block`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Number of the driver. 0 stands for file systems without a device of their own.
    pub major: u64,
    /// Number of the device within that driver.
    pub minor: u64,
}

impl DeviceNumber {
    /// From `st_rdev` or `st_dev` (stat(2)).
    pub fn from_raw(raw: u64) -> Self {
        Self { major: major(raw), minor: minor(raw) }
    }

    /// Directory of the device below `sys`, which is `/sys` outside tests.
    pub fn sysfs(self, sys: &Path) -> PathBuf {
        sys.join("dev/block").join(self.to_string())
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("'{text}' is no device number of the form major:minor");
        let (major, minor) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { major: major.parse().map_err(|_| wrong())?, minor: minor.parse().map_err(|_| wrong())? })
    }
}

/// Properties of a block device (Documentation/ABI/stable/sysfs-block). The equivalent ioctls (`BLKSSZGET`,
/// `BLKPBSZGET`) take a pointer, so they would need `unsafe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    /// Logical block size: the unit of addresses.
    pub(crate) logical: BlockSize,
    /// Physical block size in bytes: what the medium writes as one; never smaller than the logical size.
    pub(crate) physical: u32,
    /// Whether writes fail.
    pub(crate) read_only: bool,
}

impl QueueLimits {
    /// Reads the queue of a disk or a partition from sysfs, mounted at `sys`.
    pub(crate) fn of(sys: &Path, number: DeviceNumber) -> io::Result<Self> {
        let own = number.sysfs(sys);
        // A partition has no queue of its own; its directory lies in its disk's.
        let dir = if own.join("partition").exists() { own.canonicalize()?.join("..") } else { own.clone() };
        let logical: u32 = value(&dir.join("queue/logical_block_size"))?;
        let physical: u32 = value(&dir.join("queue/physical_block_size"))?;
        let read_only: u32 = value(&own.join("ro"))?;
        let logical = BlockSize::from_bytes(logical)
            .ok_or_else(|| io::Error::other(format!("sectors of {logical} bytes; 512 and 4096 are known")))?;
        Ok(Self { logical, physical: physical.max(logical.bytes()), read_only: read_only != 0 })
    }
}

/// The number in a file of sysfs; errors name the file.
pub(crate) fn value<T: FromStr>(path: &Path) -> io::Result<T> {
    let named = |problem: String| io::Error::other(format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    text.trim().parse().map_err(|_| named(format!("'{}' is not the number expected there", text.trim())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn numbers_have_one_text() {
        let number: DeviceNumber = "259:12".parse().unwrap();
        assert_eq!((number.major, number.minor, number.to_string()), (259, 12, "259:12".to_owned()));
        for wrong in ["", "8", "8:", ":1", "8:1:2", "a:1", "8:-1"] {
            wrong.parse::<DeviceNumber>().unwrap_err();
        }
    }

    #[test]
    fn a_partition_has_the_queue_of_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/sda");
        let write = |path: &str, text: &str| fs::write(disk.join(path), text).unwrap();
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink("../../devices/sda", sys.path().join("dev/block/8:0")).unwrap();
        std::os::unix::fs::symlink("../../devices/sda/sda1", sys.path().join("dev/block/8:1")).unwrap();
        write("queue/logical_block_size", "512\n");
        write("queue/physical_block_size", "4096\n");
        write("ro", "0\n");
        write("sda1/partition", "1\n");
        write("sda1/ro", "1\n");
        let of = |text: &str| QueueLimits::of(sys.path(), text.parse().unwrap());
        let disk_queue = QueueLimits { logical: BlockSize::B512, physical: 4096, read_only: false };
        assert_eq!(of("8:0").unwrap(), disk_queue);
        assert_eq!(of("8:1").unwrap(), QueueLimits { read_only: true, ..disk_queue });
        let missing = of("8:2").unwrap_err().to_string();
        assert!(missing.contains("8:2/queue/logical_block_size"), "{missing}");
        write("queue/logical_block_size", "520\n");
        assert!(of("8:0").unwrap_err().to_string().contains("520"));
    }
}
