//! One frame: an independent zstd frame (RFC 8878) of a payload, checked against the index. Pure.

use std::ops::Deref;

use blake3::hazmat::HasherExt;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

use super::index::FrameEntry;
use super::manifest::Payload;
use crate::error::{Error, Result};
use crate::units::Blake3;

/// Images are stored in units of this many bytes: what O_DIRECT takes on every device.
pub const STORED_UNIT: usize = 4096;

/// The BLAKE3 value of a frame's bytes as the subtree at `image_at`; where the frame is the `whole` image,
/// the root hash. `image_at` is a multiple of a frame size, so the subtree is one of the tree.
pub fn chaining_value(bytes: &[u8], image_at: u64, whole: bool) -> Blake3 {
    if whole {
        return Blake3(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(image_at).update(bytes);
    Blake3(hasher.finalize_non_root())
}

/// A frame's bytes that hash to what the index says. Only these are written to a slot: the type is the proof.
#[derive(Debug, Clone, Copy)]
pub struct VerifiedFrame<'a> {
    stored: &'a [u8],
    len: usize,
}

impl<'a> VerifiedFrame<'a> {
    /// Checks the start of `buffer` as frame `frame` of `payload`, wherever the bytes come from, a bundle or a
    /// slot. What follows a shorter last frame is zeroed up to the next multiple of [`STORED_UNIT`].
    ///
    /// # Errors
    /// The value that the bytes have instead.
    pub fn check(
        buffer: &'a mut [u8],
        payload: &Payload,
        frame: u64,
        entry: FrameEntry,
    ) -> Result<Self, Blake3> {
        let (at, len) = payload.frame_extent(frame);
        let len = (len as usize).min(buffer.len());
        let end = len.next_multiple_of(STORED_UNIT).min(buffer.len());
        buffer[len..end].fill(0);
        let got = chaining_value(&buffer[..len], at, payload.frames() == 1);
        if got == entry.value { Ok(Self { stored: &buffer[..end], len }) } else { Err(got) }
    }

    /// The frame as it lies in a slot: a shorter last frame is followed by zeroes up to a whole page.
    pub fn stored(&self) -> &'a [u8] {
        self.stored
    }

    /// Whether every byte is zero, so that the device can make them cheaper than by a write.
    pub fn is_zero(&self) -> bool {
        is_zero(self.stored)
    }
}

impl Deref for VerifiedFrame<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.stored[..self.len]
    }
}

/// Whether every byte is zero. Written so that the compiler makes wide loads of it, and ends early.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The error for a frame that hashes to `got`.
pub(crate) fn wrong(payload: &Payload, frame: u64, entry: FrameEntry, got: Blake3) -> Error {
    let at = payload.frame_extent(frame).0;
    Error::FrameDigest { payload: payload.to_string(), frame, at, expected: entry.value, got }
}

/// Decompresses frames; holds zstd's working memory so that it is allocated once for each worker.
pub struct FrameDecoder(Decompressor<'static>);

impl FrameDecoder {
    /// A decoder.
    pub fn new() -> Result<Self> {
        let decoder = Decompressor::new();
        decoder.map(Self).map_err(|problem| Error::Internal { what: format!("zstd: {problem}") })
    }

    /// Decompresses frame `frame` of `payload` into the start of `out` and verifies it.
    ///
    /// # Errors
    /// Those of [`decompress`](Self::decompress); [`Error::FrameDigest`].
    pub fn decode<'a>(
        &mut self,
        compressed: &[u8],
        payload: &Payload,
        frame: u64,
        entry: FrameEntry,
        out: &'a mut [u8],
    ) -> Result<VerifiedFrame<'a>> {
        self.decompress(compressed, payload, frame, out)?;
        VerifiedFrame::check(out, payload, frame, entry).map_err(|got| wrong(payload, frame, entry, got))
    }

    /// Decompresses only. Nothing may be done with the bytes but to verify them.
    ///
    /// `compressed` must be exactly one frame that declares exactly the size the manifest implies; more frames,
    /// skippable frames or a missing size are refused before anything is decompressed, and zstd never writes
    /// beyond that size: a decompression bomb ends here.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub(crate) fn decompress(
        &mut self,
        compressed: &[u8],
        payload: &Payload,
        frame: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let (at, len) = payload.frame_extent(frame);
        let bad = |problem: String| Error::Frame { payload: payload.to_string(), frame, at, problem };
        match find_frame_compressed_size(compressed) {
            Ok(size) if size == compressed.len() => {}
            Ok(size) => {
                return Err(bad(format!("a zstd frame of {size} bytes in a member of {}", compressed.len())));
            }
            Err(code) => {
                return Err(bad(format!("not a zstd frame: {}", zstd::zstd_safe::get_error_name(code))));
            }
        }
        match get_frame_content_size(compressed) {
            Ok(Some(size)) if size == u64::from(len) => {}
            Ok(Some(size)) => return Err(bad(format!("declares {size} bytes, the manifest implies {len}"))),
            Ok(None) | Err(_) => return Err(bad("does not declare its size".to_owned())),
        }
        let room = out.get_mut(..len as usize);
        let room = room.ok_or_else(|| Error::Internal { what: "frame buffer too short".to_owned() })?;
        match self.0.decompress_to_buffer(compressed, room) {
            Ok(got) if got == len as usize => Ok(()),
            Ok(got) => Err(bad(format!("decompresses to {got} bytes instead of {len}"))),
            Err(problem) => Err(bad(problem.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_told_apart_at_every_length() {
        for len in [1, 1023, 1024, 1025, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
