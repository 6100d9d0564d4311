//! Where an entry array lies at rest, and where it may lie during a switch.
//!
//! ```text
//! LBA 0    1        2 ... 33            ...            first partition
//!  MBR   header   home: at rest   loaders, nothing   spare: during a transaction
//! ```
//!
//! *Home* is where the maker of the table put the array, usually LBA 2. Tools that look at the disk later, loaders
//! that are written later, and firmware that always reads LBA 2 find what they expect. The *spare* place is the
//! highest one before the first partition that is ours to take, as far from loaders as the gap allows.

use std::fmt;
use std::ops::Range;

use super::claim::{BlockContent, Claims};
use super::codec::{Fault, Header};
use super::{Geometry, Table};
use crate::units::{ByteOffset, Lba};

/// Places begin at multiples of this or of the physical block, whichever is larger, so that an array and the
/// primary header never share a physical block: the medium rewrites such a block as one.
const UNIT: u64 = 4096;

/// Why there is no spare place for an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The gap is too small.
    NoRoom {
        /// Where it ends, usually at the first partition.
        end: ByteOffset,
        /// Size of a place in bytes.
        needed: u64,
    },
    /// The gap is large enough, but every place in it holds something.
    Occupied {
        /// Where it ends.
        end: ByteOffset,
    },
    /// The configuration demands that the table is changed in place.
    Configured,
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
            Self::Configured => f.write_str("as the configuration says (table = \"in-place\")"),
        }
    }
}

fn unit(geometry: &Geometry) -> u64 {
    UNIT.max(u64::from(geometry.physical)) / geometry.block_len()
}

/// The blocks of an array at `lba`.
pub(super) fn blocks(table: &Table, lba: Lba) -> Range<u64> {
    lba.0..lba.0.saturating_add(table.header().array_blocks())
}

/// The highest place before the first partition that is ours to take and does not overlap the arrays at `avoid`.
pub(super) fn spare(claims: &Claims<'_>, table: &Table, avoid: &[Lba]) -> Result<Lba, NoPlace> {
    let geometry = claims.geometry;
    let unit = unit(geometry);
    let len = table.header().array_blocks().next_multiple_of(unit);
    let end = geometry.offset(claims.gap.end);
    let used = avoid.iter().map(|lba| {
        let blocks = blocks(table, *lba);
        blocks.start / unit * unit..blocks.end.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
    });
    let used: Vec<_> = used.collect();
    let apart = |at: u64| used.iter().all(|used| at + len <= used.start || used.end <= at);
    let first = claims.gap.start.next_multiple_of(unit);
    let top = claims.gap.end.saturating_sub(len) / unit * unit;
    if claims.gap.end < first + len {
        return Err(NoPlace::NoRoom { end, needed: len * geometry.block_len() });
    }
    let mut apart_ones = false;
    let mut at = top;
    loop {
        if apart(at) {
            apart_ones = true;
            // The last foreign block of a place determines where the next place down ends.
            match (at..at + len)
                .rev()
                .find(|lba| !matches!(claims.holds(*lba), BlockContent::Nothing | BlockContent::Copy))
            {
                None => return Ok(Lba(at)),
                Some(foreign) => match foreign.checked_sub(len).map(|below| below / unit * unit) {
                    Some(below) if below >= first && below < at => {
                        at = below;
                        continue;
                    }
                    _ => break,
                },
            }
        }
        match at.checked_sub(unit) {
            Some(below) if below >= first => at = below,
            _ => break,
        }
    }
    Err(if apart_ones {
        NoPlace::Occupied { end }
    } else {
        NoPlace::NoRoom { end, needed: len * geometry.block_len() }
    })
}

/// Where the array lies at rest: where the header says, unless a cut left it at a spare place, or at one of the two
/// places between which version 0.1 alternated. In those cases a former copy at the place that it came from is the
/// proof.
pub(super) fn home(claims: &Claims<'_>, table: &Table) -> Lba {
    let named = table.header().entries_lba;
    let older = older_places(claims.geometry, table);
    if !older.contains(&named) && spare(claims, table, &[]) != Ok(named) {
        return named;
    }
    // The highest former copy before it: `sgdisk -j` leaves a copy where the array was before.
    let below = (2..named.0).rev().map(Lba).filter(|lba| is_former_copy(claims, table, *lba));
    let (mut last_older, mut found) = (None, None);
    for lba in below {
        if older.contains(&lba) {
            last_older = Some(lba);
        } else {
            found = Some(lba);
            break;
        }
    }
    let from_older = if older.contains(&named) {
        Some(Lba(2)).filter(|lba| is_former_copy(claims, table, *lba))
    } else {
        None
    };
    from_older.or(found).or(last_older.filter(|_| !older.contains(&named))).unwrap_or(named)
}

/// The two places of version 0.1: between the header and the first partition, from the bottom up.
fn older_places(geometry: &Geometry, table: &Table) -> [Lba; 2] {
    let unit = unit(geometry);
    let first = 2u64.next_multiple_of(unit);
    [Lba(first), Lba(first + table.header().array_blocks().next_multiple_of(unit))]
}

/// Whether the array lay at `lba`: its first block that holds an entry is there, and no foreign block is.
fn is_former_copy(claims: &Claims<'_>, table: &Table, lba: Lba) -> bool {
    let block = claims.geometry.block.bytes() as usize;
    let Some(i) = table.entries().chunks(block).position(|block| block.iter().any(|byte| *byte != 0)) else {
        return false;
    };
    claims.is_block(lba.0 + i as u64, i)
        && blocks(table, lba)
            .all(|lba| matches!(claims.holds(lba), BlockContent::Nothing | BlockContent::Copy))
}

/// Whether header and array lie where a copy of this kind may lie on this disk. A primary is valid whatever it says
/// of its backup, and even if its usable area ends beyond the disk.
pub fn check_places(header: &Header, geometry: &Geometry) -> Result<(), Fault> {
    let end = geometry.last_lba();
    let inside = |what, lba: Lba, blocks: u64, from: Lba, to: Lba| {
        let last = lba.0.checked_add(blocks).and_then(|past| past.checked_sub(1));
        if lba >= from && last.is_some_and(|last| last <= to.0) {
            return Ok(());
        }
        Err(Fault::Outside { what, lba, blocks, from, to })
    };
    let blocks = header.array_blocks();
    if header.my_lba == Lba(1) {
        return inside("the primary entry array", header.entries_lba, blocks, Lba(2), end);
    }
    inside("the last usable block", header.last_usable, 1, Lba(0), end)?;
    // After the usable area and before its header (UEFI 2.10, 5.3.1): elsewhere it may overlap anything, the
    // primary array included.
    let (from, to) = (Lba(header.last_usable.0 + 1), Lba(header.my_lba.0.saturating_sub(1)));
    inside("the backup entry array", header.entries_lba, blocks, from, to)?;
    inside("the backup header", header.my_lba, 1, from, end)
}

#[cfg(test)]
mod tests {
    use super::super::{Sectors, testing};
    use super::*;
    use crate::units::BlockSize;

    /// A table whose first partition begins at `end` and whose array lies at `named`, and a disk of zeroes with copies of the
    /// array at `copies` and a foreign block at `foreign`.
    fn disk(end: u64, named: u64, copies: &[u64], foreign: Option<u64>) -> (Table, Geometry, Sectors) {
        let table = testing::table(&[(1, "a", end, 4095, 0)]);
        let table = table.with_header(Header { entries_lba: Lba(named), ..table.header().clone() });
        let mut sectors = Sectors::new(BlockSize::B512);
        sectors.add(Lba(0), vec![0; 8192 * 512], []);
        for at in copies.iter().chain([&named]) {
            sectors.overlay(ByteOffset(at * 512), table.entries());
        }
        foreign.iter().for_each(|at| sectors.overlay(ByteOffset(at * 512), &[0x5b; 512]));
        (table, Geometry::new(8192 * 512, BlockSize::B512, 512), sectors)
    }

    fn spare_of(end: u64, named: u64, foreign: Option<u64>) -> Result<Lba, NoPlace> {
        let (table, geometry, sectors) = disk(end, named, &[], foreign);
        spare(&Claims::new(&table, &geometry, &sectors), &table, &[Lba(named)])
    }

    /// Places begin at multiples of 8 blocks, and the array has 32.
    #[test]
    fn a_spare_place_fits_exactly_and_overlaps_nothing() {
        assert_eq!(spare_of(128, 2, None), Ok(Lba(96)));
        assert_eq!(spare_of(128, 2, Some(100)), Ok(Lba(64)), "below a loader");
        // The lowest place, and one that ends where the array begins.
        assert_eq!(spare_of(72, 40, None), Ok(Lba(8)));
        assert_eq!(spare_of(100, 64, None), Ok(Lba(32)));
        assert!(matches!(spare_of(72, 40, Some(39)), Err(NoPlace::Occupied { .. })));
        assert!(matches!(spare_of(71, 39, None), Err(NoPlace::NoRoom { .. })));
        let (table, geometry, sectors) = disk(40, 8, &[], None);
        assert_eq!(
            spare(&Claims::new(&table, &geometry, &sectors), &table, &[]),
            Ok(Lba(8)),
            "all of the gap"
        );
        let (table, geometry, sectors) = disk(39, 2, &[], None);
        assert!(spare(&Claims::new(&table, &geometry, &sectors), &table, &[]).is_err());
    }

    /// A loader that was written into the former place meanwhile stays there.
    #[test]
    fn home_is_a_former_place_without_foreign_blocks() {
        let of = |copies: &[u64], foreign: Option<u64>| {
            let (table, geometry, sectors) = disk(128, 96, copies, foreign);
            home(&Claims::new(&table, &geometry, &sectors), &table)
        };
        assert_eq!(of(&[2], None), Lba(2));
        assert_eq!(of(&[2], Some(33)), Lba(96));
        assert_eq!(of(&[2], Some(34)), Lba(2), "after its end");
        assert_eq!(of(&[], None), Lba(96));
    }

    #[test]
    fn a_copy_lies_where_one_of_its_kind_may_lie() {
        let (table, geometry, _) = disk(128, 2, &[], None);
        let allowed = |my_lba: u64, entries_lba: u64| {
            let (my_lba, entries_lba) = (Lba(my_lba), Lba(entries_lba));
            check_places(&Header { my_lba, entries_lba, ..table.header().clone() }, &geometry).is_ok()
        };
        assert_eq!([1, 2, 8160, 8161].map(|at| allowed(1, at)), [false, true, true, false]);
        // LBA 8158 is the last usable block, 8191 the last one.
        assert_eq!([8158, 8159, 8160].map(|at| allowed(8191, at)), [false, true, false]);
        assert!(!allowed(8192, 8159) && !allowed(8190, 8159));
    }
}
