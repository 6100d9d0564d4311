//! Makes one copy of the table from the other.

use super::steps::Steps;
use super::{Method, Obstacle, Plan};
use crate::gpt::claim::Claims;
use crate::gpt::codec::{Fault, Header};
use crate::gpt::mirror::mirror;
use crate::gpt::place::check_places;
use crate::gpt::reading::{CopyState, Reading};
use crate::gpt::sectors::Geometry;
use crate::gpt::{Table, place};
use crate::units::Lba;

/// The plan that repairs what is beyond doubt: a torn backup from a valid primary, a torn primary from a backup
/// that is this disk's. `None` if there is nothing to do: both are equal, or there is no backup, which is harmless.
/// Does not write to the disk.
///
/// # Errors
/// [`Obstacle::Doubtful`], [`Obstacle::Ignored`], [`Obstacle::Foreign`], [`Obstacle::Fault`].
pub fn plan_repair(reading: &Reading) -> Result<Option<Plan>, Obstacle> {
    let (found, geometry) = (reading.state(), &reading.geometry);
    match (found, &reading.copies.primary, &reading.copies.backup) {
        (CopyState::Equal | CopyState::NoBackup, ..) => Ok(None),
        (CopyState::Differ | CopyState::PrimaryOnly, Ok(primary), _) => {
            let steps = Steps::new(primary, geometry, &reading.sectors);
            let theirs = reading.copies.backup_header();
            let backup = mirror(primary, theirs, &steps.claims).map_err(|at| foreign("backup", at))?;
            Ok(Some(backup_from_primary(steps, primary, backup, found)?))
        }
        (CopyState::BackupOnly, Err(damaged), Ok(backup)) => {
            let mut steps = Steps::new(backup, geometry, &reading.sectors);
            let primary = primary_from(backup, damaged.header.as_ref(), &steps.claims, geometry)?;
            steps.array(&primary, "primary array")?;
            steps.barrier();
            steps.primary_header(&primary, "primary header");
            let mut mirrored = backup.header().clone();
            (mirrored.first_usable, mirrored.alternate_lba) = (primary.header().first_usable, Lba(1));
            let mirrored = backup.with_header(mirrored);
            if mirrored != *backup {
                // A raised first usable LBA goes into both headers.
                steps.barrier();
                steps.backup_header(&mirrored)?;
            }
            steps.barrier();
            steps.read_back(&primary, "primary");
            steps.read_back(&mirrored, "backup");
            let method = Method::Repair { found };
            Ok(Some(Plan { steps: steps.done, method, primary, backup: Some(mirrored) }))
        }
        (CopyState::Doubtful, ..) => Err(Obstacle::Doubtful),
        (CopyState::Ignored, ..) => Err(Obstacle::Ignored),
        (_, Err(damaged), _) => Err(Obstacle::Fault(damaged.fault.clone())),
        (_, Ok(_), _) => Ok(None),
    }
}

pub(super) fn foreign(what: &'static str, at: Lba) -> Obstacle {
    Obstacle::Foreign { what, at }
}

/// The steps that write a backup and leave the primary as it is.
pub(super) fn backup_from_primary(
    mut steps: Steps<'_>,
    primary: &Table,
    backup: Table,
    found: CopyState,
) -> Result<Plan, Obstacle> {
    steps.array(&backup, "backup array")?;
    steps.barrier();
    steps.backup_header(&backup)?;
    steps.barrier();
    steps.read_back(primary, "primary");
    steps.read_back(&backup, "backup");
    let method = Method::Repair { found };
    Ok(Plan { steps: steps.done, method, primary: primary.clone(), backup: Some(backup) })
}

/// The primary that belongs to `backup`, made from what is left of the old one.
pub(super) fn primary_from(
    backup: &Table,
    left: Option<&Header>,
    claims: &Claims<'_>,
    geometry: &Geometry,
) -> Result<Table, Obstacle> {
    let theirs = backup.header();
    // A valid header names the place of the torn array; without one the place is searched.
    let left = left.filter(|h| {
        (h.disk_guid, h.entry_count(), h.entry_size())
            == (theirs.disk_guid, theirs.entry_count(), theirs.entry_size())
            && check_places(h, geometry).is_ok()
    });
    let free = |lba: Lba| claims.array(place::blocks(backup, lba)).is_ok();
    let entries_lba = match left.map_or(Lba(2), |left| left.entries_lba) {
        lba if free(lba) => lba,
        _ if free(Lba(2)) => Lba(2),
        // A loader was written over a part of it and must not be overwritten in turn.
        _ => place::spare(claims, backup, &[]).map_err(Obstacle::NoPlace)?,
    };
    let end = Lba(entries_lba.0 + theirs.array_blocks());
    let raised = theirs.first_usable.max(end);
    let fits = backup.first_partition().is_none_or(|first| raised <= first);
    let header = Header {
        my_lba: Lba(1),
        alternate_lba: theirs.my_lba,
        // sgdisk -v and UEFI demand a usable area that begins after an array at rest.
        first_usable: if fits { raised } else { theirs.first_usable },
        last_usable: theirs.last_usable,
        disk_guid: theirs.disk_guid,
        entries_lba,
        ..left.unwrap_or(theirs).clone()
    };
    check_places(&header, geometry).map_err(|fault: Fault| Obstacle::Fault(fault))?;
    Ok(backup.with_header(header))
}
