//! Frames of a delta: copied from the base, or decompressed with ranges of it, or taken from the whole bundle.
//!
//! The result is untrusted: the worker verifies each frame against the signed index before it is written, as it does with
//! a bundle's frames. The base is opened read-only.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::base::{BaseSlot, STEP};
use super::download::Download;
use crate::bundle::Bundle;
use crate::bundle::delta::{Delta, FrameKind, PREFIX_FRAMES, Recipe, Streams, rebuild};
use crate::bundle::frame::{Frame, FrameDecoder};
use crate::bundle::pick::Whole;
use crate::device::AlignedBuf;
use crate::error::{Error, Result, sentence};
use crate::progress::Progress;
use crate::workers::{Abort, Pool, lock};

/// Other sources of frames than the bundle or delta.
pub struct Sources<'a> {
    /// Base of each payload of the release; `None` if it has none.
    pub bases: Vec<Option<BaseSlot>>,
    /// Of a delta: the whole bundle, if one is known.
    pub whole: Option<&'a Whole>,
    /// Maximum number of bytes that may be downloaded in all; `None`: no limit.
    pub most: Option<u64>,
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
    /// First damaged place of the base that was met, as an offset in its slot in bytes.
    pub base_damaged: Option<u64>,
}

/// Makes frames by the recipes of a delta; shared by all workers.
pub(super) struct Patcher<'a> {
    delta: &'a Delta,
    sources: &'a Sources<'a>,
    scratch: Pool<Scratch>,
    copied: AtomicU64,
    patched: AtomicU64,
    fallen_back: AtomicU64,
    damaged: Mutex<Option<u64>>,
}

/// Parts of the run that a fallback needs.
pub(super) struct Work<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) download: &'a Download,
    pub(super) progress: &'a dyn Progress,
}

/// Memory in bytes for frames in the making, of all workers together: there are more workers than processors, most of them
/// waiting for the device, so that prepare with a delta would take twice the memory of one with a bundle.
const MAKING_BYTES: u64 = 20 << 20;

/// Buffers for the making of one frame.
struct Scratch {
    prefix: Vec<u8>,
    step: AlignedBuf,
    streams: Streams,
}

impl Scratch {
    fn new() -> Self {
        Self { prefix: Vec::new(), step: AlignedBuf::zeroed(STEP as usize), streams: Streams::default() }
    }

    /// Most bytes that one takes for frames of up to `frame` bytes: the ranges, and as much for the streams.
    const fn bytes(frame: u64) -> u64 {
        2 * PREFIX_FRAMES * frame + STEP
    }
}

impl<'a> Patcher<'a> {
    /// For `jobs` workers on frames of up to `frame` bytes.
    pub(super) fn new(delta: &'a Delta, sources: &'a Sources<'a>, jobs: NonZeroUsize, frame: usize) -> Self {
        let making = (MAKING_BYTES / Scratch::bytes(frame as u64)).clamp(1, jobs.get() as u64);
        Self {
            delta,
            sources,
            scratch: Pool::new((0..making).map(|_| Scratch::new())),
            copied: AtomicU64::new(0),
            patched: AtomicU64::new(0),
            fallen_back: AtomicU64::new(0),
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
        abort: &Abort<'_>,
        out: &mut [u8],
    ) -> Result<()> {
        let recipe = self.delta.recipe(frame);
        if recipe.kind == FrameKind::Bundle {
            return Err(missing(frame, "it was left out".to_owned()));
        }
        self.scratch.with(abort, |scratch| {
            self.read(frame, &recipe, scratch)?;
            let Scratch { prefix, streams, .. } = scratch;
            rebuild(recipe.kind, frame, prefix, packed, streams, out)
        })?;
        if let Some(made) = self.counter(recipe.kind) {
            made.fetch_add(frame.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where frames of a kind are counted.
    fn counter(&self, kind: FrameKind) -> Option<&AtomicU64> {
        match kind {
            FrameKind::InPlace | FrameKind::Copy => Some(&self.copied),
            FrameKind::Patch | FrameKind::Aligned => Some(&self.patched),
            FrameKind::Zero | FrameKind::Bundle => None,
        }
    }

    /// Reads the ranges of the recipe into the prefix, one after the other.
    fn read(&self, frame: &Frame<'_>, recipe: &Recipe<'_>, scratch: &mut Scratch) -> Result<()> {
        scratch.prefix.clear();
        if recipe.base_len() == 0 {
            return Ok(());
        }
        let base = self.base(frame).ok_or_else(|| missing(frame, "it has no base".to_owned()))?;
        let Scratch { prefix, step, .. } = scratch;
        recipe.ranges().try_for_each(|range| base.read(range, step, prefix))
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
        work: &Work<'_>,
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
            work.progress.notice(&format!(
                "{partition}, which the delta starts from, differs from its record at offset {at}"
            ));
        }
        let Some(whole) = self.sources.whole else {
            return Err(match damage {
                Some((base, at)) => Error::BaseDamaged { partition: base.partition.clone(), at },
                None if matches!(problem, Error::DeltaFrame { .. }) => problem,
                None => missing(frame, sentence(&problem)),
            });
        };
        let counted = self.counter(recipe.kind);
        // A recipe that gave bytes was counted, although they were wrong.
        if let (Some(counted), Error::FrameDigest { .. }) = (counted, &problem) {
            counted.fetch_sub(frame.len() as u64, Ordering::Relaxed);
        }
        let manifest = &work.bundle.release().manifest;
        let mut compressed = Vec::new();
        loop {
            work.download.take(frame.entry().compressed.into())?;
            let loaded = whole.load(manifest, frame, &mut compressed);
            let problem = match loaded.and_then(|()| decoder.decode(frame, &compressed, out).map(drop)) {
                Ok(()) => break,
                Err(problem) => problem,
            };
            if !whole.has_another(frame, &problem) {
                return Err(problem);
            }
        }
        self.fallen_back.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Statistics so far.
    pub(super) fn made(self) -> DeltaOutcome {
        DeltaOutcome {
            copied: self.copied.into_inner(),
            patched: self.patched.into_inner(),
            fallen_back: self.fallen_back.into_inner(),
            base_damaged: self.damaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }
}

fn missing(frame: &Frame<'_>, problem: String) -> Error {
    let (payload, at) = (frame.payload().to_string(), frame.extent().at.0);
    Error::DeltaFrame { payload, frame: frame.number(), at, problem }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
