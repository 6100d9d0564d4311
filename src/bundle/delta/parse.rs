//! Parser of `delta.bin`: bytes in, recipes out. Pure; its input is not authenticated.

use zstd::zstd_safe::compress_bound;

use super::reader::{read, read_ranges};
use super::table;
use super::{DELTA_MAX, ENTRY_LEN, HEAD_LEN, MAGIC, PAYLOAD_LEN, PREFIX_FRAMES, RANGE_LEN, RANGES_MAX};
use crate::bundle::frame::Frame;
use crate::bundle::manifest::limit;
use crate::bundle::{ReadAt, Release};
use crate::error::{Error, Result};
use crate::units::{Blake3, ByteOffset, Extent};

/// Bytes of an image that are hashed at a time.
const HASHED: usize = 1 << 20;

/// How a frame is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// It is zeroes.
    Zero,
    /// It is what the base has at the same offset.
    InPlace,
    /// It is what the base has at another offset.
    Copy,
    /// It is decompressed with ranges of the base as prefix.
    Patch,
    /// It is taken from the bundle; so is a frame of a kind that only a later version knows.
    Bundle,
    /// It is copied from ranges of the base, with small changes.
    Aligned,
}

/// Image that a delta starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseRef {
    /// Its size in bytes.
    pub size: u64,
    /// Its BLAKE3.
    pub blake3: Blake3,
}

impl BaseRef {
    /// Size and hash of an image.
    ///
    /// # Errors
    /// Those of its reading.
    pub fn of(image: &dyn ReadAt) -> Result<Self> {
        let (mut hasher, size) = (blake3::Hasher::new(), image.len());
        let (mut at, mut buffer) = (0, vec![0; HASHED]);
        while at < size {
            let part = &mut buffer[..(size - at).min(HASHED as u64) as usize];
            read(image, at, part)?;
            hasher.update(part);
            at += part.len() as u64;
        }
        Ok(Self { size, blake3: Blake3(*hasher.finalize().as_bytes()) })
    }
}

/// Entry of a delta for one frame.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// How the frame is made.
    pub kind: FrameKind,
    /// Number of bytes that the member has for it.
    pub packed: u32,
    ranges: &'a [u8],
    in_place: Extent,
}

impl Recipe<'_> {
    /// Ranges of the base that it is made of, in order, within the base.
    pub fn ranges(&self) -> impl Iterator<Item = Extent> {
        let in_place = (self.kind == FrameKind::InPlace).then_some(self.in_place);
        let needed = matches!(self.kind, FrameKind::Copy | FrameKind::Patch | FrameKind::Aligned);
        let named = self.ranges.chunks_exact(RANGE_LEN).filter(move |_| needed);
        in_place.into_iter().chain(named.map(range))
    }

    /// Replaces `out` by these ranges of a base, one after the other.
    ///
    /// # Errors
    /// Those of its reading.
    pub fn read(&self, base: &dyn ReadAt, out: &mut Vec<u8>) -> Result<()> {
        read_ranges(base, self.ranges(), out)
    }

    /// Number of bytes of the base that it needs.
    pub fn base_len(&self) -> u64 {
        self.ranges().map(|range| range.len).sum()
    }
}

fn range(bytes: &[u8]) -> Extent {
    Extent { at: ByteOffset(u64_at(bytes, 0)), len: u64::from(u32_at(bytes, 8)) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// A `delta.bin` that fits its release: every offset and length in it is within its bounds.
#[derive(Debug)]
pub struct Delta {
    bytes: Vec<u8>,
    bases: Vec<Option<BaseRef>>,
    /// For each payload, the number of entries before its own.
    first: Vec<usize>,
    /// Offset of each entry. 32 bits suffice: see [`DELTA_MAX`].
    entries: Vec<u32>,
}

impl Delta {
    /// Checks `delta.bin` against the release that it is for.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Delta`].
    pub fn parse(bytes: Vec<u8>, release: &Release) -> Result<Self> {
        limit("delta.bin in bytes", bytes.len() as u64, DELTA_MAX)?;
        let bad = |problem: String| Error::Delta { problem };
        let bytes = table::unpack(bytes).map_err(|problem| bad(problem.to_owned()))?;
        let payloads = &release.manifest.payloads;
        let (magic, rest) = bytes.split_at_checked(8).ok_or_else(|| bad("it is too short".to_owned()))?;
        if magic != MAGIC {
            return Err(bad("it does not begin as this version's deltas do".to_owned()));
        }
        let expected = Blake3(*blake3::hash(release.manifest.bytes()).as_bytes());
        if rest.get(..32) != Some(&expected.0[..]) {
            return Err(bad("it is for another manifest than the one beside it".to_owned()));
        }
        let mut delta = Self { bases: Vec::new(), first: Vec::new(), entries: Vec::new(), bytes: Vec::new() };
        let mut at = HEAD_LEN;
        for payload in payloads {
            let short = || bad(format!("it ends within what it says of {payload}"));
            let said = bytes.get(at..at + PAYLOAD_LEN).ok_or_else(short)?;
            let (frame_size, size) = (u32_at(said, 0), u64_at(said, 4));
            if frame_size != payload.frame_size {
                let manifest = payload.frame_size;
                return Err(bad(format!("{payload}: frame size {frame_size}, the manifest says {manifest}")));
            }
            let mut blake3 = Blake3([0; 32]);
            blake3.0.copy_from_slice(&said[12..]);
            if size == 0 && blake3.0 != [0; 32] {
                return Err(bad(format!("{payload}: a base of size 0")));
            }
            delta.bases.push((size > 0).then_some(BaseRef { size, blake3 }));
            at += PAYLOAD_LEN;
        }
        for (number, payload) in payloads.iter().enumerate() {
            delta.first.push(delta.entries.len());
            for frame in release.frames(number) {
                let wrong = |problem: &str| bad(format!("{payload}, frame {}: {problem}", frame.number()));
                let len = entry_len(bytes.get(at..).unwrap_or_default(), &frame, delta.bases[number]);
                let len = len.map_err(wrong)?;
                delta.entries.push(at as u32);
                at += len;
            }
        }
        if at != bytes.len() {
            return Err(bad(format!("{} bytes after its last entry", bytes.len() - at)));
        }
        delta.bytes = bytes;
        Ok(delta)
    }

    /// Base of a payload; `None` if it has none.
    pub fn base(&self, payload: usize) -> Option<BaseRef> {
        self.bases.get(payload).copied().flatten()
    }

    /// Recipe of a frame of the release.
    pub fn recipe(&self, frame: &Frame<'_>) -> Recipe<'_> {
        let at = self.entries[self.first[frame.payload_number()] + frame.number() as usize] as usize;
        let ranges = usize::from(self.bytes[at + 1]) * RANGE_LEN;
        Recipe {
            kind: kind(self.bytes[at]),
            packed: u32_at(&self.bytes, at + 4),
            ranges: &self.bytes[at + ENTRY_LEN..at + ENTRY_LEN + ranges],
            in_place: frame.extent(),
        }
    }

    /// Size of the member of a payload in bytes.
    pub(crate) fn packed_size(&self, release: &Release, payload: usize) -> u64 {
        release.frames(payload).map(|frame| u64::from(self.recipe(&frame).packed)).sum()
    }

    /// Whether any frame of a payload has to be taken from the bundle.
    pub fn needs_bundle(&self, release: &Release, payload: usize) -> bool {
        release.frames(payload).any(|frame| self.recipe(&frame).kind == FrameKind::Bundle)
    }
}

const fn kind(byte: u8) -> FrameKind {
    match byte {
        0 => FrameKind::Zero,
        1 => FrameKind::InPlace,
        2 => FrameKind::Copy,
        3 => FrameKind::Patch,
        5 => FrameKind::Aligned,
        _ => FrameKind::Bundle,
    }
}

/// Length of the entry at the start of `bytes` in bytes, if the entry is valid; else the problem.
fn entry_len(bytes: &[u8], frame: &Frame<'_>, base: Option<BaseRef>) -> Result<usize, &'static str> {
    let entry = bytes.get(..ENTRY_LEN).ok_or("delta.bin ends before it")?;
    let (count, packed) = (usize::from(entry[1]), u32_at(entry, 4));
    if entry[2..4] != [0, 0] {
        return Err("a reserved field is not zero");
    }
    if count > RANGES_MAX {
        return Err("more than 16 ranges");
    }
    let ranges =
        bytes.get(ENTRY_LEN..ENTRY_LEN + count * RANGE_LEN).ok_or("delta.bin ends within its ranges")?;
    let (mut end, mut total) = (0, 0);
    let base = base.map_or(0, |base| base.size);
    for range in ranges.chunks_exact(RANGE_LEN).map(range) {
        // Each range begins at or after the end of the one before, which excludes overlaps as well.
        if range.len == 0 || range.at.0 < end {
            return Err("its ranges are empty, overlap, or do not ascend");
        }
        end = range
            .at
            .0
            .checked_add(range.len)
            .filter(|end| *end <= base)
            .ok_or("a range is beyond the base")?;
        total += range.len;
    }
    if total > PREFIX_FRAMES * u64::from(frame.payload().frame_size) {
        return Err("its ranges exceed two frames");
    }
    let (len, at) = (frame.len() as u64, frame.extent().at.0);
    let fits = match (entry[0], count, packed) {
        (0, 0, 0) => true,
        (1, 0, 0) => at + len <= base,
        (2, 1, 0) => total == len,
        (4, 0, 0) => true,
        (3 | 5, _, 1..) | (6.., ..) => packed as usize <= compress_bound(frame.len()),
        _ => false,
    };
    if fits {
        Ok(ENTRY_LEN + ranges.len())
    } else {
        Err("its ranges or its length are not possible for its kind")
    }
}

/// Appends the description of a payload.
pub(super) fn push_payload(bytes: &mut Vec<u8>, frame_size: u32, base: Option<BaseRef>) {
    let base = base.unwrap_or(BaseRef { size: 0, blake3: Blake3([0; 32]) });
    bytes.extend_from_slice(&frame_size.to_le_bytes());
    bytes.extend_from_slice(&base.size.to_le_bytes());
    bytes.extend_from_slice(&base.blake3.0);
}

/// Appends the entry of a frame.
pub(super) fn push_entry(bytes: &mut Vec<u8>, kind: FrameKind, ranges: &[Extent], packed: u32) {
    bytes.extend_from_slice(&[kind as u8, ranges.len() as u8, 0, 0]);
    bytes.extend_from_slice(&packed.to_le_bytes());
    for range in ranges {
        bytes.extend_from_slice(&range.at.0.to_le_bytes());
        bytes.extend_from_slice(&(range.len as u32).to_le_bytes());
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
