//! The blocks around a disk's table as read: before the first partition and after the last usable block. Every
//! decision about the table is made on these bytes.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::units::{BlockSize, ByteOffset, Lba};

/// Block sizes and length of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block size.
    pub block: BlockSize,
    /// Physical block size in bytes, at least the logical one.
    pub physical: u32,
    /// Number of logical blocks.
    pub blocks: u64,
}

impl Geometry {
    /// The geometry of a disk of `len` bytes. An impossible physical size (firmware reports strange ones) is
    /// replaced by the logical size.
    pub fn new(len: u64, block: BlockSize, physical: u32) -> Self {
        let sane = physical.is_power_of_two() && (block.bytes()..=1 << 16).contains(&physical);
        let physical = if sane { physical } else { block.bytes() };
        Self { block, physical, blocks: len / u64::from(block.bytes()) }
    }

    /// The last block of the disk: where the backup header is by default.
    pub fn last_lba(&self) -> Lba {
        Lba(self.blocks.saturating_sub(1))
    }

    pub(crate) fn block_len(&self) -> u64 {
        u64::from(self.block.bytes())
    }

    /// The blocks that the medium rewrites together with the one at `lba`.
    pub(crate) fn physical_block(&self, lba: Lba) -> Range<u64> {
        let each = (u64::from(self.physical) / self.block_len()).max(1);
        let first = lba.0 / each * each;
        first..(first + each).min(self.blocks)
    }

    /// Offset of a block. Places are checked against the size of the disk first, so nothing saturates.
    pub(crate) fn offset(&self, lba: u64) -> ByteOffset {
        ByteOffset(lba.saturating_mul(self.block_len()))
    }
}

/// Blocks of a disk, as read or as a plan leaves them. Blocks that were not read are unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sectors {
    block: usize,
    /// First block and bytes, in rising order, without overlap.
    runs: Vec<(u64, Vec<u8>)>,
    /// Blocks within the runs that the medium could not return.
    lost: BTreeSet<u64>,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockData<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// The medium lost it: reading fails.
    Lost,
    /// It was not read.
    Unknown,
}

impl Sectors {
    /// No known blocks, on a disk with blocks of this size.
    pub fn new(block: BlockSize) -> Self {
        Self { block: block.bytes() as usize, runs: Vec::new(), lost: BTreeSet::new() }
    }

    /// Adds whole blocks that were read from block `first` on; those in `lost` could not be read. Runs are added in
    /// rising order and do not overlap.
    pub fn add(&mut self, first: Lba, bytes: Vec<u8>, lost: impl IntoIterator<Item = u64>) {
        self.lost.extend(lost);
        self.runs.push((first.0, bytes));
        self.runs.sort_by_key(|(first, _)| *first);
    }

    /// What is known of the block at `lba`.
    pub fn get(&self, lba: u64) -> BlockData<'_> {
        if self.lost.contains(&lba) {
            return BlockData::Lost;
        }
        let after = self.runs.partition_point(|(first, _)| *first <= lba);
        let run = after.checked_sub(1).and_then(|i| self.runs.get(i));
        let within = |(first, bytes): &'_ (u64, Vec<u8>)| {
            let at = usize::try_from(lba - first).ok()?.checked_mul(self.block)?;
            (at + self.block <= bytes.len()).then_some(at)
        };
        match run.and_then(|run| Some((run, within(run)?))) {
            Some(((_, bytes), at)) => BlockData::Bytes(&bytes[at..at + self.block]),
            None => BlockData::Unknown,
        }
    }

    /// The bytes of these blocks; `None` unless all of them are known.
    pub fn bytes(&self, blocks: Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for lba in blocks {
            let BlockData::Bytes(block) = self.get(lba) else { return None };
            bytes.extend_from_slice(block);
        }
        Some(bytes)
    }

    /// Applies a write of whole blocks at `at`. Unknown blocks stay unknown.
    pub(super) fn overlay(&mut self, at: ByteOffset, bytes: &[u8]) {
        let first = at.0 / self.block as u64;
        for (lba, block) in (first..).zip(bytes.chunks_exact(self.block)) {
            self.lost.remove(&lba);
            for (start, run) in &mut self.runs {
                let place = lba.checked_sub(*start).and_then(|i| usize::try_from(i).ok());
                let place = place.and_then(|i| run.get_mut(i * self.block..(i + 1) * self.block));
                if let Some(place) = place {
                    place.copy_from_slice(block);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_known_lost_or_unknown() {
        let mut sectors = Sectors::new(BlockSize::B512);
        sectors.add(Lba(100), vec![7; 1024], []);
        sectors.add(Lba(0), vec![1; 1536], [2]);
        assert_eq!(sectors.get(1), BlockData::Bytes(&[1; 512]));
        assert_eq!(
            (sectors.get(2), sectors.get(3), sectors.get(99)),
            (BlockData::Lost, BlockData::Unknown, BlockData::Unknown)
        );
        assert_eq!((sectors.get(101), sectors.get(102)), (BlockData::Bytes(&[7; 512]), BlockData::Unknown));
        assert_eq!((sectors.bytes(0..2), sectors.bytes(0..3)), (Some(vec![1; 1024]), None));
        sectors.overlay(ByteOffset(2 * 512), &[9; 1024]);
        assert_eq!((sectors.get(2), sectors.get(3)), (BlockData::Bytes(&[9; 512]), BlockData::Unknown));
    }

    #[test]
    fn physical_blocks_are_those_of_the_medium() {
        let geometry = |physical| Geometry::new(1 << 20, BlockSize::B512, physical);
        assert_eq!(geometry(512).physical_block(Lba(1)), 1..2);
        assert_eq!(geometry(4096).physical_block(Lba(1)), 0..8);
        assert_eq!(geometry(4096).physical_block(Lba(9)), 8..16);
        // The last one of a disk may be cut off.
        assert_eq!(Geometry::new(6 * 512, BlockSize::B512, 4096).physical_block(Lba(1)), 0..6);
        // Firmware reports strange sizes.
        assert_eq!(geometry(0).physical_block(Lba(1)), 1..2);
        assert_eq!(geometry(3000).physical_block(Lba(1)), 1..2);
    }
}
