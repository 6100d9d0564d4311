//! Which blocks outside of slots qstage may write ("ours"), and the only way to make a write of them.
//!
//! Boot loaders of many boards lie outside of partitions: Amlogic at LBA 1, i.MX at 2 or 66, Allwinner at 16 and
//! 256, Rockchip at 64 and 16384. Some lie within the unused end of the entry array, some are written after the
//! first upgrade. So a block is claimed by what it holds *now*:
//!
//! | where | ours if it holds |
//! |---|---|
//! | LBA 1 and the rest of its physical block | anything: a GPT disk has its header there, and the other bytes are written as they are |
//! | between the header and the first partition | zeroes, or a block of this table's array with any attributes, torn or not |
//! | between the last usable block and the end of the disk, in no partition | the same, or a header with this disk's GUID, or a block that the medium lost |
//!
//! [`Step::Write`](super::Step) takes a [`ClaimedWrite`], and only [`Claimed::write`] makes one: a plan cannot be built
//! from a block that was not claimed. Rejected: trusting what a valid header names as its array, because
//! Allwinner's loader lies there.

use std::borrow::Cow;
use std::ops::Range;

use super::sectors::{BlockData, Geometry, Sectors};
use super::table::ATTRIBUTES;
use super::{Header, Table};
use crate::units::{ByteOffset, Guid, Lba};

/// A write of whole claimed blocks. Only a claim makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedWrite {
    at: ByteOffset,
    bytes: Vec<u8>,
    what: &'static str,
}

impl ClaimedWrite {
    /// Offset of the first byte, in bytes from the start of the disk.
    pub const fn at(&self) -> ByteOffset {
        self.at
    }

    /// The bytes to write: whole blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Description for people.
    pub const fn what(&self) -> &'static str {
        self.what
    }

    /// The same write with another description.
    pub(super) fn with_what(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    /// A write to a disk without a table, which is laid out anew: every block of it is free.
    pub(super) const fn to_blank(at: ByteOffset, bytes: Vec<u8>, what: &'static str) -> Self {
        Self { at, bytes, what }
    }
}

/// Blocks that were claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    at: ByteOffset,
    len: usize,
}

impl Claimed {
    /// The write of these bytes to the claimed blocks; `None` if the lengths differ.
    pub(super) fn write(self, bytes: Vec<u8>, what: &'static str) -> Option<ClaimedWrite> {
        (bytes.len() == self.len).then_some(ClaimedWrite { at: self.at, bytes, what })
    }
}

/// What a block holds, as far as ownership depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockContent {
    /// Zeroes: free.
    Nothing,
    /// A block of this table's array, attributes aside, perhaps torn.
    Copy,
    /// Something else.
    Foreign,
    /// The medium lost it: reading fails.
    Lost,
    /// It was not read.
    Unknown,
}

/// What permits a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimSource {
    /// What the blocks hold now.
    Evidence,
    /// An explicit request to replace this very copy: `qstage repair --from`. After the usable area UEFI has
    /// backups and nothing else, so any content there may be overwritten.
    Request,
}

/// The claims on a disk with this table.
#[derive(Debug, Clone)]
pub(super) struct Claims<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) sectors: Cow<'a, Sectors>,
    table: &'a Table,
    source: ClaimSource,
    /// Blocks of the array that hold anything, by number. Most hold nothing; those prove nothing, and are never compared.
    used: Vec<usize>,
    /// Usable blocks between the header and the first partition.
    pub(super) gap: Range<u64>,
    /// Blocks of an entry array that is to be replaced on request; `None` without such a request.
    replaced: Option<Range<u64>>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(table: &'a Table, geometry: &'a Geometry, sectors: &'a Sectors) -> Self {
        let header = table.header();
        let first = table.first_partition().map_or(u64::MAX, |lba| lba.0);
        let end = first.min(header.last_usable.0.saturating_add(1)).min(geometry.blocks);
        let gap = 2..end.max(2);
        let blocks = table.entries().chunks(geometry.block.bytes() as usize).enumerate();
        let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(i, _)| i).collect();
        Self {
            geometry,
            sectors: Cow::Borrowed(sectors),
            table,
            source: ClaimSource::Evidence,
            used,
            gap,
            replaced: None,
        }
    }

    /// These claims on explicit request: the array of `replaced` may be overwritten too.
    pub(super) fn on_request(mut self, replaced: Option<&Header>) -> Self {
        self.source = ClaimSource::Request;
        self.replaced = replaced.map(|h| h.entries_lba.0..h.entries_lba.0.saturating_add(h.array_blocks()));
        self
    }

    /// LBA 1 with its physical block; the bytes around the header are written as they are.
    pub(super) fn primary_header(&self, header: &[u8]) -> Option<ClaimedWrite> {
        let around = self.geometry.physical_block(Lba(1));
        let (range, bytes) = match self.sectors.bytes(around.clone()) {
            Some(mut bytes) => {
                let at = (1 - around.start) as usize * header.len();
                bytes.get_mut(at..at + header.len())?.copy_from_slice(header);
                (around, bytes)
            }
            // If they cannot be read, only the header's own block: better the medium merges than that we guess.
            None => (1..2, header.to_vec()),
        };
        self.claimed(&range).write(bytes, "primary header")
    }

    /// One block for a backup header; the LBA as error if it is not ours.
    pub(super) fn backup_header(&self, at: Lba) -> Result<Claimed, Lba> {
        let ours = self.after_usable(at.0)
            && match self.sectors.get(at.0) {
                BlockData::Bytes(bytes) => {
                    self.source == ClaimSource::Request
                        || bytes.iter().all(|byte| *byte == 0)
                        || disk_guid(bytes) == Some(self.table.header().disk_guid)
                }
                BlockData::Lost => true,
                BlockData::Unknown => false,
            };
        if ours { Ok(self.claimed(&(at.0..at.0 + 1))) } else { Err(at) }
    }

    /// Blocks of an array, before the first partition or after the usable area; the first LBA that is not ours as
    /// error.
    pub(super) fn array(&self, blocks: Range<u64>) -> Result<Claimed, Lba> {
        match blocks.clone().find(|lba| !self.is_ours(*lba)) {
            Some(foreign) => Err(Lba(foreign)),
            None => Ok(self.claimed(&blocks)),
        }
    }

    fn is_ours(&self, lba: u64) -> bool {
        let replaced = self.replaced.as_ref().is_some_and(|replaced| replaced.contains(&lba));
        if self.after_usable(lba) {
            return match self.holds(lba) {
                BlockContent::Nothing | BlockContent::Copy | BlockContent::Lost => true,
                BlockContent::Foreign => self.source == ClaimSource::Request,
                BlockContent::Unknown => false,
            };
        }
        self.gap.contains(&lba)
            && match self.holds(lba) {
                BlockContent::Nothing | BlockContent::Copy => true,
                // A lost block of the gap may have been a loader's; one of our own array is that array's.
                BlockContent::Lost => replaced || self.own_array(lba),
                BlockContent::Foreign => replaced,
                BlockContent::Unknown => false,
            }
    }

    fn own_array(&self, lba: u64) -> bool {
        let header = self.table.header();
        let first = header.entries_lba.0;
        (first..first.saturating_add(header.array_blocks())).contains(&lba)
    }

    /// Whether a block lies after the usable area, on the disk, and in no partition.
    fn after_usable(&self, lba: u64) -> bool {
        let at = self.geometry.offset(lba).0;
        lba > self.table.header().last_usable.0
            && lba < self.geometry.blocks
            && !self
                .table
                .partitions()
                .iter()
                .any(|p| (p.extent.at.0..p.extent.at.0 + p.extent.len).contains(&at))
    }

    fn claimed(&self, blocks: &Range<u64>) -> Claimed {
        let len = (blocks.end - blocks.start) as usize * self.geometry.block.bytes() as usize;
        Claimed { at: self.geometry.offset(blocks.start), len }
    }

    /// What a block holds.
    pub(super) fn holds(&self, lba: u64) -> BlockContent {
        match self.sectors.get(lba) {
            BlockData::Unknown => BlockContent::Unknown,
            BlockData::Lost => BlockContent::Lost,
            BlockData::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0) => BlockContent::Nothing,
            BlockData::Bytes(bytes) if self.is_copy(lba, bytes) => BlockContent::Copy,
            BlockData::Bytes(_) => BlockContent::Foreign,
        }
    }

    /// Whether these bytes are any block of the array.
    fn is_copy(&self, lba: u64, bytes: &[u8]) -> bool {
        let (block, size) = (bytes.len(), self.table.header().entry_size() as usize);
        // At its own place a block needs no proof by GUID: whatever the CRC covers there is the array.
        let own = lba.checked_sub(self.table.header().entries_lba.0).filter(|_| self.own_array(lba));
        self.used.iter().any(|&i| {
            let ours = self.table.entries().chunks(block).nth(i).unwrap_or_default();
            let is_own = own == Some(i as u64) && same(bytes, ours, i * block, size) == block;
            is_own || is_torn_copy(bytes, ours, i * block, size)
        })
    }
}

impl Claims<'_> {
    /// Whether the block at `lba` is block `i` of the array, attributes aside.
    pub(super) fn is_block(&self, lba: u64, i: usize) -> bool {
        let BlockData::Bytes(bytes) = self.sectors.get(lba) else { return false };
        let size = self.table.header().entry_size() as usize;
        let ours = self.table.entries().chunks(bytes.len()).nth(i);
        ours.is_some_and(|ours| same(bytes, ours, i * bytes.len(), size) == bytes.len())
    }
}

/// The disk GUID of a header, valid or not; `None` if there is no header signature.
pub(super) fn disk_guid(block: &[u8]) -> Option<Guid> {
    let signature = block.get(..8)?;
    let known = signature == b"EFI PART" || signature == b"IGNOREME";
    let guid = block.get(56..72).filter(|_| known)?;
    Some(Guid(guid.try_into().ok()?))
}

/// Number of equal bytes from the start, attributes of used entries aside; `ours` begins at byte `at` of the array.
fn same(there: &[u8], ours: &[u8], at: usize, size: usize) -> usize {
    // Sixteen at once, since almost all are equal: a plan asks this of every block of every place for an array.
    let mut from = 0;
    while from < there.len() {
        let to = (from + 16).min(there.len());
        let all = ours.get(from..to).is_some_and(|ours| there.get(from..to) == Some(ours));
        if let Some(other) = (from..to).find(|&i| !all && !same_byte(there, ours, at, size, i)) {
            return other;
        }
        from = to;
    }
    there.len()
}

/// Whether byte `i` of both is equal; bytes after the end of the array in its last block count as zero.
fn same_byte(there: &[u8], ours: &[u8], at: usize, size: usize, i: usize) -> bool {
    let mine = ours.get(i).copied().unwrap_or(0);
    if there.get(i) == Some(&mine) {
        return true;
    }
    let entry = (at + i) / size * size;
    let used = |entry: usize| {
        // An entry begins in this block or, where entries are larger than blocks, before it. In the latter case
        // only a part of it is visible, and it counts as used if this part holds anything.
        entry.checked_sub(at).and_then(|from| ours.get(from..from + 16)).is_none_or(|kind| kind != [0; 16])
    };
    i < ours.len() && ATTRIBUTES.contains(&(at + i - entry)) && used(entry)
}

/// Whether a block is one of ours, or was when a power cut tore it: one part ours, the other zero. One partition
/// GUID has to be there whole: a few bytes that fit by chance prove nothing.
fn is_torn_copy(there: &[u8], ours: &[u8], at: usize, size: usize) -> bool {
    let zero = |part: Option<&[u8]>| part.is_some_and(|part| part.iter().all(|byte| *byte == 0));
    let prefix = same(there, ours, at, size);
    let covered = if zero(there.get(prefix..)) {
        0..prefix
    } else {
        let differs = |i: &usize| !same_byte(there, ours, at, size, *i);
        let suffix = (0..there.len()).rev().find(differs).map_or(0, |last| last + 1);
        if !zero(there.get(..suffix)) {
            return false;
        }
        suffix..there.len()
    };
    let first = at.next_multiple_of(size) - at;
    (first..there.len()).step_by(size.min(there.len()).max(1)).any(|entry| {
        let guid = entry + 16..entry + 32;
        covered.start <= guid.start
            && guid.end <= covered.end
            && ours.get(guid).is_some_and(|guid| guid.iter().any(|byte| *byte != 0))
    })
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
