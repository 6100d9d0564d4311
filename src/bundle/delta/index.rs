//! Finding bytes of a new image in an old one, at any offset. Pure.
//!
//! A rolling hash is taken at every byte of both images ("Gear": Xia et al., "Ddelta: a deduplication-inspired fast delta
//! compression approach", 2014); of its values only those that begin with some zero bits are looked at. So the same bytes
//! are sampled in both wherever they lie, and a table of one place in 256 finds them.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;
use crate::units::{ByteOffset, Extent};
use crate::workers::{self, Abort, lock};

/// Bytes that a hash is made of: each shift moves the oldest out of its 64 bits.
const WINDOW: usize = 64;
/// One hash in `2^SAMPLE_BITS` is looked at, while the base is not larger than [`LARGE`].
const SAMPLE_BITS: u32 = 8;
/// Bytes of a base from which samples get rarer, so that the table stays at 128 MiB.
const LARGE: u64 = 2 << 30;
/// Bytes of the base that are hashed as one piece of work.
const PIECE: usize = 16 << 20;
/// Places of the base closer than this belong to one range.
const GAP: u64 = 16 << 10;
/// Bytes by which a range reaches beyond its outermost places: what lies around a match is often alike.
const MARGIN: u64 = 8 << 10;
/// Bits of an entry that hold the place; the others compare the hash.
const PLACE_BITS: u32 = 42;

/// Where samples of the base lie.
pub struct BaseIndex {
    /// Open addressing by the hash, linear probing; 0 is free.
    table: Vec<u64>,
    bits: u32,
    base: u64,
}

impl BaseIndex {
    /// The samples of `base`, hashed by `jobs` workers. The same whatever their number: of equal samples the first counts.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn new(base: &[u8], jobs: NonZeroUsize, abort: &Abort<'_>) -> Result<Self> {
        let len = base.len() as u64;
        let bits = SAMPLE_BITS + len.div_ceil(LARGE).next_power_of_two().trailing_zeros();
        let pieces = base.len().div_ceil(PIECE);
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        workers::run(jobs, abort, || {
            loop {
                abort.check()?;
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(());
                }
                // A window that reaches into the next piece belongs to this one.
                let (from, to) = (piece * PIECE, ((piece + 1) * PIECE + WINDOW - 1).min(base.len()));
                let samples = samples(&base[from..to], bits);
                lock(&found).push((piece, samples));
            }
        })?;
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.sort_unstable_by_key(|(piece, _)| *piece);
        let count: usize = found.iter().map(|(_, samples)| samples.len()).sum();
        let mut index = Self { table: vec![0; (count * 2).next_power_of_two()], bits, base: len };
        for (piece, samples) in found {
            for (hash, at) in samples {
                index.insert(hash, (piece * PIECE) as u64 + u64::from(at));
            }
        }
        Ok(index)
    }

    fn slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.table.len() - 1;
        let start = hash as usize;
        (0..=mask).map(move |step| (start + step) & mask)
    }

    fn insert(&mut self, hash: u64, at: u64) {
        let entry = tag(hash) << PLACE_BITS | (at + 1);
        for slot in self.slots(hash) {
            let held = self.table[slot];
            if held == 0 {
                self.table[slot] = entry;
                return;
            }
            if held >> PLACE_BITS == tag(hash) {
                return;
            }
        }
    }

    /// Where the base has the bytes with this hash, if it is so. Not certain: whoever uses it compares, or lets zstd do so.
    fn get(&self, hash: u64) -> Option<u64> {
        for slot in self.slots(hash) {
            let held = self.table[slot];
            if held == 0 {
                return None;
            }
            if held >> PLACE_BITS == tag(hash) {
                return Some((held & ((1 << PLACE_BITS) - 1)) - 1);
            }
        }
        None
    }

    /// Places where the base has bytes of `frame`, as (place in the frame, place in the base), by the latter.
    pub fn matches(&self, frame: &[u8]) -> Vec<(u64, u64)> {
        let found = samples(frame, self.bits).into_iter();
        let mut matches: Vec<_> =
            found.filter_map(|(hash, at)| Some((u64::from(at), self.get(hash)?))).collect();
        matches.sort_unstable_by_key(|(at, base)| (*base, *at));
        matches
    }

    /// The ranges of the base that have the most of these places: at most `count` and `budget` bytes, ascending, apart.
    pub fn ranges(&self, matches: &[(u64, u64)], count: usize, budget: u64) -> Vec<Extent> {
        let mut clusters: Vec<&[(u64, u64)]> =
            matches.chunk_by(|(_, one), (_, next)| next - one <= GAP).collect();
        // By what they have; of equals the first in the base, so that the choice is always the same.
        clusters.sort_by_key(|cluster| std::cmp::Reverse(cluster.len()));
        let mut ranges: Vec<Extent> = Vec::new();
        let mut left = budget;
        for cluster in clusters.into_iter().take(count) {
            let (Some((_, first)), Some((_, last))) = (cluster.first(), cluster.last()) else { continue };
            let from = first.saturating_sub(MARGIN);
            let to = (last + WINDOW as u64 + MARGIN).min(self.base).min(from + left);
            if to > from {
                left -= to - from;
                ranges.push(Extent { at: ByteOffset(from), len: to - from });
            }
        }
        join(ranges)
    }

    /// `ranges` and, where `count` and `budget` have room for it, as much of `more` as they do not hold already.
    pub fn with(&self, ranges: Vec<Extent>, more: Extent, count: usize, budget: u64) -> Vec<Extent> {
        let end = more.at.0.saturating_add(more.len).min(self.base);
        let left = budget - ranges.iter().map(|range| range.len).sum::<u64>().min(budget);
        let overlaps = ranges.iter().any(|range| range.at.0 < end && more.at.0 < range.at.0 + range.len);
        if overlaps || ranges.len() >= count || end <= more.at.0 || end - more.at.0 > left {
            return ranges;
        }
        let mut ranges = ranges;
        ranges.push(Extent { at: more.at, len: end - more.at.0 });
        join(ranges)
    }
}

/// In order, and those that touch or overlap as one.
fn join(mut ranges: Vec<Extent>) -> Vec<Extent> {
    ranges.sort_unstable_by_key(|range| range.at);
    let mut joined: Vec<Extent> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.at.0 <= last.at.0 + last.len => {
                last.len = last.len.max(range.at.0 + range.len - last.at.0);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// The part of a hash that an entry holds. Other bits than those that choose the slot or make it a sample.
const fn tag(hash: u64) -> u64 {
    (hash >> 32) & ((1 << (u64::BITS - PLACE_BITS)) - 1)
}

/// Hash and place of the windows whose hash begins with `bits` zeroes. Of a run of equal hashes, such as a run of one byte
/// has, the first only.
fn samples(bytes: &[u8], bits: u32) -> Vec<(u64, u32)> {
    let mut found = Vec::with_capacity(bytes.len() >> bits);
    let (mut hash, mut last) = (0_u64, 0);
    for (end, byte) in bytes.iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash >> (u64::BITS - bits) == 0 && end + 1 >= WINDOW && hash != last {
            found.push((mixed(hash), (end + 1 - WINDOW) as u32));
            last = hash;
        }
    }
    found
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
mod tests {
    use super::*;
    use crate::progress::Cancel;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| mixed(seed << 40 | i) as u8).collect()
    }

    fn index(base: &[u8]) -> BaseIndex {
        let cancel = Cancel::default();
        BaseIndex::new(base, workers::at_least_one(3), &Abort::new(&cancel, "testing")).unwrap()
    }

    #[test]
    fn moved_bytes_are_found_at_any_offset_and_across_pieces() {
        let base = noise(1, PIECE + 300_000);
        let index = index(&base);
        for (from, len) in
            [(0, 70_000), (12_345, 70_001), (PIECE - 30_007, 60_000), (base.len() - 65_536, 65_536)]
        {
            let frame = [&noise(2, 1001)[..], &base[from..from + len]].concat();
            let matches = index.matches(&frame);
            assert!(matches.len() * 256 > len / 2, "{} of {len} at {from}", matches.len());
            for (at, place) in &matches {
                assert_eq!(*place as i64 - *at as i64, from as i64 - 1001);
            }
            let ranges = index.ranges(&matches, 8, 1 << 20);
            assert_eq!(ranges.len(), 1);
            // Nearly all of it: samples lie up to some hundred bytes from the ends, and the margin is larger.
            assert!(ranges[0].at.0 <= from as u64 && ranges[0].at.0 + ranges[0].len >= (from + len) as u64);
        }
        assert!(index.matches(&noise(3, 100_000)).is_empty());
        let more = |at, len| Extent { at: ByteOffset(at), len };
        let end = base.len() as u64;
        let one = index.with(Vec::new(), more(end - 10, 1000), 8, 1000);
        assert_eq!(one, [more(end - 10, 10)], "up to the end");
        assert_eq!(index.with(one.clone(), more(end - 20, 15), 8, 1000), one, "what overlaps is left");
        assert_eq!(index.with(one.clone(), more(0, 991), 8, 1000), one, "what is too much is left");
        assert_eq!(index.with(one.clone(), more(end, 10), 8, 1000), one, "there is nothing behind the end");
        assert_eq!(index.with(one.clone(), more(0, 990), 8, 1000), [more(0, 990), one[0]]);
    }

    #[test]
    fn ranges_stay_within_their_limits() {
        let base = noise(1, 4 << 20);
        let index = index(&base);
        // Pieces of the base from everywhere, one larger than the others.
        let mut frame = Vec::new();
        for i in 0..20 {
            frame.extend_from_slice(&base[i * 200_000..][..if i == 7 { 60_000 } else { 20_000 }]);
        }
        let matches = index.matches(&frame);
        for (count, budget) in [(8, 2 << 20), (16, 100_000), (1, 2 << 20), (8, 10), (0, 100), (8, 0)] {
            let ranges = index.ranges(&matches, count, budget);
            assert!(ranges.len() <= count && ranges.iter().map(|range| range.len).sum::<u64>() <= budget);
            assert!(ranges.windows(2).all(|two| two[0].at.0 + two[0].len < two[1].at.0));
            if count == 1 {
                assert!(
                    (1_390_000..1_400_001).contains(&ranges[0].at.0),
                    "the one with the most: {ranges:?}"
                );
            }
            let more =
                index.with(ranges.clone(), Extent { at: ByteOffset(3_900_000), len: 1 << 20 }, count, budget);
            assert!(more.len() <= count && more.iter().map(|range| range.len).sum::<u64>() <= budget);
        }
    }

    #[test]
    fn a_run_of_one_byte_is_one_sample_at_most() {
        for byte in 0..=255 {
            assert!(samples(&vec![byte; 100_000], 8).len() <= 1);
        }
        for len in [0, 1, 63, 64] {
            assert!(samples(&vec![0; len], 8).len() <= 1);
            drop(index(&noise(1, len)));
        }
    }
}
