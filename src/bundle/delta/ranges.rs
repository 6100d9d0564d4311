//! Selection of the ranges of the base with which a frame is compressed. Pure.

use super::index::Match;
use crate::units::{ByteOffset, Extent};

/// Maximum number of bytes on each side of a match that a range includes, as far as the frame has bytes there that match
/// nothing. Bytes beside equal ones are often alike, such as code whose addresses moved.
const BESIDE: u64 = 64 << 10;
/// Bytes that a range includes on each side in any case.
const MARGIN: u64 = 4 << 10;
/// Bytes on each side of a match, margin included, below which ranges are left out instead of made smaller.
const BESIDE_MIN: u64 = 1 << 10;

/// Limits of the ranges of one frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct RangeLimits {
    /// Size of the base in bytes.
    pub(super) base: u64,
    /// Maximum number of ranges.
    pub(super) count: usize,
    /// Maximum number of bytes in all ranges.
    pub(super) budget: u64,
}

/// Range of the base, and the number of bytes of the frame that match in it.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    from: u64,
    to: u64,
    matched: u64,
}

impl Candidate {
    const fn len(&self) -> u64 {
        self.to - self.from
    }
}

/// Chooses the ranges of the base that have most of `matches`, those of a frame of `frame_len` bytes. They ascend and
/// are apart.
pub(super) fn choose(matches: &[Match], frame_len: u64, limits: RangeLimits) -> Vec<Extent> {
    let (mut beside, mut margin) = (BESIDE, MARGIN);
    let mut ranges = loop {
        let ranges = candidates(matches, frame_len, limits.base, beside, margin);
        if bytes(&ranges) <= limits.budget || beside + margin < BESIDE_MIN {
            break ranges;
        }
        (beside, margin) = (beside / 2, margin / 2);
    };
    fit(&mut ranges, limits);
    ranges.iter().map(|range| Extent { at: ByteOffset(range.from), len: range.len() }).collect()
}

/// Returns `ranges` and, where the limits have room for it, `more`.
pub(super) fn with(mut ranges: Vec<Extent>, more: Extent, limits: RangeLimits) -> Vec<Extent> {
    let end = more.at.0.saturating_add(more.len).min(limits.base);
    let left = limits.budget.saturating_sub(ranges.iter().map(|range| range.len).sum());
    let touches = ranges.iter().any(|range| range.at.0 <= end && more.at.0 <= range.at.0 + range.len);
    if touches || ranges.len() >= limits.count || end <= more.at.0 || end - more.at.0 > left {
        return ranges;
    }
    ranges.push(Extent { at: more.at, len: end - more.at.0 });
    ranges.sort_unstable_by_key(|range| range.at);
    ranges
}

/// One range for each match and the bytes beside it; ranges that touch are joined.
fn candidates(matches: &[Match], frame_len: u64, base: u64, beside: u64, margin: u64) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::with_capacity(matches.len());
    let mut done = 0;
    for (number, this) in matches.iter().enumerate() {
        let (at, len, place) = (this.at as u64, this.len as u64, this.base as u64);
        let next = matches.get(number + 1).map_or(frame_len, |next| next.at as u64);
        let before = at.saturating_sub(done).min(beside) + margin;
        let after = next.saturating_sub(at + len).min(beside) + margin;
        done = at + len;
        let (from, to) = (place.saturating_sub(before), (place + len + after).min(base));
        found.push(Candidate { from, to, matched: len });
    }
    found.sort_unstable_by_key(|range| (range.from, range.to, range.matched));
    let mut joined: Vec<Candidate> = Vec::new();
    for range in found {
        match joined.last_mut() {
            Some(last) if range.from <= last.to => {
                last.to = last.to.max(range.to);
                last.matched += range.matched;
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn bytes(ranges: &[Candidate]) -> u64 {
    ranges.iter().map(Candidate::len).sum()
}

/// Fits the ranges into the limits. The range with the fewest matched bytes for its length is left out until the rest is
/// within the budget. Then the nearest two are joined, or, where there is no room for the gap, the one with the fewest
/// matched bytes is left out, until the count is right. Of equals always the first is taken, so that the choice is the
/// same everywhere.
fn fit(ranges: &mut Vec<Candidate>, limits: RangeLimits) {
    let density = |range: &Candidate| range.matched.saturating_mul(1 << 20) / range.len().max(1);
    let mut total = bytes(ranges);
    while total > limits.budget {
        if let [only] = &mut ranges[..] {
            only.to -= total - limits.budget;
            break;
        }
        let Some(worst) = (0..ranges.len()).min_by_key(|at| density(&ranges[*at])) else { break };
        total -= ranges.remove(worst).len();
    }
    while ranges.len() > limits.count {
        let gap = |at: usize| ranges[at].from - ranges[at - 1].to;
        let nearest =
            (1..ranges.len()).min_by_key(|at| gap(*at)).filter(|at| total + gap(*at) <= limits.budget);
        if let Some(nearest) = nearest {
            total += gap(nearest);
            let next = ranges.remove(nearest);
            let into = &mut ranges[nearest - 1];
            (into.to, into.matched) = (next.to, into.matched + next.matched);
        } else if let Some(least) = (0..ranges.len()).min_by_key(|at| ranges[*at].matched) {
            total -= ranges.remove(least).len();
        }
    }
    ranges.retain(|range| range.len() > 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(at: usize, base: usize, len: usize) -> Match {
        Match { at, base, len }
    }

    fn limits(count: usize, budget: u64) -> RangeLimits {
        RangeLimits { base: 16 << 20, count, budget }
    }

    #[test]
    fn a_range_takes_in_what_matches_nothing_beside_it() {
        let found = choose(&[matched(10_000, 1_010_000, 5_000)], 1 << 20, limits(8, 2 << 20));
        let (from, to) = (1_000_000 - MARGIN, 1_015_000 + BESIDE + MARGIN);
        assert_eq!(found, [Extent { at: ByteOffset(from), len: to - from }]);
    }

    #[test]
    fn limits_are_kept_and_what_is_worth_most_stays() {
        let matches: Vec<_> = (0..40)
            .map(|i| matched(i * 20_000, (i * 7 % 40) * 400_000, if i == 7 { 19_000 } else { 1_000 }))
            .collect();
        for (count, budget) in
            [(16, 2 << 20), (8, 2 << 20), (1, 2 << 20), (16, 100_000), (16, 30), (0, 9), (8, 0)]
        {
            let found = choose(&matches, 1 << 20, limits(count, budget));
            assert!(found.len() <= count && found.iter().map(|range| range.len).sum::<u64>() <= budget);
            assert!(found.windows(2).all(|two| two[0].at.0 + two[0].len < two[1].at.0), "{found:?}");
            if count > 0 && budget > 20_000 {
                let place = (7 * 7 % 40) * 400_000;
                assert!(
                    found.iter().any(|r| r.at.0 <= place && place + 19_000 <= r.at.0 + r.len),
                    "{found:?}"
                );
            }
            let more = with(found, Extent { at: ByteOffset(9_000_000), len: 1 << 20 }, limits(count, budget));
            assert!(more.len() <= count && more.iter().map(|range| range.len).sum::<u64>() <= budget);
            assert!(more.windows(2).all(|two| two[0].at.0 + two[0].len < two[1].at.0), "{more:?}");
        }
    }

    #[test]
    fn what_lies_at_the_same_offset_is_added_where_there_is_room() {
        let (limits, extent) = (limits(2, 1000), |at, len| Extent { at: ByteOffset(at), len });
        let end = limits.base;
        let one = with(Vec::new(), extent(end - 10, 1000), limits);
        assert_eq!(one, [extent(end - 10, 10)], "up to the end");
        assert_eq!(with(one.clone(), extent(end - 20, 15), limits), one, "what overlaps is left");
        assert_eq!(with(one.clone(), extent(0, 991), limits), one, "what is too much is left");
        assert_eq!(with(one.clone(), extent(end, 10), limits), one, "there is nothing behind the end");
        let two = with(one.clone(), extent(0, 990), limits);
        assert_eq!(two, [extent(0, 990), one[0]]);
    }
}
