//! The `.qimg` bundle.
//!
//! A POSIX tar: `tar tvf` lists it, and `tar xOf x.qimg platform.img.zst | zstd -d` prints the image.
//!
//! | member | content | bound before it is read |
//! |---|---|---|
//! | `manifest.json` | product, version, epoch; per payload kind, name, version, size, frame size, BLAKE3, SHA-256; size and BLAKE3 of the index | 256 KiB |
//! | `manifest.json.sig` | one or more armored SSHSIG over the exact bytes of `manifest.json`, namespace `qimg` | 64 KiB |
//! | `index.bin` | per payload and frame: compressed length (u32 LE), BLAKE3 chaining value (32 bytes) | 16 MiB, exact size in the manifest |
//! | `platform.img.zst` | zstd frames back to back | exact size by the index |
//! | `software.img.zst` | the same; optional | exact size by the index |
//! | `firmware/<name>.zst` | the same for each blob, by name | exact size by the index |
//! | end | two blocks of zeroes, then nothing | |
//!
//! A [`delta`] has other members in place of the payloads, and `delta.bin` before them.
//!
//! Order of checks: bounds, then signature, then index (its hash stands in the manifest, and its values merge to
//! the image hashes there), then frame by frame. No payload byte is decompressed before the signature is verified.

pub mod archive;
pub mod delta;
pub mod feed;
pub mod frame;
pub mod index;
mod kind;
pub mod manifest;
pub mod name;
pub mod needs;
pub mod pick;
pub mod reader;
pub mod release;
pub mod sha256;
pub mod signature;
#[cfg(test)]
mod software_only_tests;
pub mod source;
pub mod summary;
pub mod trust;
pub mod unpack;
pub mod verify;
pub mod writer;

pub use manifest::{Kind, Manifest, ManifestFields, Payload};
pub use reader::{Bundle, manifest_digest};
pub use release::Release;
pub use source::{ReadAt, Source};
pub use summary::{PayloadSummary, Summary};
pub use trust::Trust;
