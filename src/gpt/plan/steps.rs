//! Puts steps together: whole blocks, whole physical blocks around a header, changed blocks only.

use super::{Geometry, Head, Step};
use crate::gpt::Table;
use crate::units::{ByteOffset, Lba};

/// Collects steps, knowing what each leaves at the head of the disk.
pub(super) struct Steps<'a> {
    geometry: &'a Geometry,
    head: Head,
    pub(super) done: Vec<Step>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(geometry: &'a Geometry, head: &Head) -> Self {
        Self { geometry, head: head.clone(), done: Vec::new() }
    }

    pub(super) fn barrier(&mut self) {
        self.done.push(Step::Barrier);
    }

    fn write(&mut self, at: u64, bytes: Vec<u8>, what: &'static str) {
        self.head.overlay(ByteOffset(at), &bytes, self.geometry.block);
        self.done.push(Step::Write { at: ByteOffset(at), bytes, what });
    }

    /// Where a block lies. The places were checked against the size of the disk, so nothing saturates.
    fn offset(&self, lba: Lba) -> u64 {
        lba.0.saturating_mul(self.geometry.block_len())
    }

    /// The array in whole blocks. An array that ends within a block is followed by zeroes.
    fn padded(&self, table: &Table) -> Vec<u8> {
        let mut bytes = table.entries().to_vec();
        bytes.resize(bytes.len().next_multiple_of(self.geometry.block.bytes() as usize), 0);
        bytes
    }

    pub(super) fn array(&mut self, table: &Table, what: &'static str) {
        self.write(self.offset(table.header().entries_lba), self.padded(table), what);
    }

    /// The blocks of the array in which `old` and `new` differ, neighbours in one write.
    pub(super) fn changed(&mut self, old: &Table, new: &Table, what: &'static str) {
        let start = self.offset(new.header().entries_lba);
        let block = self.geometry.block.bytes() as usize;
        let (old, new) = (self.padded(old), self.padded(new));
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (i, (was, is)) in old.chunks(block).zip(new.chunks(block)).enumerate() {
            if was != is {
                let (_, bytes) = run.get_or_insert((start + (i * block) as u64, Vec::new()));
                bytes.extend_from_slice(is);
            } else if let Some((at, bytes)) = run.take() {
                self.write(at, bytes, what);
            }
        }
        if let Some((at, bytes)) = run {
            self.write(at, bytes, what);
        }
    }

    /// The header's block; for the primary the whole physical block around it, the other bytes as they are, so
    /// that the medium has nothing to read and merge. Where they cannot be read only the header's own.
    pub(super) fn header(&mut self, table: &Table, what: &'static str) {
        let at = self.offset(table.header().my_lba);
        let bytes = table.header().encode();
        let physical = u64::from(self.geometry.physical);
        let from = at / physical * physical;
        match self.head.readable(from as usize, physical as usize, self.geometry.block) {
            Some(around) if physical > self.geometry.block_len() => {
                let mut around = around.to_vec();
                let within = (at - from) as usize;
                around[within..within + bytes.len()].copy_from_slice(&bytes);
                self.write(from, around, what);
            }
            _ => self.write(at, bytes, what),
        }
    }

    pub(super) fn read_back_array(&mut self, table: &Table, what: &'static str) {
        let at = ByteOffset(self.offset(table.header().entries_lba));
        self.done.push(Step::ReadBack { at, bytes: self.padded(table), what });
    }

    pub(super) fn read_back_header(&mut self, table: &Table, what: &'static str) {
        let at = ByteOffset(self.offset(table.header().my_lba));
        self.done.push(Step::ReadBack { at, bytes: table.header().encode(), what });
    }

    pub(super) fn read_back(&mut self, table: &Table, what: &'static str) {
        self.read_back_array(table, what);
        self.read_back_header(table, what);
    }
}
