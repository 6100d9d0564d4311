//! Index that finds bytes of a new image in an old one, at any offset.
//!
//! The same bytes are sampled in both images wherever they lie. A sample that is found is compared byte by byte and
//! extended in both directions.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::reader::{self, BaseReader};
use super::samples::{LARGE, SAMPLE_BITS, WINDOW, samples};
use super::survey::Wanted;
use crate::bundle::ReadAt;
use crate::error::Result;
use crate::workers::{self, Abort, Queue};

/// Bytes of the base that a worker hashes at a time.
const PIECE: usize = 1 << 20;
/// Number of pieces that may wait with their samples for an earlier one.
const AHEAD: u64 = 16;
/// Number of entries that are searched for one hash. A sample that finds no room in them is left out.
const PROBES: usize = 16;
/// Value of a free entry.
const FREE: u32 = u32::MAX;

/// Bytes of a frame that the base has too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Offset in the frame.
    pub(super) at: usize,
    /// Offset in the base.
    pub(super) base: usize,
    /// Number of bytes that are equal.
    pub(super) len: usize,
}

impl Match {
    pub(super) const fn end(&self) -> usize {
        self.at + self.len
    }

    /// Offset in the base at which the whole frame would begin; `None` if that is before the start of the base.
    pub(super) const fn frame_start(&self) -> Option<usize> {
        self.base.checked_sub(self.at)
    }

    /// Whether the base has this window of the frame at the place where the match would have it if it went on.
    fn goes_on(&self, base: &mut BaseReader<'_>, at: usize, window: &[u8]) -> bool {
        base.has((self.base + (at - self.at)) as u64, window)
    }
}

/// Piece of the base with its samples.
struct Piece {
    /// Offset in the base.
    from: usize,
    bytes: Vec<u8>,
    /// Hashes and offsets in the piece.
    samples: Vec<(u64, usize)>,
}

/// Table of the samples of the base and their places: open addressing by the hash, linear probing, 6 bytes an entry.
pub(super) struct BaseIndex {
    bits: u32,
    /// Lower 32 bits of the place.
    low: Vec<u32>,
    /// Upper 8 bits of the place, and 8 bits of the hash, which avoid most comparisons with other bytes.
    high: Vec<[u8; 2]>,
}

impl BaseIndex {
    /// Indexes the samples of `base`, all or those that are `wanted`, hashed by `jobs` workers. Their number does not change
    /// the result: of equal samples the first counts.
    ///
    /// # Errors
    /// Those of [`reader::read`]; [`Error::Interrupted`](crate::Error::Interrupted).
    pub(super) fn new(
        base: &dyn ReadAt,
        wanted: Option<&Wanted>,
        jobs: NonZeroUsize,
        abort: &Abort<'_>,
    ) -> Result<Self> {
        let len = usize::try_from(base.len()).unwrap_or(usize::MAX);
        let larger = (len as u64).div_ceil(LARGE).next_power_of_two().trailing_zeros();
        let all = SAMPLE_BITS + larger;
        let (bits, count) = wanted.map_or((all, len >> all), |w| (w.bits, w.count() as usize));
        // As many again pass the filter by chance. A quarter more entries than random bytes have samples, so that searches
        // end soon.
        let count = if wanted.is_some() { 2 * count } else { count };
        let entries = count / 4 * 5 + 64;
        let index = Self { bits, low: vec![FREE; entries], high: vec![[0; 2]; entries] };
        let pieces = len.div_ceil(PIECE);
        let (next, queue) = (AtomicUsize::new(0), Queue::new((index, BaseReader::new(base)), AHEAD));
        let insert = |(index, base): &mut (Self, BaseReader<'_>), piece: Piece| {
            for (hash, at) in piece.samples {
                index.insert(base, hash, piece.from + at, &piece.bytes[at..at + WINDOW]);
            }
            base.check()
        };
        workers::run(jobs, abort, || {
            loop {
                abort.check()?;
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(());
                }
                // A window that reaches into the next piece belongs to this one.
                let (from, to) = (piece * PIECE, ((piece + 1) * PIECE + WINDOW - 1).min(len));
                let mut bytes = vec![0; to - from];
                reader::read(base, from as u64, &mut bytes)?;
                let mut found = Vec::new();
                samples(&bytes, bits, |hash, at| {
                    if wanted.is_none_or(|wanted| wanted.has(hash)) {
                        found.push((hash, at));
                    }
                });
                queue.put(piece as u64, Piece { from, bytes, samples: found }, abort, insert)?;
            }
        })?;
        Ok(queue.into_inner().0)
    }

    /// Entries for a hash, in the order of the search.
    fn entries(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let len = self.low.len();
        let start = ((u128::from(hash) * len as u128) >> 64) as usize;
        (start..start + PROBES).map(move |entry| if entry < len { entry } else { entry - len })
    }

    /// Place of an entry that is taken.
    fn place(&self, entry: usize) -> usize {
        (usize::from(self.high[entry][0]) << 32) | self.low[entry] as usize
    }

    /// Whether an entry that is taken has this window.
    fn has(&self, base: &mut BaseReader<'_>, entry: usize, hash: u64, window: &[u8]) -> bool {
        self.high[entry][1] == hash as u8 && base.has(self.place(entry) as u64, window)
    }

    fn insert(&mut self, base: &mut BaseReader<'_>, hash: u64, at: usize, window: &[u8]) {
        let low = at as u32;
        // A place whose lower bits mean "free", or that lies beyond 1 TiB, is not worth a case of its own: it is left
        // out.
        let Ok(high) = u8::try_from(at >> 32) else { return };
        if low == FREE {
            return;
        }
        for entry in self.entries(hash) {
            if self.low[entry] == FREE {
                self.low[entry] = low;
                self.high[entry] = [high, hash as u8];
                return;
            }
            if self.has(base, entry, hash, window) {
                return;
            }
        }
    }

    /// Place of this window in the base; `None` if no sample is there.
    fn get(&self, base: &mut BaseReader<'_>, hash: u64, window: &[u8]) -> Option<usize> {
        let mut taken = self.entries(hash).take_while(|entry| self.low[*entry] != FREE);
        taken.find(|entry| self.has(base, *entry, hash, window)).map(|entry| self.place(entry))
    }

    /// Matches between `frame` and the base, in the order of the frame, without overlap there.
    ///
    /// # Errors
    /// Those of [`reader::read`].
    pub(super) fn matches(&self, frame: &[u8], base: &mut BaseReader<'_>) -> Result<Vec<Match>> {
        let mut found: Vec<Match> = Vec::new();
        samples(frame, self.bits, |hash, at| {
            let (last, window) = (found.last(), &frame[at..at + WINDOW]);
            let done = last.map_or(0, Match::end);
            if at + WINDOW <= done {
                return;
            }
            // The place at the same distance as in the last match is preferred to the same bytes elsewhere: its
            // surroundings are alike too.
            let beside = last.filter(|last| last.goes_on(base, at, window));
            let beside = beside.map(|last| last.base + (at - last.at));
            let Some(place) = beside.or_else(|| self.get(base, hash, window)) else { return };
            let from = done.min(at);
            let back = base.equal_before(place as u64, &frame[from..at]);
            let len = back + base.equal_from(place as u64, &frame[at..]);
            found.push(Match { at: at - back, base: place - back, len });
        });
        base.check()?;
        Ok(found)
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
