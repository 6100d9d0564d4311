//! Decompression of one payload on all workers, for the verbs of the build host.

use std::num::NonZeroUsize;

use super::feed::{Claim, Feed};
use super::frame::{Frame, FrameDecoder, VerifiedFrame};
use super::manifest::largest_frame;
use super::{Bundle, Payload};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::workers::{self, Abort};

/// A payload whose frames are decompressed.
#[derive(Clone, Copy)]
pub struct Unpacking<'a> {
    /// The bundle that has it.
    pub bundle: &'a Bundle,
    /// The payload; one of its manifest.
    pub payload: &'a Payload,
    /// Number of workers.
    pub jobs: NonZeroUsize,
}

/// A frame in the hands of a worker.
pub struct Unpacked<'a> {
    /// The frame and its turn.
    pub claim: &'a Claim<'a>,
    /// Its compressed bytes.
    pub packed: &'a [u8],
    /// Its bytes.
    pub frame: VerifiedFrame<'a>,
}

impl Unpacking<'_> {
    /// Decompresses and verifies the frames that are `wanted`, and passes each to `work`, in any order. Every worker
    /// calls `tools` once and has the result to itself.
    ///
    /// # Errors
    /// The first one: those of the frames, of `work` and of `tools`; [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn each<T>(
        &self,
        abort: &Abort<'_>,
        wanted: impl Fn(&Frame<'_>) -> bool + Sync,
        tools: impl Fn() -> Result<T> + Sync,
        work: impl Fn(&mut T, Unpacked<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        let feed = Feed::new(self.bundle, |other| std::ptr::eq(other, self.payload));
        let frame_len = largest_frame(std::slice::from_ref(self.payload));
        let (mut buffers, len) = AlignedBuf::shared(self.jobs, frame_len);
        workers::run_with(buffers.chunks_exact_mut(len), abort, |buffer| {
            let (mut tools, mut packed, mut decoder) = (tools()?, Vec::new(), FrameDecoder::new()?);
            while let Some(claim) = feed.claim(&mut packed, abort)? {
                if !wanted(&claim) {
                    continue;
                }
                feed.load(&claim, &mut packed)?;
                let frame = decoder.decode(&claim, &packed, buffer)?;
                work(&mut tools, Unpacked { claim: &claim, packed: &packed, frame })?;
            }
            Ok(())
        })?;
        Ok(())
    }
}
