//! A table for a blank disk: built in memory by the `gpt` crate, adjusted by our codec, returned as a plan.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::codec::Header;
use super::plan::{Method, Plan, Step};
use super::{Attributes, Geometry, Table};
use crate::error::{Error, Result};
use crate::units::{BlockSize, ByteOffset, Guid, Lba, MIB};

/// A partition to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Its name, at most 36 UTF-16 units.
    pub name: String,
    /// Its type.
    pub type_guid: Guid,
    /// Its unique GUID; `None` for a random one.
    pub guid: Option<Guid>,
    /// Its size in bytes, rounded up to a multiple of 1 MiB.
    pub size: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

/// Size of the entry array in bytes: 128 entries of 128, the least that UEFI allows and what every reader accepts.
const ARRAY: u64 = 16384;
/// Bytes kept of the end of the disk while the table is built; the backup takes 20 KiB at most.
const TAIL: u64 = 64 << 10;
/// Units that the name field of an entry holds.
const NAME_UNITS: usize = 36;

/// Same as [`create_after`], with 1 MiB reserved before the first partition.
///
/// # Errors
/// As [`create_after`].
pub fn create(
    disk: &str,
    disk_len: u64,
    block: BlockSize,
    partitions: &[NewPartition],
    disk_guid: Option<Guid>,
) -> Result<Plan> {
    create_after(MIB, disk, disk_len, block, partitions, disk_guid)
}

/// The plan that lays these partitions out on a blank disk of `disk_len` bytes. They are numbered from 1 in this
/// order and aligned to 1 MiB.
///
/// The first one begins at `reserve` bytes, rounded up to 1 MiB, and so does the usable area. Before it is room for
/// boot loaders and for a spare entry array. `disk` is the disk's name in errors; `disk_guid` is `None` for a
/// random one. Does not write to the disk.
///
/// # Errors
/// [`Error::DiskTooSmall`]; [`Error::Argument`]: a name is too long, or there are more than 128 partitions.
pub fn create_after(
    reserve: u64,
    disk: &str,
    disk_len: u64,
    block: BlockSize,
    partitions: &[NewPartition],
    disk_guid: Option<Guid>,
) -> Result<Plan> {
    let first = reserve.max(1).checked_next_multiple_of(MIB).unwrap_or(u64::MAX);
    let unit = u64::from(block.bytes());
    let geometry = Geometry::new(disk_len, block, block.bytes());
    let disk_len = geometry.blocks * unit;
    let end = partitions.iter().try_fold(first, |end, p| {
        p.size.max(1).checked_next_multiple_of(MIB).and_then(|size| size.checked_add(end))
    });
    let needed = end.and_then(|end| end.checked_add(ARRAY + unit)).unwrap_or(u64::MAX);
    if needed > disk_len {
        return Err(Error::DiskTooSmall { disk: disk.to_owned(), needed, size: disk_len });
    }
    if let Some(long) = partitions.iter().find(|p| p.name.encode_utf16().count() > NAME_UNITS) {
        let problem = format!("a partition name has at most {NAME_UNITS} UTF-16 units");
        return Err(Error::Argument { what: format!("'{}'", long.name), problem });
    }
    if partitions.len() as u64 > ARRAY / 128 {
        let problem = format!("{} required, the table has room for {}", partitions.len(), ARRAY / 128);
        return Err(Error::Argument { what: "partitions".to_owned(), problem });
    }
    let ends =
        build(first, disk_len, block, partitions, disk_guid).map_err(|what| Error::Internal { what })?;
    plan(first, &ends, &geometry).map_err(|what| Error::Internal { what })
}

/// Lets the `gpt` crate write its table to both [`Ends`] of the disk.
fn build(
    first: u64,
    disk_len: u64,
    block: BlockSize,
    partitions: &[NewPartition],
    disk_guid: Option<Guid>,
) -> Result<Ends, String> {
    let unit = u64::from(block.bytes());
    let mut ends = Ends::new(disk_len);
    let covered = u32::try_from(disk_len / unit - 1).unwrap_or(u32::MAX);
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("laying out the disk, {what}: {error}");
    ::gpt::mbr::ProtectiveMBR::with_lb_size(covered)
        .overwrite_lba0(&mut ends)
        .map_err(|error| failed("protective MBR", &error))?;
    let lb_size = match block {
        BlockSize::B512 => ::gpt::disk::LogicalBlockSize::Lb512,
        BlockSize::B4096 => ::gpt::disk::LogicalBlockSize::Lb4096,
    };
    // A Guid's text always parses; the type that it parses to is the crate's own.
    let disk_guid = disk_guid.map(|guid| guid.to_string().parse()).transpose();
    let mut table = ::gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(lb_size)
        .create_from_device(&mut ends, disk_guid.map_err(|error| failed("disk GUID", &error))?)
        .map_err(|error| failed("headers", &error))?;
    let mut at = first;
    for (number, new) in (1..).zip(partitions) {
        let size = new.size.max(1).next_multiple_of(MIB);
        let kind = new.type_guid.to_string().parse().map_err(|error| failed("type", &error))?;
        let kind =
            ::gpt::partition_types::Type { guid: kind, os: ::gpt::partition_types::OperatingSystem::None };
        table
            .add_partition_at(&new.name, number, at / unit, size / unit, kind, new.attributes.0)
            .map_err(|error| failed(&new.name, &error))?;
        at += size;
    }
    let mut entries = table.take_partitions();
    for (number, new) in (1..).zip(partitions) {
        if let (Some(guid), Some(entry)) = (new.guid, entries.get_mut(&number)) {
            entry.part_guid = guid.to_string().parse().map_err(|error| failed(&new.name, &error))?;
        }
    }
    table.update_partitions(entries).map_err(|error| failed("entries", &error))?;
    table.write().map_err(|error| failed("table", &error))?;
    Ok(ends)
}

/// Reads both copies with our codec, raises the first usable LBA, and orders the writes: those that make the disk a
/// GPT disk come last.
fn plan(first: u64, ends: &Ends, geometry: &Geometry) -> Result<Plan, String> {
    let unit = u64::from(geometry.block.bytes());
    let copy = |lba: Lba| -> Result<Table, String> {
        let read = |at: u64, len| ends.slice(at, len).ok_or_else(|| format!("byte {at} was not laid out"));
        let mut header =
            Header::decode(read(lba.0 * unit, unit as usize)?, lba).map_err(|fault| fault.to_string())?;
        header.first_usable = Lba(first / unit);
        let entries = read(header.entries_lba.0 * unit, header.array_len())?.to_vec();
        Table::new(header, entries).map_err(|fault| fault.to_string())
    };
    let (primary, backup) = (copy(Lba(1))?, copy(geometry.last_lba())?);
    let write = |lba: Lba, bytes: Vec<u8>, what| {
        Step::Write(super::plan::ClaimedWrite::to_blank(ByteOffset(lba.0 * unit), bytes, what))
    };
    let mbr = ends.slice(0, unit as usize).unwrap_or_default().to_vec();
    let steps = vec![
        write(backup.header().entries_lba, backup.entries().to_vec(), "backup array"),
        write(backup.header().my_lba, backup.header().encode(), "backup header"),
        write(primary.header().entries_lba, primary.entries().to_vec(), "primary array"),
        Step::Barrier,
        write(Lba(1), primary.header().encode(), "primary header"),
        write(Lba(0), mbr, "protective MBR"),
        Step::Barrier,
    ];
    Ok(Plan { steps, method: Method::Layout, primary, backup: Some(backup) })
}

/// Both ends of a disk in memory, so that the crate can lay out a large disk in little memory. Access to the middle
/// is an error.
#[derive(Debug)]
struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    len: u64,
    at: u64,
}

impl Ends {
    fn new(len: u64) -> Self {
        let size = |most: u64| vec![0; len.min(most) as usize];
        Self { head: size(MIB), tail: size(TAIL), len, at: 0 }
    }

    /// Which end a range lies in (`true`: the head), and its range there.
    fn locate(&self, at: u64, len: usize) -> Option<(bool, std::ops::Range<usize>)> {
        let past = at.checked_add(len as u64)?;
        let tail_from = self.len - self.tail.len() as u64;
        if past <= self.head.len() as u64 {
            Some((true, at as usize..past as usize))
        } else if at >= tail_from && past <= self.len {
            Some((false, (at - tail_from) as usize..(past - tail_from) as usize))
        } else {
            None
        }
    }

    fn slice(&self, at: u64, len: usize) -> Option<&[u8]> {
        let (in_head, range) = self.locate(at, len)?;
        if in_head { self.head.get(range) } else { self.tail.get(range) }
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the middle of the disk is no part of the table")
}

impl Read for Ends {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.slice(self.at, buf.len()).ok_or_else(outside)?;
        buf.copy_from_slice(bytes);
        self.at += buf.len() as u64;
        Ok(buf.len())
    }
}

impl Write for Ends {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let (in_head, range) = self.locate(self.at, buf.len()).ok_or_else(outside)?;
        let end = if in_head { &mut self.head } else { &mut self.tail };
        end.get_mut(range).ok_or_else(outside)?.copy_from_slice(buf);
        self.at += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Ends {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(outside)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<NewPartition> {
        let part = |name: &str, guid, size| NewPartition {
            name: name.into(),
            type_guid: Guid([0x0f; 16]),
            guid,
            size,
            attributes: Attributes(1 << 50),
        };
        vec![part("platform_a", Some(Guid([9; 16])), 3 * MIB), part("platform_b", None, 1)]
    }

    #[test]
    fn partitions_lie_as_requested_and_a_petabyte_takes_little_memory() {
        for (block, len) in [(BlockSize::B512, 6 * MIB), (BlockSize::B4096, 1 << 50)] {
            let plan = create("x", len, block, &parts(), Some(Guid([7; 16]))).unwrap();
            let found = plan.primary.partitions();
            assert_eq!(found[0].extent.at.0, MIB);
            assert_eq!((found[0].number, found[0].extent.len, found[0].guid), (1, 3 * MIB, Guid([9; 16])));
            assert_eq!((found[1].number, found[1].extent.at.0, found[1].extent.len), (2, 4 * MIB, MIB));
            assert_ne!(found[1].guid, Guid::NIL);
            assert_eq!(plan.primary.attributes(2), Attributes(1 << 50));
            assert_eq!(plan.primary.header().disk_guid, Guid([7; 16]));
            assert_eq!(plan.primary.header().first_usable.0 * u64::from(block.bytes()), MIB);
            let backup = plan.backup.unwrap();
            assert!(plan.primary.agrees_with(&backup));
            assert_eq!(backup.header().my_lba.0, len / u64::from(block.bytes()) - 1);
        }
    }

    #[test]
    fn reserved_space_lies_before_the_first_partition() {
        for (reserve, first) in [(0, MIB), (MIB, MIB), (MIB + 1, 2 * MIB), (16 * MIB, 16 * MIB)] {
            let plan = create_after(reserve, "x", 32 * MIB, BlockSize::B512, &parts(), None).unwrap();
            assert_eq!(plan.primary.partitions()[0].extent.at.0, first);
            assert_eq!(plan.primary.header().first_usable.0 * 512, first);
        }
        let refused = create_after(u64::MAX, "x", 32 * MIB, BlockSize::B512, &parts(), None);
        assert!(matches!(refused, Err(Error::DiskTooSmall { .. })));
    }

    #[test]
    fn a_layout_that_does_not_fit_is_refused_with_its_size() {
        let needed = 5 * MIB + 16384 + 512;
        assert!(create("x", needed, BlockSize::B512, &parts(), None).is_ok());
        let refused = create("x", needed - 512, BlockSize::B512, &parts(), None).unwrap_err();
        assert!(
            matches!(refused, Error::DiskTooSmall { needed: n, size, .. } if n == needed && size == needed - 512)
        );
        let mut huge = parts();
        huge[0].size = u64::MAX;
        assert!(matches!(create("x", needed, BlockSize::B512, &huge, None), Err(Error::DiskTooSmall { .. })));
        let mut long = parts();
        long[0].name = "x".repeat(37);
        assert!(matches!(create("x", needed, BlockSize::B512, &long, None), Err(Error::Argument { .. })));
    }
}
