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

/// Zeroes to compare frames with.
pub struct Zeroes(Vec<u8>);

impl Zeroes {
    /// At most `longest` bytes of them.
    pub fn new(longest: usize) -> Self {
        Self(vec![0; longest])
    }

    /// Whether frame `frame` of `payload` is nothing but zeroes, by hashing as many; no byte of the bundle's payloads is
    /// needed for that.
    pub fn prove(&self, payload: &Payload, frame: u64, entry: FrameEntry) -> Option<ZeroFrame> {
        let (at, len) = payload.frame_extent(frame);
        let zeroes = self.0.get(..len as usize)?;
        (chaining_value(zeroes, at, payload.frames() == 1) == entry.value).then_some(ZeroFrame(entry.value))
    }
}

/// Proof that a frame is nothing but zeroes, which hash to this value at its place. From then on, to compare with zero says
/// as much as to hash, in a fraction of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroFrame(Blake3);

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
        Self::check_known(buffer, payload, frame, entry, None)
    }

    /// The same, cheaper where the frame is `known` to be zero.
    ///
    /// # Errors
    /// The value that the bytes have instead.
    pub fn check_known(
        buffer: &'a mut [u8],
        payload: &Payload,
        frame: u64,
        entry: FrameEntry,
        known: Option<ZeroFrame>,
    ) -> Result<Self, Blake3> {
        let (at, len) = payload.frame_extent(frame);
        let len = (len as usize).min(buffer.len());
        let end = len.next_multiple_of(STORED_UNIT).min(buffer.len());
        buffer[len..end].fill(0);
        // The value depends on the offset, so equal values are one and the same frame.
        let known = known.is_some_and(|zero| zero.0 == entry.value);
        if known && is_zero(&buffer[..len]) {
            return Ok(Self { stored: &buffer[..end], len });
        }
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

    /// Decompresses frame `frame` of `payload` into the start of `out` and verifies it, cheaper where it is `known` to be
    /// zero.
    ///
    /// # Errors
    /// Those of [`decompress`](Self::decompress); [`Error::FrameDigest`].
    pub fn decode<'a>(
        &mut self,
        compressed: &[u8],
        payload: &Payload,
        frame: u64,
        entry: FrameEntry,
        known: Option<ZeroFrame>,
        out: &'a mut [u8],
    ) -> Result<VerifiedFrame<'a>> {
        self.decompress(compressed, payload, frame, out)?;
        VerifiedFrame::check_known(out, payload, frame, entry, known)
            .map_err(|got| wrong(payload, frame, entry, got))
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
    use crate::bundle::manifest::Kind;
    use crate::units::Sha256;

    #[test]
    fn a_frame_known_to_be_zero_is_still_checked() {
        let payload = Payload {
            kind: Kind::Platform,
            name: "platform".to_owned(),
            version: "1".to_owned(),
            size: 3 * 65536 + 5000,
            frame_size: 65536,
            blake3: Blake3([0; 32]),
            sha256: Sha256([0; 32]),
        };
        let zeroes = Zeroes::new(65536);
        let entry = |frame: u64, byte: u8| {
            let (at, len) = payload.frame_extent(frame);
            FrameEntry { compressed: 1, value: chaining_value(&vec![byte; len as usize], at, false) }
        };
        for frame in [1, 3] {
            let (at, len) = payload.frame_extent(frame);
            let entry_of_zero = entry(frame, 0);
            let known = zeroes.prove(&payload, frame, entry_of_zero);
            assert!(known.is_some());
            assert!(zeroes.prove(&payload, frame, entry(frame, 1)).is_none());
            assert!(zeroes.prove(&payload, 2, entry_of_zero).is_none(), "the value belongs to its place");
            let mut buffer = vec![0; 65536];
            let check = |buffer: &mut [u8], entry| {
                let checked = VerifiedFrame::check_known(buffer, &payload, frame, entry, known);
                checked.map(|frame| frame.len())
            };
            assert_eq!(check(&mut buffer, entry_of_zero), Ok(len as usize));
            for place in [0, len as usize / 2, len as usize - 1] {
                buffer[place] = 1;
                let got = chaining_value(&buffer[..len as usize], at, false);
                assert_eq!(check(&mut buffer, entry_of_zero), Err(got), "byte {place} of {len}");
                buffer[place] = 0;
            }
            // A proof of one frame is none of another, whatever the caller says.
            assert_eq!(check(&mut buffer, entry(frame, 1)), Err(entry_of_zero.value));
            buffer.fill(1);
            assert_eq!(check(&mut buffer, entry(frame, 1)), Ok(len as usize));
        }
        assert!(Zeroes::new(4096).prove(&payload, 0, entry(0, 0)).is_none(), "not so many zeroes");
    }

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
