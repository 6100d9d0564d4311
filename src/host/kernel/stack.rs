//! Devices that are stacked on others: device mapper, md, multipath.

use std::fs;

use super::{Kernel, Node, names};
use crate::device::DeviceNumber;
use crate::device::number::value;

impl Kernel {
    /// The devices stacked on this one (device mapper, md): names as in `/sys/block`.
    pub fn holders(&self, number: DeviceNumber) -> Vec<String> {
        names(&number.sysfs(&self.sys).join("holders"))
    }

    /// The devices on which this one is stacked; a partition stands for itself.
    pub fn slaves(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        let dir = number.sysfs(&self.sys).join("slaves");
        names(&dir).iter().filter_map(|name| value(&dir.join(name).join("dev")).ok()).collect()
    }

    /// The partitions of a disk that kpartx(8) made by device mapper, with their numbers in the table. It names them in
    /// the UUID of the mapping (`part2-…`), as libdevmapper's convention has it; where they lie, sysfs does not tell.
    pub fn mapped_partitions(&self, disk: DeviceNumber) -> Vec<(u32, Node)> {
        let numbered = |name: &String| {
            let rest = self.dm_uuid(name)?;
            let (number, _) = rest.strip_prefix("part")?.split_once('-')?;
            Some((number.parse().ok()?, self.named(name)?))
        };
        self.holders(disk).iter().filter_map(numbered).collect()
    }

    /// The multipath device that this disk is one path of: while it stands, the kernel gives the disk to nobody else.
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
