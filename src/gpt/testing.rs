//! Tables for the unit tests of this folder and of its neighbours, built by hand from UEFI 2.10, tables 5.5 and
//! 5.6.

use super::{Header, Table};
use crate::units::Lba;

/// A valid primary header at LBA 1 of a disk of 8192 blocks, with noise after byte 92.
pub(crate) fn header_block(block: usize, size: usize) -> Vec<u8> {
    let mut raw: Vec<u8> = (0..block).map(|i| if i < 92 { 0 } else { (i * 7) as u8 }).collect();
    raw[..8].copy_from_slice(b"EFI PART");
    raw[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
    raw[12..16].copy_from_slice(&(size as u32).to_le_bytes());
    for (at, value) in [(24, 1u64), (32, 8191), (40, 2048), (48, 8158), (72, 2)] {
        raw[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    raw[56..72].fill(0xd1);
    raw[80..84].copy_from_slice(&128u32.to_le_bytes());
    raw[84..88].copy_from_slice(&128u32.to_le_bytes());
    raw[88..92].copy_from_slice(&crc32fast::hash(&[0; 16384]).to_le_bytes());
    let mut covered = raw[..size].to_vec();
    covered[16..20].fill(0);
    raw[16..20].copy_from_slice(&crc32fast::hash(&covered).to_le_bytes());
    raw
}

/// A table with these (number, name, first LBA, last LBA, attributes) on the disk of [`header_block`].
pub(crate) fn table(partitions: &[(u32, &str, u64, u64, u64)]) -> Table {
    table_of(128, partitions)
}

/// The same with room for `count` entries.
pub(crate) fn table_of(count: u32, partitions: &[(u32, &str, u64, u64, u64)]) -> Table {
    let mut header = Header::decode(&header_block(512, 92), Lba(1)).unwrap();
    header.count = count;
    let mut entries = vec![0; count as usize * 128];
    for &(number, name, first, last, attributes) in partitions {
        let entry = &mut entries[(number as usize - 1) * 128..number as usize * 128];
        entry[..16].fill(0x7e);
        entry[16..32].fill(number as u8);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry[48..56].copy_from_slice(&attributes.to_le_bytes());
        for (unit, at) in name.encode_utf16().zip((56..128).step_by(2)) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    header.entries_crc = crc32fast::hash(&entries);
    Table::new(header, entries).unwrap()
}
