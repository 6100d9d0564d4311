//! Which slot starts where an initramfs chooses and not a boot loader: the decision of `qstage select`. Nothing here
//! writes to the disk.
//!
//! 1. By flags, as the firmware of ChromeOS and the GRUB of Flatcar and Bottlerocket do it: the highest priority among
//!    those that are successful or have tries left, slot `a` where two are equal. Of a slot that is not successful
//!    one try is taken. (Flatcar takes one off a successful slot too, which nobody reads; ChromeOS takes the priority
//!    with the last try, which would hide from `status` that there was a trial.) A slot that is known to be torn is
//!    passed over.
//! 2. Where the flags let none boot, the machine must come up all the same: the first by [`Standing`], then the higher
//!    priority, then slot `a`. Nothing is counted, and no flag is changed: that is for whoever repairs it.
//!
//! A try that cannot be counted (a disk that takes no writes) could be made for ever. So then a successful slot
//! goes first, and a trial waits.

use crate::gpt::Attributes;
use crate::slot::{Content, Verdict};
use crate::units::Slot;

/// What speaks for a slot that no flag lets boot; the later the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// A prepare began and did not end: it is known to be incomplete.
    Torn,
    /// Nothing that qstage wrote, or what it wrote cannot be read: installed by other means, or empty.
    Unknown,
    /// Whole, but its trial failed, or it was ruled out.
    Failed,
    /// Whole, and never tried.
    Whole,
    /// It was marked good, by its flags or by its mark.
    Good,
}

/// One platform slot, as far as the choice goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its attributes in the partition table.
    pub attributes: Attributes,
    /// What its record says.
    pub standing: Standing,
}

impl Candidate {
    /// A slot by its flags and by what it says of itself; `None` where that cannot be read.
    pub fn new(attributes: Attributes, content: Option<&Content>) -> Self {
        let mark = |content: &Content| match content {
            Content::Whole(_, mark) => Some(mark.as_ref().map(|mark| mark.verdict)),
            Content::Torn { .. } | Content::Nothing { .. } => None,
        };
        let standing = match (content, content.and_then(mark)) {
            (Some(Content::Torn { .. }), _) => Standing::Torn,
            (_, Some(Some(Verdict::Good))) => Standing::Good,
            _ if attributes.successful() => Standing::Good,
            (_, Some(Some(Verdict::Bad | Verdict::Failed | Verdict::Trying))) => Standing::Failed,
            // Selected once, and no try left.
            (_, Some(None)) if attributes.priority() > 0 => Standing::Failed,
            (_, Some(None)) => Standing::Whole,
            (_, None) => Standing::Unknown,
        };
        Self { attributes, standing }
    }

    fn by_flags(&self) -> bool {
        self.attributes.will_boot() && self.standing != Standing::Torn
    }
}

/// Why a slot was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectionReason {
    /// It is successful and first.
    Good,
    /// It is first, on trial; a try is to be counted.
    Trial,
    /// It is first, on trial, and no try can be counted.
    Uncounted,
    /// No flag lets any slot boot; this one has the best standing.
    Rescue,
}

impl SelectionReason {
    /// The word that programs read.
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
    /// The disk takes writes, as far as is known.
    Possible,
    /// It does not.
    Impossible,
}

/// What is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The slot.
    pub slot: Slot,
    /// Why.
    pub why: SelectionReason,
    /// Its attributes with one try less, to be written before it starts.
    pub count: Option<Attributes>,
}

/// The slot to start among those that exist; `None` only where there is none.
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
    let rescue = first(all.iter(), |entry| (entry.1.standing, entry.1.attributes.priority()));
    rescue.map(|&(slot, _)| Choice { slot, why: SelectionReason::Rescue, count: None })
}

/// The one with the greatest key, the first of equals: `max_by_key` gives the last.
fn first<'c, K: Ord>(
    entries: impl DoubleEndedIterator<Item = &'c (Slot, Candidate)>,
    key: impl Fn(&&'c (Slot, Candidate)) -> K,
) -> Option<&'c (Slot, Candidate)> {
    entries.rev().max_by_key(key)
}

/// A software slot beside the platform that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Companion {
    /// Whether it came with that platform; `None` where it holds no record.
    pub fits: Option<bool>,
    /// Whether it may run without its flags: it is good, or its trial is that of the platform.
    pub usable: bool,
}

/// The software slot that runs beside a platform. `flagged` is the one that the flags select. Where that came with
/// another platform while the other slot fits, the boot went to the other platform, and the software follows:
/// never a mixed pair where a matching one is there.
pub fn software_beside(flagged: Option<Slot>, of: impl Fn(Slot) -> Companion) -> Option<Slot> {
    let flagged = flagged?;
    let (first, other) = (of(flagged), of(!flagged));
    let follow = first.fits == Some(false) && other.fits == Some(true) && other.usable;
    Some(if follow { !flagged } else { flagged })
}

#[cfg(test)]
mod tests;
