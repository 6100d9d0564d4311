//! How a changed table gets onto the disk: a list of writes and barriers, computed from bytes alone. It can be
//! printed, run, and cut at every sector in a test.
//!
//! ```text
//! second array                          in place (no room for a second array)
//! 1  array at the other place           1  changed sectors of the backup array
//! -- barrier, read back                 -- barrier
//! 2  THE SECTOR of the primary header   2  backup header
//! -- barrier, read back                 -- barrier
//! 3  backup array                       3  changed sectors of the primary array   <- a cut from here on
//! -- barrier                            -- barrier                                    leaves a primary that
//! 4  backup header                      4  primary header                         <- Linux does not accept
//! -- barrier, read back all             -- barrier, read back all
//! ```
//!
//! Rejected: the whole array in place (80 of its cut states leave some real reader without a slot in 35), and
//! backup first with a second array (a cut then leaves two valid copies that differ before the commit).

mod repair;
mod steps;
mod switch;

use std::fmt;

pub use repair::plan_repair;
pub use switch::plan_switch;

use super::codec::{Fault, Header};
use super::place::NoPlace;
pub use super::place::{Geometry, Head};
use super::table::Table;
use crate::units::{ByteOffset, Lba};

/// A copy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// What is wrong.
    pub fault: Fault,
    /// Its header, if at least that is whole.
    pub header: Option<Header>,
}

/// Both copies as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The one at LBA 1.
    pub primary: Result<Table, Box<Damaged>>,
    /// The one at the primary's alternate LBA, or at the end of the disk.
    pub backup: Result<Table, Box<Damaged>>,
}

/// How sound the two copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyState {
    /// Both valid, and they say the same.
    Equal,
    /// Both valid, but they say different things; the primary rules.
    Differ,
    /// Only the primary is valid.
    PrimaryOnly,
    /// Only the backup is valid.
    BackupOnly,
    /// Neither is.
    None,
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Equal => "equal",
            Self::Differ => "differ",
            Self::PrimaryOnly => "primary only",
            Self::BackupOnly => "backup only",
            Self::None => "none",
        })
    }
}

impl Copies {
    /// Compares them.
    pub fn state(&self) -> CopyState {
        match (&self.primary, &self.backup) {
            (Ok(primary), Ok(backup)) => {
                let (p, b) = (primary.header(), backup.header());
                let linked = p.alternate_lba == b.my_lba && b.alternate_lba == p.my_lba;
                if linked && primary.agrees_with(backup) { CopyState::Equal } else { CopyState::Differ }
            }
            (Ok(_), Err(_)) => CopyState::PrimaryOnly,
            (Err(_), Ok(_)) => CopyState::BackupOnly,
            (Err(_), Err(_)) => CopyState::None,
        }
    }

    /// The table that rules: the primary where it is valid, else the backup. U-Boot, OVMF and Linux decide so.
    pub fn ruling(&self) -> Option<&Table> {
        self.primary.as_ref().or(self.backup.as_ref()).ok()
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes whole blocks.
    Write {
        /// Where.
        at: ByteOffset,
        /// What.
        bytes: Vec<u8>,
        /// What it is.
        what: &'static str,
    },
    /// All before is durable before anything after.
    Barrier,
    /// Reads from the medium and compares.
    ReadBack {
        /// Where.
        at: ByteOffset,
        /// What has to be there.
        bytes: Vec<u8>,
        /// What it is.
        what: &'static str,
    },
}

/// How a plan does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The new array goes to another place, one header sector switches. Safe at every cut for every reader.
    SecondArray,
    /// The primary array is overwritten. A cut in the midst of it leaves the backup only.
    InPlace {
        /// Why not the other way.
        why: NoPlace,
    },
    /// A new table on a disk that has none.
    Layout,
    /// One copy is made from the other; the valid one is not touched before the other is whole.
    Repair {
        /// What was found.
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
    /// In order. Empty where the disk already is as wanted.
    pub steps: Vec<Step>,
    /// How.
    pub method: Method,
    /// The primary copy afterwards.
    pub primary: Table,
    /// The backup copy afterwards.
    pub backup: Table,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps for people, one line each.
    pub fn describe(&self) -> Vec<String> {
        let block = u64::from(self.primary.header().block().bytes());
        let line = |verb: &str, at: &ByteOffset, bytes: &[u8], what: &str| {
            let (first, blocks) = (at.0 / block, bytes.len() as u64 / block);
            let last = first + blocks.saturating_sub(1);
            format!("{verb} LBA {first}-{last} ({blocks} x {block} bytes): {what}")
        };
        let text = |step: &Step| match step {
            Step::Write { at, bytes, what } => line("write", at, bytes, what),
            Step::Barrier => "barrier".to_owned(),
            Step::ReadBack { at, bytes, what } => line("read back", at, bytes, what),
        };
        self.steps.iter().map(text).collect()
    }

    /// This plan, then that one.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        self.steps.extend(next.steps);
        Self { steps: self.steps, ..next }
    }

    /// The head of the disk after this plan.
    pub(crate) fn apply(&self, mut head: Head, geometry: &Geometry) -> Head {
        for step in &self.steps {
            if let Step::Write { at, bytes, .. } = step {
                head.overlay(*at, bytes, geometry.block);
            }
        }
        head
    }
}

/// Whether header and array lie where a copy of this kind may lie on this disk.
pub fn check_places(header: &Header, geometry: &Geometry) -> Result<(), Fault> {
    let end = geometry.last_lba();
    let inside = |what, lba: Lba, blocks: u64, from: Lba, to: Lba| {
        let last = lba.0.checked_add(blocks).and_then(|past| past.checked_sub(1));
        if lba >= from && last.is_some_and(|last| last <= to.0) {
            return Ok(());
        }
        Err(Fault::Outside { what, lba, blocks, from, to })
    };
    inside("the last usable block", header.last_usable, 1, Lba(0), end)?;
    let blocks = header.array_blocks();
    if header.my_lba == Lba(1) {
        // One that named itself or a place within the partitions would have us write a backup there. That it
        // may lie beyond the end (a disk image cut short) is the backup's fault, not the primary's.
        let behind = Lba(header.last_usable.0 + 1);
        inside("the alternate header", header.alternate_lba, 1, behind, Lba(u64::MAX))?;
        return inside("the primary entry array", header.entries_lba, blocks, Lba(2), end);
    }
    // Behind the usable area and before its header (UEFI 2.10, 5.3.1): elsewhere it may be anything, the
    // primary array included.
    let (from, to) = (Lba(header.last_usable.0 + 1), Lba(header.my_lba.0.saturating_sub(1)));
    inside("the backup entry array", header.entries_lba, blocks, from, to)?;
    inside("the backup header", header.my_lba, 1, from, end)
}
