//! One copy of the table: a header and the matching entry array.
//!
//! | offset | size | field of an entry (UEFI 2.10, table 5.6)   |
//! |-------:|-----:|--------------------------------------------|
//! |      0 |   16 | type GUID; all zero: unused                |
//! |     16 |   16 | unique GUID                                |
//! |     32 |    8 | first LBA                                  |
//! |     40 |    8 | last LBA, inclusive                        |
//! |     48 |    8 | attributes: the only bytes ever edited     |
//! |     56 |   72 | name, UTF-16LE, padded with zeroes         |
//! |    128 |      | to the end of the entry: preserved         |

use std::ops::Range;

use super::codec::{Fault, Header, crc};
use super::{Attributes, Partition};
use crate::units::{ByteOffset, Extent, Guid, Lba};

/// Bytes of an entry that hold its attributes.
pub(crate) const ATTRIBUTES: Range<usize> = 48..56;

/// A header and the entry array whose CRC it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    header: Header,
    entries: Vec<u8>,
}

impl Table {
    /// Joins a header and its array: length and CRC must match the header.
    pub fn new(header: Header, entries: Vec<u8>) -> Result<Self, Fault> {
        let (expected, got) = (header.array_len(), entries.len());
        if expected != got {
            return Err(Fault::ArrayLen { expected, got });
        }
        let (expected, got) = (header.entries_crc, crc(&entries));
        if expected != got {
            return Err(Fault::ArrayCrc { expected, got });
        }
        Ok(Self { header, entries })
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The entry array, byte for byte.
    pub fn entries(&self) -> &[u8] {
        &self.entries
    }

    /// The used entries in the order of their numbers. Overlapping and impossible ones are listed as they are: a
    /// fault in a partition that is none of ours must not block ours.
    pub fn partitions(&self) -> Vec<Partition> {
        let entries = self.entries.chunks_exact(self.header.entry_size() as usize);
        (1..)
            .zip(entries)
            .filter(|(_, entry)| entry[..16] != [0; 16])
            .map(|(n, e)| self.decode(n, e))
            .collect()
    }

    /// Every partition of that name; the caller decides about none or several.
    pub fn find(&self, name: &str) -> Vec<Partition> {
        self.partitions().into_iter().filter(|partition| partition.name == name).collect()
    }

    /// The attributes of the entry with that number (from 1). An entry beyond the array has none set.
    pub fn attributes(&self, number: u32) -> Attributes {
        let bytes = self.entry(number).and_then(|entry| self.entries[entry][ATTRIBUTES].try_into().ok());
        Attributes(u64::from_le_bytes(bytes.unwrap_or([0; 8])))
    }

    /// The table with the attributes of that entry (from 1) replaced and a matching CRC. An entry beyond the array
    /// changes nothing. Does not write to the disk.
    #[must_use]
    pub fn with_attributes(&self, number: u32, attributes: Attributes) -> Self {
        let mut table = self.clone();
        if let Some(entry) = self.entry(number) {
            table.entries[entry][ATTRIBUTES].copy_from_slice(&attributes.0.to_le_bytes());
            table.header.entries_crc = crc(&table.entries);
        }
        table
    }

    /// The table with these header fields instead of its own and a matching array CRC. Used by the plan to place
    /// copies.
    pub(crate) fn with_header(&self, mut header: Header) -> Self {
        header.entries_crc = self.header.entries_crc;
        Self { header, entries: self.entries.clone() }
    }

    /// Whether both have the same content. What differs between copies by design is left out: where each header and
    /// its array lie, and bytes without meaning.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let facts = |h: &Header| {
            (h.first_usable, h.last_usable, h.disk_guid, h.entry_count(), h.entry_size(), h.entries_crc)
        };
        facts(&self.header) == facts(&other.header) && self.entries == other.entries
    }

    /// Whether both hold the same partitions, attributes aside: one is the other before or after a switch.
    pub fn same_partitions(&self, other: &Self) -> bool {
        self.header.entry_size() == other.header.entry_size()
            && self.header.disk_guid == other.header.disk_guid
            && masked(&self.entries, self.header.entry_size())
                == masked(&other.entries, self.header.entry_size())
    }

    /// The lowest first LBA of a used entry; `None` if no entry is used. As far as the table goes, everything
    /// between the header and it is free for arrays.
    pub fn first_partition(&self) -> Option<Lba> {
        let entries = self.entries.chunks_exact(self.header.entry_size() as usize);
        entries.filter(|entry| entry[..16] != [0; 16]).map(|entry| Lba(number(entry, 32))).min()
    }

    fn entry(&self, number: u32) -> Option<Range<usize>> {
        let size = self.header.entry_size() as usize;
        let start = (number.checked_sub(1)? as usize).checked_mul(size)?;
        let end = start.checked_add(size)?;
        (end <= self.entries.len()).then_some(start..end)
    }

    fn decode(&self, number_: u32, entry: &[u8]) -> Partition {
        let block = u64::from(self.header.block().bytes());
        let (first, last) = (number(entry, 32), number(entry, 40));
        let len = last.checked_sub(first).and_then(|n| n.checked_add(1)).and_then(|n| n.checked_mul(block));
        let extent = match (Lba(first).offset(self.header.block()), len) {
            (Some(at), Some(len)) if at.0.checked_add(len).is_some() => Extent { at, len },
            _ => Extent { at: ByteOffset(0), len: 0 },
        };
        let units = entry[56..128].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let name: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        let mut guid = Guid::NIL;
        guid.0.copy_from_slice(&entry[16..32]);
        Partition { number: number_, name: String::from_utf16_lossy(&name), guid, extent }
    }
}

fn number(entry: &[u8], at: usize) -> u64 {
    entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The array with the attributes of every used entry zeroed: this stays the same across all switches.
pub(crate) fn masked(entries: &[u8], entry_size: u32) -> Vec<u8> {
    let mut bytes = entries.to_vec();
    let used = |entry: &&mut [u8]| entry.get(..16).is_some_and(|kind| kind != [0; 16]);
    for entry in bytes.chunks_mut(entry_size as usize).filter(used) {
        if let Some(field) = entry.get_mut(ATTRIBUTES) {
            field.fill(0);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::table;
    use super::*;

    #[test]
    fn partitions_keep_their_numbers_across_holes_and_odd_neighbours_do_no_harm() {
        let odd = ("odd", 9000, 8000, 0);
        let far = ("far", u64::MAX, u64::MAX, 0);
        let table = table(&[
            (1, "a", 2048, 2049, 0),
            (4, "b", 4096, 4096, 7),
            (7, odd.0, odd.1, odd.2, odd.3),
            (128, far.0, far.1, far.2, far.3),
        ]);
        let all = table.partitions();
        let short: Vec<_> =
            all.iter().map(|p| (p.number, p.name.as_str(), p.extent.at.0, p.extent.len)).collect();
        assert_eq!(
            short,
            [(1, "a", 1 << 20, 1024), (4, "b", 2 << 20, 512), (7, "odd", 0, 0), (128, "far", 0, 0)]
        );
        assert_eq!(table.first_partition(), Some(Lba(2048)));
        assert_eq!(table.find("b")[0].guid, Guid([4; 16]));
        assert_eq!((table.attributes(4).0, table.attributes(129).0, table.attributes(0).0), (7, 0, 0));
        assert_eq!(table.with_attributes(129, Attributes(1)), table);
        let other = Header { disk_guid: Guid([9; 16]), ..table.header().clone() };
        assert!(table.same_partitions(&table) && !table.same_partitions(&table.with_header(other)));
    }

    proptest! {
        /// An edit touches eight bytes of one entry, and a table read back from it is the table.
        #[test]
        fn an_edit_is_eight_bytes(number in 1u32..=128, bits: u64) {
            let before = table(&[(1, "a", 2048, 2049, 0), (3, "\u{1f980}rust", 4096, 4096, 7)]);
            let after = before.with_attributes(number, Attributes(bits));
            let at = (number as usize - 1) * 128;
            for (i, (old, new)) in before.entries().iter().zip(after.entries()).enumerate() {
                prop_assert!(old == new || (at + 48..at + 56).contains(&i));
            }
            prop_assert_eq!(after.attributes(number), Attributes(bits));
            // Attributes of an unused entry do not count: no other program writes them.
            prop_assert!(after.same_partitions(&before) == ([1, 3].contains(&number) || bits == 0));
            prop_assert!(Table::new(after.header().clone(), after.entries().to_vec()).is_ok());
        }

        #[test]
        fn random_entries_never_panic(noise in proptest::collection::vec(any::<u8>(), 16384)) {
            let mut header = table(&[]).header().clone();
            header.entries_crc = crc(&noise);
            let table = Table::new(header, noise).unwrap();
            prop_assert!(table.partitions().len() <= 128);
            table.first_partition();
        }
    }
}
