//! Reading a slot from the medium and checking it against its record: after writing, and whenever a slot is scrubbed.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bundle::frame::{STORED_UNIT, VerifiedFrame, ZeroFrame};
use crate::bundle::manifest::{Payload, largest_frame};
use crate::bundle::sha256::ImageHashes;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::Result;
use crate::progress::{Cancel, Progress};
use crate::slot::{Place, Record};
use crate::units::{Blake3, ByteOffset};
use crate::workers::{self, Abort, Sequencer, lock};

/// What to read.
pub struct ReadBack<'a> {
    /// The slot.
    pub device: &'a dyn BlockDevice,
    /// What it should hold.
    pub record: &'a Record,
    /// Number of workers.
    pub jobs: NonZeroUsize,
    /// Whether to compute the SHA-256 of the whole images as well.
    pub sha256: bool,
    /// Raised to stop.
    pub cancel: &'a Cancel,
    /// What is being done, for the message when it is stopped.
    pub doing: &'a str,
}

/// Frames that differ from the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Payload of the first one.
    pub payload: String,
    /// Its number in the payload.
    pub frame: u64,
    /// Where it begins in the slot, in bytes.
    pub at: u64,
    /// How many differ in all.
    pub bad: u64,
    /// How many there are.
    pub frames: u64,
}

/// Reads every frame with the device's own reads (O_DIRECT on real ones: not the page cache), verifies each by
/// its BLAKE3 value, in parallel. Returns what differs.
///
/// With `sha256` the whole images are hashed by SHA-256 too. It proves nothing that the BLAKE3 values, which merge to the
/// signed hash, have not proved, it is sequential by nature, and on processors without SHA instructions it alone takes
/// longer than everything else together; so it is for those who must report that very number.
///
/// # Errors
/// [`Error::Read`](crate::Error::Read), [`Error::ImageDigest`](crate::Error::ImageDigest),
/// [`Error::Interrupted`](crate::Error::Interrupted).
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
            let (place, frame) = (&places[number], ordinal - first[number]);
            let payload: &Payload = &manifest.payloads[place.payload];
            let (image_at, len) = payload.frame_extent(frame);
            match check_frame(job.device, job.record, place, frame, None, buffer)? {
                Ok(frame) => {
                    if let Some(hashes) = &hashes {
                        hashes.turn(ordinal, &abort, |hashes| {
                            hashes.update(place.payload, &frame);
                            Ok(())
                        })?;
                    }
                }
                Err(_) => {
                    let mut damage = lock(&damage);
                    let bad = damage.as_ref().map_or(0, |(_, damage)| damage.bad) + 1;
                    // Workers finish in any order: the first in the slot is what is reported.
                    let keep = damage.take().filter(|(earlier, _)| *earlier < ordinal);
                    let at = place.at + image_at;
                    let found = Damage { payload: payload.to_string(), frame, at, bad: 0, frames };
                    *damage = Some(keep.unwrap_or((ordinal, found)));
                    if let Some((_, damage)) = damage.as_mut() {
                        damage.bad = bad;
                    }
                    drop(damage);
                    if let Some(hashes) = &hashes {
                        hashes.turn(ordinal, &abort, |_| Ok(()))?;
                    }
                }
            }
            progress.advance(u64::from(len));
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

/// Reads one frame of the payload at `place` into `buffer` and verifies it, cheaper where it is `known` to be zero; else
/// returns the value that it has instead.
pub(super) fn check_frame<'b>(
    device: &dyn BlockDevice,
    record: &Record,
    place: &Place,
    frame: u64,
    known: Option<ZeroFrame>,
    buffer: &'b mut [u8],
) -> Result<Result<VerifiedFrame<'b>, Blake3>> {
    let payload = &record.manifest.payloads[place.payload];
    let (image_at, len) = payload.frame_extent(frame);
    let buffer = &mut buffer[..(len as usize).next_multiple_of(STORED_UNIT)];
    device::read(device, &payload.to_string(), buffer, ByteOffset(place.at + image_at))?;
    let entry = record.index.entry(place.payload, frame);
    Ok(VerifiedFrame::check_known(buffer, payload, frame, entry, known))
}
