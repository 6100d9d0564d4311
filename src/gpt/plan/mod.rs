//! How a changed table gets onto the disk: a list of writes and barriers, computed from bytes alone. It can be
//! printed, run, and cut at every sector in a test.
//!
//! ```text
//! spare place                            in place (no room for it, or as configured)
//! 1  array at the spare place            1  changed sectors of the backup array
//! -- barrier, read back                  -- barrier
//! 2  THE SECTOR of the primary header    2  backup header
//! -- barrier, read back                  -- barrier
//! 3  backup array                        3  changed sectors of the primary array   <- a cut from here on
//! -- barrier                             -- barrier                                    leaves a primary that
//! 4  backup header; array at home        4  primary header                         <- Linux does not accept
//! -- barrier, read back                  -- barrier, read back all
//! 5  primary header names home
//! -- barrier
//! 6  spare place cleared, read back all
//! ```
//!
//! Each array is written only where it differs from what lies there. Steps 3 and 4 are missing if the table has no
//! backup.
//!
//! Rejected: the whole array in place (80 of its cut states leave some real reader without a slot in 35); backup
//! first (a cut then leaves two valid copies that differ before the commit); an array that stays at its second
//! place (loaders that are written later overwrite it, and firmware that always reads LBA 2 sees the flags of the
//! first day for ever).

mod repair;
mod restore;
mod steps;
mod switch;

use std::fmt;

pub use repair::plan_repair;
pub use restore::plan_restore;
pub use switch::plan_switch;

use super::Attributes;
pub use super::claim::ClaimedWrite;
use super::codec::Fault;
use super::place::NoPlace;
use super::reading::{CopyState, Reading};
use super::sectors::{Geometry, Sectors};
use super::table::{ATTRIBUTES, Table};
use crate::units::{ByteOffset, Lba};

/// How a table is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableMethod {
    /// At a spare place, switched by one sector; in place only if there is no spare place.
    #[default]
    Spare,
    /// In place, for firmware that must never see a header that names another place than the usual one.
    InPlace,
}

/// A copy of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// The one at LBA 1.
    Primary,
    /// The one at the end.
    Backup,
}

/// Why no plan is possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A block that would have to be written holds data that is not ours.
    Foreign {
        /// What would be written.
        what: &'static str,
        /// The block.
        at: Lba,
    },
    /// There is no place for the array of a new primary.
    NoPlace(NoPlace),
    /// There is neither a spare place nor a backup: a power cut would leave no table.
    Unsafe {
        /// Why there is no spare place.
        why: NoPlace,
    },
    /// Only a backup is valid, and there is no evidence that it is this disk's.
    Doubtful,
    /// The primary header is marked IGNOREME.
    Ignored,
    /// The requested copy is not whole, or cannot lie on this disk.
    Fault(Fault),
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes whole claimed blocks.
    Write(ClaimedWrite),
    /// Everything before is durable before anything after.
    Barrier,
    /// Reads from the medium and compares.
    ReadBack {
        /// Offset in bytes from the start of the disk.
        at: ByteOffset,
        /// The expected bytes.
        bytes: Vec<u8>,
        /// Description for people.
        what: &'static str,
    },
}

/// How a plan changes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The new array is written to another place, then one header sector switches. Safe at every cut for every
    /// reader.
    SecondArray,
    /// The primary array is overwritten. A cut during that leaves only the backup.
    InPlace {
        /// Why the other method is not possible.
        why: NoPlace,
    },
    /// A new table on a disk that has none.
    Layout,
    /// One copy is made from the other; the valid one is not touched before the other is whole.
    Repair {
        /// State of the copies before the repair.
        found: CopyState,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecondArray => f.write_str("second array, switched by one sector"),
            Self::InPlace { why } => {
                write!(f, "in place, {why}: after a power cut Linux may need the kernel option 'gpt'")
            }
            Self::Layout => f.write_str("new table"),
            Self::Repair { found } => write!(f, "repair, copies found: {found}"),
        }
    }
}

/// Writes and barriers that bring a table onto the disk, and what the disk holds afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order. Empty if the disk already is as wanted.
    pub steps: Vec<Step>,
    /// The method.
    pub method: Method,
    /// The primary copy after the plan.
    pub primary: Table,
    /// The backup copy after the plan; `None` if the table has none.
    pub backup: Option<Table>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps as text, one line each.
    pub fn describe(&self) -> Vec<String> {
        let block = u64::from(self.primary.header().block().bytes());
        let line = |verb: &str, at: ByteOffset, bytes: &[u8], what: &str| {
            let (first, blocks) = (at.0 / block, bytes.len() as u64 / block);
            let last = first + blocks.saturating_sub(1);
            format!("{verb} LBA {first}-{last} ({blocks} x {block} bytes): {what}")
        };
        let text = |step: &Step| match step {
            Step::Write(write) => line("write", write.at(), write.bytes(), write.what()),
            Step::Barrier => "barrier".to_owned(),
            Step::ReadBack { at, bytes, what } => line("read back", *at, bytes, what),
        };
        self.steps.iter().map(text).collect()
    }

    /// This plan followed by `next`.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        self.steps.extend(next.steps);
        Self { steps: self.steps, ..next }
    }

    /// The known blocks of the disk after this plan.
    pub(crate) fn apply(&self, mut sectors: Sectors) -> Sectors {
        for step in &self.steps {
            if let Step::Write(write) = step {
                sectors.overlay(write.at(), write.bytes());
            }
        }
        sectors
    }
}

/// The plan that brings `new` onto the disk: pending repairs first, then the switch. Does not write to the disk.
///
/// # Errors
/// As [`plan_repair`] and [`plan_switch`].
pub fn plan(reading: &Reading, new: &Table, how: TableMethod) -> Result<Plan, Obstacle> {
    let geometry = &reading.geometry;
    if let Some(repair) = plan_repair(reading)? {
        let sectors = repair.apply(reading.sectors.clone());
        let switch = plan_switch(&repair.primary, repair.backup.as_ref(), new, (geometry, &sectors), how)?;
        return Ok(if switch.is_empty() { repair } else { repair.then(switch) });
    }
    let primary =
        reading.copies.primary.as_ref().map_err(|damaged| Obstacle::Fault(damaged.fault.clone()))?;
    let backup = reading.copies.backup.as_ref().ok().filter(|_| reading.no_backup().is_none());
    plan_switch(primary, backup, new, (geometry, &reading.sectors), how)
}

/// Whether this change of an array block makes a slot bootable or moves it before another. Attributes of entries
/// that are not slots do not change.
fn raises_rank(old: &[u8], new: &[u8], entry_size: usize) -> bool {
    let step = entry_size.clamp(1, old.len().max(1));
    let attributes = |block: &[u8], at: usize| {
        let bytes = block.get(at + ATTRIBUTES.start..at + ATTRIBUTES.end);
        Attributes(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
    };
    // What a loader goes by: the priority of bootable entries, and the flag of the legacy BIOS.
    let rank =
        |bits: Attributes| (if bits.will_boot() { bits.priority() } else { 0 }, bits.legacy_bootable());
    (0..old.len()).step_by(step).any(|at| {
        let (old, new) = (rank(attributes(old, at)), rank(attributes(new, at)));
        new.0 > old.0 || new.1 && !old.1
    })
}
