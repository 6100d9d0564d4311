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
use super::{StageOptions, Target, frame_at, make_zero, target_of};
use crate::bundle::Bundle;
use crate::bundle::frame::{Frame, Zeroes};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::slot::FrameAt;
use crate::units::{Extent, Group};
use crate::workers::{self, Abort, lock};

/// Maximum bytes of one request to zero: devices without a command for it write them all, and a request to stop
/// waits for that.
const RUN: u64 = 16 << 20;

/// Makes all zero frames of `bundle` that lie in a target. With `look`, those that are there already are left
/// alone. Returns them by their number in the feed; all are in place.
pub(super) fn make<'a>(
    bundle: &'a Bundle,
    targets: &'a [Target],
    options: &StageOptions<'_>,
    look: bool,
    ledger: Option<&Ledger<FrameAt<'a>>>,
    abort: &Abort<'_>,
) -> Result<BTreeMap<u64, Frame<'a>>> {
    let candidates = candidates(bundle, targets)?;
    let largest = candidates.iter().map(|(_, frame)| frame.len()).max().unwrap_or(0);
    let zeroes = Zeroes::new(largest);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, if look { largest } else { 0 });
    workers::run_with(buffers.chunks_exact_mut(len), abort, |buffer| {
        while let Some((ordinal, frame)) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            let Some(zero) = zeroes.prove(**frame) else { continue };
            let zero = frame_at(targets, zero)?;
            let there = look && zero.find(buffer).is_some();
            lock(&found).insert(*ordinal, (zero, there));
        }
        Ok(())
    })?;
    let found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let made = || found.values().filter(|(_, there)| !there).map(|(frame, _)| *frame);
    let runs = runs(made().map(|frame| (frame.payload().kind.group(), frame.stored())));
    next.store(0, Ordering::Relaxed);
    workers::run(options.jobs, abort, || {
        while let Some((group, run)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            (options.pace)(run.len)?;
            make_zero(target_of(targets, *group)?, *run)?;
        }
        Ok(())
    })?;
    if let Some(ledger) = ledger {
        ledger.wrote(made(), 0);
    }
    let known = |(frame, there): (FrameAt<'a>, bool)| if there { frame.in_place() } else { *frame };
    Ok(found.into_iter().map(|(ordinal, found)| (ordinal, known(found))).collect())
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

/// Joins neighbours in the same group's slot, up to [`RUN`] bytes each.
fn runs(frames: impl Iterator<Item = (Group, Extent)>) -> Vec<(Group, Extent)> {
    let mut runs: Vec<(Group, Extent)> = Vec::new();
    for (group, frame) in frames {
        match runs.last_mut() {
            Some((of, run))
                if *of == group && run.at.0 + run.len == frame.at.0 && run.len + frame.len <= RUN =>
            {
                run.len += frame.len;
            }
            _ => runs.push((group, frame)),
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
            (Group::Platform, extent(0, MIB)),
            (Group::Platform, extent(MIB, MIB)),
            // A gap, then the last frame of an image, which is stored in whole pages.
            (Group::Platform, extent(3 * MIB, 8192)),
            // The same place in another slot.
            (Group::Software, extent(3 * MIB + 8192, MIB)),
        ];
        let expected = [(Group::Platform, extent(0, 2 * MIB)), frames[2], frames[3]];
        assert_eq!(runs(frames.into_iter()), expected);
        let frames = (0..40).map(|i| (Group::Platform, extent(i * MIB, MIB)));
        let lens: Vec<u64> = runs(frames).iter().map(|(_, run)| run.len).collect();
        assert_eq!(lens, [RUN, RUN, 8 * MIB]);
    }
}
