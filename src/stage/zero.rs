//! Writes frames of zeroes, before all others.
//!
//! They come first for safety. A write that the disk misplaces is found because its own place does not hold the
//! expected content. But on a blank slot the place of a zero frame holds zeroes anyway, and a frame that the
//! misplaced zeroes overwrote would go undetected if it had been read back already. Before all other frames there
//! is nothing to overwrite.
//!
//! And for speed: neighbours become one request. Zero frames are recognised without a byte of the bundle's
//! payloads, by hashing zeroes and comparing with the signed index.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ledger::Ledger;
use super::{StageOptions, Target, ZERO_REQUEST, frame_at, make_zero, target_of};
use crate::bundle::Bundle;
use crate::bundle::frame::{Frame, ZeroState, Zeroes};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::progress::{Phase, Progress};
use crate::slot::FrameAt;
use crate::units::{Extent, Group};
use crate::workers::{self, Abort, lock};

/// Finds all zero frames of `bundle` that lie in a target, by their number in the feed. With `look`, it is seen which are
/// in place.
pub(super) fn find<'a>(
    bundle: &'a Bundle,
    targets: &'a [Target],
    options: &StageOptions<'_>,
    look: bool,
    abort: &Abort<'_>,
    progress: &dyn Progress,
) -> Result<BTreeMap<u64, FrameAt<'a>>> {
    let candidates = candidates(bundle, targets)?;
    let largest = candidates.iter().map(|(_, frame)| frame.len()).max().unwrap_or(0);
    let zeroes = Zeroes::new(largest);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    if !candidates.is_empty() {
        progress.begin(Phase::Probe, candidates.iter().map(|(_, frame)| frame.len() as u64).sum());
    }
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, if look { largest } else { 0 });
    workers::run_with(buffers.chunks_exact_mut(len), abort, |buffer| {
        while let Some((ordinal, frame)) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            if let Some(zero) = zeroes.prove(**frame) {
                let zero = frame_at(targets, zero)?;
                let in_place = look && zero.find(buffer).is_some();
                let zero = if in_place { frame_at(targets, zero.in_place())? } else { zero };
                lock(&found).insert(*ordinal, zero);
            }
            progress.advance(frame.len() as u64);
        }
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Zeroes those that are not in place. Returns all of them: now they are.
pub(super) fn make<'a>(
    found: &BTreeMap<u64, FrameAt<'a>>,
    targets: &'a [Target],
    options: &StageOptions<'_>,
    ledger: Option<&Ledger<FrameAt<'a>>>,
    abort: &Abort<'_>,
    progress: &dyn Progress,
) -> Result<BTreeMap<u64, Frame<'a>>> {
    let made = || found.values().filter(|frame| frame.zero_state() == ZeroState::Zero).copied();
    let in_place = found.values().filter(|frame| frame.zero_state() == ZeroState::ZeroInPlace);
    progress.reuse(in_place.map(|frame| frame.len() as u64).sum());
    let runs = runs(made().map(|frame| (frame.payload().kind.group(), frame.stored(), frame.len() as u64)));
    let next = AtomicUsize::new(0);
    workers::run(options.jobs, abort, || {
        while let Some((group, run, bytes)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            (options.pace)(*bytes)?;
            make_zero(target_of(targets, *group)?, *run)?;
            progress.advance(*bytes);
        }
        Ok(())
    })?;
    if let Some(ledger) = ledger {
        ledger.wrote(made(), 0);
    }
    Ok(found.iter().map(|(ordinal, frame)| (*ordinal, **frame)).collect())
}

/// Frames that compress so well that they may be zero, with their numbers in the feed. A zero frame that is not
/// among them is recognised after decompression.
fn candidates<'a>(bundle: &'a Bundle, targets: &'a [Target]) -> Result<Vec<(u64, FrameAt<'a>)>> {
    let mut candidates = Vec::new();
    let mut ordinal = 0;
    for (number, payload) in bundle.manifest().payloads.iter().enumerate() {
        if !super::wanted(targets, payload) {
            continue;
        }
        for frame in bundle.release().frames(number) {
            // zstd takes some 4 bytes for each 128 KiB of zeroes (RFC 8878 3.1.1.2, blocks of type RLE).
            if frame.entry().compressed as usize <= 64 + frame.len() / 1024 {
                candidates.push((ordinal, frame_at(targets, frame)?));
            }
            ordinal += 1;
        }
    }
    Ok(candidates)
}

/// Joins neighbours in the same group's slot, up to [`ZERO_REQUEST`] bytes each. A frame is given by its extent in the slot and
/// its length in the image, and so are the results.
fn runs(frames: impl Iterator<Item = (Group, Extent, u64)>) -> Vec<(Group, Extent, u64)> {
    let mut runs: Vec<(Group, Extent, u64)> = Vec::new();
    for (group, frame, bytes) in frames {
        match runs.last_mut() {
            Some((of, run, sum))
                if *of == group
                    && run.at.0 + run.len == frame.at.0
                    && run.len + frame.len <= ZERO_REQUEST =>
            {
                run.len += frame.len;
                *sum += bytes;
            }
            _ => runs.push((group, frame, bytes)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteOffset, MIB};

    #[test]
    fn neighbours_become_one_request() {
        let extent = |at, len| Extent { at: ByteOffset(at), len };
        let frames = [
            (Group::Platform, extent(0, MIB), MIB),
            (Group::Platform, extent(MIB, MIB), MIB),
            // A gap, then the last frame of an image, which is stored in whole pages.
            (Group::Platform, extent(3 * MIB, 8192), 5000),
            // The same place in another slot.
            (Group::Software, extent(3 * MIB + 8192, MIB), MIB),
        ];
        let expected = [(Group::Platform, extent(0, 2 * MIB), 2 * MIB), frames[2], frames[3]];
        assert_eq!(runs(frames.into_iter()), expected);
        let frames = (0..10).map(|i| (Group::Platform, extent(i * MIB, MIB), MIB));
        let lens: Vec<u64> = runs(frames).iter().map(|(_, run, _)| run.len).collect();
        assert_eq!(lens, [ZERO_REQUEST, ZERO_REQUEST, 2 * MIB]);
    }
}
