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

use std::fmt;

use super::codec::{Fault, Header};
use super::place::{self, NoPlace};
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
        return inside("the primary entry array", header.entries_lba, blocks, Lba(2), end);
    }
    // Behind the usable area and before its header (UEFI 2.10, 5.3.1): elsewhere it may be anything, the
    // primary array included.
    let (from, to) = (Lba(header.last_usable.0 + 1), Lba(header.my_lba.0.saturating_sub(1)));
    inside("the backup entry array", header.entries_lba, blocks, from, to)?;
    inside("the backup header", header.my_lba, 1, from, end)
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
    let hit = |p: &super::Partition| p.extent.at.0 < to && p.extent.at.0 + p.extent.len > from;
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

/// Collects steps, knowing what each leaves at the head of the disk.
struct Steps<'a> {
    geometry: &'a Geometry,
    head: Head,
    done: Vec<Step>,
}

impl<'a> Steps<'a> {
    fn new(geometry: &'a Geometry, head: &Head) -> Self {
        Self { geometry, head: head.clone(), done: Vec::new() }
    }

    fn barrier(&mut self) {
        self.done.push(Step::Barrier);
    }

    fn write(&mut self, at: u64, bytes: Vec<u8>, what: &'static str) {
        self.head.overlay(ByteOffset(at), &bytes, self.geometry.block);
        self.done.push(Step::Write { at: ByteOffset(at), bytes, what });
    }

    /// Where a block lies. The places were checked against the size of the disk, so nothing saturates.
    fn offset(&self, lba: Lba) -> u64 {
        lba.0.saturating_mul(self.geometry.block_len())
    }

    /// The array in whole blocks. An array that ends within a block is followed by zeroes.
    fn padded(&self, table: &Table) -> Vec<u8> {
        let mut bytes = table.entries().to_vec();
        bytes.resize(bytes.len().next_multiple_of(self.geometry.block.bytes() as usize), 0);
        bytes
    }

    fn array(&mut self, table: &Table, what: &'static str) {
        self.write(self.offset(table.header().entries_lba), self.padded(table), what);
    }

    /// The blocks of the array in which `old` and `new` differ, neighbours in one write.
    fn changed(&mut self, old: &Table, new: &Table, what: &'static str) {
        let start = self.offset(new.header().entries_lba);
        let block = self.geometry.block.bytes() as usize;
        let (old, new) = (self.padded(old), self.padded(new));
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (i, (was, is)) in old.chunks(block).zip(new.chunks(block)).enumerate() {
            if was != is {
                let (_, bytes) = run.get_or_insert((start + (i * block) as u64, Vec::new()));
                bytes.extend_from_slice(is);
            } else if let Some((at, bytes)) = run.take() {
                self.write(at, bytes, what);
            }
        }
        if let Some((at, bytes)) = run {
            self.write(at, bytes, what);
        }
    }

    /// The header's block; for the primary the whole physical block around it, the other bytes as they are, so
    /// that the medium has nothing to read and merge. Where they cannot be read only the header's own.
    fn header(&mut self, table: &Table, what: &'static str) {
        let at = self.offset(table.header().my_lba);
        let bytes = table.header().encode();
        let physical = u64::from(self.geometry.physical);
        let from = at / physical * physical;
        match self.head.readable(from as usize, physical as usize, self.geometry.block) {
            Some(around) if physical > self.geometry.block_len() => {
                let mut around = around.to_vec();
                let within = (at - from) as usize;
                around[within..within + bytes.len()].copy_from_slice(&bytes);
                self.write(from, around, what);
            }
            _ => self.write(at, bytes, what),
        }
    }

    fn read_back_array(&mut self, table: &Table, what: &'static str) {
        let at = ByteOffset(self.offset(table.header().entries_lba));
        self.done.push(Step::ReadBack { at, bytes: self.padded(table), what });
    }

    fn read_back_header(&mut self, table: &Table, what: &'static str) {
        let at = ByteOffset(self.offset(table.header().my_lba));
        self.done.push(Step::ReadBack { at, bytes: table.header().encode(), what });
    }

    fn read_back(&mut self, table: &Table, what: &'static str) {
        self.read_back_array(table, what);
        self.read_back_header(table, what);
    }
}
