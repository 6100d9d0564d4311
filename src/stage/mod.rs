//! Prepare: the payloads of a bundle into slots.
//!
//! ```text
//!   footer torn, barrier ─▶ gaps and zero frames ─▶ frames ─▶ barrier ─▶ rest read back ─▶ record, barrier, footer, barrier
//!                                                     │
//!   worker (x jobs):  bundle ──claim──▶ [probe slot] ─┴▶ decompress ─▶ verify ─▶ write at offset ──┐
//!                          ▲                                                                      ▼
//!                          └── read back, verify ◀── durable ◀── a flush each batch, by one worker ◀── ledger
//! ```
//!
//! For a [delta](crate::bundle::delta) only the step after the claim is another: the frame is copied from the running slot,
//! or decompressed with ranges of it, and then verified as any other.
//!
//! Each worker runs a frame to completion: take the next one (a stream is read under the lock), decompress into its own
//! aligned buffer, verify, write. No channels and no pool: back-pressure is by construction, memory is workers x 2
//! frames.
//!
//! What was measured (`qstage bench`, an image of 2 GiB, two cores) and left:
//!
//! | idea | result |
//! |---|---|
//! | four stages with channels between them | no faster, three times the context switches |
//! | io_uring | no more than threads with synchronous transfers gave: 1 MiB at depth 1 comes near the device's best already |
//! | frames of 256 KiB to 8 MiB instead of 1 MiB | the same time; bundles of 537 to 477 MB: smaller with larger frames, but a worker's memory grows and reuse is coarser |
//! | flush and read back every 128 MiB, or once at the end | 64 MiB is faster: less is left to be read when nothing is left to decompress |
//! | more than a quarter of the workers reading | the device served the reads and let the writes wait |
//! | at most one decompression a core at a time | no faster: those who have what they need should not wait |
//! | link-time optimisation | the same: the time is spent in C and assembly |
//! | pinning workers to processors | not done: they block on the device, and whoever is ready should run |

mod ledger;
mod patch;
mod probe;
mod readback;
mod write;
mod zero;

use std::num::NonZeroUsize;

pub use patch::{Base, DeltaOutcome, Sources};
pub use readback::{Damage, ReadBack, read_back};

use crate::bundle::Bundle;
use crate::bundle::frame::Frame;
use crate::bundle::manifest::{Payload, largest_frame};
use crate::device::{self, BlockDevice};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};
use crate::slot::{FrameAt, Record};
use crate::units::{ByteOffset, Extent, Group};
use crate::workers;
use ledger::Ledger;

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

/// Waits until `bytes` more bytes may be written, or, with 0, until something may be read; see [`Options::pace`].
pub type Pace<'a> = dyn Fn(u64) -> Result<()> + Sync + 'a;

/// How to stage.
pub struct Options<'a> {
    /// Number of workers.
    pub jobs: NonZeroUsize,
    /// Whether to read the slot back from the medium. Without it a disk that loses or misplaces writes is not noticed.
    pub read_back: bool,
    /// Whether to compute the SHA-256 of the whole images as well. Every frame is verified by its BLAKE3 value anyway,
    /// and those merge to the signed hash of the image; see [`read_back`] for what this costs. It is computed from what
    /// is written, in the order of the bundle: frames are read back in another one.
    pub sha256: bool,
    /// Raised to stop.
    pub cancel: &'a Cancel,
    /// Where the frames of a delta come from besides itself; `None` for a bundle.
    pub delta: Option<&'a Sources<'a>>,
    /// Slows down where a rate was asked for, or others wait for the disk. Called before each transfer.
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
    /// How much of it a delta gave, where it was one.
    pub made: Option<DeltaOutcome>,
}

/// Bytes between two flushes, and so the distance between writing and reading back: large, so that the cache of the
/// disk has had other things to keep meanwhile, but not so large that the rest that is read back in the end, while
/// nothing is left to decompress, counts.
fn batch(total: u64) -> u64 {
    (total / 8).clamp(1, 64 << 20)
}

/// How many of `jobs` workers may read back at the same time: two keep a device busy with frames of 1 MiB, and with more
/// of them some devices answer the reads and leave the writes waiting.
fn readers(jobs: NonZeroUsize) -> usize {
    (jobs.get() / 4).max(2)
}

/// How many workers stage the payloads of a bundle best where nobody says: besides one for each core ten that wait for the
/// device, a quarter of all for reading. On two cores and an ordinary virtual disk 8 took 0.84 of the time of 4, and 12 took
/// 0.90 of that of 8; 16 and 20 were no faster, and on tmpfs there was no difference. Each holds one frame and its compressed
/// bytes, so large frames get fewer, but never fewer than 4: 32 MiB is the bound for frames of up to 4 MiB.
pub fn default_jobs(payloads: &[Payload]) -> NonZeroUsize {
    let most = ((16 << 20) / largest_frame(payloads).max(1 << 20)).max(4);
    workers::cores().saturating_add(10).min(workers::at_least_one(most))
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
    // Before the frames, for the reason that zero frames are: see there.
    for target in targets {
        for (at, len) in target.record.layout.gaps() {
            make_zero(target, Extent { at: ByteOffset(at), len })?;
        }
    }
    let total = targets.iter().flat_map(|target| &target.record.layout.places).map(|place| place.len).sum();
    let ledger = options.read_back.then(|| Ledger::new(batch(total), readers(options.jobs)));
    let outcome = write::write_frames(bundle, targets, options, ledger.as_ref(), progress)?;
    sync(targets)?;
    if let Some(ledger) = ledger {
        write::read_rest(options, ledger, progress)?;
    }
    for target in targets {
        target.record.write_whole(&*target.device, target.group, &target.partition)?;
    }
    Ok(outcome)
}

/// The barrier in front of reading back: what is read then comes from the medium, not from a write cache that could
/// still lose it.
fn sync(targets: &[Target]) -> Result<()> {
    targets.iter().try_for_each(|target| device::sync(&*target.device, &target.partition))
}

/// Whether a target takes a payload.
fn wanted(targets: &[Target], payload: &Payload) -> bool {
    target_of(targets, payload.kind.group()).is_ok()
}

/// The target of a group.
fn target_of(targets: &[Target], group: Group) -> Result<&Target> {
    let target = targets.iter().find(|target| target.group == group);
    target.ok_or_else(|| Error::Internal { what: format!("no slot of the group {group} is written") })
}

/// A frame at its place in its target.
fn frame_at<'a>(targets: &'a [Target], frame: Frame<'a>) -> Result<FrameAt<'a>> {
    let target = target_of(targets, frame.payload().kind.group())?;
    target.record.frame_at(frame, &*target.device)
}

fn make_zero(target: &Target, range: Extent) -> Result<()> {
    let result = target.device.write_zeroes(range.at, range.len);
    let what = || format!("zeroes to {}", target.partition);
    result.map_err(|source| Error::write(&what(), range.at.0, range.len, source))
}
