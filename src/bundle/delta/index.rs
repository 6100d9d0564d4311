//! Finding bytes of a new image in an old one, at any offset. Pure.
//!
//! A rolling hash is taken at every byte of both images ("Gear": Xia et al., "Ddelta: a deduplication-inspired fast delta
//! compression approach", 2014); of its values only those that begin with some zero bits are looked at. So the same bytes
//! are sampled in both wherever they lie. A sample that is found is compared byte by byte and extended in both directions.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::bundle::writer::Image;
use crate::error::Result;
use crate::workers::{self, Abort, Queue};

/// Bytes that a hash is made of: each shift by [`SHIFT`] moves the oldest out of its 64 bits. Shorter windows find more of
/// what a compiler laid out anew; below 32 bytes they find mostly what is common everywhere.
const WINDOW: usize = 32;
/// Bits by which a byte moves the hash.
const SHIFT: usize = 64 / WINDOW;
/// One hash in `2^SAMPLE_BITS` is looked at, while the base is not larger than [`LARGE`].
const SAMPLE_BITS: u32 = 6;
/// Bytes of a base from which samples get rarer, so that the table stays at 240 MiB.
const LARGE: u64 = 2 << 30;
/// Bytes of the base that are hashed as one piece of work.
const PIECE: usize = 4 << 20;
/// Pieces whose samples may wait for those of an earlier one.
const AHEAD: u64 = 8;
/// Entries that are looked at for one hash. A sample that finds no room is left out.
const PROBES: usize = 16;
/// An entry that is free.
const FREE: u32 = u32::MAX;

/// Bytes of a frame that the base has too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Offset in the frame.
    pub(super) at: usize,
    /// Offset in the base.
    pub(super) base: usize,
    /// Bytes that are equal.
    pub(super) len: usize,
}

impl Match {
    const fn end(&self) -> usize {
        self.at + self.len
    }

    /// Where the frame would begin in the base, if all of it was there.
    pub(super) const fn frame_start(&self) -> Option<usize> {
        self.base.checked_sub(self.at)
    }

    /// Whether the base has this window of the frame where the match would have it if it went on.
    fn goes_on(&self, base: &[u8], at: usize, window: &[u8]) -> bool {
        let from = self.base + (at - self.at);
        base.get(from..from + window.len()) == Some(window)
    }
}

/// Where samples of the base lie: open addressing by the hash, linear probing, 6 bytes an entry.
pub(super) struct BaseIndex<'a> {
    base: &'a [u8],
    bits: u32,
    /// The lower 32 bits of the place.
    low: Vec<u32>,
    /// The upper 8 bits of the place, and 8 bits of the hash that spare most comparisons with other bytes.
    high: Vec<[u8; 2]>,
}

impl<'a> BaseIndex<'a> {
    /// The samples of `image`, hashed by `jobs` workers. The same whatever their number: of equal samples the first counts.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub(super) fn new(image: &'a dyn Image, jobs: NonZeroUsize, abort: &Abort<'_>) -> Result<Self> {
        let base = image.bytes();
        let larger = (base.len() as u64).div_ceil(LARGE).next_power_of_two().trailing_zeros();
        let bits = SAMPLE_BITS + larger;
        // A quarter more than random bytes have, so that searches end soon.
        let entries = (base.len() >> bits) / 4 * 5 + 64;
        let index = Self { base, bits, low: vec![FREE; entries], high: vec![[0; 2]; entries] };
        let pieces = base.len().div_ceil(PIECE);
        let (next, queue) = (AtomicUsize::new(0), Queue::new(index, AHEAD));
        let insert = |index: &mut Self, (from, found): (usize, Vec<(u64, usize)>)| {
            found.into_iter().for_each(|(hash, at)| index.insert(hash, from + at));
            // Samples that are equal were compared anywhere before.
            image.release(0, base.len() as u64);
            Ok(())
        };
        workers::run(jobs, abort, || {
            loop {
                abort.check()?;
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(());
                }
                // A window that reaches into the next piece belongs to this one.
                let (from, to) = (piece * PIECE, ((piece + 1) * PIECE + WINDOW - 1).min(base.len()));
                let mut found = Vec::with_capacity((to - from) >> bits);
                samples(&base[from..to], bits, |hash, at| found.push((hash, at)));
                queue.put(piece as u64, (from, found), abort, insert)?;
            }
        })?;
        Ok(queue.into_inner())
    }

    /// The entries for a hash, in the order of the search.
    fn entries(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let len = self.low.len();
        let start = ((u128::from(hash) * len as u128) >> 64) as usize;
        (start..start + PROBES).map(move |entry| if entry < len { entry } else { entry - len })
    }

    /// The place of an entry that is taken.
    fn place(&self, entry: usize) -> usize {
        (usize::from(self.high[entry][0]) << 32) | self.low[entry] as usize
    }

    /// Whether an entry that is taken has this window.
    fn has(&self, entry: usize, hash: u64, window: &[u8]) -> bool {
        let place = self.place(entry);
        self.high[entry][1] == hash as u8 && self.base.get(place..place + window.len()) == Some(window)
    }

    fn insert(&mut self, hash: u64, at: usize) {
        let (base, low) = (self.base, at as u32);
        // A place whose lower bits mean "free", and what lies beyond 1 TiB, is not worth an entry of its own.
        let (Some(window), Ok(high)) = (base.get(at..at + WINDOW), u8::try_from(at >> 32)) else { return };
        if low == FREE {
            return;
        }
        for entry in self.entries(hash) {
            if self.low[entry] == FREE {
                self.low[entry] = low;
                self.high[entry] = [high, hash as u8];
                return;
            }
            if self.has(entry, hash, window) {
                return;
            }
        }
    }

    /// Where the base has this window, if a sample says so.
    fn get(&self, hash: u64, window: &[u8]) -> Option<usize> {
        let mut taken = self.entries(hash).take_while(|entry| self.low[*entry] != FREE);
        taken.find(|entry| self.has(*entry, hash, window)).map(|entry| self.place(entry))
    }

    /// What the base has of `frame`, in the order of the frame, apart there.
    pub(super) fn matches(&self, frame: &[u8]) -> Vec<Match> {
        let mut found: Vec<Match> = Vec::new();
        samples(frame, self.bits, |hash, at| {
            let (last, window) = (found.last(), &frame[at..at + WINDOW]);
            let done = last.map_or(0, Match::end);
            if at + WINDOW <= done {
                return;
            }
            // What lies where it lay before, beside the last match, is preferred to the same bytes elsewhere: its
            // surroundings are alike too.
            let beside = last.filter(|last| last.goes_on(self.base, at, window));
            let place = beside.map(|last| last.base + (at - last.at)).or_else(|| self.get(hash, window));
            let Some(place) = place else { return };
            let from = done.min(at);
            let back = equal(frame[from..at].iter().rev(), self.base[..place].iter().rev());
            let len = back + equal(frame[at..].iter(), self.base[place..].iter());
            found.push(Match { at: at - back, base: place - back, len });
        });
        found
    }
}

/// How many bytes are equal before the first that differ.
fn equal<'b>(one: impl Iterator<Item = &'b u8>, other: impl Iterator<Item = &'b u8>) -> usize {
    one.zip(other).take_while(|(one, other)| one == other).count()
}

/// Reports hash and place of the windows whose hash begins with `bits` zeroes. Of a run of equal hashes, such as a run of
/// one byte has, the first only.
fn samples(bytes: &[u8], bits: u32, mut found: impl FnMut(u64, usize)) {
    let (mut hash, mut last) = (0_u64, 0);
    for (end, byte) in bytes.iter().enumerate() {
        hash = (hash << SHIFT).wrapping_add(GEAR[usize::from(*byte)]);
        if hash >> (u64::BITS - bits) == 0 && end + 1 >= WINDOW && hash != last {
            found(mixed(hash), end + 1 - WINDOW);
            last = hash;
        }
    }
}

/// The bits of a Gear hash are unevenly random; the table wants them even (the finaliser of SplitMix64).
const fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A random number for each byte: SplitMix64 of the byte. What they are decides deltas' sizes in the last digit only.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        gear[byte] = mixed((byte as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        byte += 1;
    }
    gear
};

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
