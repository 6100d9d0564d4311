//! `qstage verify --base`: a delta is applied, and every frame that it makes is verified. Nothing is written.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::base;
use crate::bundle::Bundle;
use crate::bundle::delta::{BaseRef, FrameKind, Streams, Tally, rebuild};
use crate::bundle::feed::{Claim, Feed};
use crate::bundle::manifest::largest_frame;
use crate::bundle::sha256::ImageHashes;
use crate::device::AlignedBuf;
use crate::error::{Error, Result, sentence};
use crate::pack::Destination;
use crate::progress::{Cancel, Phase, Progress};
use crate::workers::{self, Abort, Sequencer};

/// Report on a delta that makes what its release says.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Product of the release.
    pub product: String,
    /// Version of the release.
    pub version: String,
    /// Principal and fingerprint of the trusted signer; `None` if trust was not checked.
    pub signed_by: Option<String>,
    /// Number of frames by the way in which they are made.
    pub frames: Tally,
    /// Number of bytes of the images that were made and verified.
    pub image_bytes: u64,
    /// Number of bytes of the images that are left to the bundle.
    pub from_bundle_bytes: u64,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Makes every frame of a delta from the release `old`, a bundle or the image of its platform, and verifies it against the
/// index; and the SHA-256 of the images, unless frames are left to the bundle.
///
/// # Errors
/// [`Error::DeltaBase`] if it starts from another image; [`Error::Delta`] if a frame cannot be made or is a wrong one, or for
/// a whole bundle; [`Error::Open`], [`Error::Source`], [`Error::Interrupted`].
pub fn check(
    bundle: &Bundle,
    old: &Path,
    jobs: Option<NonZeroUsize>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let start = Instant::now();
    let (manifest, release) = (bundle.manifest(), bundle.release());
    let whole = || Error::Delta { problem: "it is a whole bundle".to_owned() };
    let delta = bundle.delta().ok_or_else(whole)?;
    let nowhere = Destination::Stream(&mut std::io::sink());
    let images = base::images(old, bundle, &nowhere, jobs, progress, cancel)?;
    for (number, payload) in manifest.payloads.iter().enumerate() {
        let found = images[number].as_ref().map(|(_, of)| *of);
        if let Some(wanted) = delta.base(number).filter(|wanted| found != Some(*wanted)) {
            let has = |found: BaseRef| format!("{} has {}", old.display(), found.blake3);
            let running = found.map_or_else(|| format!("{} has none", old.display()), has);
            return Err(Error::DeltaBase { payload: payload.to_string(), expected: wanted.blake3, running });
        }
    }
    let mut frames = Tally::default();
    (0..manifest.payloads.len()).for_each(|payload| frames.add(delta, release, payload));
    let feed = Feed::new(bundle, |_| true);
    feed.expect(|_| true);
    progress.begin(Phase::Verify, feed.total());
    let abort = Abort::new(cancel, "verifying the delta");
    let complete = frames.from_bundle == 0;
    let hashes = complete.then(|| Sequencer::new(ImageHashes::new(manifest.payloads.len())));
    let left = AtomicU64::new(0);
    let frame = largest_frame(&manifest.payloads);
    let memory = workers::worker_memory(frame as u64);
    let jobs = workers::limit_jobs(jobs, workers::default_jobs(), memory, progress);
    let (mut buffers, len) = AlignedBuf::shared(jobs, frame);
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        let (mut packed, mut prefix, mut streams) = (Vec::new(), Vec::new(), Streams::default());
        while let Some(claim) = feed.claim(&mut packed, &abort)? {
            feed.load(&claim, &mut packed)?;
            let recipe = delta.recipe(&claim);
            if recipe.kind == FrameKind::Bundle {
                left.fetch_add(claim.len() as u64, Ordering::Relaxed);
                progress.advance(claim.len() as u64);
                continue;
            }
            prefix.clear();
            if let Some((image, _)) = &images[claim.payload_number()] {
                recipe.read(image, &mut prefix)?;
            }
            let made = rebuild(recipe.kind, &claim, &prefix, &packed, &mut streams, buffer);
            let made = made.and_then(|()| claim.verify(buffer));
            let frame = made.map_err(|problem| wrong(&claim, &sentence(&problem)))?;
            if let Some(hashes) = &hashes {
                hashes.turn(claim.ordinal, &abort, |hashes| {
                    hashes.update(claim.payload_number(), &frame);
                    Ok(())
                })?;
            }
            progress.advance(frame.len() as u64);
        }
        Ok(())
    })?;
    if let Some(hashes) = hashes {
        hashes.into_inner().check(&manifest.payloads, |_| true)?;
    }
    let from_bundle_bytes = left.into_inner();
    Ok(CheckReport {
        product: manifest.product.clone(),
        version: manifest.version.clone(),
        signed_by: manifest.provenance().signer().map(str::to_owned),
        frames,
        image_bytes: feed.total() - from_bundle_bytes,
        from_bundle_bytes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn wrong(claim: &Claim<'_>, problem: &str) -> Error {
    let at = claim.extent().at.0;
    Error::Delta {
        problem: format!("{}, frame {} (image offset {at}): {problem}", claim.payload(), claim.number()),
    }
}
