//! Frames of kind 5: the base with small changes, as bsdiff describes them ("Naive differences of executable code",
//! Colin Percival, 2003). Pure; its input is untrusted.
//!
//! Code that a compiler laid out anew has other addresses every few bytes, so a plain zstd frame spends two or three
//! bytes on each. Here such a stretch is one copy from the prefix (the ranges of the frame, one after the other), with
//! changes: where they are, and the differences of the bytes, which repeat as the distances of addresses do.
//!
//! | bytes | meaning |
//! |---|---|
//! | 4 each, little-endian | lengths of the first four streams below in bytes; the fifth has the rest |
//! | | the streams; each is one zstd frame that declares its size |
//!
//! | stream | what is in it |
//! |---|---|
//! | copies | for each copy: literals before it, its length, and the distance in the prefix from the end of the last copy to its start, positive numbers doubled, negative ones doubled less one |
//! | gaps | for each change: equal bytes before it since the last one; a copy that does not end with a change has one more gap, up to its end |
//! | runs | for each change: its length, at least 1 |
//! | differences | for each changed byte: what is added to that of the prefix, modulo 256 |
//! | literals | the bytes between copies, and those after the last; compressed with the prefix as raw prefix |
//!
//! Numbers are LEB128 of up to 32 bits. The first three streams together are no longer than the frame, and so are the
//! last two; nothing may be left over in any of them.

use zstd::zstd_safe::{
    DCtx, find_frame_compressed_size, get_dict_id_from_frame, get_error_name, get_frame_content_size,
};

use crate::bundle::frame::Frame;
use crate::error::{Error, Result};

/// Number of streams.
pub(super) const STREAMS: usize = 5;

/// Memory for the streams of a frame, used again for the next one.
#[derive(Debug, Default)]
pub struct Streams([Vec<u8>; STREAMS]);

/// Bytes of the lengths before the streams.
pub(super) const LENGTHS: usize = 4 * (STREAMS - 1);

/// Makes a frame of kind 5 from `prefix` and `packed` at the start of `out`. The bytes are untrusted and may only be
/// verified.
///
/// # Errors
/// [`Error::Frame`].
pub(super) fn decode(
    frame: &Frame<'_>,
    prefix: &[u8],
    packed: &[u8],
    found: &mut Streams,
    out: &mut [u8],
) -> Result<()> {
    let room = out.get_mut(..frame.len());
    let room = room.ok_or_else(|| Error::Internal { what: "frame buffer too short".to_owned() })?;
    apply(prefix, packed, found, room).map_err(|problem| frame.malformed(problem.to_owned()))
}

fn apply(prefix: &[u8], packed: &[u8], found: &mut Streams, out: &mut [u8]) -> Result<(), &'static str> {
    streams(prefix, packed, out.len(), found)?;
    let Streams([copies, gaps, runs, differences, literals]) = found;
    let [mut copies, mut gaps, mut runs, mut differences, mut literals] =
        [&copies[..], &gaps[..], &runs[..], &differences[..], &literals[..]];
    let (mut out, mut cursor) = (out, 0_usize);
    while !copies.is_empty() {
        take(number(&mut copies)?, &mut literals, &mut out)?;
        let len = number(&mut copies)? as usize;
        cursor = moved(cursor, number(&mut copies)?).ok_or(BEYOND)?;
        let from = prefix.get(cursor..cursor.checked_add(len).ok_or(BEYOND)?).ok_or(BEYOND)?;
        cursor += len;
        let (copy, rest) = out.split_at_mut_checked(len).ok_or(TOO_LONG)?;
        copy.copy_from_slice(from);
        change(copy, &mut gaps, &mut runs, &mut differences)?;
        out = rest;
    }
    if literals.len() != out.len() {
        return Err("its streams give another number of bytes");
    }
    out.copy_from_slice(literals);
    if gaps.is_empty() && runs.is_empty() && differences.is_empty() { Ok(()) } else { Err(LEFT_OVER) }
}

const BEYOND: &str = "a copy is beyond its ranges";
const TOO_LONG: &str = "its streams give too many bytes";
const LEFT_OVER: &str = "bytes are left over in a stream";
const ENDS: &str = "a stream ends too early";

/// Decompresses the streams. What they declare is checked before memory is taken for it.
fn streams(prefix: &[u8], packed: &[u8], len: usize, found: &mut Streams) -> Result<(), &'static str> {
    let (lengths, mut rest) = packed.split_at_checked(LENGTHS).ok_or("it is too short")?;
    let mut parts = [&[][..]; STREAMS];
    for (part, length) in parts.iter_mut().zip(lengths.chunks_exact(4)) {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(length);
        let length = usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| ENDS)?;
        (*part, rest) = rest.split_at_checked(length).ok_or("a stream is longer than the frame's bytes")?;
    }
    parts[STREAMS - 1] = rest;
    let mut sizes = [0; STREAMS];
    for (size, part) in sizes.iter_mut().zip(parts) {
        *size = declared(part)?.try_into().map_err(|_| TOO_LONG)?;
    }
    // Each is at most as long as the frame first, so that the sums cannot overflow.
    let fits = |sizes: &[usize]| sizes.iter().all(|size| *size <= len) && sizes.iter().sum::<usize>() <= len;
    if !fits(&sizes[..3]) || !fits(&sizes[3..]) {
        return Err(TOO_LONG);
    }
    for (number, (stream, (part, size))) in found.0.iter_mut().zip(parts.iter().zip(sizes)).enumerate() {
        stream.clear();
        stream.resize(size, 0);
        // A context is bound to the lifetime of its prefix.
        let mut context = DCtx::try_create().ok_or("zstd: no memory")?;
        if number == STREAMS - 1 {
            context.ref_prefix(prefix).map_err(get_error_name)?;
        }
        // In one step into a buffer of the declared size: no window makes it larger.
        if context.decompress(&mut stream[..], part).map_err(get_error_name)? != size {
            return Err("a stream has another size than it declares");
        }
    }
    Ok(())
}

/// Size that exactly one zstd frame without a dictionary declares.
pub(super) fn declared(part: &[u8]) -> Result<u64, &'static str> {
    if find_frame_compressed_size(part) != Ok(part.len()) {
        return Err("a stream is not one zstd frame");
    }
    if get_dict_id_from_frame(part).is_some() {
        return Err("a stream names a dictionary");
    }
    get_frame_content_size(part).ok().flatten().ok_or("a stream does not declare its size")
}

/// Moves `len` bytes of `from` to the start of `out`, which then begins after them.
fn take(len: u32, from: &mut &[u8], out: &mut &mut [u8]) -> Result<(), &'static str> {
    let (bytes, rest) = from.split_at_checked(len as usize).ok_or(ENDS)?;
    let (to, after) = std::mem::take(out).split_at_mut_checked(bytes.len()).ok_or(TOO_LONG)?;
    to.copy_from_slice(bytes);
    (*from, *out) = (rest, after);
    Ok(())
}

/// Adds the differences of one copy.
fn change(
    copy: &mut [u8],
    gaps: &mut &[u8],
    runs: &mut &[u8],
    differences: &mut &[u8],
) -> Result<(), &'static str> {
    let mut at = 0_usize;
    while at < copy.len() {
        at += number(gaps)? as usize;
        if at == copy.len() {
            return Ok(());
        }
        let len = number(runs)? as usize;
        let (added, rest) = differences.split_at_checked(len).filter(|_| len > 0).ok_or(ENDS)?;
        let run =
            copy.get_mut(at..).and_then(|rest| rest.get_mut(..len)).ok_or("a change is beyond its copy")?;
        run.iter_mut().zip(added).for_each(|(byte, added)| *byte = byte.wrapping_add(*added));
        (*differences, at) = (rest, at + len);
    }
    Ok(())
}

/// The next number of a stream.
fn number(stream: &mut &[u8]) -> Result<u32, &'static str> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = stream.split_first().ok_or(ENDS)?;
        *stream = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| "a number of more than 32 bits");
        }
    }
    Err("a number of more than 32 bits")
}

/// Appends a number.
pub(super) fn push_number(stream: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        stream.push(value as u8 | 0x80);
        value >>= 7;
    }
    stream.push(value as u8);
}

/// `cursor`, moved by a distance as the streams have it.
fn moved(cursor: usize, distance: u32) -> Option<usize> {
    let by = (distance / 2) as usize;
    if distance.is_multiple_of(2) { cursor.checked_add(by) } else { cursor.checked_sub(by + 1) }
}

/// A distance as the streams have it. Prefixes are at most two frames long, so it fits.
pub(super) const fn distance(from: usize, to: usize) -> u32 {
    if to >= from { (to - from) as u32 * 2 } else { (from - to) as u32 * 2 - 1 }
}

#[cfg(test)]
#[path = "aligned_tests.rs"]
mod tests;
