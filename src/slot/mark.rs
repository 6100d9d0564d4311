//! The outcome of a slot's trial: the block before the footer. Pure.
//!
//! Under `--boot-flag legacy` the partition entry has one bit, "boot this", and no room for the outcome of a trial
//! and its reason. So the slot stores them. The block is one write of 4 KiB and is void until a trial has an
//! outcome. A block that is neither zero nor whole, as a power cut within it leaves it, counts as bad: a slot whose
//! trial had an outcome must never look as if it had just been prepared. Under the other flags the block stores
//! what the flags have no room for: why a trial failed, across the reboot and if `/var` is lost.
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | `QSTGMARK` |
//! | 8 | 4 | version, 1 (all numbers are little-endian) |
//! | 12 | 4 | verdict: 1 good, 2 bad, 3 failed, 4 trying |
//! | 16 | 2 + 2048 | reason (length, UTF-8) |
//! | 2068 | 4 | number of tries left when it was written |
//! | 2072 | 8 | epoch: the highest that was ever marked good on this machine, as far as known here |
//! | 4092 | 4 | CRC-32 of everything before it |
//!
//! The epoch was added later, in place of zeroes and under the same version: a mark without it reads as epoch 0,
//! which forbids nothing. An older reader ignores it; it is covered by the same CRC. A mark written by such a build
//! has none; the other slots still hold it.
//!
//! A reader that knows verdicts 1 and 2 only treats 3 and 4 as bad, which they are once the slot does not run.

use super::{UNIT, put_text, seal, sealed, text_at, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"QSTGMARK";
const VERSION: u32 = 1;
const REASON_MAX: usize = 2048;
const TRIES_AT: usize = 2068;
const EPOCH_AT: usize = 2072;

/// The outcome of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was marked good.
    Good,
    /// It was ruled out: rolled back on request, or being replaced.
    Bad,
    /// A failing trial: while the slot runs it can still be marked good, afterwards it has failed.
    Failed,
    /// A trial of one boot that leaves no flag: by EFI's BootNext, or by kexec. The slot is on trial until
    /// and during that boot; afterwards it has failed, and the reason states how.
    Trying,
}

impl Verdict {
    /// The word in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Failed => "failed",
            Self::Trying => "trying",
        }
    }
}

/// Content of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The outcome, or the state of the trial.
    pub verdict: Verdict,
    /// The reason, for people; cut to 2048 bytes.
    pub reason: String,
    /// Number of tries left when it was written: distinguishes one boot of the trial from the next.
    pub tries_left: u8,
    /// The highest epoch that was ever marked good here; 0 if none is known.
    pub epoch: u64,
}

impl Mark {
    /// A mark without a number of tries.
    pub fn new(verdict: Verdict, reason: impl Into<String>) -> Self {
        Self { verdict, reason: reason.into(), tries_left: 0, epoch: 0 }
    }

    /// Encodes the 4 KiB block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; UNIT as usize];
        let verdict: u32 = match self.verdict {
            Verdict::Good => 1,
            Verdict::Bad => 2,
            Verdict::Failed => 3,
            Verdict::Trying => 4,
        };
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&verdict.to_le_bytes());
        put_text(&mut block, 16, REASON_MAX, &self.reason);
        block[TRIES_AT..TRIES_AT + 4].copy_from_slice(&u32::from(self.tries_left).to_le_bytes());
        block[EPOCH_AT..EPOCH_AT + 8].copy_from_slice(&self.epoch.to_le_bytes());
        seal(&mut block);
        block
    }

    /// Decodes a block; `None` if it is void, that is all zero. An unreadable block counts as bad.
    pub fn decode(block: &[u8]) -> Option<Self> {
        if block.iter().all(|&byte| byte == 0) {
            return None;
        }
        let known = sealed(block) && block.starts_with(MAGIC) && u32_at(block, 8) == VERSION;
        let verdict = match u32_at(block, 12) {
            1 if known => Verdict::Good,
            2 if known => Verdict::Bad,
            3 if known => Verdict::Failed,
            4 if known => Verdict::Trying,
            _ => return Some(Self::new(Verdict::Bad, "its mark cannot be read")),
        };
        // Four bits in the partition table; other values cannot be tries.
        let tries_left = u8::try_from(u32_at(block, TRIES_AT)).unwrap_or_default();
        let epoch = u64_at(block, EPOCH_AT);
        Some(Self { verdict, reason: text_at(block, 16, REASON_MAX), tries_left, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_void() {
        for verdict in [Verdict::Good, Verdict::Bad, Verdict::Failed, Verdict::Trying] {
            let reason = "health check 'disk' failed".to_owned();
            let mark = Mark { verdict, reason, tries_left: 15, epoch: u64::MAX };
            let mut block = mark.encode();
            assert_eq!(Mark::decode(&block), Some(mark));
            block[20] ^= 1;
            assert_eq!(Mark::decode(&block).unwrap().verdict, Verdict::Bad, "damaged is not void");
            // A cut within the block: any sector boundary.
            for split in (512..4096).step_by(512) {
                let mut torn = Mark::new(verdict, "").encode();
                torn[split..].fill(0);
                assert_eq!(Mark::decode(&torn).unwrap().verdict, Verdict::Bad, "{split}");
            }
        }
        assert_eq!(Mark::decode(&vec![0; 4096]), None);
    }

    /// What version 0.1.0 wrote, and what it reads of a current mark: the same fields at the same places.
    #[test]
    fn a_mark_without_an_epoch_is_read_and_one_with_it_differs_nowhere_else() {
        let with = Mark { epoch: 7, ..Mark::new(Verdict::Good, "marked good") }.encode();
        let without = Mark::new(Verdict::Good, "marked good").encode();
        assert_eq!(Mark::decode(&without).unwrap().epoch, 0);
        let differs: Vec<usize> = (0..4096).filter(|at| with[*at] != without[*at]).collect();
        assert!(differs.iter().all(|at| *at == EPOCH_AT || *at >= 4092), "{differs:?}");
    }

    /// Writing a mark over another one: a cut may leave any mixture of both, which counts as bad or as one of the
    /// two.
    #[test]
    fn a_mark_over_a_mark_is_old_or_new_or_bad() {
        let old = Mark { verdict: Verdict::Failed, reason: "x".repeat(2048), tries_left: 2, epoch: 1 };
        let new = Mark { verdict: Verdict::Failed, reason: "y".repeat(1000), tries_left: 1, epoch: 2 };
        for set in 0_u32..256 {
            let mut block = old.encode();
            let next = new.encode();
            for sector in (0..8).filter(|sector| set >> sector & 1 == 1) {
                block[sector * 512..][..512].copy_from_slice(&next[sector * 512..][..512]);
            }
            let got = Mark::decode(&block).unwrap();
            assert!(got == old || got == new || got.verdict == Verdict::Bad, "{set:b}");
        }
    }
}
