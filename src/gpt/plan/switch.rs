//! A table with other attributes brought onto the disk.

use super::steps::Steps;
use super::{Geometry, Head, Method, Plan};
use crate::gpt::{Table, place};
use crate::units::Lba;

/// The plan that brings `new`, which is `primary` with other attributes, onto a disk whose copies `primary`
/// and `backup` are equal. Empty where nothing changes. Does not write to the disk.
pub fn plan_switch(primary: &Table, backup: &Table, new: &Table, geometry: &Geometry, head: &Head) -> Plan {
    let place = place::second(primary, Some(primary.header().entries_lba), geometry, head);
    let mut steps = Steps::new(geometry, head);
    let mut header = primary.header().clone();
    if let Ok(lba) = place {
        // `sgdisk -v` and UEFI want the usable area behind the array, and the next switch comes back to the
        // place in use now. An array that someone put behind the first partition is no reason to go there.
        let ends = [header.entries_lba, lba].map(|lba| Lba(lba.0.saturating_add(header.array_blocks())));
        let limit = primary.first_partition();
        let behind = ends.into_iter().filter(|end| limit.is_none_or(|first| *end <= first)).max();
        header.first_usable = header.first_usable.max(behind.unwrap_or_default());
        header.entries_lba = lba;
    }
    let method = place.map_or_else(|why| Method::InPlace { why }, |_| Method::SecondArray);
    if new.entries() == primary.entries() {
        return Plan { steps: Vec::new(), method, primary: primary.clone(), backup: backup.clone() };
    }
    let mut other = backup.header().clone();
    other.first_usable = header.first_usable;
    let (after, mirrored) = (new.with_header(header), new.with_header(other));
    match method {
        Method::InPlace { .. } | Method::Repair { .. } | Method::Layout => {
            steps.changed(backup, &mirrored, "backup array, changed part");
            steps.barrier();
            steps.header(&mirrored, "backup header");
            steps.barrier();
            steps.changed(primary, &after, "primary array, changed part");
            steps.barrier();
            steps.header(&after, "primary header: the commit");
            steps.barrier();
        }
        Method::SecondArray => {
            steps.array(&after, "new primary array");
            steps.barrier();
            steps.read_back_array(&after, "new primary array");
            steps.header(&after, "primary header: the commit");
            steps.barrier();
            steps.read_back_header(&after, "primary header");
            steps.array(&mirrored, "backup array");
            steps.barrier();
            steps.header(&mirrored, "backup header");
            steps.barrier();
        }
    }
    steps.read_back(&after, "primary");
    steps.read_back(&mirrored, "backup");
    Plan { steps: steps.done, method, primary: after, backup: mirrored }
}
