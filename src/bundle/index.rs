//! `index.bin`: the compressed length and the hash of every frame of every payload. Pure.
//!
//! | offset in an entry | bytes | meaning |
//! |---|---|---|
//! | 0 | 4 | compressed length of the frame, little-endian |
//! | 4 | 32 | BLAKE3 chaining value of the frame's bytes as a subtree at its offset in the image |
//!
//! The entries of all payloads stand back to back in the order of the manifest. The chaining values of an image
//! merge to its BLAKE3 ("BLAKE3", 2.1: the left subtree of a node is the largest power of two of chunks that leaves
//! something on the right; frames are powers of two, so every frame is a node). If an image has one frame only,
//! that frame is the root, and the value is the image's BLAKE3 itself.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};
use zstd::zstd_safe::compress_bound;

use super::manifest::{INDEX_ENTRY_LEN, ManifestFields, Payload};
use crate::error::{Error, Result};
use crate::units::Blake3;

/// Entry of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Size of the compressed frame in bytes.
    pub compressed: u32,
    /// Its chaining value, or the root hash if it is the only frame.
    pub value: Blake3,
}

/// An index that matches its manifest: hash, sizes, and the merged values of every image were compared.
#[derive(Debug, Clone)]
pub struct Index {
    bytes: Vec<u8>,
    /// For each payload, the number of entries before its first one.
    first: Vec<u64>,
}

impl Index {
    /// Checks `index.bin` against the manifest that names it.
    ///
    /// # Errors
    /// [`Error::IndexDigest`], [`Error::Index`].
    pub fn parse(bytes: Vec<u8>, fields: &ManifestFields) -> Result<Self> {
        let got = Blake3(*blake3::hash(&bytes).as_bytes());
        if got != fields.index.blake3 || bytes.len() as u64 != fields.index.size {
            return Err(Error::IndexDigest { expected: fields.index.blake3, got });
        }
        let mut first = Vec::with_capacity(fields.payloads.len());
        let mut next = 0;
        for payload in &fields.payloads {
            first.push(next);
            next += payload.frames();
        }
        let index = Self { bytes, first };
        for (number, payload) in fields.payloads.iter().enumerate() {
            index.check(number, payload)?;
        }
        Ok(index)
    }

    fn check(&self, number: usize, payload: &Payload) -> Result<()> {
        let bad = |problem: String| Err(Error::Index { payload: payload.to_string(), problem });
        for frame in 0..payload.frames() {
            let compressed = self.entry(number, frame).compressed;
            let bound = compress_bound(payload.frame_extent(frame).1 as usize);
            // A bound on what is read and held in memory, checked before either happens.
            if compressed == 0 || compressed as usize > bound {
                return bad(format!(
                    "frame {frame} has a compressed length of {compressed}, possible is 1 to {bound}"
                ));
            }
        }
        let merged = merge(&|frame| self.entry(number, frame).value, payload.frames());
        if merged != payload.blake3 {
            return bad(format!("the frames merge to BLAKE3 {merged}, the manifest says {}", payload.blake3));
        }
        Ok(())
    }

    /// The entry of a frame. `payload` and `frame` are within the bounds of the manifest.
    pub fn entry(&self, payload: usize, frame: u64) -> FrameEntry {
        let at = (self.first[payload] + frame) as usize * INDEX_ENTRY_LEN;
        let entry = &self.bytes[at..at + INDEX_ENTRY_LEN];
        let mut length = [0; 4];
        let mut value = [0; 32];
        length.copy_from_slice(&entry[..4]);
        value.copy_from_slice(&entry[4..]);
        FrameEntry { compressed: u32::from_le_bytes(length), value: Blake3(value) }
    }

    /// Compressed size of a payload in bytes: the size of its member.
    pub fn compressed_size(&self, number: usize, payload: &Payload) -> u64 {
        (0..payload.frames()).map(|frame| u64::from(self.entry(number, frame).compressed)).sum()
    }

    /// The exact bytes of `index.bin`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Appends an entry to an index under construction.
pub(super) fn push_entry(bytes: &mut Vec<u8>, entry: FrameEntry) {
    bytes.extend_from_slice(&entry.compressed.to_le_bytes());
    bytes.extend_from_slice(&entry.value.0);
}

/// The root hash of an image from the values of its `frames` frames (at least one).
pub(super) fn merge(value: &dyn Fn(u64) -> Blake3, frames: u64) -> Blake3 {
    if frames == 1 {
        return value(0);
    }
    let left = left_frames(frames);
    let root =
        merge_subtrees_root(&subtree(value, 0, left), &subtree(value, left, frames - left), Mode::Hash);
    Blake3(*root.as_bytes())
}

/// The chaining value of `frames` frames from `first`. Recursion depth is log2 of the number of frames.
fn subtree(value: &dyn Fn(u64) -> Blake3, first: u64, frames: u64) -> ChainingValue {
    if frames == 1 {
        return value(first).0;
    }
    let left = left_frames(frames);
    merge_subtrees_non_root(
        &subtree(value, first, left),
        &subtree(value, first + left, frames - left),
        Mode::Hash,
    )
}

/// The largest power of two below `frames` (at least 2).
fn left_frames(frames: u64) -> u64 {
    1 << (u64::BITS - 1 - (frames - 1).leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::sample;
    use super::*;
    use crate::bundle::frame::chaining_value;

    /// The bounds on memory, for a bundle whose other numbers are right.
    #[test]
    fn lengths_are_within_their_bounds() {
        let parse = |compressed: u32, more: u64| {
            let mut fields = sample();
            fields.payloads.truncate(1);
            fields.payloads[0].size = 4096;
            let mut bytes = Vec::new();
            push_entry(&mut bytes, FrameEntry { compressed, value: fields.payloads[0].blake3 });
            fields.index.size = bytes.len() as u64 + more;
            fields.index.blake3 = Blake3(*blake3::hash(&bytes).as_bytes());
            Index::parse(bytes, &fields)
        };
        let bound = compress_bound(4096) as u32;
        let code = |compressed, more| parse(compressed, more).map_err(|error| error.code()).err();
        assert_eq!([1, bound].map(|len| code(len, 0)), [None, None]);
        assert_eq!([0, bound + 1, u32::MAX].map(|len| code(len, 0)), [Some("UPGRADE_ERROR_BUNDLE_INDEX"); 3]);
        assert_eq!(code(1, 36), Some("UPGRADE_ERROR_BUNDLE_INDEX_DIGEST"), "as long as the manifest says");
    }

    #[test]
    fn merged_values_equal_the_blake3_hash() {
        // Independent check: the one-shot hash of the blake3 crate (and b3sum in tests/).
        let image: Vec<u8> =
            (0..40 * 4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for len in
            [1, 1024, 4095, 4096, 4097, 8192, 12_288, 12_289, 5 * 4096, 16 * 4096, 17 * 4096 + 5, image.len()]
        {
            let image = &image[..len];
            let values: Vec<_> = image
                .chunks(4096)
                .enumerate()
                .map(|(i, frame)| chaining_value(frame, i as u64 * 4096, len <= 4096))
                .collect();
            let merged = merge(&|frame| values[frame as usize], values.len() as u64);
            assert_eq!(merged.0, *blake3::hash(image).as_bytes(), "{len} bytes");
        }
    }
}
