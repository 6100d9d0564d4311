//! Checks a whole bundle without writing anything.

use std::num::NonZeroUsize;
use std::time::Instant;

use serde::Serialize;

use super::feed::Feed;
use super::frame::FrameDecoder;
use super::manifest::{Payload, largest_frame};
use super::reader::Bundle;
use super::sha256::ImageHashes;
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::progress::{Cancel, Phase, Progress};
use crate::workers::{self, Abort, Sequencer};

/// Report on a valid bundle.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Product of the bundle.
    pub product: String,
    /// Version of the bundle.
    pub version: String,
    /// Principal and fingerprint of the trusted signer; `None` if trust was not checked.
    pub signed_by: Option<String>,
    /// The payloads with their hashes, all of them recomputed.
    pub payloads: Vec<Payload>,
    /// Number of uncompressed bytes that were checked.
    pub image_bytes: u64,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Decompresses and verifies every frame and both whole-image hashes.
///
/// # Errors
/// Any of the class Bundle; [`Error::Source`](crate::Error::Source), [`Error::Interrupted`](crate::Error::Interrupted).
pub fn verify(
    bundle: &Bundle,
    jobs: Option<NonZeroUsize>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    let start = Instant::now();
    let manifest = bundle.manifest();
    let feed = Feed::new(bundle, |_| true);
    feed.expect(|_| true);
    progress.begin(Phase::Verify, feed.total());
    let abort = Abort::new(cancel, "verifying the bundle");
    let hashes = Sequencer::new(ImageHashes::new(manifest.payloads.len()));
    let largest = largest_frame(&manifest.payloads);
    let jobs =
        workers::limit_jobs(jobs, workers::default_jobs(), workers::worker_memory(largest as u64), progress);
    let (mut buffers, len) = AlignedBuf::shared(jobs, largest);
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        let (mut compressed, mut decoder) = (Vec::new(), FrameDecoder::new()?);
        while let Some(claim) = feed.claim(&mut compressed, &abort)? {
            loop {
                let loaded = feed.load(&claim, &mut compressed);
                match loaded.and_then(|()| decoder.decode(&claim, &compressed, buffer)) {
                    Ok(frame) => {
                        hashes.turn(claim.ordinal, &abort, |hashes| {
                            hashes.update(claim.payload_number(), &frame);
                            Ok(())
                        })?;
                        progress.advance(frame.len() as u64);
                        break;
                    }
                    Err(problem) if feed.has_another(&claim, &problem) => {}
                    Err(problem) => return Err(problem),
                }
            }
        }
        Ok(())
    })?;
    hashes.into_inner().check(&manifest.payloads, |_| true)?;
    Ok(VerifyReport {
        product: manifest.product.clone(),
        version: manifest.version.clone(),
        signed_by: manifest.provenance().signer().map(str::to_owned),
        payloads: manifest.payloads.clone(),
        image_bytes: feed.total(),
        seconds: start.elapsed().as_secs_f64(),
    })
}
