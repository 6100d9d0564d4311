//! Reads a slot from the medium and verifies it against its record: after writing, and in a scrub.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::manifest::largest_frame;
use crate::bundle::sha256::ImageHashes;
use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};
use crate::slot::Record;
use crate::workers::{self, Abort, Sequencer, lock};

/// What to read, and how.
pub struct ReadBack<'a> {
    /// Device of the slot.
    pub device: &'a dyn BlockDevice,
    /// Record with the expected content.
    pub record: &'a Record,
    /// Number of workers.
    pub jobs: NonZeroUsize,
    /// Whether to compute the SHA-256 of the whole images as well.
    pub sha256: bool,
    /// Requests a stop.
    pub cancel: &'a Cancel,
    /// Name of the operation, for the message when it is stopped.
    pub doing: &'a str,
}

/// Frames that differ from the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Name of the payload with the first bad frame.
    pub payload: String,
    /// Number of that frame in its payload, from 0.
    pub frame: u64,
    /// Where it begins in the slot, in bytes.
    pub at: u64,
    /// Number of frames that differ.
    pub bad: u64,
    /// Number of frames in all.
    pub frames: u64,
}

/// Reads every frame with the device's own reads (O_DIRECT on real ones: not the page cache) and verifies each by
/// its BLAKE3 value, in parallel. Returns what differs; `None` if nothing does.
///
/// With `sha256` the whole images are hashed by SHA-256 too. It proves nothing new: the BLAKE3 values merge to the
/// signed hash. It is sequential by nature, and on processors without SHA instructions it takes longer than all
/// other steps together. So it is for users who must report that very number.
///
/// # Errors
/// [`Error::Read`], [`Error::ImageDigest`],
/// [`Error::Interrupted`].
pub fn read_back(job: &ReadBack<'_>, progress: &dyn Progress) -> Result<Option<Damage>> {
    let manifest = &job.record.manifest;
    let places = &job.record.layout.places;
    let mut first = Vec::with_capacity(places.len());
    let mut frames = 0;
    for place in places {
        first.push(frames);
        frames += manifest.payloads[place.payload].frames();
    }
    let abort = Abort::new(job.cancel, job.doing);
    let next = AtomicU64::new(0);
    let hashes = job.sha256.then(|| Sequencer::new(ImageHashes::new(manifest.payloads.len())));
    let damage: Mutex<Option<(u64, Damage)>> = Mutex::new(None);
    let largest = largest_frame(&manifest.payloads);
    let (mut buffers, len) = AlignedBuf::shared(job.jobs, largest);
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        loop {
            abort.check()?;
            let ordinal = next.fetch_add(1, Ordering::Relaxed);
            if ordinal >= frames {
                return Ok(());
            }
            let number = first.partition_point(|start| *start <= ordinal) - 1;
            let frame = job.record.frame(places[number].payload, ordinal - first[number]);
            let frame = job.record.frame_at(frame, job.device)?;
            match frame.read_back(buffer) {
                Ok(verified) => {
                    if let Some(hashes) = &hashes {
                        hashes.turn(ordinal, &abort, |hashes| {
                            hashes.update(frame.payload_number(), &verified);
                            Ok(())
                        })?;
                    }
                }
                Err(Error::ReadBack { payload, frame, at }) => {
                    let mut damage = lock(&damage);
                    let bad = damage.as_ref().map_or(0, |(_, damage)| damage.bad) + 1;
                    // Workers finish in any order: report the first damage in the slot.
                    let keep = damage.take().filter(|(earlier, _)| *earlier < ordinal);
                    let found = Damage { payload, frame, at, bad: 0, frames };
                    *damage = Some(keep.unwrap_or((ordinal, found)));
                    if let Some((_, damage)) = damage.as_mut() {
                        damage.bad = bad;
                    }
                    drop(damage);
                    if let Some(hashes) = &hashes {
                        hashes.turn(ordinal, &abort, |_| Ok(()))?;
                    }
                }
                Err(error) => return Err(error),
            }
            progress.advance(frame.len() as u64);
        }
    })?;
    if let Some((_, damage)) = damage.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Ok(Some(damage));
    }
    if let Some(hashes) = hashes {
        hashes.into_inner().check(&manifest.payloads, |payload| {
            places.iter().any(|place| manifest.payloads[place.payload] == *payload)
        })?;
    }
    Ok(None)
}
