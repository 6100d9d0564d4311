//! Prepare: the payloads of a bundle into slots.
//!
//! ```text
//!   bundle ──claim──▶ worker: [probe slot] ─▶ decompress ─▶ verify ─▶ write at offset ─┐   (x jobs)
//!                                                                                      ▼
//!   footer torn, barrier ─▶ frames ─▶ gaps zeroed ─▶ barrier ─▶ read back, verify ─▶ record, barrier, footer, barrier
//! ```
//!
//! Each worker runs a frame to completion: take the next one (a stream is read under the lock), decompress into its own
//! aligned buffer, verify, write. No channels and no pool: back-pressure is by construction, memory is workers x 2
//! frames. A four-stage pipeline with channels was no faster in measurements and had three times the context switches.

mod probe;
mod readback;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

pub use readback::{Damage, ReadBack, read_back};

use crate::bundle::Bundle;
use crate::bundle::feed::{Claim, Feed};
use crate::bundle::frame::{FrameDecoder, STORED_UNIT, VerifiedFrame};
use crate::bundle::manifest::Payload;
use crate::bundle::verify::ImageHashes;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::slot::Record;
use crate::units::{ByteOffset, Group};
use crate::workers::{self, Abort, Sequencer};

/// A slot that is to be written, open exclusively.
pub struct Target {
    /// Which group it belongs to: decides which payloads go there.
    pub group: Group,
    /// Name of its partition, for messages.
    pub partition: String,
    /// The slot.
    pub device: Box<dyn BlockDevice>,
    /// What it will say of itself.
    pub record: Record,
}

/// Waits until `bytes` more bytes may be written; see [`Options::pace`].
pub type Pace<'a> = dyn Fn(u64) -> Result<()> + Sync + 'a;

/// How to stage.
pub struct Options<'a> {
    /// Number of workers.
    pub jobs: NonZeroUsize,
    /// Whether to read the slot back from the medium. Without it a disk that loses or misplaces writes is not noticed.
    pub read_back: bool,
    /// Whether to compute the SHA-256 of the whole images as well. Every frame is verified by its BLAKE3 value anyway,
    /// and those merge to the signed hash of the image; see [`read_back`] for what this costs.
    pub sha256: bool,
    /// Raised to stop.
    pub cancel: &'a Cancel,
    /// Slows writing down where a rate was asked for.
    pub pace: &'a Pace<'a>,
}

/// What was done with the bytes of the images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Written as data.
    pub written: u64,
    /// Written as zeroes by the device's own means.
    pub zeroed: u64,
    /// Already in place.
    pub reused: u64,
}

/// Stages what `targets` hold of a bundle. On success every target is whole: written, flushed, read back, and its
/// record says so. On failure every target that was begun says torn, and running it again goes on where it stopped.
///
/// The caller has already made the targets unbootable.
///
/// # Errors
/// Those of the bundle's frames (class Bundle), of the slots (class Io, [`Error::ReadBack`]), [`Error::Interrupted`].
pub fn stage(
    bundle: &Bundle,
    targets: &[Target],
    options: &Options<'_>,
    progress: &dyn Progress,
) -> Result<Outcome> {
    for target in targets {
        target.record.write_torn(&*target.device, target.group, &target.partition)?;
    }
    let outcome = write_frames(bundle, targets, options, progress)?;
    for target in targets {
        for (at, len) in target.record.layout.gaps() {
            zero(target, at, len)?;
        }
        // The barrier in front of the read-back: what is read then comes from the medium, not from a write cache
        // that could still lose it.
        device::sync(&*target.device, &target.partition)?;
    }
    if options.read_back {
        let total = targets.iter().flat_map(|t| &t.record.layout.places).map(|place| place.len).sum();
        progress.begin(Phase::ReadBack, total);
        for target in targets {
            let job = ReadBack {
                device: &*target.device,
                record: &target.record,
                jobs: options.jobs,
                sha256: options.sha256,
                cancel: options.cancel,
                doing: "reading the slot back",
            };
            if let Some(damage) = read_back(&job, progress)? {
                return Err(Error::ReadBack { payload: damage.payload, frame: damage.frame, at: damage.at });
            }
        }
    }
    for target in targets {
        target.record.write_whole(&*target.device, target.group, &target.partition)?;
    }
    Ok(outcome)
}

/// The target that takes a payload.
fn target_of<'a>(targets: &'a [Target], payload: &Payload) -> Option<&'a Target> {
    targets.iter().find(|target| target.group == payload.kind.group())
}

fn write_frames(
    bundle: &Bundle,
    targets: &[Target],
    options: &Options<'_>,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let payloads = &bundle.manifest().payloads;
    let wanted = |payload: &Payload| target_of(targets, payload).is_some();
    let feed = Feed::new(bundle, wanted);
    let abort = Abort::new(options.cancel, "writing the slot");
    let probing = probe::Probing::sample(targets, &abort)?;
    progress.begin(Phase::Write, feed.total());
    let (written, zeroed, reused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // SHA-256 is sequential by nature. Reading back has cores to spare for it, decompressing has not; here it is
    // computed only where nothing will be read back.
    let hashes =
        (options.sha256 && !options.read_back).then(|| Sequencer::new(ImageHashes::new(payloads.len())));
    let largest = payloads.iter().map(|payload| payload.frame_size as usize).max().unwrap_or(0);
    let hash = |claim: &Claim<'_>, frame: &VerifiedFrame<'_>| match &hashes {
        Some(hashes) => hashes.turn(claim.ordinal, &abort, |hashes| {
            hashes.update(claim.payload_number, frame);
            Ok(())
        }),
        None => Ok(()),
    };
    workers::run(options.jobs, &abort, || {
        let (mut compressed, mut buffer) =
            (Vec::new(), AlignedBuf::zeroed(largest.next_multiple_of(STORED_UNIT)));
        let mut decoder = FrameDecoder::new()?;
        while let Some(claim) = feed.claim(&mut compressed, &abort)? {
            let (image_at, len) = claim.payload.frame_extent(claim.frame);
            let place = target_of(targets, claim.payload)
                .and_then(|target| Some((target, target.record.layout.place(claim.payload_number)?)));
            let Some((target, place)) = place else {
                return Err(Error::Internal { what: format!("{} has no place in a slot", claim.payload) });
            };
            let at = ByteOffset(place.at + image_at);
            let in_place =
                probing.look(claim.ordinal, || probe::frame_in_place(target, &claim, at, &mut buffer));
            if let Some(frame) = in_place {
                hash(&claim, &frame)?;
                reused.fetch_add(u64::from(len), Ordering::Relaxed);
            } else {
                feed.load(&claim, &mut compressed)?;
                let frame =
                    decoder.decode(&compressed, claim.payload, claim.frame, claim.entry, &mut buffer)?;
                (options.pace)(u64::from(len))?;
                if frame.is_zero() {
                    zero(target, at.0, frame.stored().len() as u64)?;
                    zeroed.fetch_add(u64::from(len), Ordering::Relaxed);
                } else {
                    device::write(&*target.device, &target.partition, frame.stored(), at)?;
                    written.fetch_add(u64::from(len), Ordering::Relaxed);
                }
                hash(&claim, &frame)?;
            }
            progress.advance(u64::from(len));
        }
        Ok(())
    })?;
    if let Some(hashes) = hashes {
        hashes.into_inner().check(payloads, wanted)?;
    }
    Ok(Outcome { written: written.into_inner(), zeroed: zeroed.into_inner(), reused: reused.into_inner() })
}

fn zero(target: &Target, at: u64, len: u64) -> Result<()> {
    let result = target.device.write_zeroes(ByteOffset(at), len);
    result.map_err(|source| Error::write(&format!("zeroes to {}", target.partition), at, len, source))
}
