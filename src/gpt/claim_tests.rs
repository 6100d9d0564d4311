use super::super::testing;
use super::*;
use crate::units::BlockSize;

const BLOCK: usize = 512;
const BLOCKS: u64 = 8192;

fn geometry() -> Geometry {
    Geometry::new(BLOCKS * BLOCK as u64, BlockSize::B512, 512)
}

/// A disk of zeroes with these blocks, and without those that are lost.
fn sectors(blocks: &[(u64, &[u8])], lost: &[u64]) -> Sectors {
    let mut sectors = Sectors::new(BlockSize::B512);
    sectors.add(Lba(0), vec![0; BLOCKS as usize * BLOCK], lost.iter().copied());
    for (lba, bytes) in blocks {
        sectors.overlay(ByteOffset(lba * BLOCK as u64), bytes);
    }
    sectors
}

/// A block with this start of a header.
fn header(guid: u8) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..8].copy_from_slice(b"EFI PART");
    block[56..72].fill(guid);
    block
}

#[test]
fn a_block_is_ours_by_its_place_and_by_what_it_holds() {
    let (table, geometry) = (testing::table(&[(1, "a", 2048, 4095, 0)]), geometry());
    let (own, other) = (header(0xd1), header(0x99));
    let sectors = sectors(&[(8190, &own), (8191, &other), (50, &other)], &[5, 60, 8170]);
    let claims = Claims::new(&table, &geometry, &sectors);
    let is_ours = |lba: u64| claims.array(lba..lba + 1).is_ok();
    // The array lies at LBA 2 to 33; LBA 8158 is the last usable block.
    let ours = [2, 5, 33, 34, 2047, 8159, 8170].map(is_ours);
    assert_eq!(ours, [true; 7], "in the gap, lost from our own array, after the usable area");
    let foreign = [1, 50, 60, 2048, 4096, 8158, 8191, 8192].map(is_ours);
    assert_eq!(foreign, [false; 8]);
    assert_eq!(claims.array(48..52).unwrap_err(), Lba(50), "the first one is named");
    let header = |lba: u64| claims.backup_header(Lba(lba)).is_ok();
    assert_eq!([8158, 8159, 8170, 8190].map(header), [false, true, true, true]);
    assert!(!header(8191), "of another disk");
}

#[test]
fn without_a_partition_the_gap_is_the_usable_area() {
    let (table, geometry, sectors) = (testing::table(&[]), geometry(), sectors(&[], &[]));
    assert_eq!(Claims::new(&table, &geometry, &sectors).gap, 2..8159);
}

/// One part ours and the other zero, with one GUID of a partition whole: anything else may be a loader.
#[test]
fn a_torn_copy_has_a_whole_guid_and_nothing_else() {
    let table = testing::table(&[(4, "d", 2048, 4095, 0)]);
    let ours = table.entries()[..BLOCK].to_vec();
    // The GUID of entry 4.
    let guid = 3 * 128 + 16..3 * 128 + 32;
    let torn = |zero: std::ops::Range<usize>, byte: u8| {
        let mut block = ours.clone();
        block[zero].fill(byte);
        let (geometry, sectors) = (geometry(), sectors(&[(70, &block)], &[]));
        Claims::new(&table, &geometry, &sectors).holds(70)
    };
    assert_eq!(torn(0..0, 0), BlockContent::Copy);
    assert_eq!(torn(guid.end..BLOCK, 0), BlockContent::Copy);
    assert_eq!(torn(guid.end - 1..BLOCK, 0), BlockContent::Foreign, "a byte of it is missing at its end");
    assert_eq!(torn(0..guid.start, 0), BlockContent::Copy);
    assert_eq!(torn(0..guid.start + 1, 0), BlockContent::Foreign, "a byte of it is missing at its start");
    assert_eq!(torn(0..100, 0x5b), BlockContent::Foreign, "other bytes stand before it");
    assert_eq!(torn(BLOCK - 4..BLOCK, 0x5b), BlockContent::Foreign, "and after it");
}
