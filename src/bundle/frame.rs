//! One frame: an independent zstd frame (RFC 8878) of a payload, checked against the index. Pure.

use std::ops::Deref;

use blake3::hazmat::HasherExt;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

use super::index::FrameEntry;
use super::manifest::Payload;
use super::release::Release;
use crate::error::{Error, Result};
use crate::units::{Blake3, ByteOffset, Extent};

/// Images are stored in units of this size in bytes: O_DIRECT accepts it on every device.
pub const STORED_UNIT: usize = 4096;

/// The BLAKE3 value of a frame's bytes as the subtree at `image_at`, or the root hash if the frame is the `whole`
/// image. `image_at` is a multiple of a frame size, so the subtree is one of the tree.
pub fn chaining_value(bytes: &[u8], image_at: u64, whole: bool) -> Blake3 {
    if whole {
        return Blake3(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(image_at).update(bytes);
    Blake3(hasher.finalize_non_root())
}

/// Whether a frame is known to be zero before its bytes are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroState {
    /// Not known to be zero: only its hash in the index is known.
    Unproven,
    /// All of them are zero: the same number of zeroes hashes to the value in the index. Comparing with zero is
    /// then as good as hashing, in a fraction of the time.
    Zero,
    /// All of them are zero, and the slot holds them in place.
    ZeroInPlace,
}

/// One frame of a release: its number, its place in the image, and its expected hash.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    release: &'a Release,
    payload: usize,
    number: u64,
    /// Private: only [`Zeroes::prove`] may change it.
    zero: ZeroState,
}

impl Release {
    /// A frame of a payload, by its index in the manifest. Both numbers are within the bounds of the manifest.
    pub fn frame(&self, payload: usize, number: u64) -> Frame<'_> {
        Frame::new(self, payload, number)
    }

    /// All frames of a payload, in order.
    pub fn frames(&self, payload: usize) -> impl Iterator<Item = Frame<'_>> {
        (0..self.manifest.payloads[payload].frames()).map(move |number| self.frame(payload, number))
    }
}

impl<'a> Frame<'a> {
    /// Frame `number` of the payload with this index in the manifest; nothing is known of its bytes.
    pub(super) const fn new(release: &'a Release, payload: usize, number: u64) -> Self {
        Self { release, payload, number, zero: ZeroState::Unproven }
    }

    /// Its payload.
    pub fn payload(&self) -> &'a Payload {
        &self.release.manifest.payloads[self.payload]
    }

    /// Index of its payload in the manifest.
    pub fn payload_number(&self) -> usize {
        self.payload
    }

    /// Its number in the payload, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its entry in the index.
    pub fn entry(&self) -> FrameEntry {
        self.release.index().entry(self.payload, self.number)
    }

    /// Its extent in the image.
    pub fn extent(&self) -> Extent {
        let (at, len) = self.payload().frame_extent(self.number);
        Extent { at: ByteOffset(at), len: u64::from(len) }
    }

    /// Its length in bytes; bounded by [`FRAME_MAX`](super::manifest::FRAME_MAX).
    pub fn len(&self) -> usize {
        self.payload().frame_extent(self.number).1 as usize
    }

    /// Whether it is empty: never, an image has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that it occupies in a slot: a shorter last frame is padded with zeroes to a whole page.
    pub fn stored_len(&self) -> usize {
        self.len().next_multiple_of(STORED_UNIT)
    }

    /// Whether it is known to be zero.
    pub fn zero_state(&self) -> ZeroState {
        self.zero
    }

    /// The same frame, marked as in place if it is known to be zero; other frames stay as they are.
    pub(crate) fn in_place(self) -> Self {
        let zero =
            if self.zero == ZeroState::Unproven { ZeroState::Unproven } else { ZeroState::ZeroInPlace };
        Self { zero, ..self }
    }

    /// Verifies the start of `buffer` as this frame, whether the bytes come from a bundle or a slot. The space
    /// after a shorter last frame is zeroed up to the next multiple of [`STORED_UNIT`].
    ///
    /// # Errors
    /// [`Error::FrameDigest`].
    pub fn verify<'b>(&self, buffer: &'b mut [u8]) -> Result<VerifiedFrame<'b>> {
        let len = self.len().min(buffer.len());
        let end = len.next_multiple_of(STORED_UNIT).min(buffer.len());
        buffer[len..end].fill(0);
        let zero = self.zero != ZeroState::Unproven && len == self.len();
        if zero && is_zero(&buffer[..len]) {
            return Ok(VerifiedFrame { stored: &buffer[..end], len });
        }
        let expected = self.entry().value;
        let got = self.value_of(&buffer[..len]);
        if got == expected {
            return Ok(VerifiedFrame { stored: &buffer[..end], len });
        }
        let (payload, at) = (self.payload().to_string(), self.extent().at.0);
        Err(Error::FrameDigest { payload, frame: self.number, at, expected, got })
    }

    /// The error for compressed bytes that are not a valid encoding of this frame.
    pub(super) fn malformed(&self, problem: String) -> Error {
        let (payload, at) = (self.payload().to_string(), self.extent().at.0);
        Error::Frame { payload, frame: self.number, at, problem }
    }

    /// The value of `bytes` at the place of this frame.
    fn value_of(&self, bytes: &[u8]) -> Blake3 {
        chaining_value(bytes, self.extent().at.0, self.payload().frames() == 1)
    }
}

/// Zeroes to compare frames with.
pub struct Zeroes(Vec<u8>);

impl Zeroes {
    /// At most `longest` bytes of zeroes.
    pub fn new(longest: usize) -> Self {
        Self(vec![0; longest])
    }

    /// The same frame, known to be zero, if as many zeroes hash to its value; else `None`. Needs no byte of the
    /// bundle's payloads.
    pub fn prove<'a>(&self, frame: Frame<'a>) -> Option<Frame<'a>> {
        let zeroes = self.0.get(..frame.len())?;
        (frame.value_of(zeroes) == frame.entry().value).then_some(Frame { zero: ZeroState::Zero, ..frame })
    }
}

/// A frame's bytes, verified against the index. Only these are written to a slot: the type is the proof.
#[derive(Debug, Clone, Copy)]
pub struct VerifiedFrame<'a> {
    stored: &'a [u8],
    len: usize,
}

impl<'a> VerifiedFrame<'a> {
    /// The frame as stored in a slot: a shorter last frame is padded with zeroes to a whole page.
    pub fn stored(&self) -> &'a [u8] {
        self.stored
    }

    /// Whether every byte is zero, so that the device can make them by cheaper means than a write.
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

/// Whether every byte is zero. Written so that the compiler emits wide loads, and stops at the first other byte.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Refuses anything but exactly one zstd frame that declares exactly the size of `frame`, before it is
/// decompressed.
pub(super) fn check_declared(frame: &Frame<'_>, compressed: &[u8]) -> Result<()> {
    let bad = |problem| Err(frame.malformed(problem));
    match find_frame_compressed_size(compressed) {
        Ok(size) if size == compressed.len() => {}
        Ok(size) => return bad(format!("a zstd frame of {size} bytes in a member of {}", compressed.len())),
        Err(code) => return bad(format!("not a zstd frame: {}", zstd::zstd_safe::get_error_name(code))),
    }
    let len = frame.len();
    match get_frame_content_size(compressed) {
        Ok(Some(size)) if size == len as u64 => Ok(()),
        Ok(Some(size)) => bad(format!("declares {size} bytes, the manifest implies {len}")),
        Ok(None) | Err(_) => bad("does not declare its size".to_owned()),
    }
}

/// Decompresses frames; owns zstd's working memory so that it is allocated once per worker.
pub struct FrameDecoder(Decompressor<'static>);

impl FrameDecoder {
    /// A decoder with its own zstd context.
    pub fn new() -> Result<Self> {
        let decoder = Decompressor::new();
        decoder.map(Self).map_err(|problem| Error::Internal { what: format!("zstd: {problem}") })
    }

    /// Decompresses `frame` into the start of `out` and verifies it.
    ///
    /// # Errors
    /// Those of decompression, such as [`Error::Frame`]; [`Error::FrameDigest`].
    pub fn decode<'a>(
        &mut self,
        frame: &Frame<'_>,
        compressed: &[u8],
        out: &'a mut [u8],
    ) -> Result<VerifiedFrame<'a>> {
        self.decompress(frame, compressed, out)?;
        frame.verify(out)
    }

    /// Decompresses without verifying: the bytes may only be passed to [`Frame::verify`].
    ///
    /// `compressed` must be exactly one frame that declares exactly the size that the manifest implies. More
    /// frames, skippable frames or a missing size are refused before anything is decompressed, and zstd never
    /// writes beyond that size: this stops a decompression bomb.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub(crate) fn decompress(&mut self, frame: &Frame<'_>, compressed: &[u8], out: &mut [u8]) -> Result<()> {
        check_declared(frame, compressed)?;
        let (len, bad) = (frame.len(), |problem| frame.malformed(problem));
        let room = out.get_mut(..len);
        let room = room.ok_or_else(|| Error::Internal { what: "frame buffer too short".to_owned() })?;
        match self.0.decompress_to_buffer(compressed, room) {
            Ok(got) if got == len => Ok(()),
            Ok(got) => Err(bad(format!("decompresses to {got} bytes instead of {len}"))),
            Err(problem) => Err(bad(problem.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::index::push_entry;
    use crate::bundle::manifest::tests::sample;
    use crate::bundle::manifest::{IndexRef, Manifest, Provenance};

    /// A release of one image.
    fn release(image: &[u8], frame_size: u32) -> Release {
        let (mut fields, mut index) = (sample(), Vec::new());
        fields.payloads.truncate(1);
        fields.payloads[0] = Payload {
            size: image.len() as u64,
            frame_size,
            blake3: Blake3(*blake3::hash(image).as_bytes()),
            ..fields.payloads[0].clone()
        };
        for (number, frame) in image.chunks(frame_size as usize).enumerate() {
            let value = chaining_value(frame, number as u64 * u64::from(frame_size), false);
            push_entry(&mut index, FrameEntry { compressed: 1, value });
        }
        fields.index =
            IndexRef { size: index.len() as u64, blake3: Blake3(*blake3::hash(&index).as_bytes()) };
        let bytes = fields.to_bytes().unwrap();
        Release::new(Manifest::with_provenance(bytes, Vec::new(), Provenance::Unsigned).unwrap(), index)
            .unwrap()
    }

    #[test]
    fn a_frame_known_to_be_zero_is_still_checked() {
        // Frames 1 and 3 are zero, 0 and 2 are not; the last one is shorter.
        let image: Vec<u8> = (0..3 * 65536 + 5000).map(|at| u8::from(at / 65536 % 2 == 0)).collect();
        let release = release(&image, 65536);
        let zeroes = Zeroes::new(65536);
        for number in [1, 3] {
            let plain = release.frame(0, number);
            let (len, expected) = (plain.len(), plain.entry().value);
            let known = zeroes.prove(plain).unwrap();
            assert_eq!(
                (known.zero_state(), known.in_place().zero_state()),
                (ZeroState::Zero, ZeroState::ZeroInPlace)
            );
            let check = |frame: Frame<'_>, buffer: &mut [u8]| match frame.verify(buffer) {
                Ok(verified) => Ok(verified.len()),
                Err(Error::FrameDigest { frame, expected, got, .. }) => Err((frame, expected, got)),
                Err(error) => panic!("{error}"),
            };
            let mut buffer = vec![0; 65536];
            for frame in [plain, known, known.in_place()] {
                assert_eq!(check(frame, &mut buffer), Ok(len));
                for place in [0, len / 2, len - 1] {
                    buffer[place] = 1;
                    let got = chaining_value(&buffer[..len], number * 65536, false);
                    let refused = Err((number, expected, got));
                    assert_eq!(check(frame, &mut buffer), refused, "byte {place} of {len}");
                    buffer[place] = 0;
                }
                assert!(frame.verify(&mut buffer[..len - 1]).is_err(), "too few zeroes");
            }
        }
        for number in [0, 2] {
            let plain = release.frame(0, number);
            assert!(zeroes.prove(plain).is_none());
            assert_eq!(plain.in_place().zero_state(), ZeroState::Unproven, "only a proof changes it");
            assert!(plain.verify(&mut vec![0; 65536]).is_err());
            assert!(plain.verify(&mut vec![1; 65536]).is_ok());
        }
        assert!(Zeroes::new(4096).prove(release.frame(0, 1)).is_none(), "not so many zeroes");
    }

    #[test]
    fn zero_is_recognised_at_every_length() {
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
