//! What a delta has to make: how many frames are not in place, and which samples of the base could be of use for them.
//!
//! The memory for the index of the base is limited, so a large base is sampled coarsely. Where few frames changed, as
//! after the upgrade of one package, only the samples that these frames have are wanted: they are few, so that they can
//! be taken densely.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::reader::read;
use super::samples::{ENTRIES, SAMPLE_BITS, samples};
use crate::bundle::frame::chaining_value;
use crate::bundle::manifest::largest_frame;
use crate::bundle::unpack::Unpacking;
use crate::bundle::{Bundle, ReadAt};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::workers::{self, Abort};

/// One hash in `2^DENSEST` is a sample at most. Denser ones find nothing more, since a window has 32 bytes.
const DENSEST: u32 = 2;
/// Part of the base, as a divisor, up to which changed frames are few.
const FEW: u64 = 4;
/// Bits of the filter for each wanted sample at least.
const FILTER_BITS: u64 = 8;

/// Frames of a payload that are not in place, and what they need.
pub(super) struct Survey {
    pub(super) changed: Bits,
    /// Their bytes.
    pub(super) changed_bytes: u64,
    /// Their samples; `None` if all of the base is of use, since more of it changed.
    pub(super) wanted: Option<Wanted>,
}

impl Survey {
    /// Compares the hashes of the frames with those of the base, and samples the frames that differ if they are few.
    ///
    /// # Errors
    /// Those of the frames of the bundle and of [`read`]; [`Error::Interrupted`](crate::Error::Interrupted).
    pub(super) fn of(
        bundle: &Bundle,
        number: usize,
        base: &dyn ReadAt,
        jobs: NonZeroUsize,
        abort: &Abort<'_>,
    ) -> Result<Self> {
        let size = base.len();
        let changed = changed(bundle, number, base, jobs, abort)?;
        let frames = bundle.release().frames(number);
        let bytes = frames.filter(|frame| changed.has(frame.number())).map(|frame| frame.len() as u64).sum();
        if bytes > size / FEW {
            return Ok(Self { changed, changed_bytes: bytes, wanted: None });
        }
        let wanted = Wanted::new(bytes, size);
        let unpacking = Unpacking { bundle, payload: &bundle.manifest().payloads[number], jobs };
        unpacking.each(
            abort,
            |frame| changed.has(frame.number()),
            || Ok(()),
            |(), unpacked| {
                samples(&unpacked.frame, wanted.bits, |hash, _| wanted.add(hash));
                Ok(())
            },
        )?;
        Ok(Self { changed, changed_bytes: bytes, wanted: Some(wanted) })
    }
}

/// The frames that the base does not have at the same offset.
fn changed(
    bundle: &Bundle,
    number: usize,
    base: &dyn ReadAt,
    jobs: NonZeroUsize,
    abort: &Abort<'_>,
) -> Result<Bits> {
    let payload = &bundle.manifest().payloads[number];
    let (frames, next) = (payload.frames(), AtomicUsize::new(0));
    let changed = Bits::new(frames);
    let (mut buffers, len) = AlignedBuf::shared(jobs, largest_frame(std::slice::from_ref(payload)));
    workers::run_with(buffers.chunks_exact_mut(len), abort, |buffer| {
        loop {
            abort.check()?;
            let number_of_frame = next.fetch_add(1, Ordering::Relaxed) as u64;
            if number_of_frame >= frames {
                return Ok(());
            }
            let frame = bundle.release().frame(number, number_of_frame);
            let at = frame.extent();
            let mut same = at.at.0.saturating_add(at.len) <= base.len();
            if same {
                let bytes = &mut buffer[..frame.len()];
                read(base, at.at.0, bytes)?;
                same = chaining_value(bytes, at.at.0, frames == 1) == frame.entry().value;
            }
            if !same {
                changed.set(number_of_frame);
            }
        }
    })?;
    Ok(changed)
}

/// Set of numbers that several workers fill.
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(len: u64) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn set(&self, number: u64) {
        self.0[(number / 64) as usize].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.0[(number / 64) as usize].load(Ordering::Relaxed) >> (number % 64) & 1 == 1
    }
}

/// Samples that are looked for: a filter by their hashes, which lets some others pass.
pub(super) struct Wanted {
    /// One hash in `2^bits` is a sample.
    pub(super) bits: u32,
    filter: Bits,
    len: u64,
}

impl Wanted {
    /// A filter for the samples of this number of bytes, as dense as the memory for the index permits. It has as many bits
    /// as a base of `base` bytes has samples, so that no more of those pass by chance than are wanted.
    fn new(bytes: u64, base: u64) -> Self {
        let bits = bytes.div_ceil(ENTRIES / 2).next_power_of_two().trailing_zeros();
        let bits = bits.clamp(DENSEST, SAMPLE_BITS);
        let len = ((bytes >> bits) * FILTER_BITS).max(base >> bits).max(64);
        Self { bits, filter: Bits::new(len), len }
    }

    fn place(&self, hash: u64) -> u64 {
        ((u128::from(hash) * u128::from(self.len)) >> 64) as u64
    }

    fn add(&self, hash: u64) {
        self.filter.set(self.place(hash));
    }

    /// Whether a hash is wanted. It may be by chance.
    pub(super) fn has(&self, hash: u64) -> bool {
        self.filter.has(self.place(hash))
    }

    /// Number of samples, as far as their hashes are distinct.
    pub(super) fn count(&self) -> u64 {
        self.filter.0.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::delta::index::BaseIndex;
    use crate::bundle::delta::reader::BaseReader;
    use crate::bundle::delta::tests::{bundle, noise};
    use crate::progress::Cancel;

    /// A short stretch that moved is found at any place, as it would not be among the coarse samples of the base.
    #[test]
    fn few_changed_frames_are_sampled_densely() {
        let old = noise(1, 1 << 20);
        let mut new = old.clone();
        for piece in 0..16 {
            let from = 200_003 + 50_021 * piece;
            new.copy_within(from..from + 80, 70_000 + 1000 * piece);
        }
        let release = bundle(&new, 64 << 10);
        let (cancel, jobs) = (Cancel::default(), workers::at_least_one(2));
        let abort = Abort::new(&cancel, "");
        let survey = Survey::of(&release, 0, &old, jobs, &abort).unwrap();
        assert_eq!(survey.changed_bytes, 64 << 10, "one frame");
        let wanted = survey.wanted.as_ref();
        assert_eq!(wanted.map(|wanted| wanted.bits), Some(DENSEST));
        let found = |wanted| {
            let index = BaseIndex::new(&old, wanted, jobs, &abort).unwrap();
            let matches = index.matches(&new[65_536..131_072], &mut BaseReader::new(&old)).unwrap();
            let moved = matches.iter().filter(|found| found.base != found.at + 65_536);
            moved.count()
        };
        assert_eq!(found(wanted), 16);
        assert!(found(None) < 16, "what the coarse samples find, too, shows nothing");
    }

    #[test]
    fn many_changed_frames_want_all_of_the_base() {
        let old = noise(1, 512 << 10);
        let mut new = old.clone();
        new.iter_mut().step_by(60_000).for_each(|byte| *byte ^= 1);
        let release = bundle(&new, 64 << 10);
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "");
        let survey = Survey::of(&release, 0, &old, workers::at_least_one(2), &abort).unwrap();
        assert!(survey.changed_bytes == 512 << 10 && survey.wanted.is_none());
    }
}
