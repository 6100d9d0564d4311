//! Reads and writes a slot's record.

use std::ops::Deref;

use super::{Condition, Footer, Layout, Mark, UNIT};
use crate::bundle::Release;
use crate::bundle::manifest::{INDEX_MAX, MANIFEST_MAX, Manifest, Provenance};
use crate::bundle::signature::SIGNATURE_MAX;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::units::{Blake3, ByteOffset, Group};

/// What is installed in a slot.
#[derive(Debug, Clone)]
pub struct Record {
    /// The release: the manifest that was signed, and the index of all its payloads.
    pub release: Release,
    /// Location of each payload.
    pub layout: Layout,
    /// Origin of the bundle, a path or URL.
    pub origin: String,
    /// Whether it was installed in the unsigned mode.
    pub unsigned: bool,
}

/// A record is an installed release, so its fields are accessible as `record.manifest`.
impl Deref for Record {
    type Target = Release;

    fn deref(&self) -> &Release {
        &self.release
    }
}

/// Content of a slot by its record.
#[derive(Debug, Clone)]
pub enum Content {
    /// Complete: exactly the content of the record, with the mark if there is one.
    Whole(Box<Record>, Option<Mark>),
    /// A prepare of a bundle from `origin` began and did not end.
    Torn {
        /// Origin of that bundle.
        origin: String,
        /// BLAKE3 of its manifest.
        manifest: Blake3,
        /// The epoch of the mark, which a prepare does not change before its end.
        epoch: u64,
    },
    /// No record of qstage; `why` is a sentence.
    Nothing {
        /// What was found instead.
        why: String,
        /// Whether there is anything but zeroes at the place of a record: for instance a damaged record.
        traces: bool,
        /// The epoch of the mark; 0 if it is not whole.
        epoch: u64,
    },
}

impl Content {
    /// The highest epoch that was ever marked good, by the mark; 0 if unknown.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Whole(_, mark) => mark.as_ref().map_or(0, |mark| mark.epoch),
            Self::Torn { epoch, .. } | Self::Nothing { epoch, .. } => *epoch,
        }
    }

    /// The record if the slot is whole; else `None`.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Whole(record, _) => Some(record),
            Self::Torn { .. } | Self::Nothing { .. } => None,
        }
    }

    /// Reads the record of the slot `partition` of `group`. Everything is checked: the CRCs, the index against the
    /// manifest, the layout against both. The images are not read.
    ///
    /// # Errors
    /// [`Error::Read`] only: a damaged record is not an error but [`Content::Nothing`].
    pub fn read(slot: &dyn BlockDevice, group: Group, partition: &str) -> Result<Self> {
        let Some(footer_at) = Layout::footer_at(slot.len()) else {
            let why = "the partition is too small".to_owned();
            return Ok(Self::Nothing { why, traces: false, epoch: 0 });
        };
        let mut block = AlignedBuf::zeroed(2 * UNIT as usize);
        let what = format!("the record of {partition}");
        device::read(slot, &what, &mut block, ByteOffset(footer_at - UNIT))?;
        let traces = block.iter().any(|byte| *byte != 0);
        let (mark, footer) = block.split_at(UNIT as usize);
        let epoch = Mark::decode(mark).map_or(0, |mark| mark.epoch);
        let nothing = |why: &str| Ok(Self::Nothing { why: why.to_owned(), traces, epoch });
        let Some(footer) = Footer::decode(footer) else { return nothing("there is no footer") };
        if footer.group != group {
            return nothing("the footer is of another group");
        }
        if footer.condition == Condition::Torn {
            return Ok(Self::Torn { origin: footer.origin, manifest: footer.manifest, epoch });
        }
        let lengths = [footer.manifest_len, footer.signature_len, footer.index_len].map(u64::from);
        let limits = [MANIFEST_MAX, SIGNATURE_MAX, INDEX_MAX];
        let len: u64 = lengths.iter().sum();
        let end = footer.body_at.checked_add(len.next_multiple_of(UNIT));
        if lengths.iter().zip(limits).any(|(len, limit)| *len > limit) || end != Some(footer_at - UNIT) {
            return nothing("the footer's lengths make no sense");
        }
        let mut body = AlignedBuf::zeroed(len.next_multiple_of(UNIT) as usize);
        device::read(slot, &what, &mut body, ByteOffset(footer.body_at))?;
        let body = &body[..len as usize];
        if crc32fast::hash(body) != footer.body_crc {
            return nothing("the record body does not have the CRC of its footer");
        }
        let (manifest, rest) = body.split_at(lengths[0] as usize);
        let (signature, index) = rest.split_at(lengths[1] as usize);
        // From here on the bytes are as written; a failure means another build wrote them.
        let parse = || -> Result<Record> {
            let manifest =
                Manifest::with_provenance(manifest.to_vec(), signature.to_vec(), Provenance::Record)?;
            let release = Release::new(manifest, index.to_vec())?;
            let layout = Layout::new(&release.manifest, group, len, slot.len(), partition)?;
            Ok(Record { release, layout, origin: footer.origin.clone(), unsigned: footer.unsigned })
        };
        match parse() {
            Ok(record) if record.layout.body_at == footer.body_at => {
                Ok(Self::Whole(Box::new(record), Mark::decode(mark)))
            }
            Ok(_) => nothing("the record is not where its manifest implies"),
            Err(error) => nothing(&format!("the record cannot be read: {error}")),
        }
    }
}

impl Record {
    fn footer(&self, condition: Condition, group: Group) -> Footer {
        let whole = condition == Condition::Whole;
        // Bounded by the limits of the parts, far below 2^32.
        let len = |bytes: &[u8]| if whole { bytes.len() as u32 } else { 0 };
        let mut crc = crc32fast::Hasher::new();
        for part in [self.manifest.bytes(), self.manifest.signature(), self.index().bytes()] {
            crc.update(part);
        }
        Footer {
            condition,
            body_at: if whole { self.layout.body_at } else { 0 },
            manifest_len: len(self.manifest.bytes()),
            signature_len: len(self.manifest.signature()),
            index_len: len(self.index().bytes()),
            body_crc: if whole { crc.finalize() } else { 0 },
            group,
            unsigned: self.unsigned,
            manifest: Blake3(*blake3::hash(self.manifest.bytes()).as_bytes()),
            origin: self.origin.clone(),
        }
    }

    /// Marks the slot as torn, durably, before it is overwritten. The footer is read again, because everything
    /// after rests on it. The mark stays: if it were voided at the same time, a cut between the two writes could
    /// make a slot that was marked bad look as if it had just been prepared.
    ///
    /// # Errors
    /// Class Io; [`Error::ReadBack`] if the footer is not there afterwards.
    pub fn write_torn(&self, slot: &dyn BlockDevice, group: Group, partition: &str) -> Result<()> {
        self.write_footer(slot, Condition::Torn, group, partition)
    }

    /// Marks the slot as whole, durably: body and void mark, a barrier, then the footer, and the record is read
    /// again. Called when everything else is durable and has been read back.
    ///
    /// # Errors
    /// Class Io; [`Error::ReadBack`] if the record is not there afterwards.
    pub fn write_whole(&self, slot: &dyn BlockDevice, group: Group, partition: &str) -> Result<()> {
        let mut body = Vec::with_capacity(self.layout.body_len as usize);
        for part in [self.manifest.bytes(), self.manifest.signature(), self.index().bytes()] {
            body.extend_from_slice(part);
        }
        let what = format!("the record of {partition}");
        let body = AlignedBuf::padded(&body, UNIT as usize);
        device::write(slot, &what, &body, ByteOffset(self.layout.body_at))?;
        device::write(slot, &what, &AlignedBuf::zeroed(UNIT as usize), ByteOffset(self.layout.mark_at))?;
        device::sync(slot, &what)?;
        self.write_footer(slot, Condition::Whole, group, partition)?;
        match Content::read(slot, group, partition)? {
            Content::Whole(read, None) if read.is_of(self) => Ok(()),
            Content::Whole(..) | Content::Torn { .. } | Content::Nothing { .. } => {
                Err(Error::ReadBack { payload: what, frame: 0, at: self.layout.body_at })
            }
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        let parts = |record: &Self| {
            let manifest = &record.manifest;
            [manifest.bytes(), manifest.signature(), record.index().bytes()].map(<[u8]>::to_vec)
        };
        parts(self) == parts(other)
    }

    fn write_footer(
        &self,
        slot: &dyn BlockDevice,
        condition: Condition,
        group: Group,
        partition: &str,
    ) -> Result<()> {
        let footer = self.footer(condition, group).encode();
        write_block(slot, &format!("the footer of {partition}"), &footer, self.layout.footer_at)
    }
}

/// Writes the mark of an installed slot, durably; `None` voids it. One block: a power cut leaves the old or the new
/// one.
///
/// # Errors
/// Class Io; [`Error::ReadBack`] if it is not there afterwards.
pub fn write_mark(slot: &dyn BlockDevice, mark: Option<&Mark>, partition: &str) -> Result<()> {
    let Some(at) = Layout::footer_at(slot.len()) else { return Ok(()) };
    let block = mark.map_or_else(|| vec![0; UNIT as usize], Mark::encode);
    write_block(slot, &format!("the mark of {partition}"), &block, at - UNIT)
}

/// Destroys the footer of a slot, durably: its content is no longer authenticated. The images stay, so that the
/// next prepare recognises what it can reuse. The mark stays as well, see [`Record::write_torn`].
pub fn discard(slot: &dyn BlockDevice, partition: &str) -> Result<()> {
    let Some(at) = Layout::footer_at(slot.len()) else { return Ok(()) };
    write_block(slot, &format!("the footer of {partition}"), &[0; UNIT as usize], at)
}

/// Writes one block, makes it durable, and reads it again: every decision is based on the record, so a write that
/// the disk lost or misplaced must be detected.
fn write_block(slot: &dyn BlockDevice, what: &str, block: &[u8], at: u64) -> Result<()> {
    device::write(slot, what, &AlignedBuf::padded(block, UNIT as usize), ByteOffset(at))?;
    device::sync(slot, what)?;
    let mut got = AlignedBuf::zeroed(UNIT as usize);
    device::read(slot, what, &mut got, ByteOffset(at))?;
    if got[..] == *block { Ok(()) } else { Err(Error::ReadBack { payload: what.to_owned(), frame: 0, at }) }
}
