//! Selects the slot to start if an initramfs chooses and not a boot loader: the decision of `qstage select`.
//! Nothing here writes to the disk.
//!
//! 1. By flags, as the firmware of ChromeOS and the GRUB of Flatcar and Bottlerocket do: the highest priority among
//!    the slots that are successful or have tries left, slot `a` if two are equal. A slot that is not successful
//!    loses one try. (Flatcar takes one off a successful slot too, but nothing reads it; ChromeOS clears the
//!    priority with the last try, which would hide from `status` that there was a trial.) A slot that is known to
//!    be torn is skipped.
//! 2. If the flags allow none, the machine must boot all the same: the first by [`SlotRank`], then the higher
//!    priority, then slot `a`. Nothing is counted, and no flag is changed: that is left to a repair.
//!
//! A try that cannot be counted (a disk that refuses writes) could be repeated for ever. So in that case a
//! successful slot goes first, and a trial waits.

use crate::gpt::Attributes;
use crate::slot::{Content, Verdict};
use crate::units::Slot;

/// Rank of a slot that no flag allows to boot; later variants are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotRank {
    /// A prepare began and did not end: it is known to be incomplete.
    Torn,
    /// No readable record of qstage: installed by other means, or empty.
    Unknown,
    /// Whole, but its trial failed, or it was marked bad.
    Failed,
    /// Whole, and never tried.
    Whole,
    /// It was marked good, by its flags or by its mark.
    Good,
}

/// One platform slot, as far as the choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its attributes in the partition table.
    pub attributes: Attributes,
    /// Its rank by its record.
    pub rank: SlotRank,
}

impl Candidate {
    /// A slot by its flags and its content; `content` is `None` if that cannot be read.
    pub fn new(attributes: Attributes, content: Option<&Content>) -> Self {
        let mark = |content: &Content| match content {
            Content::Whole(_, mark) => Some(mark.as_ref().map(|mark| mark.verdict)),
            Content::Torn { .. } | Content::Nothing { .. } => None,
        };
        let rank = match (content, content.and_then(mark)) {
            (Some(Content::Torn { .. }), _) => SlotRank::Torn,
            (_, Some(Some(Verdict::Good))) => SlotRank::Good,
            _ if attributes.successful() => SlotRank::Good,
            (_, Some(Some(Verdict::Bad | Verdict::Failed | Verdict::Trying))) => SlotRank::Failed,
            // Selected once, and no try left.
            (_, Some(None)) if attributes.priority() > 0 => SlotRank::Failed,
            (_, Some(None)) => SlotRank::Whole,
            (_, None) => SlotRank::Unknown,
        };
        Self { attributes, rank }
    }

    fn by_flags(&self) -> bool {
        self.attributes.will_boot() && self.rank != SlotRank::Torn
    }
}

/// Why a slot was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectionReason {
    /// Successful and first.
    Good,
    /// First, on trial; a try is to be counted.
    Trial,
    /// First, on trial, and no try can be counted.
    Uncounted,
    /// No flag allows any slot to boot; this one has the best rank.
    Rescue,
}

impl SelectionReason {
    /// The word in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Trial => "trial",
            Self::Uncounted => "uncounted",
            Self::Rescue => "rescue",
        }
    }
}

/// Whether tries can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// The disk accepts writes, as far as known.
    Possible,
    /// The disk refuses writes.
    Impossible,
}

/// The slot to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The slot.
    pub slot: Slot,
    /// The reason.
    pub why: SelectionReason,
    /// Its attributes with one try less, to be written before it starts; `None` if no try is counted.
    pub count: Option<Attributes>,
}

/// The slot to start among those that exist; `None` only if there is none.
pub fn choose(a: Option<Candidate>, b: Option<Candidate>, counting: Counting) -> Option<Choice> {
    let all: Vec<(Slot, Candidate)> = [(Slot::A, a), (Slot::B, b)]
        .into_iter()
        .filter_map(|(slot, candidate)| candidate.map(|found| (slot, found)))
        .collect();
    let flagged = || all.iter().filter(|(_, found)| found.by_flags());
    let good = || flagged().filter(|(_, found)| found.attributes.successful());
    let priority = |entry: &&(Slot, Candidate)| entry.1.attributes.priority();
    let counted = match counting {
        Counting::Possible => None,
        Counting::Impossible => first(good(), priority),
    };
    if let Some(&(slot, found)) = counted.or_else(|| first(flagged(), priority)) {
        let (attributes, tries) = (found.attributes, found.attributes.tries());
        return Some(match (attributes.successful(), counting) {
            (true, _) => Choice { slot, why: SelectionReason::Good, count: None },
            (false, Counting::Impossible) => Choice { slot, why: SelectionReason::Uncounted, count: None },
            (false, Counting::Possible) => Choice {
                slot,
                why: SelectionReason::Trial,
                count: Some(attributes.with_tries(tries.saturating_sub(1))),
            },
        });
    }
    let rescue = first(all.iter(), |entry| (entry.1.rank, entry.1.attributes.priority()));
    rescue.map(|&(slot, _)| Choice { slot, why: SelectionReason::Rescue, count: None })
}

/// The one with the greatest key, the first of equals: `max_by_key` returns the last.
fn first<'c, K: Ord>(
    entries: impl DoubleEndedIterator<Item = &'c (Slot, Candidate)>,
    key: impl Fn(&&'c (Slot, Candidate)) -> K,
) -> Option<&'c (Slot, Candidate)> {
    entries.rev().max_by_key(key)
}

/// A software slot as partner of the running platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Companion {
    /// Whether it came with that platform; `None` if it has no record.
    pub fits: Option<bool>,
    /// Whether it may run whatever its flags: it is good, or its trial is that of the platform.
    pub usable: bool,
}

/// The software slot to run with a platform. `flagged` is the one that the flags select. If that came with another
/// platform while the other slot fits, the boot went to the other platform, and the software follows: never a mixed
/// pair if there is a matching one.
pub fn software_beside(flagged: Option<Slot>, of: impl Fn(Slot) -> Companion) -> Option<Slot> {
    let flagged = flagged?;
    let (first, other) = (of(flagged), of(!flagged));
    let follow = first.fits == Some(false) && other.fits == Some(true) && other.usable;
    Some(if follow { !flagged } else { flagged })
}

#[cfg(test)]
mod tests;
