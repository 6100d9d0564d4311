//! Recognises frames that are already in the slot, by reading and hashing it. There is no journal: remains of an
//! interrupted run or an earlier release are found by their content, so no stale note can be believed.

use std::sync::Mutex;

use super::{Target, frame_at, wanted};
use crate::bundle::Release;
use crate::bundle::manifest::largest_frame;
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::progress::{Phase, Progress};
use crate::workers::{Abort, lock};

/// Number of frames of each payload that are probed before anything is written.
const SAMPLES: u64 = 8;
/// The same if a frame that is not in place costs a transfer: reading the slot is cheap compared to it.
const REMOTE_SAMPLES: u64 = 64;
/// A frame that is compressed to a smaller part than this may be all zeroes.
const SURELY_NOT_ZERO: u64 = 256;
/// After this number of consecutive misses, only one frame in [`STRIDE`] is probed.
const MISSES_MAX: u32 = 16;
/// See [`MISSES_MAX`].
const STRIDE: u64 = 16;

/// Decides which frames are probed before they are decompressed. Reading costs about as much as writing: if nothing
/// matches, probing must cost nothing.
pub(super) struct Prober {
    /// Misses since the last match; `None` if no sample matched.
    misses: Option<Mutex<u32>>,
    /// Whether each frame is probed, whatever the results before it.
    every: bool,
}

impl Prober {
    /// Probes a few frames of every payload: the first one that holds something, where an interrupted run has been,
    /// and others spread evenly. Zeroes that match prove nothing: blank space matches them too. `remote`: frames
    /// that are not in place come over a network.
    pub(super) fn sample(
        release: &Release,
        targets: &[Target],
        remote: bool,
        abort: &Abort<'_>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let samples = if remote { REMOTE_SAMPLES } else { SAMPLES };
        let payloads = &release.manifest.payloads;
        let mut buffer = AlignedBuf::zeroed(largest_frame(payloads));
        let mut probed = Vec::new();
        for (number, payload) in payloads.iter().enumerate().filter(|(_, payload)| wanted(targets, payload)) {
            let frames = payload.frames();
            let spread = (1..samples).map(|i| i * frames / samples);
            let holds = |frame: &u64| {
                let frame = release.frame(number, *frame);
                u64::from(frame.entry().compressed) >= frame.len() as u64 / SURELY_NOT_ZERO
            };
            let first = (0..frames).find(holds);
            let mut numbers: Vec<u64> =
                [0].into_iter().chain(first).chain(spread).filter(|frame| *frame < frames).collect();
            numbers.dedup();
            probed.extend(numbers.into_iter().map(|frame| release.frame(number, frame)));
        }
        progress.begin(Phase::Probe, probed.iter().map(|frame| frame.len() as u64).sum());
        for frame in probed {
            abort.check()?;
            if frame_at(targets, frame)?.find(&mut buffer).is_some_and(|found| !found.is_zero()) {
                return Ok(Self { misses: Some(Mutex::new(0)), every: remote });
            }
            progress.advance(frame.len() as u64);
        }
        Ok(Self { misses: None, every: remote })
    }

    /// Looks at each frame.
    pub(super) fn every() -> Self {
        Self { misses: Some(Mutex::new(0)), every: true }
    }

    /// Whether the slot seems to hold frames of this bundle.
    pub(super) fn has_matches(&self) -> bool {
        self.misses.is_some()
    }

    /// Calls `look` if frame number `ordinal` is worth probing, and counts the result.
    pub(super) fn look<T>(&self, ordinal: u64, look: impl FnOnce() -> Option<T>) -> Option<T> {
        let misses = self.misses.as_ref()?;
        if !self.every && *lock(misses) >= MISSES_MAX && !ordinal.is_multiple_of(STRIDE) {
            return None;
        }
        let found = look();
        let mut misses = lock(misses);
        *misses = if found.is_some() { 0 } else { misses.saturating_add(1) };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_gets_rare_after_misses_and_returns() {
        let prober = Prober { misses: Some(Mutex::new(0)), every: false };
        let looks = |range: std::ops::Range<u64>, found: bool| {
            let mut looked = 0;
            for number in range {
                prober.look(number, || {
                    looked += 1;
                    found.then_some(())
                });
            }
            looked
        };
        assert_eq!(looks(0..16, false), 16);
        assert_eq!(looks(16..160, false), 9, "one in sixteen");
        assert_eq!(looks(160..161, true), 1, "a match at the next sample");
        assert_eq!(looks(161..177, true), 16, "brings full probing back");
        let every = Prober { misses: Some(Mutex::new(0)), every: true };
        assert!((0..100).all(|number| every.look(number, || None::<()>).is_none()));
        assert_eq!(*lock(every.misses.as_ref().unwrap()), 100, "each is looked at");
        let blind = Prober { misses: None, every: false };
        assert!(blind.look(0, || Some(())).is_none());
    }
}
