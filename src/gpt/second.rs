//! The independent second reader: the `gpt` crate reads what was written and must agree. It shares no code with our
//! codec, so an error common to our writer and our reader is found here.
//!
//! It is strict where UEFI is not, measured on 4.1.0: entries of other sizes than 128 bytes make it panic (an
//! assertion), a header longer than 92 bytes fails its CRC, and it seeks the backup in the last block only.
//! [`scope`] returns which tables it can judge; the others rest on our own re-read alone.

use std::fmt;
use std::io::{Read, Seek, Write};

use super::Table;
use super::sectors::Geometry;
use crate::units::{BlockSize, ByteOffset, Extent, Guid};

/// How much of a table the second reader can judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Both copies.
    Both,
    /// The primary: there is no backup, or it is not in the last block of the disk.
    PrimaryOnly,
    /// Nothing: entries are not 128 bytes long.
    NothingEntrySize,
    /// Nothing: the header is longer than 92 bytes.
    NothingHeaderSize,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Both => "both copies read by a second reader",
            Self::PrimaryOnly => {
                "primary read by a second reader, which looks for the backup in the last block only"
            }
            Self::NothingEntrySize => "no second reader knows entries of this size",
            Self::NothingHeaderSize => "no second reader knows headers of this size",
        })
    }
}

/// What the second reader can judge of this table.
pub fn scope(primary: &Table, has_backup: bool, geometry: &Geometry) -> Scope {
    let header = primary.header();
    match (header.entry_size(), header.header_size()) {
        (128, 92) if has_backup && header.alternate_lba == geometry.last_lba() => Scope::Both,
        (128, 92) => Scope::PrimaryOnly,
        (128, _) => Scope::NothingHeaderSize,
        _ => Scope::NothingEntrySize,
    }
}

/// Reads the table again from `disk` and compares it with `primary`, as far as [`scope`] goes. The error names what
/// differs. The crate's trait demands `Write`; nothing is written.
pub fn check<D>(mut disk: D, primary: &Table, has_backup: bool, geometry: &Geometry) -> Result<Scope, String>
where
    D: Read + Write + Seek + fmt::Debug,
{
    let scope = scope(primary, has_backup, geometry);
    if matches!(scope, Scope::NothingEntrySize | Scope::NothingHeaderSize) {
        return Ok(scope);
    }
    let block = match geometry.block {
        BlockSize::B512 => ::gpt::disk::LogicalBlockSize::Lb512,
        BlockSize::B4096 => ::gpt::disk::LogicalBlockSize::Lb4096,
    };
    let failed = |error: &dyn fmt::Display| format!("the second reader fails: {error}");
    let read = ::gpt::GptConfig::new()
        .writable(false)
        .logical_block_size(block)
        .only_valid_headers(scope == Scope::Both)
        .open_from_device(&mut disk)
        .map_err(|error| failed(&error))?;
    let wanted = rows_of(primary);
    let header = read.primary_header().map_err(|error| failed(&error))?.clone();
    compare("primary", &header, read.partitions(), primary, &wanted, block)?;
    if scope == Scope::Both {
        let header = read.backup_header().map_err(|error| failed(&error))?.clone();
        drop(read);
        let parts = ::gpt::partition::file_read_partitions(&mut disk, &header, block);
        compare("backup", &header, &parts.map_err(|error| failed(&error))?, primary, &wanted, block)?;
    }
    Ok(scope)
}

/// A partition as both readers report it.
#[derive(Debug, PartialEq)]
struct Row {
    number: u32,
    name: String,
    guid: Guid,
    extent: Option<Extent>,
    attributes: u64,
}

fn rows_of(table: &Table) -> Vec<Row> {
    let row = |p: super::Partition| Row {
        attributes: table.attributes(p.number).0,
        number: p.number,
        name: p.name,
        guid: p.guid,
        extent: (p.extent.len > 0).then_some(p.extent),
    };
    table.partitions().into_iter().map(row).collect()
}

fn compare(
    copy: &str,
    header: &::gpt::header::Header,
    parts: &std::collections::BTreeMap<u32, ::gpt::partition::Partition>,
    table: &Table,
    wanted: &[Row],
    block: ::gpt::disk::LogicalBlockSize,
) -> Result<(), String> {
    let ours = table.header();
    let facts = (header.disk_guid.to_bytes_le(), header.first_usable, header.last_usable, header.num_parts);
    if facts != (ours.disk_guid.0, ours.first_usable.0, ours.last_usable.0, ours.entry_count()) {
        return Err(format!("the second reader's {copy} header is not ours: {header:?}"));
    }
    let row = |(&number, part): (&u32, &::gpt::partition::Partition)| {
        let extent = part.bytes_start(block).ok().zip(part.bytes_len(block).ok());
        let extent = extent.filter(|(at, len)| at.checked_add(*len).is_some());
        Row {
            number,
            name: part.name.clone(),
            guid: Guid(part.part_guid.to_bytes_le()),
            extent: extent.map(|(at, len)| Extent { at: ByteOffset(at), len }),
            attributes: part.flags,
        }
    };
    let got: Vec<Row> = parts.iter().filter(|(_, part)| part.is_used()).map(row).collect();
    if got.len() != wanted.len() {
        return Err(format!(
            "the second reader finds {} partitions in the {copy}, we {}",
            got.len(),
            wanted.len()
        ));
    }
    match got.iter().zip(wanted).find(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some((got, wanted)) => Err(format!("{copy}: the second reader finds {got:?}, we {wanted:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::Attributes;
    use super::super::layout::{NewPartition, create};
    use super::super::plan::Step;
    use super::*;
    use crate::units::MIB;

    fn disk(block: BlockSize) -> (Table, Vec<u8>, Geometry) {
        let part = |name: &str| NewPartition {
            name: name.into(),
            type_guid: Guid([0x0f; 16]),
            guid: None,
            size: MIB,
            attributes: Attributes(5 << 48),
        };
        let len = 4 * MIB;
        let plan = create("x", len, block, &[part("platform_a"), part("platform_b")], None).unwrap();
        let mut bytes = vec![0; len as usize];
        for step in &plan.steps {
            if let Step::Write(write) = step {
                let at = write.at().0 as usize;
                bytes[at..at + write.bytes().len()].copy_from_slice(write.bytes());
            }
        }
        (plan.primary, bytes, Geometry::new(len, block, block.bytes()))
    }

    #[test]
    fn it_agrees_with_the_written_table_only() {
        for block in [BlockSize::B512, BlockSize::B4096] {
            let (table, bytes, geometry) = disk(block);
            assert_eq!(check(Cursor::new(bytes.clone()), &table, true, &geometry), Ok(Scope::Both));
            for number in [1, 2] {
                let other = table.with_attributes(number, Attributes(6 << 48));
                let refusal = check(Cursor::new(bytes.clone()), &other, true, &geometry).unwrap_err();
                assert!(refusal.contains("primary"), "{refusal}");
            }
            // One bit of the backup alone: in its array, in its header.
            let backup = bytes.len() - block.bytes() as usize;
            for at in [backup - 16384 + 48, backup + 41] {
                let mut rotten = bytes.clone();
                rotten[at] ^= 1;
                let refusal = check(Cursor::new(rotten), &table, true, &geometry).unwrap_err();
                assert!(refusal.contains("fails"), "{refusal}");
            }
        }
    }

    #[test]
    fn it_is_not_used_where_it_would_panic() {
        let (table, bytes, geometry) = disk(BlockSize::B512);
        let mut header = table.header().clone();
        (header.count, header.entry_size) = (64, 256);
        let large = Table::new(header, table.entries().to_vec()).unwrap();
        assert_eq!(check(Cursor::new(bytes), &large, true, &geometry), Ok(Scope::NothingEntrySize));
    }
}
