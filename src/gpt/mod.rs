//! The GUID partition table (UEFI 2.10, 5.3): bytes to values and back, and how a changed table gets onto a
//! disk so that a power cut at any sector leaves the old table or the new one.
//!
//! ```text
//! LBA 0        protective MBR        read to detect a GPT disk, never written
//! LBA 1        primary header        names the entry array: this one sector is the commit of a switch
//! home         entry array           usually at LBA 2; during a switch in a spare place before the first partition
//!              ...partitions...
//! alternate-n  backup entry array
//! alternate    backup header         usually the last block; the primary header names it
//! ```
//!
//! Only the attribute field of an entry is ever edited (8 of its bytes), and what follows from that in the headers:
//! CRCs, and during a switch the place of the array. All else stays byte for byte. Writers that decode a table and
//! encode it again were rejected: the `gpt` crate 4.1.0 renumbers partitions after a hole.

pub mod attrs;
mod claim;
pub mod codec;
pub mod layout;
mod mirror;
pub mod place;
pub mod plan;
pub mod reading;
pub mod second;
pub mod sectors;
pub mod table;

pub use attrs::Attributes;
pub use codec::{Fault, Header};
pub use plan::{Copy, Method, Obstacle, Plan, Step, TableMethod};
pub use reading::{Copies, CopyState, Damaged, Reading};
pub use sectors::{Geometry, Sectors};
pub use table::Table;

use crate::units::{Extent, Guid};

/// A used entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Partition number, counted from 1: the index in the entry array, unused entries included.
    pub number: u32,
    /// Partition name.
    pub name: String,
    /// Unique GUID ("PARTUUID").
    pub guid: Guid,
    /// Extent on the disk, in bytes. An entry whose blocks make no sense (last before first, beyond 2^64 bytes) has
    /// length 0: it is listed, but nothing may be done with it.
    pub extent: Extent,
}

/// Whether block 0 holds a protective MBR: signature 55 AA and a record of type EE (UEFI 2.10, 5.2.3). Without one,
/// firmware and kernels do not treat the disk as GPT, whatever an older table left on it.
pub fn has_protective_mbr(block0: &[u8]) -> bool {
    block0.get(510..512) == Some(&[0x55, 0xaa])
        && (0..4).any(|record| block0.get(446 + 16 * record + 4) == Some(&0xee))
}

/// Number of partitions in an MBR table in block 0; 0 if there is no such table. A boot sector has the same
/// signature; in a table each record has a status of 00 or 80.
pub fn mbr_partitions(block0: &[u8]) -> usize {
    let records = || (0..4).filter_map(|record| block0.get(446 + 16 * record..462 + 16 * record));
    if block0.get(510..512) != Some(&[0x55, 0xaa]) || records().any(|record| record[0] & 0x7f != 0) {
        return 0;
    }
    records().filter(|record| record[4] != 0).count()
}

#[cfg(test)]
pub(crate) mod testing;
