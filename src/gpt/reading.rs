//! The copies of the table as read from a disk, and which of them is used.
//!
//! | primary | backup | state | the table |
//! |---|---|---|---|
//! | whole | whole, same content | equal | both |
//! | whole | of this disk, other content | differ | primary; the backup is repaired |
//! | whole | of this disk, torn | primary only | primary; the backup is repaired |
//! | whole | cannot lie on this disk, or is another disk's | no backup | primary; all works, nothing is repaired |
//! | not whole | whole, with evidence | backup only | backup; the primary is repaired |
//! | not whole | whole, without evidence | doubtful | backup, for reading; nothing is written |
//! | marked to be ignored | whole | ignored | backup, for reading; nothing is written |
//! | not whole | not whole | none | |
//!
//! A medium has the backup of its former life at its end, and a new image seldom reaches so far. So a backup counts
//! only if there is no valid primary, and repairs the primary only with [`Evidence`] that it is this disk's.

use std::fmt;

use super::claim::{Claims, disk_guid};
use super::codec::{Fault, Header};
use super::mirror::mirror;
use super::sectors::{BlockData, Geometry, Sectors};
use super::{Table, place};
use crate::units::{Guid, Lba};

/// A copy that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// What is wrong.
    pub fault: Fault,
    /// Its header, if that is whole; else `None`.
    pub header: Option<Header>,
}

/// Both copies as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The one at LBA 1.
    pub primary: Result<Table, Box<Damaged>>,
    /// The one at the primary's alternate LBA, or at the end of the disk.
    pub backup: Result<Table, Box<Damaged>>,
}

/// State of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyState {
    /// Both are valid and have the same content.
    Equal,
    /// Both are valid and of this disk, but their contents differ; the primary is used.
    Differ,
    /// Only the primary is valid; the backup can be made from it.
    PrimaryOnly,
    /// Only the primary is valid, and there is no place of ours for a backup.
    NoBackup,
    /// Only the backup is valid, and there is evidence that it is this disk's.
    BackupOnly,
    /// Only a backup is valid, and there is no evidence that it is this disk's.
    Doubtful,
    /// Only the backup is valid, because the primary is marked to be ignored.
    Ignored,
    /// Neither is valid.
    None,
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Equal => "equal",
            Self::Differ => "differ",
            Self::PrimaryOnly => "primary only",
            Self::NoBackup => "no backup",
            Self::BackupOnly => "backup only",
            Self::Doubtful => "backup only, doubtful",
            Self::Ignored => "backup only, primary ignored on purpose",
            Self::None => "none",
        })
    }
}

/// Why a primary has no backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoBackup {
    /// The primary names a place where no backup can lie.
    NoPlace {
        /// LBA that the primary names.
        alternate: Lba,
        /// The last block of the disk.
        last: Lba,
    },
    /// The backup of another disk is there.
    OtherDisk {
        /// LBA of that backup.
        at: Lba,
        /// GUID of that disk.
        guid: Guid,
    },
    /// Something other than a backup lies at its place.
    Foreign {
        /// First block of that.
        at: Lba,
    },
}

impl fmt::Display for NoBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace { alternate, last } => {
                write!(
                    f,
                    "the table has its backup at LBA {alternate}, which is no place for it on a disk that ends at LBA {last}"
                )
            }
            Self::OtherDisk { at, guid } => write!(f, "at LBA {at} lies the backup of another disk ({guid})"),
            Self::Foreign { at } => write!(f, "what lies at LBA {at} is no backup of this table"),
        }
    }
}

/// Evidence that a lone backup is this disk's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The damaged primary header carries the same disk GUID.
    Guid,
    /// What is left of the primary array equals the backup's except for some blocks.
    Array,
    /// A slot that it lays out holds a whole record.
    Record,
}

/// Everything read of a disk's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its block sizes and length.
    pub geometry: Geometry,
    /// Both copies of the table.
    pub copies: Copies,
    /// The blocks around them.
    pub sectors: Sectors,
    /// Whether a slot that a lone backup lays out holds a whole record; `false` if not looked at.
    record: bool,
    /// Derived from the other fields, computed once.
    state: CopyState,
    no_backup: Option<NoBackup>,
}

impl Reading {
    /// Joins what was read. `record`: whether a slot that a lone backup lays out holds a whole record; `false` if
    /// that was not looked at.
    pub fn new(geometry: Geometry, copies: Copies, sectors: Sectors, record: bool) -> Self {
        let mut reading = Self { geometry, copies, sectors, record, state: CopyState::None, no_backup: None };
        reading.no_backup = reading.find_no_backup();
        reading.state = reading.find_state();
        reading
    }

    /// The same disk after these copies and blocks were written.
    #[must_use]
    pub fn after(&self, copies: Copies, sectors: Sectors) -> Self {
        Self::new(self.geometry, copies, sectors, self.record)
    }

    /// The table in use: the primary if it is valid, else the backup. U-Boot, OVMF and Linux with `gpt` choose the
    /// same.
    pub fn in_use(&self) -> Option<&Table> {
        self.copies.primary.as_ref().or(self.copies.backup.as_ref()).ok()
    }

    /// The state of the copies.
    pub const fn state(&self) -> CopyState {
        self.state
    }

    fn find_state(&self) -> CopyState {
        match (&self.copies.primary, &self.copies.backup) {
            (Ok(_), _) if self.no_backup.is_some() => CopyState::NoBackup,
            (Ok(primary), Ok(backup)) => {
                let (p, b) = (primary.header(), backup.header());
                let linked = p.alternate_lba == b.my_lba && b.alternate_lba == p.my_lba;
                if linked && primary.agrees_with(backup) { CopyState::Equal } else { CopyState::Differ }
            }
            (Ok(_), Err(_)) => CopyState::PrimaryOnly,
            (Err(damaged), Ok(_)) if damaged.fault == Fault::Ignored => CopyState::Ignored,
            (Err(_), Ok(_)) if self.evidence().is_some() => CopyState::BackupOnly,
            (Err(_), Ok(_)) => CopyState::Doubtful,
            (Err(_), Err(_)) => CopyState::None,
        }
    }

    /// Why a valid primary has no backup; `None` if it has one, whole or not, or if there is no valid primary.
    pub fn no_backup(&self) -> Option<NoBackup> {
        self.no_backup.clone()
    }

    fn find_no_backup(&self) -> Option<NoBackup> {
        let primary = self.copies.primary.as_ref().ok()?;
        let (header, last) = (primary.header(), self.geometry.last_lba());
        let alternate = header.alternate_lba;
        let block = match self.sectors.get(alternate.0) {
            BlockData::Bytes(block) => Some(block),
            BlockData::Lost | BlockData::Unknown => None,
        };
        let guid = block.and_then(disk_guid);
        let claims = Claims::new(primary, &self.geometry, &self.sectors);
        if alternate <= header.last_usable || alternate > last {
            return Some(NoBackup::NoPlace { alternate, last });
        }
        if let Some(guid) = guid.filter(|guid| *guid != header.disk_guid) {
            return Some(NoBackup::OtherDisk { at: alternate, guid });
        }
        match &self.copies.backup {
            Ok(_) => None,
            Err(_) => match mirror(primary, self.copies.backup_header(), &claims) {
                Ok(_) => None,
                Err(at) => Some(NoBackup::Foreign { at }),
            },
        }
    }

    /// Evidence that a backup without a valid primary is this disk's; `None` if there is none.
    pub fn evidence(&self) -> Option<Evidence> {
        let (Err(_), Ok(backup)) = (&self.copies.primary, &self.copies.backup) else { return None };
        if let BlockData::Bytes(header) = self.sectors.get(1)
            && disk_guid(header) == Some(backup.header().disk_guid)
        {
            return Some(Evidence::Guid);
        }
        let claims = Claims::new(backup, &self.geometry, &self.sectors);
        // Partitioners, version 0.1 and switches put the array at some place in the gap.
        if claims.gap.clone().any(|lba| claims.holds(lba) == super::claim::BlockContent::Copy) {
            return Some(Evidence::Array);
        }
        self.record.then_some(Evidence::Record)
    }

    /// LBA where the primary array belongs. It differs from where the array lies only if a cut or version 0.1 left
    /// it away from home.
    pub fn home(&self) -> Option<Lba> {
        let primary = self.copies.primary.as_ref().ok()?;
        Some(place::home(&Claims::new(primary, &self.geometry, &self.sectors), primary))
    }

    /// The last usable LBA of a table that describes a larger disk than this one; else `None`.
    pub fn describes_larger(&self) -> Option<Lba> {
        let last = self.in_use()?.header().last_usable;
        (last > self.geometry.last_lba()).then_some(last)
    }
}

impl Copies {
    /// The header of the backup if it is whole.
    pub(super) fn backup_header(&self) -> Option<&Header> {
        self.backup.as_ref().map_or_else(|damaged| damaged.header.as_ref(), |table| Some(table.header()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::units::BlockSize;

    /// Two valid copies on a disk of 8192 blocks; LBA 8158 is the last usable one.
    fn reading(edit: impl Fn(&mut Header, &mut Header)) -> Reading {
        let table = testing::table(&[(1, "a", 2048, 4095, 0)]);
        let mut primary = table.header().clone();
        let (my_lba, alternate_lba, entries_lba) = (Lba(8191), Lba(1), Lba(8159));
        let mut backup = Header { my_lba, alternate_lba, entries_lba, ..primary.clone() };
        edit(&mut primary, &mut backup);
        let copies =
            Copies { primary: Ok(table.with_header(primary)), backup: Ok(table.with_header(backup)) };
        let geometry = Geometry::new(8192 * 512, BlockSize::B512, 512);
        Reading::new(geometry, copies, Sectors::new(BlockSize::B512), false)
    }

    #[test]
    fn copies_are_equal_if_each_names_the_other() {
        assert_eq!(reading(|_, _| {}).state(), CopyState::Equal);
        assert_eq!(reading(|_, backup| backup.alternate_lba = Lba(2)).state(), CopyState::Differ);
        assert_eq!(reading(|_, backup| backup.my_lba = Lba(8190)).state(), CopyState::Differ);
    }

    #[test]
    fn a_backup_has_its_place_after_the_usable_area_and_on_the_disk() {
        let why = |at: u64| reading(|primary, _| primary.alternate_lba = Lba(at)).no_backup();
        let no_place = |at| Some(NoBackup::NoPlace { alternate: Lba(at), last: Lba(8191) });
        assert_eq!([1, 8158, 8192, u64::MAX].map(why), [1, 8158, 8192, u64::MAX].map(no_place));
        assert_eq!([8159, 8191].map(why), [None, None]);
    }

    #[test]
    fn a_table_of_a_larger_disk_is_known_by_its_usable_area() {
        let larger = |last: u64| reading(|primary, _| primary.last_usable = Lba(last)).describes_larger();
        assert_eq!([8158, 8191, 8192].map(larger), [None, None, Some(Lba(8192))]);
    }
}
