//! Stages the payloads of a bundle into slots.
//!
//! ```text
//!   footer torn, barrier ─▶ gaps and zero frames ─▶ frames ─▶ barrier ─▶ rest read back ─▶ record, barrier, footer, barrier
//!                                                     │
//!   worker (x jobs):  bundle ──claim──▶ [probe slot] ─┴▶ decompress ─▶ verify ─▶ write at offset ──┐
//!                          ▲                                                                      ▼
//!                          └── read back, verify ◀── durable ◀── a flush each batch, by one worker ◀── ledger
//! ```
//!
//! For a [delta](crate::bundle::delta) only the step after the claim differs: the frame is copied from the running
//! slot, or decompressed with ranges of it, and then verified as any other. Of a bundle on a server, frames are copied
//! that the running slot holds at the same place.
//!
//! Each worker runs a frame to completion: take the next one (a stream is read under the lock), decompress into its
//! own aligned buffer, verify, write. There are no channels and no queue: back-pressure is by construction, memory
//! is workers x 2 frames. With a delta, the buffers for ranges of the running slot are fewer than the workers.
//!
//! Measured (`qstage bench`, an image of 2 GiB, two cores) and rejected:
//!
//! | idea | result |
//! |---|---|
//! | four stages with channels between them | no faster, three times the context switches |
//! | io_uring | no more than threads with synchronous transfers gave: 1 MiB at depth 1 comes near the device's best already |
//! | frames of 256 KiB to 8 MiB instead of 1 MiB | the same time; bundles of 537 to 477 MB: smaller with larger frames, but a worker's memory grows and reuse is coarser |
//! | flush and read back every 128 MiB, or once at the end | 64 MiB is faster: less remains to be read when nothing is left to decompress |
//! | more than a quarter of the workers reading | the device served the reads and let the writes wait |
//! | at most one decompression a core at a time | no faster: a worker that has its data should not wait |
//! | link-time optimisation | the same: the time is spent in C and assembly |
//! | pinning workers to processors | not done: they block on the device, and any worker that is ready should run |

mod base;
mod download;
mod ledger;
mod missing;
mod patch;
mod planned;
mod probe;
mod readback;
mod write;
mod zero;

use std::num::NonZeroUsize;

pub use base::BaseSlot;
pub use download::within_limit;
pub use missing::{expected_bytes, from_running, missing_bytes};
pub use patch::{DeltaOutcome, Sources};
pub use planned::{StageStep, planned};
pub use readback::{Damage, ReadBack, read_back};

use crate::bundle::Bundle;
use crate::bundle::frame::Frame;
use crate::bundle::manifest::{Payload, largest_frame};
use crate::device::{self, BlockDevice};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::slot::{FrameAt, Record};
use crate::units::{ByteOffset, Extent, Group};
use crate::workers;
use ledger::Ledger;

/// A slot to write, open exclusively.
pub struct Target {
    /// Group of the slot: determines which payloads go there.
    pub group: Group,
    /// Name of its partition, for messages.
    pub partition: String,
    /// Device of the slot.
    pub device: Box<dyn BlockDevice>,
    /// Record to write after its images.
    pub record: Record,
}

/// Waits until `bytes` more bytes may be written, or, with 0, until something may be read; see [`StageOptions::pace`].
pub type PaceFn<'a> = dyn Fn(u64) -> Result<()> + Sync + 'a;

/// Settings of one run.
pub struct StageOptions<'a> {
    /// Number of workers.
    pub jobs: NonZeroUsize,
    /// Whether to read the slot back from the medium. Without it a disk that loses or misplaces writes goes
    /// undetected.
    pub read_back: bool,
    /// Whether to compute the SHA-256 of the whole images as well. Every frame is verified by its BLAKE3 value
    /// anyway, and those merge to the signed hash of the image; see [`read_back`] for the cost. It is computed from
    /// what is written, in the order of the bundle: frames are read back in another order.
    pub sha256: bool,
    /// Requests a stop.
    pub cancel: &'a Cancel,
    /// Other sources of frames than the bundle or delta; a delta needs them.
    pub sources: Option<&'a Sources<'a>>,
    /// Whether to look at each frame in the slot, whatever a few samples say.
    pub look: bool,
    /// Called before each transfer: waits if a maximum rate is set, or while others need the disk.
    pub pace: &'a PaceFn<'a>,
}

/// How the bytes of the images came into place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageOutcome {
    /// Bytes written as data.
    pub written: u64,
    /// Bytes zeroed by means of the device.
    pub zeroed: u64,
    /// Bytes that were already in place.
    pub reused: u64,
    /// Copied from the running slot instead of read from a server.
    pub copied: u64,
    /// Bytes read of the bundle or delta, its head included.
    pub downloaded: u64,
    /// Statistics of a delta; `None` for a bundle.
    pub made: Option<DeltaOutcome>,
}

/// Bytes between two flushes, and so the distance between writing and reading back. Large, so that the cache of the
/// disk holds other data meanwhile; but not so large that the rest counts that is read back in the end, while
/// nothing is left to decompress.
fn batch(total: u64) -> u64 {
    (total / 8).clamp(1, 64 << 20)
}

/// How many of `jobs` workers may read back at the same time: two keep a device busy with frames of 1 MiB, and with
/// more of them some devices serve the reads and let the writes wait.
fn readers(jobs: NonZeroUsize) -> usize {
    (jobs.get() / 4).max(2)
}

/// Default number of workers for the payloads of a bundle: one for each core, ten that wait for the device, and a
/// quarter of all for reading. On two cores and an ordinary virtual disk 8 took 0.84 of the time of 4, and 12 took
/// 0.90 of that of 8; 16 and 20 were no faster, and on tmpfs there was no difference. Each holds one frame and its
/// compressed bytes, so large frames get fewer, but never fewer than 4: 32 MiB is the bound for frames of up to 4
/// MiB.
///
/// `remote`: the bundle comes from a server. A frame that a worker waits for is held once more there, so four fewer
/// keep prepare below 64 MiB (54 instead of 66 MiB for a bundle that does not compress), and it was no slower.
pub fn default_jobs(payloads: &[Payload], remote: bool) -> NonZeroUsize {
    let most = ((16 << 20) / largest_frame(payloads).max(1 << 20)).max(4);
    let waiting = if remote { 6 } else { 10 };
    workers::cores().saturating_add(waiting).min(workers::at_least_one(most))
}

/// Stages the payloads of a bundle that belong to `targets`. On success every target is whole: written, flushed,
/// read back, and recorded. On failure every target that was begun is torn; another run continues where it stopped.
///
/// The caller has already made the targets unbootable.
///
/// # Errors
/// Those of the bundle's frames (class Bundle), of the slots (class Io, [`Error::ReadBack`]), [`Error::Interrupted`].
pub fn stage(
    bundle: &Bundle,
    targets: &[Target],
    options: &StageOptions<'_>,
    progress: &dyn Progress,
) -> Result<StageOutcome> {
    for target in targets {
        target.record.write_torn(&*target.device, target.group, &target.partition)?;
    }
    zero_gaps(targets, options.cancel, progress)?;
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

/// Zeroes what is neither image nor record: before the frames, for the same reason as [zero frames](zero). No pace is kept, since
/// most devices do it by a command, and the ranges can be many times as long as the images.
fn zero_gaps(targets: &[Target], cancel: &Cancel, progress: &dyn Progress) -> Result<()> {
    let gaps = || {
        targets
            .iter()
            .flat_map(|target| target.record.layout.gaps().into_iter().map(move |gap| (target, gap)))
    };
    let total = gaps().map(|(_, (_, len))| len).sum();
    if total > 0 {
        progress.begin(Phase::Zero, total);
    }
    for (target, (at, len)) in gaps() {
        for done in (0..len).step_by(ZERO_REQUEST as usize) {
            cancel.check("zeroing the slot")?;
            let len = ZERO_REQUEST.min(len - done);
            make_zero(target, Extent { at: ByteOffset(at + done), len })?;
            progress.advance(len);
        }
    }
    Ok(())
}

/// The barrier before reading back: what is read then comes from the medium, not from a write cache that could
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

/// A frame with its place in its target.
fn frame_at<'a>(targets: &'a [Target], frame: Frame<'a>) -> Result<FrameAt<'a>> {
    let target = target_of(targets, frame.payload().kind.group())?;
    target.record.frame_at(frame, &*target.device)
}

/// Maximum bytes of one request to zero: devices without a command for it write them all, and meanwhile a bar stands still and
/// a request to stop waits.
const ZERO_REQUEST: u64 = 4 << 20;

fn make_zero(target: &Target, range: Extent) -> Result<()> {
    let result = target.device.write_zeroes(range.at, range.len);
    let what = || format!("zeroes to {}", target.partition);
    result.map_err(|source| Error::write(&what(), range.at.0, range.len, source))
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
