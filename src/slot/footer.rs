//! The last 4 KiB of a slot. Pure.
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | `QSTGSLOT` |
//! | 8 | 4 | version, 1 (all numbers are little-endian) |
//! | 12 | 4 | condition: 1 whole, 2 torn |
//! | 16 | 8 | where the record body begins in the slot |
//! | 24 | 4 + 4 + 4 | lengths of manifest, signature and index |
//! | 36 | 4 | CRC-32 of the body without padding |
//! | 40 | 4 | group: 0 platform, 1 software |
//! | 44 | 4 | 0 signed, 1 installed without a signature |
//! | 48 | 32 | BLAKE3 of the manifest's bytes |
//! | 80 | 2 + 1024 | origin of the bundle (length, UTF-8): `install_path` of the status |
//! | 4092 | 4 | CRC-32 of everything before it |

use super::{UNIT, put_text, seal, sealed, text_at, u32_at, u64_at};
use crate::units::{Blake3, Group};

const MAGIC: &[u8; 8] = b"QSTGSLOT";
const VERSION: u32 = 1;
const ORIGIN_MAX: usize = 1024;

/// Whether the content of the slot is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Written, flushed, read back.
    Whole,
    /// Being written, or abandoned while it was.
    Torn,
}

/// The footer's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Whole or torn.
    pub condition: Condition,
    /// Offset of the record body in the slot in bytes; 0 in a torn footer.
    pub body_at: u64,
    /// Length of the manifest in bytes.
    pub manifest_len: u32,
    /// Length of the signature in bytes.
    pub signature_len: u32,
    /// Length of the index in bytes.
    pub index_len: u32,
    /// CRC-32 of the body without padding.
    pub body_crc: u32,
    /// Group of the slot.
    pub group: Group,
    /// Whether it was installed in the unsigned mode.
    pub unsigned: bool,
    /// BLAKE3 of the manifest.
    pub manifest: Blake3,
    /// Origin of the bundle; cut to 1024 bytes.
    pub origin: String,
}

impl Footer {
    /// Encodes the 4 KiB block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; UNIT as usize];
        let condition: u32 = match self.condition {
            Condition::Whole => 1,
            Condition::Torn => 2,
        };
        let group: u32 = match self.group {
            Group::Platform => 0,
            Group::Software => 1,
        };
        block[..8].copy_from_slice(MAGIC);
        block[16..24].copy_from_slice(&self.body_at.to_le_bytes());
        let fields = [
            (8, VERSION),
            (12, condition),
            (24, self.manifest_len),
            (28, self.signature_len),
            (32, self.index_len),
            (36, self.body_crc),
            (40, group),
            (44, u32::from(self.unsigned)),
        ];
        for (at, field) in fields {
            block[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        block[48..80].copy_from_slice(&self.manifest.0);
        put_text(&mut block, 80, ORIGIN_MAX, &self.origin);
        seal(&mut block);
        block
    }

    /// Decodes a block; `None` if it is damaged, or not a footer of a known version.
    pub fn decode(block: &[u8]) -> Option<Self> {
        if !sealed(block) || !block.starts_with(MAGIC) || u32_at(block, 8) != VERSION {
            return None;
        }
        let mut manifest = [0; 32];
        manifest.copy_from_slice(&block[48..80]);
        Some(Self {
            condition: match u32_at(block, 12) {
                1 => Condition::Whole,
                2 => Condition::Torn,
                _ => return None,
            },
            body_at: u64_at(block, 16),
            manifest_len: u32_at(block, 24),
            signature_len: u32_at(block, 28),
            index_len: u32_at(block, 32),
            body_crc: u32_at(block, 36),
            group: match u32_at(block, 40) {
                0 => Group::Platform,
                1 => Group::Software,
                _ => return None,
            },
            unsigned: u32_at(block, 44) != 0,
            manifest: Blake3(manifest),
            origin: text_at(block, 80, ORIGIN_MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn sample() -> Footer {
        Footer {
            condition: Condition::Whole,
            body_at: 1 << 40,
            manifest_len: 1,
            signature_len: 2,
            index_len: 3,
            body_crc: 4,
            group: Group::Software,
            unsigned: true,
            manifest: Blake3([7; 32]),
            origin: "/upgrade/qinstall.qimg".to_owned(),
        }
    }

    #[test]
    fn round_trip_and_every_flipped_bit() {
        let footer = sample();
        let mut block = footer.encode();
        assert_eq!(Footer::decode(&block), Some(footer));
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Footer::decode(&block), None, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_long_origin_is_cut_between_characters() {
        let footer = Footer { origin: "ä".repeat(600), ..sample() };
        assert_eq!(Footer::decode(&footer.encode()).unwrap().origin, "ä".repeat(512));
        let odd = Footer { origin: format!("x{}", "ä".repeat(600)), ..sample() };
        assert_eq!(Footer::decode(&odd.encode()).unwrap().origin, format!("x{}", "ä".repeat(511)));
    }

    proptest! {
        #[test]
        fn arbitrary_sealed_blocks_never_panic(mut block in proptest::collection::vec(any::<u8>(), 4096..=4096), len in any::<u16>()) {
            block[..8].copy_from_slice(MAGIC);
            block[8..12].copy_from_slice(&1_u32.to_le_bytes());
            block[12] %= 3;
            block[80..82].copy_from_slice(&len.to_le_bytes());
            seal(&mut block);
            let _ = Footer::decode(&block);
        }
    }
}
