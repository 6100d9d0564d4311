//! Reads everything that decisions about a disk are based on: both copies of the table, and the blocks around them.

use std::io;
use std::ops::Range;

use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::gpt::place::check_places;
use crate::gpt::{
    Copies, Damaged, Fault, Geometry, Header, Partition, Reading, Sectors, Table, has_protective_mbr,
    mbr_partitions,
};
use crate::slot::Content;
use crate::units::{BlockSize, ByteOffset, Extent, Group, Lba, Slot};

/// Bytes read of a large gap: this much from its start, where headers, arrays and most loaders lie, ...
const GAP_START: u64 = 2 << 20;
/// ... and this much before the first partition, where the spare place is.
const GAP_END: u64 = 256 << 10;

pub(super) fn reading(disk: &dyn BlockDevice, name: &str) -> Result<Reading> {
    let geometry = Geometry::new(disk.len(), disk.block_size(), disk.physical_block_size());
    // Block 0, header, one block of entries, and the same again at the end.
    if geometry.blocks < 6 {
        return Err(Error::NotGpt { disk: name.to_owned() });
    }
    let mut mbr = AlignedBuf::zeroed(geometry.block.bytes() as usize);
    device::read(disk, "the protective MBR", &mut mbr, ByteOffset(0))?;
    if !has_protective_mbr(&mbr) {
        return Err(match mbr_partitions(&mbr) {
            0 => Error::NotGpt { disk: name.to_owned() },
            partitions => Error::MbrDisk { disk: name.to_owned(), partitions },
        });
    }
    let primary = read_copy(disk, Lba(1), &geometry);
    if let Err(damaged) = &primary
        && matches!(damaged.fault, Fault::Signature { .. })
        && let Some(table) = other_sector_size(disk, geometry.block)
    {
        let here = geometry.block.bytes();
        return Err(Error::TableSectorSize { disk: name.to_owned(), here, table: table.bytes() });
    }
    // The primary header names the backup's LBA, even if its own array is damaged.
    let header =
        primary.as_ref().map_or_else(|damaged| damaged.header.as_ref(), |table| Some(table.header()));
    let alternate = header.map_or(geometry.last_lba(), |header| header.alternate_lba);
    let mut backup = read_copy(disk, alternate, &geometry);
    // A valid primary is the only authority on where its backup is: the end of the disk may hold another disk's.
    if primary.is_err() && backup.is_err() && alternate != geometry.last_lba() {
        backup = read_copy(disk, geometry.last_lba(), &geometry);
    }
    let copies = Copies { primary, backup };
    let mut sectors = Sectors::new(geometry.block);
    if let Ok(table) = copies.primary.as_ref().or(copies.backup.as_ref()) {
        for blocks in windows(table, &copies, &geometry) {
            read_window(disk, blocks, &geometry, &mut sectors);
        }
    }
    let record = match &copies {
        Copies { primary: Err(_), backup: Ok(backup) } => has_record(disk, backup),
        _ => false,
    };
    Ok(Reading::new(geometry, copies, sectors, record))
}

/// The sector size that a table was made for, if it is not that of the disk; else `None`.
fn other_sector_size(disk: &dyn BlockDevice, block: BlockSize) -> Option<BlockSize> {
    let other = match block {
        BlockSize::B512 => BlockSize::B4096,
        BlockSize::B4096 => BlockSize::B512,
    };
    let mut start = AlignedBuf::zeroed(8192);
    disk.read_at(&mut start, ByteOffset(0)).ok()?;
    let len = other.bytes() as usize;
    Header::decode(start.get(len..2 * len)?, Lba(1)).ok().map(|_| other)
}

/// The blocks to read around the copies: the gap, and the space after the usable area. In rising order, without
/// overlap.
fn windows(table: &Table, copies: &Copies, geometry: &Geometry) -> Vec<Range<u64>> {
    let block = geometry.block_len();
    let gap = table.first_partition().map_or(u64::MAX, |lba| lba.0).min(geometry.blocks);
    let start = gap.min(GAP_START / block).max(geometry.physical_block(Lba(1)).end);
    let mut windows = vec![0..start, gap.saturating_sub(GAP_END / block)..gap];
    let blocks = table.header().array_blocks();
    let mut rear = |header: Lba, array: Lba| {
        windows.push(array.0..array.0.saturating_add(blocks));
        windows.push(header.0.saturating_sub(blocks)..header.0.saturating_add(1));
    };
    rear(geometry.last_lba(), geometry.last_lba());
    rear(table.header().alternate_lba, table.header().alternate_lba);
    let header = copies.backup.as_ref().map_or_else(|damaged| damaged.header.as_ref(), |b| Some(b.header()));
    if let Some(header) = header {
        rear(header.my_lba, header.entries_lba);
    }
    for window in &mut windows {
        *window = window.start.min(geometry.blocks)..window.end.min(geometry.blocks);
    }
    windows.sort_by_key(|window| window.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for window in windows.into_iter().filter(|window| !window.is_empty()) {
        match merged.last_mut() {
            Some(last) if window.start <= last.end => last.end = last.end.max(window.end),
            _ => merged.push(window),
        }
    }
    merged
}

/// Reads blocks at once and, if that fails, one by one, so that one lost block does not hide others.
fn read_window(disk: &dyn BlockDevice, blocks: Range<u64>, geometry: &Geometry, sectors: &mut Sectors) {
    let first = Lba(blocks.start);
    if let Ok(bytes) =
        read_blocks(disk, "blocks around the table", first, blocks.end - blocks.start, geometry)
    {
        return sectors.add(first, bytes, []);
    }
    let (mut bytes, mut lost) = (Vec::new(), Vec::new());
    for lba in blocks {
        match read_blocks(disk, "block", Lba(lba), 1, geometry) {
            Ok(block) => bytes.extend(block),
            Err(_) => {
                lost.push(lba);
                bytes.resize(bytes.len() + geometry.block.bytes() as usize, 0);
            }
        }
    }
    sectors.add(first, bytes, lost);
}

/// Reads and checks the copy whose header is at `lba`.
fn read_copy(disk: &dyn BlockDevice, lba: Lba, geometry: &Geometry) -> Result<Table, Box<Damaged>> {
    let header = read_blocks(disk, "header", lba, 1, geometry)
        .and_then(|block| Header::decode(&block, lba))
        .map_err(|fault| Box::new(Damaged { fault, header: None }))?;
    let with_header = |fault| Box::new(Damaged { fault, header: Some(header.clone()) });
    check_places(&header, geometry).map_err(with_header)?;
    let mut entries = read_blocks(disk, "entry array", header.entries_lba, header.array_blocks(), geometry)
        .map_err(with_header)?;
    entries.truncate(header.array_len());
    Table::new(header.clone(), entries).map_err(with_header)
}

fn read_blocks(
    disk: &dyn BlockDevice,
    what: &'static str,
    lba: Lba,
    blocks: u64,
    geometry: &Geometry,
) -> Result<Vec<u8>, Fault> {
    let (from, to) = (Lba(0), geometry.last_lba());
    let past = lba.0.checked_add(blocks).filter(|past| *past <= geometry.blocks);
    let (Some(at), Some(_)) = (lba.offset(geometry.block), past) else {
        return Err(Fault::Outside { what, lba, blocks, from, to });
    };
    let mut buf = AlignedBuf::zeroed(blocks as usize * geometry.block.bytes() as usize);
    // A sector that the medium lost is damage of this copy; writing it again is the repair.
    let unreadable = |error: io::Error| Fault::Unreadable { what, lba, problem: error.to_string() };
    disk.read_at(&mut buf, at).map_err(unreadable)?;
    Ok(buf.to_vec())
}

/// Whether a slot that this table lays out holds a whole record: then it is the table of this disk.
fn has_record(disk: &dyn BlockDevice, table: &Table) -> bool {
    Group::BOTH.into_iter().flat_map(|group| Slot::BOTH.map(|slot| (group, slot))).any(|(group, slot)| {
        let name = group.partition_name(slot);
        let whole = |partition: &Partition| {
            let window = Window { disk, extent: partition.extent };
            matches!(Content::read(&window, group, name), Ok(Content::Whole(..)))
        };
        table.find(name).iter().any(whole)
    })
}

/// A read-only view of a partition of a disk.
struct Window<'a> {
    disk: &'a dyn BlockDevice,
    extent: Extent,
}

impl BlockDevice for Window<'_> {
    fn len(&self) -> u64 {
        self.extent.len
    }

    fn block_size(&self) -> BlockSize {
        self.disk.block_size()
    }

    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        device::check_transfer(self.block_size(), self.extent.len, at, buf.len() as u64)?;
        self.disk.read_at(buf, ByteOffset(self.extent.at.0 + at.0))
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "this window is for reading"))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
