//! placeholder
use crate::units::{Extent, Guid};

/// A used entry of the table, as the rest of the program sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, counted from 1: its place in the entry array, holes included.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its unique GUID ("PARTUUID").
    pub guid: Guid,
    /// Where it lies on the disk, in bytes.
    pub extent: Extent,
}
