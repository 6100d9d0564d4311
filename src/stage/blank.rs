//! Frames of zeroes, before all others.
//!
//! They come first for safety. A write that the disk misplaces is found because its own place does not hold what it
//! should; but on a blank slot the place of a zero frame holds zeroes anyway, and what the zeroes have overwritten
//! elsewhere would not be noticed if it had been read back already. In front of all other frames there is nothing to
//! overwrite.
//!
//! And for speed: neighbours become one request. That a frame is zero is known without a byte of the bundle's payloads, by
//! hashing zeroes and comparing with the signed index.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ledger::{Ledger, Spot};
use super::{Options, Target, make_zero, target_of};
use crate::bundle::Bundle;
use crate::bundle::frame::{STORED_UNIT, ZeroFrame, Zeroes, is_zero};
use crate::device::AlignedBuf;
use crate::error::{Error, Result};
use crate::units::ByteOffset;
use crate::workers::{self, Abort, lock};

/// Bytes that are zeroed by one request at most: devices without a command for it write them all, and a request to stop
/// waits for that.
const RUN: u64 = 16 << 20;

/// A zero frame that is in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blank {
    /// That it is zero.
    pub zero: ZeroFrame,
    /// Whether it was there; else it was made now.
    pub found: bool,
}

/// A frame that may be zero.
#[derive(Clone, Copy)]
struct Candidate {
    ordinal: u64,
    spot: Spot,
    len: u32,
    at: u64,
}

/// Makes all zero frames of `bundle` that lie in a target. With `look`, those that are there already are left alone.
/// Returns what was done to which, by the number of the frame in the feed.
pub(super) fn make(
    bundle: &Bundle,
    targets: &[Target],
    options: &Options<'_>,
    look: bool,
    ledger: Option<&Ledger>,
    abort: &Abort<'_>,
) -> Result<BTreeMap<u64, Blank>> {
    let candidates = candidates(bundle, targets)?;
    let largest = candidates.iter().map(|candidate| candidate.len as usize).max().unwrap_or(0);
    let zeroes = Zeroes::new(largest);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, if look { largest } else { 0 });
    workers::run_with(buffers.chunks_exact_mut(len), abort, |buffer| {
        while let Some(candidate) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            let (mut spot, len) = (candidate.spot, candidate.len as usize);
            let payload = &bundle.manifest().payloads[spot.payload];
            let entry = bundle.index().entry(spot.payload, spot.frame);
            let Some(zero) = zeroes.prove(payload, spot.frame, entry) else { continue };
            spot.zero = Some(zero);
            let there = look && {
                let buffer = &mut buffer[..len.next_multiple_of(STORED_UNIT)];
                let read = targets[spot.target].device.read_at(buffer, ByteOffset(candidate.at));
                // A read error is no match: writing is what makes a disk remap a bad sector.
                read.is_ok() && is_zero(buffer)
            };
            let blank = Blank { zero, found: there };
            lock(&found).insert(candidate.ordinal, (blank, Candidate { spot, ..*candidate }));
        }
        Ok(())
    })?;
    let found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let runs = runs(found.values().filter(|(blank, _)| !blank.found).map(|(_, candidate)| candidate));
    next.store(0, Ordering::Relaxed);
    workers::run(options.jobs, abort, || {
        while let Some((target, at, len)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            (options.pace)(*len)?;
            make_zero(&targets[*target], *at, *len)?;
        }
        Ok(())
    })?;
    if let Some(ledger) = ledger {
        let made = found.values().filter(|(blank, _)| !blank.found);
        ledger.wrote(made.map(|(_, candidate)| candidate.spot), 0);
    }
    Ok(found.into_iter().map(|(ordinal, (blank, _))| (ordinal, blank)).collect())
}

/// Frames that compress so well that they may be zero. One that is zero and not among them is found to be so when it
/// has been decompressed.
fn candidates(bundle: &Bundle, targets: &[Target]) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    let mut ordinal = 0;
    for (number, payload) in bundle.manifest().payloads.iter().enumerate() {
        let Some((target, to)) = target_of(targets, payload) else { continue };
        let place = to.record.layout.place(number);
        let place =
            place.ok_or_else(|| Error::Internal { what: format!("{payload} has no place in a slot") })?;
        for frame in 0..payload.frames() {
            let (image_at, len) = payload.frame_extent(frame);
            // zstd takes some 4 bytes for each 128 KiB of zeroes (RFC 8878 3.1.1.2, blocks of type RLE).
            if bundle.index().entry(number, frame).compressed <= 64 + len / 1024 {
                let (spot, at) = (Spot { target, payload: number, frame, zero: None }, place.at + image_at);
                candidates.push(Candidate { ordinal, spot, len, at });
            }
            ordinal += 1;
        }
    }
    Ok(candidates)
}

/// Neighbours joined, as (target, offset, length), up to [`RUN`] bytes each.
fn runs<'a>(frames: impl Iterator<Item = &'a Candidate>) -> Vec<(usize, u64, u64)> {
    let mut runs: Vec<(usize, u64, u64)> = Vec::new();
    for frame in frames {
        let len = (frame.len as usize).next_multiple_of(STORED_UNIT) as u64;
        match runs.last_mut() {
            Some((target, at, sum))
                if *target == frame.spot.target && *at + *sum == frame.at && *sum + len <= RUN =>
            {
                *sum += len;
            }
            _ => runs.push((frame.spot.target, frame.at, len)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_request() {
        let frame = |target, at, len| Candidate {
            ordinal: 0,
            spot: Spot { target, payload: 0, frame: 0, zero: None },
            len,
            at,
        };
        let m = 1 << 20;
        let mut frames = vec![
            frame(0, 0, m),
            frame(0, m.into(), m),
            // A gap, then the last frame of an image, which is stored in whole pages.
            frame(0, 3 * u64::from(m), 5000),
            // The same place in another slot.
            frame(1, 3 * u64::from(m) + 8192, m),
        ];
        let m = u64::from(m);
        let expected = [(0, 0, 2 * m), (0, 3 * m, 8192), (1, 3 * m + 8192, m)];
        assert_eq!(runs(frames.iter()), expected);
        frames = (0..40).map(|i| frame(0, i * m, m as u32)).collect();
        let lens: Vec<u64> = runs(frames.iter()).iter().map(|(.., len)| *len).collect();
        assert_eq!(lens, [RUN, RUN, 8 * m]);
    }
}
