//! Deltas: another way to obtain the bytes of a signed release, made from what already runs.
//!
//! A `.qdelta` is a tar archive like a bundle. `manifest.json`, `manifest.json.sig` and `index.bin` are those of the
//! bundle, unchanged. They are followed by `delta.bin` and, for each payload, by `platform.img.delta` and so on. These
//! members hold the bytes, back to back, that the frames need besides the *base*: the image of the same payload that runs.
//!
//! **A delta is not signed and needs no trust.** It only proposes bytes: each frame is verified against the signed index
//! before it is written. So the author of a delta, or an attacker who changes it, can waste time but not alter a
//! release. Frames stay independent: they are made and applied in any order, on any core, in bounded memory.
//!
//! `delta.bin`, all numbers little-endian:
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | magic, `qdelta` 0 1; the last byte is the version of this format |
//! | 8 | 32 | BLAKE3 of the `manifest.json` that it is for |
//! | 40 | 44 each | for each payload of the manifest: frame size (4), size of its base in bytes (8), BLAKE3 of its base (32); without a base both are 0 |
//! | | 8 + 12 n each | for each payload and frame: kind (1), number of ranges n (1), zero (2), length of its bytes in the member (4); then for each range offset in the base (8) and length (4) |
//!
//! | kind | the frame is | ranges | bytes |
//! |---|---|---|---|
//! | 0 | zeroes | none | none |
//! | 1 | what the base has at the same offset | none | none |
//! | 2 | what the base has at another offset | one, as long as the frame | none |
//! | 3 | a zstd frame, compressed with the ranges, one after the other, as its raw prefix (`ZSTD_CCtx_refPrefix`); without ranges an ordinary one | 0 to 16, ascending, without overlap, at most 2 frames in all | up to `ZSTD_COMPRESSBOUND` |
//! | 4 | to be taken from the bundle | none | none |
//! | 5 | copies from the ranges with small changes, as bsdiff makes them: streams, see the module `aligned` | as 3 | as 3 |
//! | others | reserved; treated as 4 | as 3 | as 3 |
//!
//! A large `delta.bin` is stored as one zstd frame that declares its size, which is bounded too.
//! All fields are bounded and checked by [`Delta::parse`] before a byte of a base or of a member is read.

mod align;
mod aligned;
mod decoder;
mod encoder;
mod index;
mod maker;
mod parse;
mod ranges;
mod reader;
mod samples;
mod survey;
mod table;

pub use aligned::Streams;
pub use decoder::rebuild;
pub use maker::{Base, Options, Tally, make};
pub use parse::{BaseRef, Delta, FrameKind, Recipe};

/// First bytes of `delta.bin`.
const MAGIC: [u8; 8] = *b"qdelta\0\x01";
/// Bytes before the payloads.
const HEAD_LEN: usize = 40;
/// Bytes of the description of a payload.
const PAYLOAD_LEN: usize = 44;
/// Bytes of a frame's entry without its ranges.
const ENTRY_LEN: usize = 8;
/// Bytes of a range.
const RANGE_LEN: usize = 12;
/// Name of the member with the recipes.
pub const MEMBER: &str = "delta.bin";
/// Maximum size of `delta.bin` in bytes: the same as for `index.bin`.
pub const DELTA_MAX: u64 = 16 << 20;
/// Maximum number of ranges of a frame.
pub const RANGES_MAX: usize = 16;
/// Maximum size of all ranges of a frame, in frames.
pub const PREFIX_FRAMES: u64 = 2;

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use crate::bundle::manifest::Kind;
    use crate::bundle::writer::{Compression, PayloadInput, ReleaseInfo, pack_payloads, write_members};
    use crate::bundle::{Bundle, Release, Source, Trust};
    use crate::progress::{Cancel, Silent};

    pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; len];
        reader.fill(&mut bytes);
        bytes
    }

    /// A bundle of one image.
    pub(crate) fn bundle(image: &[u8], frame_size: u32) -> Bundle {
        let (version, image) = ("2".to_owned(), image.to_vec());
        let identity = ReleaseInfo {
            product: "p".to_owned(),
            version,
            min_version: None,
            epoch: 0,
            created: 5,
            needs_platform: None,
        };
        let (name, version) = ("platform".to_owned(), "2".to_owned());
        let input = PayloadInput { kind: Kind::Platform, name, version, image: &image };
        let compression = Compression { level: 9, frame_size, jobs: NonZeroUsize::new(2) };
        let mut payloads = Cursor::new(Vec::new());
        let packed =
            pack_payloads(&identity, &[input], compression, &mut payloads, &Cancel::default(), &Silent);
        let packed = packed.unwrap();
        let mut bytes = Vec::new();
        let manifest = packed.fields.to_bytes().unwrap();
        let members =
            [("manifest.json", &manifest[..]), ("manifest.json.sig", b""), ("index.bin", &packed.index)];
        write_members(&mut bytes, &members, 5).unwrap();
        bytes.extend_from_slice(payloads.get_ref());
        Bundle::open(Source::File(Arc::new(bytes)), &Trust::dangerously_unsigned()).unwrap()
    }

    pub(super) fn release(image: &[u8], frame_size: u32) -> Release {
        bundle(image, frame_size).release().clone()
    }
}
