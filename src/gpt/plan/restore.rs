//! Replaces one copy by the other on explicit request: `qstage repair --from`.

use super::repair::{backup_from_primary, foreign, primary_from};
use super::steps::Steps;
use super::{Copy, Method, Obstacle, Plan};
use crate::gpt::Table;
use crate::gpt::codec::{Fault, Header};
use crate::gpt::mirror::mirror;
use crate::gpt::reading::Reading;
use crate::units::Lba;

///
/// The plan that makes the other copy from the named one, whatever the other holds. Does not write to the disk.
///
/// From the primary: the backup goes where the primary says or, if it cannot lie there, into the last block of the
/// disk. From the backup: the primary is replaced, even one with another disk GUID.
///
/// # Errors
/// [`Obstacle::Fault`]: the copy to start from is not whole; [`Obstacle::Foreign`], [`Obstacle::NoPlace`].
pub fn plan_restore(reading: &Reading, from: Copy) -> Result<Plan, Obstacle> {
    let (geometry, found) = (&reading.geometry, reading.state());
    let whole = |copy: &Result<Table, Box<super::super::Damaged>>| {
        copy.as_ref().cloned().map_err(|damaged| Obstacle::Fault(damaged.fault.clone()))
    };
    match from {
        Copy::Primary => {
            let primary = whole(&reading.copies.primary)?;
            let last = geometry.last_lba();
            let alternate = primary.header().alternate_lba;
            let in_place = alternate > primary.header().last_usable && alternate <= last;
            let linked = if in_place { primary.clone() } else { moved(&primary, last)? };
            let steps = Steps::new(&primary, geometry, &reading.sectors).on_request(None);
            let theirs = reading.copies.backup_header().filter(|_| in_place);
            let backup = mirror(&linked, theirs, &steps.claims).map_err(|at| foreign("backup", at))?;
            let mut plan = backup_from_primary(steps, &linked, backup, found)?;
            if !in_place {
                // The primary names its new backup only after that is whole.
                let sectors = plan.apply(reading.sectors.clone());
                let mut steps = Steps::new(&linked, geometry, &sectors);
                steps.primary_header(&linked, "primary header");
                steps.barrier();
                steps.read_back_header(&linked, "primary header");
                plan.steps.retain(|step| !matches!(step, super::Step::ReadBack { what: "primary", .. }));
                plan.steps.extend(steps.done);
            }
            Ok(plan)
        }
        Copy::Backup => {
            let backup = whole(&reading.copies.backup)?;
            let old = reading.copies.primary.as_ref();
            let old = old.map_or_else(|damaged| damaged.header.as_ref(), |table| Some(table.header()));
            let mut steps = Steps::new(&backup, geometry, &reading.sectors).on_request(old);
            let primary = primary_from(&backup, old, &steps.claims, geometry)?;
            steps.array(&primary, "primary array")?;
            steps.barrier();
            steps.primary_header(&primary, "primary header");
            steps.barrier();
            let mut mirrored = backup.header().clone();
            (mirrored.first_usable, mirrored.alternate_lba) = (primary.header().first_usable, Lba(1));
            let mirrored = backup.with_header(mirrored);
            if mirrored != backup {
                steps.backup_header(&mirrored)?;
                steps.barrier();
            }
            steps.read_back(&primary, "primary");
            steps.read_back(&mirrored, "backup");
            let method = Method::Repair { found };
            Ok(Plan { steps: steps.done, method, primary, backup: Some(mirrored) })
        }
    }
}

/// The primary with its backup in the last block, if there is room after the usable area.
fn moved(primary: &Table, last: Lba) -> Result<Table, Obstacle> {
    let header = primary.header();
    let blocks = header.array_blocks();
    let from = Lba(header.last_usable.0.saturating_add(1));
    if last.0.saturating_sub(blocks) < from.0 {
        let what = "a backup";
        return Err(Obstacle::Fault(Fault::Outside { what, lba: last, blocks: blocks + 1, from, to: last }));
    }
    let header = Header { alternate_lba: last, ..header.clone() };
    Ok(primary.with_header(header))
}
