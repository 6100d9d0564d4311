//! Making of frames of kind 5; see [`super::aligned`] for their form. Pure.

use super::aligned::{LENGTHS, STREAMS, distance, push_number};
use super::encoder::compress;
use super::index::Match;
use crate::error::Result;
use crate::units::Extent;

/// zstd level of the streams of numbers and differences. They are short.
const STREAM_LEVEL: i32 = 19;
/// Part of a frame, as a divisor, that copies must have at least. Below it there is nothing to align, and only time would
/// be lost.
const COPIED_PART: usize = 8;

/// Bytes of a frame of kind 5; `None` where it cannot be smaller than a plain one.
pub(super) fn encode(frame: &[u8], prefix: &[u8], matches: &[Match], level: i32) -> Result<Option<Vec<u8>>> {
    let copies = align(frame, prefix, matches);
    if copies.iter().map(|copy| copy.len).sum::<usize>() < frame.len() / COPIED_PART {
        return Ok(None);
    }
    let streams = streams(frame, prefix, &copies);
    let len = |streams: &[Vec<u8>]| streams.iter().map(Vec::len).sum::<usize>();
    if len(&streams[..3]) > frame.len() {
        return Ok(None);
    }
    let mut bytes = vec![0; LENGTHS];
    for (number, stream) in streams.iter().enumerate() {
        let packed = match number {
            4 => compress(stream, prefix, level)?,
            _ => compress(stream, &[], STREAM_LEVEL)?,
        };
        if let Some(length) = bytes[..LENGTHS].chunks_exact_mut(4).nth(number) {
            length.copy_from_slice(&(packed.len() as u32).to_le_bytes());
        }
        bytes.extend_from_slice(&packed);
    }
    Ok(Some(bytes))
}

/// Matches with the places that they have in the prefix that is made of `ranges`, as far as they are in it.
pub(super) fn in_prefix(matches: &[Match], ranges: &[Extent]) -> Vec<Match> {
    let place = |found: &Match| {
        let mut before = 0;
        for range in ranges {
            let (from, to) = (range.at.0 as usize, (range.at.0 + range.len) as usize);
            if (from..to).contains(&found.base) {
                let len = found.len.min(to - found.base);
                return Some(Match { at: found.at, base: before + found.base - from, len });
            }
            before += range.len as usize;
        }
        None
    };
    matches.iter().filter_map(place).collect()
}

/// Copies with changes: each match and as much before and after it as is more alike than not. They are in the order of the
/// frame, without overlap there.
fn align(frame: &[u8], prefix: &[u8], matches: &[Match]) -> Vec<Match> {
    let mut copies: Vec<Match> = Vec::new();
    for found in matches {
        let (end, mut next) = (copies.last().map_or(0, Match::end), *found);
        if next.at < end {
            let cut = end - next.at;
            if cut >= next.len {
                continue;
            }
            next = Match { at: end, base: next.base + cut, len: next.len - cut };
        }
        let between = &frame[end..next.at];
        let mut after =
            copies.last().map_or(0, |last| alike(between.iter(), prefix[last.base + last.len..].iter()));
        let mut before = alike(between.iter().rev(), prefix[..next.base].iter().rev());
        if let Some(last) = copies.last_mut() {
            if let Some(overlap) = (after + before).checked_sub(between.len()) {
                let at = between.len() - before;
                let one = &prefix[last.base + last.len + at..][..overlap];
                let other = &prefix[next.base - before..][..overlap];
                let kept = border(&between[at..][..overlap], one, other);
                (after, before) = (after - (overlap - kept), before - kept);
            }
            last.len += after;
        }
        next = Match { at: next.at - before, base: next.base - before, len: next.len + before };
        match copies.last_mut() {
            Some(last) if last.end() == next.at && last.base + last.len == next.base => last.len += next.len,
            _ => copies.push(next),
        }
    }
    if let Some(last) = copies.last_mut() {
        last.len += alike(frame[last.end()..].iter(), prefix[last.base + last.len..].iter());
    }
    copies
}

/// Length of the start at which the number of equal bytes exceeds that of others the most.
fn alike<'b>(one: impl Iterator<Item = &'b u8>, other: impl Iterator<Item = &'b u8>) -> usize {
    let (mut score, mut best, mut len) = (0_i64, 0, 0);
    for (number, (one, other)) in one.zip(other).enumerate() {
        score += if one == other { 1 } else { -1 };
        if score > best {
            (best, len) = (score, number + 1);
        }
    }
    len
}

/// Number of bytes at the start of `bytes` that are left to `one`, the rest to `other`, so that most are equal.
fn border(bytes: &[u8], one: &[u8], other: &[u8]) -> usize {
    let (mut score, mut best, mut kept) = (0_i64, 0, 0);
    for (number, byte) in bytes.iter().enumerate() {
        score += i64::from(*byte == one[number]) - i64::from(*byte == other[number]);
        if score > best {
            (best, kept) = (score, number + 1);
        }
    }
    kept
}

/// The five streams of a frame.
fn streams(frame: &[u8], prefix: &[u8], copies: &[Match]) -> [Vec<u8>; STREAMS] {
    let [mut ops, mut gaps, mut runs, mut differences, mut literals]: [Vec<u8>; STREAMS] = Default::default();
    let (mut end, mut cursor) = (0, 0);
    for copy in copies {
        let (now, base) = (&frame[copy.at..copy.end()], &prefix[copy.base..copy.base + copy.len]);
        literals.extend_from_slice(&frame[end..copy.at]);
        for number in [(copy.at - end) as u32, copy.len as u32, distance(cursor, copy.base)] {
            push_number(&mut ops, number);
        }
        (end, cursor) = (copy.end(), copy.base + copy.len);
        let (mut at, mut last) = (0, 0);
        while at < now.len() {
            if now[at] == base[at] {
                at += 1;
                continue;
            }
            let run = now[at..].iter().zip(&base[at..]).take_while(|(now, base)| now != base);
            let from = differences.len();
            differences.extend(run.map(|(now, base)| now.wrapping_sub(*base)));
            let len = differences.len() - from;
            push_number(&mut gaps, (at - last) as u32);
            push_number(&mut runs, len as u32);
            at += len;
            last = at;
        }
        if last < now.len() {
            push_number(&mut gaps, (now.len() - last) as u32);
        }
    }
    literals.extend_from_slice(&frame[end..]);
    [ops, gaps, runs, differences, literals]
}
