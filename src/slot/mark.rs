//! Whether the slot proved itself: the block in front of the footer. Pure.
//!
//! Under `--boot-flag legacy` the partition entry has one bit, "boot this"; that a trial ended well or badly, and why,
//! has no place there. So the slot remembers it. The block is one write of 4 KiB and is void until the slot is
//! judged. Offsets: magic `QSTGMARK` 0, version 8, verdict 12 (1 good, 2 bad), reason 16 (u16 length, UTF-8), CRC-32 4092.

use super::{UNIT, put_text, seal, sealed, text_at, u32_at};

const MAGIC: &[u8; 8] = b"QSTGMARK";
const VERSION: u32 = 1;
const REASON_MAX: usize = 2048;

/// The outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was marked good.
    Good,
    /// It was rolled back or fell back.
    Bad,
}

/// What the block says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Good or bad.
    pub verdict: Verdict,
    /// Why, for people; cut to 2048 bytes.
    pub reason: String,
}

impl Mark {
    /// The block that says it.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; UNIT as usize];
        let verdict: u32 = match self.verdict {
            Verdict::Good => 1,
            Verdict::Bad => 2,
        };
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&verdict.to_le_bytes());
        put_text(&mut block, 16, REASON_MAX, &self.reason);
        seal(&mut block);
        block
    }

    /// Reads a block; `None` where it is void, damaged, or of an unknown version.
    pub fn decode(block: &[u8]) -> Option<Self> {
        if !sealed(block) || !block.starts_with(MAGIC) || u32_at(block, 8) != VERSION {
            return None;
        }
        let verdict = match u32_at(block, 12) {
            1 => Verdict::Good,
            2 => Verdict::Bad,
            _ => return None,
        };
        Some(Self { verdict, reason: text_at(block, 16, REASON_MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_void() {
        for verdict in [Verdict::Good, Verdict::Bad] {
            let mark = Mark { verdict, reason: "health check 'disk' failed".to_owned() };
            let mut block = mark.encode();
            assert_eq!(Mark::decode(&block), Some(mark));
            block[20] ^= 1;
            assert_eq!(Mark::decode(&block), None);
        }
        assert_eq!(Mark::decode(&vec![0; 4096]), None);
    }
}
