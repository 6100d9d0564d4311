//! Brings a table with other attributes onto the disk.

use super::steps::Steps;
use super::{Method, Obstacle, Plan, TableMethod};
use crate::gpt::place::{self, NoPlace};
use crate::gpt::sectors::{Geometry, Sectors};
use crate::gpt::{Header, Table};
use crate::units::Lba;

/// How the primary copy is changed.
#[derive(Clone, Copy)]
enum Route {
    /// The array goes to this spare place, then home.
    Spare(Lba),
    /// The array lies away from home: it goes home, which serves as the spare place.
    Home,
    /// The array in use is overwritten.
    InPlace(NoPlace),
}

/// The plan that brings `new`, which is `primary` with other attributes, onto a disk whose copies are equal or that
/// has no backup. Empty if nothing changes and the array lies at home. Does not write to the disk.
///
/// # Errors
/// [`Obstacle::Unsafe`]: there is neither a spare place nor a backup; [`Obstacle::Foreign`]: a block that has to be
/// written is not ours.
pub fn plan_switch(
    primary: &Table,
    backup: Option<&Table>,
    new: &Table,
    (geometry, sectors): (&Geometry, &Sectors),
    how: TableMethod,
) -> Result<Plan, Obstacle> {
    let mut steps = Steps::new(primary, geometry, sectors);
    let named = primary.header().entries_lba;
    let home = place::home(&steps.claims, primary);
    let spare = match how {
        TableMethod::InPlace => Err(NoPlace::Configured),
        TableMethod::Spare => place::spare(&steps.claims, primary, &[named, home]),
    };
    let at = |lba: Lba| new.with_header(Header { entries_lba: lba, ..primary.header().clone() });
    let mirrored = backup.map(|backup| new.with_header(backup.header().clone()));
    let apart = place::blocks(primary, home).end <= named.0;
    let way = match spare {
        Ok(spare) => Route::Spare(spare),
        Err(_) if apart => Route::Home,
        Err(why) => Route::InPlace(why),
    };
    let (method, rest) = match way {
        Route::Spare(_) | Route::Home => (Method::SecondArray, home),
        Route::InPlace(why) => (Method::InPlace { why }, named),
    };
    let after = at(rest);
    if new.entries() == primary.entries() && rest == named {
        return Ok(Plan { steps: Vec::new(), method, primary: primary.clone(), backup: backup.cloned() });
    }
    match way {
        Route::Spare(spare) => {
            let meanwhile = at(spare);
            steps.array(&meanwhile, "spare array")?;
            steps.barrier();
            steps.read_back_array(&meanwhile, "spare array");
            steps.primary_header(&meanwhile, "primary header: the commit");
            steps.barrier();
            steps.read_back_header(&meanwhile, "primary header");
            back_up(&mut steps, mirrored.as_ref())?;
            steps.array_for_blind_readers(&after, "array at home")?;
            steps.barrier();
            steps.read_back_array(&after, "array at home");
            steps.primary_header(&after, "primary header: the array is home");
            steps.barrier();
            // If the disk lost this write, it still names the spare place, which must not be cleared then.
            steps.read_back_header(&after, "primary header");
        }
        Route::Home => {
            steps.array_for_blind_readers(&after, "array at home")?;
            steps.barrier();
            steps.read_back_array(&after, "array at home");
            steps.primary_header(&after, "primary header: the commit");
            steps.barrier();
            steps.read_back_header(&after, "primary header");
            back_up(&mut steps, mirrored.as_ref())?;
            steps.barrier();
        }
        Route::InPlace(why) => {
            let mirrored = mirrored.as_ref().ok_or(Obstacle::Unsafe { why })?;
            steps.array(mirrored, "backup array")?;
            steps.barrier();
            steps.backup_header(mirrored)?;
            steps.barrier();
            steps.array_for_blind_readers(&after, "primary array, changed part")?;
            steps.barrier();
            steps.primary_header(&after, "primary header: the commit");
            steps.barrier();
        }
    }
    // Nothing refers to it any more, so losing this write is harmless. The barrier is for what the verb writes
    // next.
    match way {
        Route::Spare(spare) => {
            steps.clear(Some(place::blocks(primary, spare)), place::blocks(primary, home));
        }
        Route::Home => steps.clear(None, place::blocks(primary, home)),
        Route::InPlace(_) => {}
    }
    steps.read_back(&after, "primary");
    if let Some(mirrored) = &mirrored {
        steps.read_back(mirrored, "backup");
    }
    Ok(Plan { steps: steps.done, method, primary: after, backup: mirrored })
}

/// Writes the backup copy. Its header shares the barrier of the next write: neither copy refers to that yet.
fn back_up(steps: &mut Steps<'_>, mirrored: Option<&Table>) -> Result<(), Obstacle> {
    let Some(mirrored) = mirrored else { return Ok(()) };
    steps.array(mirrored, "backup array")?;
    steps.barrier();
    steps.backup_header(mirrored)
}
