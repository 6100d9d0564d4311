//! Builds the steps of a plan: writes only blocks that differ, and only claimed ones.

use std::ops::Range;

use super::{Geometry, Step};
use crate::gpt::claim::{BlockContent, Claims};
use crate::gpt::plan::Obstacle;
use crate::gpt::sectors::{BlockData, Sectors};
use crate::gpt::{Header, Table};
use crate::units::Lba;

/// Collects steps and tracks what each leaves on the disk.
pub(super) struct Steps<'a> {
    pub(super) claims: Claims<'a>,
    pub(super) done: Vec<Step>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(table: &'a Table, geometry: &'a Geometry, sectors: &'a Sectors) -> Self {
        Self { claims: Claims::new(table, geometry, sectors), done: Vec::new() }
    }

    /// These steps on explicit request: the copy of `replaced` may be overwritten.
    pub(super) fn on_request(mut self, replaced: Option<&Header>) -> Self {
        self.claims = self.claims.on_request(replaced);
        self
    }

    /// Adds a barrier, unless nothing was written since the last one.
    pub(super) fn barrier(&mut self) {
        let writes = self.done.iter().rev().take_while(|step| !matches!(step, Step::Barrier));
        if writes.into_iter().any(|step| matches!(step, Step::Write(_))) {
            self.done.push(Step::Barrier);
        }
    }

    fn write(&mut self, write: Option<super::ClaimedWrite>) {
        if let Some(write) = write {
            self.claims.sectors.to_mut().overlay(write.at(), write.bytes());
            self.done.push(Step::Write(write));
        }
    }

    /// The array in whole blocks, as it would lie at `lba`. If it ends within a block, the bytes after it stay as
    /// they are.
    fn padded(&self, table: &Table, lba: Lba) -> Vec<u8> {
        let block = self.claims.geometry.block.bytes() as usize;
        let mut bytes = table.entries().to_vec();
        let within = bytes.len() % block;
        if within > 0 {
            let last = lba.0 + (bytes.len() / block) as u64;
            match self.claims.sectors.get(last) {
                BlockData::Bytes(found) => bytes.extend_from_slice(&found[within..]),
                BlockData::Lost | BlockData::Unknown => bytes.resize(bytes.len().next_multiple_of(block), 0),
            }
        }
        bytes
    }

    /// Runs of neighbouring blocks of the array that differ from the disk.
    fn differing(&self, table: &Table) -> Vec<(u64, Vec<u8>)> {
        let first = table.header().entries_lba;
        let block = self.claims.geometry.block.bytes() as usize;
        let padded = self.padded(table, first);
        let blocks = (first.0..).zip(padded.chunks(block));
        runs(blocks.filter(|(lba, bytes)| self.claims.sectors.get(*lba) != BlockData::Bytes(bytes)))
    }

    /// Writes the array where the table's header has it: only the blocks that differ.
    pub(super) fn array(&mut self, table: &Table, what: &'static str) -> Result<(), Obstacle> {
        for (lba, bytes) in self.differing(table) {
            self.blocks(lba, bytes, what)?;
        }
        Ok(())
    }

    fn blocks(&mut self, lba: u64, bytes: Vec<u8>, what: &'static str) -> Result<(), Obstacle> {
        let count = (bytes.len() / self.claims.geometry.block.bytes() as usize) as u64;
        let claimed = self.claims.array(lba..lba + count).map_err(|at| Obstacle::Foreign { what, at })?;
        let write = claimed.write(bytes, what);
        self.write(write);
        Ok(())
    }

    /// Same as [`Self::array`], for a reader that takes these blocks whatever the header says. Blocks in which a
    /// slot becomes bootable are durable before those in which one ceases to be.
    pub(super) fn array_for_blind_readers(
        &mut self,
        table: &Table,
        what: &'static str,
    ) -> Result<(), Obstacle> {
        let block = self.claims.geometry.block.bytes() as usize;
        let blocks: Vec<(u64, Vec<u8>)> = self
            .differing(table)
            .into_iter()
            .flat_map(|(lba, bytes)| (lba..).zip(bytes.chunks(block).map(<[u8]>::to_vec).collect::<Vec<_>>()))
            .collect();
        let size = table.header().entry_size() as usize;
        let raises_rank = |(lba, new): &(u64, Vec<u8>)| {
            let BlockData::Bytes(old) = self.claims.sectors.get(*lba) else { return false };
            super::raises_rank(old, new, size)
        };
        let (first, rest): (Vec<_>, Vec<_>) = blocks.into_iter().partition(raises_rank);
        let both = !first.is_empty() && !rest.is_empty();
        for (lba, bytes) in first {
            self.blocks(lba, bytes, what)?;
        }
        if both {
            self.barrier();
        }
        for (lba, bytes) in rest {
            self.blocks(lba, bytes, what)?;
        }
        Ok(())
    }

    /// Writes the primary header with its whole physical block, the other bytes as they are, so that the medium
    /// need not read and merge.
    pub(super) fn primary_header(&mut self, table: &Table, what: &'static str) {
        let write = self.claims.primary_header(&table.header().encode()).map(|write| write.with_what(what));
        self.write(write);
    }

    pub(super) fn backup_header(&mut self, table: &Table) -> Result<(), Obstacle> {
        let (at, what) = (table.header().my_lba, "backup header");
        let claimed = self.claims.backup_header(at).map_err(|at| Obstacle::Foreign { what, at })?;
        let write = claimed.write(table.header().encode(), what);
        self.write(write);
        Ok(())
    }

    /// Zeroes former copies of the array in the gap: those at `spare` and those after `home`.
    pub(super) fn clear(&mut self, spare: Option<Range<u64>>, home: Range<u64>) {
        let zero = vec![0; self.claims.geometry.block.bytes() as usize];
        let goes = |lba: &u64| *lba >= home.end || spare.as_ref().is_some_and(|spare| spare.contains(lba));
        let is_copy = |lba: &u64| self.claims.holds(*lba) == BlockContent::Copy;
        let copies = self.claims.gap.clone().filter(|lba| !home.contains(lba) && goes(lba)).filter(is_copy);
        let runs = runs(copies.map(|lba| (lba, zero.as_slice())));
        let mut cleared = Vec::new();
        for (lba, bytes) in runs {
            let what = "former array: cleared";
            let at = self.claims.geometry.offset(lba);
            // Blocks of a former copy are claimed by what they hold.
            if self.blocks(lba, bytes.clone(), what).is_ok() {
                cleared.push(Step::ReadBack { at, bytes, what });
            }
        }
        self.barrier();
        self.done.append(&mut cleared);
    }

    pub(super) fn read_back_array(&mut self, table: &Table, what: &'static str) {
        let lba = table.header().entries_lba;
        let at = self.claims.geometry.offset(lba.0);
        let bytes = self.padded(table, lba);
        self.done.push(Step::ReadBack { at, bytes, what });
    }

    pub(super) fn read_back_header(&mut self, table: &Table, what: &'static str) {
        let at = self.claims.geometry.offset(table.header().my_lba.0);
        self.done.push(Step::ReadBack { at, bytes: table.header().encode(), what });
    }

    pub(super) fn read_back(&mut self, table: &Table, what: &'static str) {
        self.read_back_array(table, what);
        self.read_back_header(table, what);
    }
}

/// Joins blocks in rising order to runs of neighbours, each with the LBA of its first block.
fn runs<'b>(blocks: impl Iterator<Item = (u64, &'b [u8])>) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut next = None;
    for (lba, bytes) in blocks {
        match runs.last_mut().filter(|_| next == Some(lba)) {
            Some((_, run)) => run.extend_from_slice(bytes),
            None => runs.push((lba, bytes.to_vec())),
        }
        next = Some(lba + 1);
    }
    runs
}
