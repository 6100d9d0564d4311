//! One copy of the table made from the other.

use super::steps::Steps;
use super::{Copies, CopyState, Geometry, Head, Method, Plan, check_places};
use crate::gpt::codec::{Fault, Header};
use crate::gpt::{Partition, Table, place};
use crate::units::Lba;

/// The plan that makes both copies valid and equal, or `None` where they are. The primary wins where it is
/// valid. Fails with the place that is not on the disk or would hit something, or with the primary's fault
/// where neither copy is valid. Does not write to the disk.
pub fn plan_repair(copies: &Copies, geometry: &Geometry, head: &Head) -> Result<Option<Plan>, Fault> {
    let found = copies.state();
    let mut steps = Steps::new(geometry, head);
    let (primary, backup) = match (&copies.primary, &copies.backup) {
        _ if found == CopyState::Equal => return Ok(None),
        (Ok(primary), other) => {
            let theirs = other.as_ref().map_or_else(|damaged| damaged.header.as_ref(), |t| Some(t.header()));
            let backup = mirror(primary, theirs, geometry)?;
            steps.array(&backup, "backup array");
            steps.barrier();
            steps.header(&backup, "backup header");
            (primary.clone(), backup)
        }
        (Err(damaged), Ok(backup)) => {
            let primary = primary_from(backup, damaged.header.as_ref(), geometry, head)?;
            steps.array(&primary, "primary array");
            steps.barrier();
            steps.header(&primary, "primary header");
            let mirrored = mirror(&primary, Some(backup.header()), geometry)?;
            if mirrored != *backup {
                // A first usable LBA that had to be raised is in both headers.
                steps.barrier();
                steps.header(&mirrored, "backup header");
            }
            (primary, mirrored)
        }
        (Err(damaged), Err(_)) => return Err(damaged.fault.clone()),
    };
    steps.barrier();
    steps.read_back(&primary, "primary");
    steps.read_back(&backup, "backup");
    Ok(Some(Plan { steps: steps.done, method: Method::Repair { found }, primary, backup }))
}

/// The backup that belongs to `primary`: its header is `theirs` where that is of the same form, so that bytes
/// without meaning stay; its array lies where `theirs` says, else just before the header.
fn mirror(primary: &Table, theirs: Option<&Header>, geometry: &Geometry) -> Result<Table, Fault> {
    let ours = primary.header();
    let blocks = ours.array_blocks();
    let of_form = |h: &&Header| (h.entry_count(), h.entry_size()) == (ours.entry_count(), ours.entry_size());
    let before = Lba(ours.alternate_lba.0.saturating_sub(blocks));
    let shaped = |base: &Header, entries_lba| Header {
        my_lba: ours.alternate_lba,
        alternate_lba: ours.my_lba,
        first_usable: ours.first_usable,
        last_usable: ours.last_usable,
        disk_guid: ours.disk_guid,
        entries_lba,
        ..base.clone()
    };
    let kept = theirs.filter(of_form).map(|theirs| shaped(theirs, theirs.entries_lba));
    let kept = kept.filter(|header| check_places(header, geometry).is_ok());
    let header = kept.unwrap_or_else(|| shaped(theirs.filter(of_form).unwrap_or(ours), before));
    check_places(&header, geometry)?;
    // A partition that reaches beyond the usable area is no reason to overwrite it.
    let block = geometry.block_len();
    let (from, to) = (header.entries_lba.0 * block, (header.my_lba.0 + 1) * block);
    let hit = |p: &Partition| p.extent.at.0 < to && p.extent.at.0 + p.extent.len > from;
    if primary.partitions().iter().any(hit) {
        let (from, to) = (Lba(header.last_usable.0 + 1), geometry.last_lba());
        return Err(Fault::Outside {
            what: "a partition over the backup",
            lba: header.entries_lba,
            blocks,
            from,
            to,
        });
    }
    Ok(primary.with_header(header))
}

/// The primary that belongs to `backup`, made from what is left of the old one.
fn primary_from(
    backup: &Table,
    left: Option<&Header>,
    geometry: &Geometry,
    head: &Head,
) -> Result<Table, Fault> {
    let theirs = backup.header();
    let blocks = theirs.array_blocks();
    let before_partitions = |lba: Lba| backup.first_partition().is_none_or(|p| lba.0 + blocks <= p.0);
    // A header that is whole names the place of the torn array; a lost one leaves us to search.
    let left = left.filter(|h| {
        (h.disk_guid, h.entry_count(), h.entry_size())
            == (theirs.disk_guid, theirs.entry_count(), theirs.entry_size())
            && check_places(h, geometry).is_ok()
            && before_partitions(h.entries_lba)
    });
    let entries_lba = match left {
        Some(header) => header.entries_lba,
        None => place::for_lost_primary(backup, geometry, head).map_err(|_| Fault::Outside {
            what: "a new primary array",
            lba: Lba(2),
            blocks,
            from: Lba(2),
            to: Lba(backup.first_partition().unwrap_or(theirs.first_usable).0.saturating_sub(1)),
        })?,
    };
    let header = Header {
        my_lba: Lba(1),
        alternate_lba: theirs.my_lba,
        first_usable: theirs.first_usable.max(Lba(entries_lba.0 + blocks)),
        last_usable: theirs.last_usable,
        disk_guid: theirs.disk_guid,
        entries_lba,
        ..left.unwrap_or(theirs).clone()
    };
    check_places(&header, geometry)?;
    Ok(backup.with_header(header))
}
