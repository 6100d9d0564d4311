//! Where an entry array may be put: the space between the primary header and the first partition belongs to
//! the table by UEFI, but on many boards a raw boot loader lies in it too.
//!
//! Rockchip boots from LBA 64, Allwinner from LBA 16, i.MX from LBA 66, none of them inside a partition. So a
//! place counts as free only where every block is either all zero or is, attributes aside, the corresponding
//! block of the array as it is now: then it is a former copy of ours, perhaps torn, and nobody's loader.

use std::collections::BTreeSet;
use std::fmt;

use super::Table;
use super::table::masked;
use crate::units::{BlockSize, ByteOffset, Lba};

/// Places begin at multiples of this or of the physical block, whichever is larger, so that an array and the
/// primary header never share a physical block: the medium rewrites such a block as one.
const UNIT: u64 = 4096;

/// What the plan has to know of the disk.
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
    /// The geometry of a disk of `len` bytes. A physical size that cannot be (firmware reports strange ones)
    /// is taken for the logical size.
    pub fn new(len: u64, block: BlockSize, physical: u32) -> Self {
        let sane = physical.is_power_of_two() && (block.bytes()..=1 << 16).contains(&physical);
        let physical = if sane { physical } else { block.bytes() };
        Self { block, physical, blocks: len / u64::from(block.bytes()) }
    }

    /// The last block of the disk: where the backup header is when nothing says otherwise.
    pub fn last_lba(&self) -> Lba {
        Lba(self.blocks.saturating_sub(1))
    }

    pub(crate) fn block_len(&self) -> u64 {
        u64::from(self.block.bytes())
    }
}

/// The first bytes of the disk, up to the first partition or to [`Head::MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// The bytes from block 0 on; zero where they could not be read.
    pub bytes: Vec<u8>,
    /// The blocks that could not be read.
    pub unreadable: BTreeSet<u64>,
}

impl Head {
    /// No more than this is read: two places for the usual array of 16 KiB need 36 KiB.
    pub const MAX: u64 = 2 << 20;

    /// The head as it is after `bytes` were written at `at`; the part behind the head is left out.
    pub(crate) fn overlay(&mut self, at: ByteOffset, bytes: &[u8], block: BlockSize) {
        let Ok(start) = usize::try_from(at.0) else { return };
        let Some(room) = self.bytes.get_mut(start..) else { return };
        let len = room.len().min(bytes.len());
        room[..len].copy_from_slice(&bytes[..len]);
        let block = block.bytes() as usize;
        self.unreadable.retain(|&lba| !(start..start + len).contains(&(lba as usize * block)));
    }

    /// These bytes, if all of them could be read.
    pub(crate) fn readable(&self, at: usize, len: usize, block: BlockSize) -> Option<&[u8]> {
        let bytes = self.bytes.get(at..at.checked_add(len)?)?;
        let block = block.bytes() as usize;
        let blocks = (at / block) as u64..(at + len).div_ceil(block) as u64;
        self.unreadable.range(blocks).next().is_none().then_some(bytes)
    }
}

/// Why there is no place for a second array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The gap is too small.
    NoRoom {
        /// Where it ends: the first partition, say.
        end: ByteOffset,
        /// Bytes that a place takes.
        needed: u64,
    },
    /// The gap is large enough, but every place in it holds something.
    Occupied {
        /// Where it ends.
        end: ByteOffset,
    },
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { end, needed } => {
                write!(f, "no room for a second entry array of {needed} bytes before byte {end}")
            }
            Self::Occupied { end } => {
                write!(f, "what lies between the header and byte {end} is not ours, a boot loader perhaps")
            }
        }
    }
}

/// The first place that is free and apart from the array at `avoid`. Taking the first one makes it alternate
/// between two: the lower is free whenever the upper is in use.
pub fn second(table: &Table, avoid: Option<Lba>, geometry: &Geometry, head: &Head) -> Result<Lba, NoPlace> {
    let block = geometry.block_len();
    let unit = UNIT.max(u64::from(geometry.physical));
    let len = (table.header().array_len() as u64).next_multiple_of(unit);
    let end = gap_end(table, geometry, head);
    let used = avoid.and_then(|lba| lba.offset(geometry.block)).map(|at| {
        let past = at.0.saturating_add(table.header().array_len() as u64);
        at.0 / unit * unit..past.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
    });
    let apart = |at: u64| used.as_ref().is_none_or(|used| at + len <= used.start || used.end <= at);
    // The header is at LBA 1: the first multiple of the unit behind it.
    let first = (2 * block).next_multiple_of(unit);
    let mut room = (first..).step_by(unit as usize).take_while(|at| at + len <= end).filter(|&at| apart(at));
    let mut candidates = room.by_ref().peekable();
    if candidates.peek().is_none() {
        return Err(NoPlace::NoRoom { end: ByteOffset(end), needed: len });
    }
    match candidates.find(|&at| is_free(table, at, len, geometry, head)) {
        Some(at) => Ok(Lba(at / block)),
        None => Err(NoPlace::Occupied { end: ByteOffset(end) }),
    }
}

/// The place for the primary array when the primary header is lost and with it what it said: LBA 2, where every
/// partitioner puts it, if that is free; else a second place; else LBA 2 where the first usable LBA says that
/// the area is the array's.
pub fn for_lost_primary(table: &Table, geometry: &Geometry, head: &Head) -> Result<Lba, NoPlace> {
    let (at, blocks) = (2 * geometry.block_len(), table.header().array_blocks());
    let len = blocks * geometry.block_len();
    let fits = at + len <= gap_end(table, geometry, head);
    if fits && is_free(table, at, len, geometry, head) {
        return Ok(Lba(2));
    }
    second(table, None, geometry, head).or_else(|none| {
        let reserved = table.header().first_usable.0 >= 2 + blocks;
        if fits && reserved { Ok(Lba(2)) } else { Err(none) }
    })
}

/// The byte at which the space for arrays ends: the first partition, the usable area or what is known of the disk.
fn gap_end(table: &Table, geometry: &Geometry, head: &Head) -> u64 {
    let block = geometry.block_len();
    let partition = table.first_partition().map_or(u64::MAX, |lba| lba.0.saturating_mul(block));
    let usable = table.header().last_usable.0.saturating_add(1).saturating_mul(block);
    partition.min(usable).min(head.bytes.len() as u64)
}

/// Whether `len` bytes at `at` hold nothing, or a former copy of this table's array.
fn is_free(table: &Table, at: u64, len: u64, geometry: &Geometry, head: &Head) -> bool {
    let Some(found) = head.readable(at as usize, len as usize, geometry.block) else { return false };
    let size = table.header().entry_size();
    let array = table.header().array_len();
    let mut ours = masked(table.entries(), size);
    let mut there = masked(&found[..array], size);
    // What follows the array in its last block or unit is not the array's: it has to be zero.
    ours.resize(found.len(), 0);
    there.extend_from_slice(&found[array..]);
    let block = geometry.block.bytes() as usize;
    let raw = found.chunks(block);
    raw.zip(there.chunks(block).zip(ours.chunks(block)))
        .all(|(raw, (there, ours))| raw.iter().all(|&byte| byte == 0) || there == ours)
}

#[cfg(test)]
mod tests {
    use super::super::Attributes;
    use super::super::testing::table;
    use super::*;

    fn disk() -> (Table, Geometry, Head) {
        let table = table(&[(1, "platform_a", 2048, 3000, 1 << 48), (2, "platform_b", 4096, 5000, 0)]);
        let mut bytes = vec![0; 1 << 20];
        bytes[1024..1024 + 16384].copy_from_slice(table.entries());
        (table, Geometry::new(4 << 20, BlockSize::B512, 512), Head { bytes, ..Head::default() })
    }

    #[test]
    fn it_alternates_between_two_places() {
        let (table, geometry, mut head) = disk();
        let mut current = Lba(2);
        let mut seen = Vec::new();
        for bits in 0..6 {
            let next = table.with_attributes(1, Attributes(bits << 48));
            current = second(&table, Some(current), &geometry, &head).unwrap();
            head.overlay(ByteOffset(current.0 * 512), next.entries(), BlockSize::B512);
            seen.push(current.0);
        }
        assert_eq!(seen, [40, 8, 40, 8, 40, 8]);
    }

    #[test]
    fn a_raw_boot_loader_is_never_overwritten() {
        // Allwinner, Rockchip and i.MX: one byte is enough to be left alone.
        for lba in [16usize, 64, 66] {
            for byte in [lba * 512, lba * 512 + 511] {
                let (table, geometry, mut head) = disk();
                head.bytes[byte] = 0x16;
                for avoid in [None, Some(Lba(2)), Some(Lba(8)), Some(Lba(40)), Some(Lba(72))] {
                    let at = second(&table, avoid, &geometry, &head).unwrap().0 as usize;
                    assert!(!(at..at + 32).contains(&lba), "LBA {lba}, avoiding {avoid:?}: {at}");
                }
            }
        }
        let (table, geometry, mut head) = disk();
        head.bytes[17408..].fill(0xff);
        let refusal = second(&table, Some(Lba(2)), &geometry, &head).unwrap_err();
        assert_eq!(refusal, NoPlace::Occupied { end: ByteOffset(1 << 20) });
    }

    #[test]
    fn a_torn_copy_of_ours_is_free_and_that_of_another_table_is_not() {
        let (table, geometry, mut head) = disk();
        let other = table.with_attributes(2, Attributes(u64::MAX));
        head.bytes[40 * 512..41 * 512].copy_from_slice(&other.entries()[..512]);
        assert_eq!(second(&table, Some(Lba(2)), &geometry, &head), Ok(Lba(40)));
        // The same bytes one block on: no longer the corresponding block.
        head.bytes.copy_within(40 * 512..41 * 512, 41 * 512);
        assert_eq!(
            second(&table, Some(Lba(2)), &geometry, &head),
            Ok(Lba(48)),
            "LBA 41 is block 1 of that place"
        );
    }

    #[test]
    fn unreadable_blocks_and_small_gaps_do_not_qualify() {
        let (small, geometry, mut head) = disk();
        head.unreadable.insert(45);
        assert_eq!(second(&small, Some(Lba(2)), &geometry, &head), Ok(Lba(48)));
        let tight = table(&[(1, "platform_a", 34, 3000, 0)]);
        let refusal = second(&tight, Some(Lba(2)), &geometry, &head).unwrap_err();
        assert_eq!(refusal, NoPlace::NoRoom { end: ByteOffset(34 * 512), needed: 16384 });
        assert_eq!(
            for_lost_primary(&tight, &geometry, &Head { unreadable: BTreeSet::new(), ..head }),
            Ok(Lba(2))
        );
    }

    #[test]
    fn larger_physical_blocks_push_the_places_apart() {
        let (table, _, head) = disk();
        let geometry = Geometry::new(4 << 20, BlockSize::B512, 16384);
        assert_eq!(second(&table, Some(Lba(2)), &geometry, &head), Ok(Lba(64)));
    }
}
