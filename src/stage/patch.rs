//! Frames of a delta: copied from the base, or decompressed with ranges of it, or taken from the whole bundle.
//!
//! The result is untrusted: the worker verifies each frame against the signed index before it is written, as it does with
//! a bundle's frames. The base is opened read-only.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::Bundle;
use crate::bundle::delta::{Delta, Kind, Recipe, patch};
use crate::bundle::frame::{Frame, FrameDecoder};
use crate::bundle::pick::Picker;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result, sentence};
use crate::progress::Progress;
use crate::slot::{Record, UNIT};
use crate::units::{ByteOffset, Extent};
use crate::workers::lock;

/// Unit of reads of the base, in bytes: the device requires whole blocks, a recipe names any bytes.
const STEP: u64 = 256 << 10;

/// The running image that the frames of one payload are made from.
pub struct BaseSlot {
    /// Name of the partition, for messages.
    pub partition: String,
    /// The slot.
    pub device: Box<dyn BlockDevice>,
    /// Record of the slot.
    pub record: Record,
    /// Place of the image in the record's manifest.
    pub payload: usize,
}

/// Other sources of the frames of a delta.
pub struct Sources<'a> {
    /// Base of each payload of the release; `None` if it has none.
    pub bases: Vec<Option<BaseSlot>>,
    /// The whole bundle, if one is known.
    pub whole: Option<&'a Bundle>,
}

/// Statistics of a delta.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeltaOutcome {
    /// Bytes of frames copied from the base.
    pub copied: u64,
    /// Bytes of frames decompressed with ranges of the base.
    pub patched: u64,
    /// Bytes of frames taken from the whole bundle.
    pub fallen_back: u64,
    /// Bytes that were read of the delta and of the whole bundle for them.
    pub downloaded: u64,
    /// First damaged place of the base that was met, as an offset in its slot in bytes.
    pub base_damaged: Option<u64>,
}

/// Makes frames by the recipes of a delta; shared by all workers.
pub(super) struct Patcher<'a> {
    delta: &'a Delta,
    sources: &'a Sources<'a>,
    picker: Option<Picker<'a>>,
    copied: AtomicU64,
    patched: AtomicU64,
    fallen_back: AtomicU64,
    downloaded: AtomicU64,
    damaged: Mutex<Option<u64>>,
}

/// Buffers of one worker.
#[derive(Default)]
pub(super) struct Scratch {
    prefix: Vec<u8>,
    step: Option<AlignedBuf>,
}

impl<'a> Patcher<'a> {
    pub(super) fn new(delta: &'a Delta, sources: &'a Sources<'a>) -> Self {
        Self {
            delta,
            sources,
            picker: sources.whole.map(Picker::new),
            copied: AtomicU64::new(0),
            patched: AtomicU64::new(0),
            fallen_back: AtomicU64::new(0),
            downloaded: AtomicU64::new(0),
            damaged: Mutex::new(None),
        }
    }

    /// Writes the result of the recipe to the start of `out`; `packed` are the delta's bytes for the frame.
    ///
    /// # Errors
    /// [`Error::DeltaFrame`], [`Error::Frame`], [`Error::Read`]: each of them is a reason to take the frame from elsewhere.
    pub(super) fn fill(
        &self,
        frame: &Frame<'_>,
        packed: &[u8],
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<()> {
        let recipe = self.delta.recipe(frame);
        let len = frame.len();
        self.downloaded.fetch_add(packed.len() as u64, Ordering::Relaxed);
        match recipe.kind {
            Kind::Zero => out.fill(0),
            Kind::InPlace | Kind::Copy => {
                self.read(frame, &recipe, scratch)?;
                match (out.get_mut(..len), scratch.prefix.get(..len)) {
                    (Some(out), Some(from)) => out.copy_from_slice(from),
                    _ => return Err(missing(frame, "the base has fewer bytes".to_owned())),
                }
                self.copied.fetch_add(len as u64, Ordering::Relaxed);
            }
            Kind::Patch => {
                self.read(frame, &recipe, scratch)?;
                patch(frame, &scratch.prefix, packed, out)?;
                self.patched.fetch_add(len as u64, Ordering::Relaxed);
            }
            Kind::Bundle => return Err(missing(frame, "it was left out".to_owned())),
        }
        Ok(())
    }

    /// The ranges of the recipe, one after the other.
    fn read(&self, frame: &Frame<'_>, recipe: &Recipe<'_>, scratch: &mut Scratch) -> Result<()> {
        scratch.prefix.clear();
        if recipe.base_len() == 0 {
            return Ok(());
        }
        let base = self.base(frame).ok_or_else(|| missing(frame, "it has no base".to_owned()))?;
        let step = scratch.step.get_or_insert_with(|| AlignedBuf::zeroed(STEP as usize));
        recipe.ranges().try_for_each(|range| base.read(range, step, &mut scratch.prefix))
    }

    fn base(&self, frame: &Frame<'_>) -> Option<&'a BaseSlot> {
        self.sources.bases.get(frame.payload_number())?.as_ref()
    }

    /// Writes the frame from the whole bundle to the start of `out`, since its recipe failed with `problem`.
    ///
    /// # Errors
    /// Without a whole bundle: [`Error::BaseDamaged`] if that is the cause, else [`Error::DeltaFrame`]. Those of the bundle.
    pub(super) fn fall_back(
        &self,
        frame: &Frame<'_>,
        problem: Error,
        decoder: &mut FrameDecoder,
        out: &mut [u8],
        progress: &dyn Progress,
    ) -> Result<()> {
        if matches!(problem, Error::Interrupted { .. }) {
            return Err(problem);
        }
        let recipe = self.delta.recipe(frame);
        let damage = self.base(frame).and_then(|base| Some((base, base.damage(recipe.ranges())?)));
        if let Some((base, at)) = damage
            && lock(&self.damaged).replace(at).is_none()
        {
            let partition = &base.partition;
            progress.notice(&format!(
                "{partition}, which the delta starts from, differs from its record at offset {at}"
            ));
        }
        let Some(picker) = &self.picker else {
            return Err(match damage {
                Some((base, at)) => Error::BaseDamaged { partition: base.partition.clone(), at },
                None if matches!(problem, Error::DeltaFrame { .. }) => problem,
                None => missing(frame, sentence(&problem)),
            });
        };
        let mut compressed = Vec::new();
        picker.load(frame, &mut compressed)?;
        self.downloaded.fetch_add(compressed.len() as u64, Ordering::Relaxed);
        self.fallen_back.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let counted = match recipe.kind {
            Kind::InPlace | Kind::Copy => Some(&self.copied),
            Kind::Patch => Some(&self.patched),
            Kind::Zero | Kind::Bundle => None,
        };
        // A recipe that gave bytes was counted, although they were wrong.
        if let (Some(counted), Error::FrameDigest { .. }) = (counted, &problem) {
            counted.fetch_sub(frame.len() as u64, Ordering::Relaxed);
        }
        decoder.decompress(frame, &compressed, out)
    }

    /// Statistics so far.
    pub(super) fn made(self) -> DeltaOutcome {
        DeltaOutcome {
            copied: self.copied.into_inner(),
            patched: self.patched.into_inner(),
            fallen_back: self.fallen_back.into_inner(),
            downloaded: self.downloaded.into_inner(),
            base_damaged: self.damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }
}

fn missing(frame: &Frame<'_>, problem: String) -> Error {
    let (payload, at) = (frame.payload().to_string(), frame.extent().at.0);
    Error::DeltaFrame { payload, frame: frame.number(), at, problem }
}

impl BaseSlot {
    /// Offset of the image in the slot.
    fn start(&self) -> u64 {
        self.record.layout.place(self.payload).map_or(0, |place| place.at)
    }

    /// Appends a range of the image to `out`. The device is read in whole blocks.
    fn read(&self, range: Extent, step: &mut AlignedBuf, out: &mut Vec<u8>) -> Result<()> {
        let (mut at, end) = (self.start() + range.at.0, self.start() + range.at.0 + range.len);
        while at < end {
            let from = at / UNIT * UNIT;
            let to = end.next_multiple_of(UNIT).min(from + STEP);
            let buffer = &mut step[..(to - from) as usize];
            device::read(&*self.device, &self.partition, buffer, ByteOffset(from))?;
            let part = &buffer[(at - from) as usize..(end.min(to) - from) as usize];
            out.extend_from_slice(part);
            at = end.min(to);
        }
        Ok(())
    }

    /// Start of the first frame that overlaps `ranges` and differs from the record.
    fn damage(&self, ranges: impl Iterator<Item = Extent>) -> Option<u64> {
        let payload = self.record.manifest.payloads.get(self.payload)?;
        let size = u64::from(payload.frame_size);
        let mut buffer = AlignedBuf::zeroed((size as usize).next_multiple_of(UNIT as usize));
        for range in ranges {
            for number in range.at.0 / size..(range.at.0 + range.len).div_ceil(size).min(payload.frames()) {
                let frame = self.record.frame(self.payload, number);
                let at = self.start() + frame.extent().at.0;
                let sound = self
                    .record
                    .frame_at(frame, &*self.device)
                    .map(|frame| frame.read_back(&mut buffer).is_ok());
                if !sound.unwrap_or(false) {
                    return Some(at);
                }
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
