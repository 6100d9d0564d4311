//! The content of a slot, and the record that describes it.
//!
//! | from | to | content |
//! |---|---|---|
//! | 0 | | the image: platform or software, so that the partition is the file system |
//! | next multiples of 1 MiB | | firmware blobs, in a platform slot |
//! | | record body | the tail, zeroed: nothing old remains |
//! | end - 8 KiB - body | end - 8 KiB | record body: manifest, signature, index, padded to 4 KiB |
//! | end - 8 KiB | end - 4 KiB | mark: the outcome of the trial, as far as the boot flag has no bit for it |
//! | end - 4 KiB | end | footer: whole or torn, lengths and CRC-32 of the body |
//!
//! `end` is the partition's size rounded down to 4 KiB. The footer is destroyed before the first byte of a new
//! image and written last, after read-back: a slot with a valid record holds exactly what its manifest says.

mod footer;
mod frame;
mod layout;
mod mark;
mod record;

pub use footer::{Condition, Footer};
pub use frame::FrameAt;
pub use layout::{Layout, PlacedPayload};
pub use mark::{Mark, Verdict};
pub use record::{Content, Record, discard, write_mark};

/// Unit of all sizes and offsets of a record, in bytes.
pub const UNIT: u64 = 4096;

/// Stores a CRC-32 (IEEE 802.3) of everything before it in the last four bytes of a block.
fn seal(block: &mut [u8]) {
    let split = block.len() - 4;
    let crc = crc32fast::hash(&block[..split]);
    block[split..].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the CRC-32 of [`seal`] matches.
fn sealed(block: &[u8]) -> bool {
    block.len() == UNIT as usize
        && u32_at(block, block.len() - 4) == crc32fast::hash(&block[..block.len() - 4])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Stores text of at most `max` bytes after its u16 length; cut at a character boundary.
fn put_text(block: &mut [u8], at: usize, max: usize, text: &str) {
    let len = text.floor_char_boundary(max);
    block[at..at + 2].copy_from_slice(&(len as u16).to_le_bytes());
    block[at + 2..at + 2 + len].copy_from_slice(&text.as_bytes()[..len]);
}

fn text_at(block: &[u8], at: usize, max: usize) -> String {
    let len = usize::from(u16::from_le_bytes([block[at], block[at + 1]])).min(max);
    String::from_utf8_lossy(&block[at + 2..at + 2 + len]).into_owned()
}
