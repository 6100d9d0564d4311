//! Stacked devices: device mapper, md, multipath.

use std::fs;

use super::{Kernel, Node, names};
use crate::device::DeviceNumber;
use crate::device::number::value;

impl Kernel {
    /// Names in `/sys/block` of the devices stacked on this one (device mapper, md).
    pub fn holders(&self, number: DeviceNumber) -> Vec<String> {
        names(&number.sysfs(&self.sys).join("holders"))
    }

    /// The devices that this one is stacked on; a partition is not resolved to its disk.
    pub fn slaves(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        let dir = number.sysfs(&self.sys).join("slaves");
        names(&dir).iter().filter_map(|name| value(&dir.join(name).join("dev")).ok()).collect()
    }

    /// The partitions of a disk that kpartx(8) has mapped, with their numbers in the table. The UUID of the mapping has the
    /// number (`part2-…`), by the convention of libdevmapper; sysfs does not report where they lie.
    pub fn mapped_partitions(&self, disk: DeviceNumber) -> Vec<(u32, Node)> {
        let numbered = |name: &String| {
            let rest = self.dm_uuid(name)?;
            let (number, _) = rest.strip_prefix("part")?.split_once('-')?;
            Some((number.parse().ok()?, self.named(name)?))
        };
        self.holders(disk).iter().filter_map(numbered).collect()
    }

    /// The multipath device that this disk is a path of; while it exists, the kernel refuses exclusive opens of the disk.
    pub fn multipath_of(&self, disk: DeviceNumber) -> Option<Node> {
        let holders = self.holders(disk);
        let multipath = |name: &&String| self.dm_uuid(name).is_some_and(|uuid| uuid.starts_with("mpath-"));
        self.named(holders.iter().find(multipath)?)
    }

    /// The size of a device in bytes.
    pub fn size(&self, number: DeviceNumber) -> Option<u64> {
        let sectors: u64 = value(&number.sysfs(&self.sys).join("size")).ok()?;
        sectors.checked_mul(super::SYSFS_SECTOR)
    }

    fn dm_uuid(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.sys.join("class/block").join(name).join("dm/uuid")).ok()
    }

    fn named(&self, name: &str) -> Option<Node> {
        self.node_in(&self.sys.join("class/block").join(name)).ok()
    }
}
