//! Whether the slot proved itself: the block in front of the footer. Pure.
//!
//! Under `--boot-flag legacy` the partition entry has one bit, "boot this"; that a trial ended well or badly, and why,
//! has no place there. So the slot remembers it. The block is one write of 4 KiB and is void until the slot is
//! judged. A block that is neither zero nor whole, as a power cut within it leaves it, counts as bad: a slot that once
//! was judged must never look as if it had just been prepared. Offsets: magic `QSTGMARK` 0, version 8, verdict 12 (1 good, 2 bad, 4 trying), reason 16 (u16 length, UTF-8), CRC-32 4092.

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
    /// It was selected for one boot. If it neither runs nor waits for that boot, the trial has failed. Only where the
    /// boot flag itself does not survive the trial: EFI's BootNext.
    Trying,
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
            Verdict::Trying => 4,
        };
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&verdict.to_le_bytes());
        put_text(&mut block, 16, REASON_MAX, &self.reason);
        seal(&mut block);
        block
    }

    /// Reads a block; `None` where it is void, which is all zero. What cannot be read is bad.
    pub fn decode(block: &[u8]) -> Option<Self> {
        if block.iter().all(|&byte| byte == 0) {
            return None;
        }
        let known = sealed(block) && block.starts_with(MAGIC) && u32_at(block, 8) == VERSION;
        let verdict = match u32_at(block, 12) {
            1 if known => Verdict::Good,
            2 if known => Verdict::Bad,
            4 if known => Verdict::Trying,
            _ => {
                return Some(Self { verdict: Verdict::Bad, reason: "its mark cannot be read".to_owned() });
            }
        };
        Some(Self { verdict, reason: text_at(block, 16, REASON_MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_void() {
        for verdict in [Verdict::Good, Verdict::Bad, Verdict::Trying] {
            let mark = Mark { verdict, reason: "health check 'disk' failed".to_owned() };
            let mut block = mark.encode();
            assert_eq!(Mark::decode(&block), Some(mark));
            block[20] ^= 1;
            assert_eq!(Mark::decode(&block).unwrap().verdict, Verdict::Bad, "damaged is not void");
            // A cut within the block: any sector boundary.
            for split in (512..4096).step_by(512) {
                let mut torn = Mark { verdict, reason: String::new() }.encode();
                torn[split..].fill(0);
                assert_eq!(Mark::decode(&torn).unwrap().verdict, Verdict::Bad, "{split}");
            }
        }
        assert_eq!(Mark::decode(&vec![0; 4096]), None);
    }
}
