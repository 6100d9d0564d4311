//! States of slots and upgrades; `runs`: what runs, and by what that is known; `report`: their representation for operators
//! and programs.

mod report;
mod runs;

pub use report::{
    AppliedDelta, BootEntry, PlanReport, PlannedPayload, PrepareReport, SlotReport, SlotsReport, Status,
    SwitchReport, UpgradeObstacle,
};
pub use runs::{KnownBy, RunningSlot, Runs};

use serde::{Deserialize, Serialize};

use crate::boot::BootFlag;
use crate::gpt::Attributes;
use crate::slot::{Content, Verdict};

/// State of a slot, derived from its boot flags and its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// It has no complete content.
    Empty,
    /// A prepare began and did not end: another run completes it.
    Torn,
    /// It holds a verified image that is not selected to boot.
    Prepared,
    /// Selected, not yet marked good.
    Trial,
    /// Marked good.
    Good,
    /// Its trial failed, or it was rolled back.
    Bad,
}

/// Everything that determines the state of a slot.
pub struct SlotFacts<'a> {
    /// Its attributes in the partition table.
    pub attributes: Attributes,
    /// The boot flag that applies to its group.
    pub flag: BootFlag,
    /// Whether something other than flags selects it for the next boot: the firmware, by BootNext or as the first
    /// in BootOrder (`efi`), or a kernel that is loaded for kexec.
    pub chosen: bool,
    /// Its content by its record.
    pub content: &'a Content,
    /// Whether this machine runs from it.
    pub running: bool,
}

/// The state of a slot.
///
/// | content | flags (`priority`) | state |
/// |---|---|---|
/// | torn | any | torn |
/// | any | successful | good |
/// | any | priority > 0, tries > 0, or running on its last try | trial |
/// | any | priority > 0, no tries left | bad |
/// | whole, marked bad, failed or trying | priority 0 | bad |
/// | whole | priority 0 | prepared |
/// | nothing | priority 0 | empty |
///
/// Under `legacy`, bit 2 only determines the boot; the mark of the slot has the outcome of its trial. A slot that
/// boots without a record of ours was installed by other means, and counts as good. One that is marked bad and
/// still selected is one whose roll-back was cut short: it is on trial until that is completed. Under `efi` the
/// same applies, with the choice of the firmware in place of the bit.
///
/// A trial of one boot, by BootNext or by kexec, has no flag while it runs. The slot with that mark is on trial
/// while it runs or is selected, and has failed otherwise. BootNext is written before the mark: a slot that runs by
/// `efi` without a mark is on trial too.
pub fn slot_state(facts: &SlotFacts<'_>) -> SlotState {
    let (attributes, priority) = (facts.attributes, facts.flag == BootFlag::Priority);
    let verdict = match facts.content {
        Content::Torn { .. } => return SlotState::Torn,
        Content::Whole(_, mark) => Some(mark.as_ref().map(|mark| mark.verdict)),
        Content::Nothing { .. } => None,
    };
    let selected = match facts.flag {
        BootFlag::Priority => attributes.priority() > 0,
        BootFlag::Legacy => attributes.legacy_bootable(),
        BootFlag::Efi => facts.chosen,
    };
    let unmarked = selected || facts.flag == BootFlag::Efi && facts.running;
    match verdict {
        _ if priority && attributes.successful() => SlotState::Good,
        _ if priority && selected && (attributes.tries() > 0 || facts.running) => SlotState::Trial,
        _ if priority && selected => SlotState::Bad,
        Some(Some(Verdict::Trying)) if facts.chosen => SlotState::Trial,
        Some(Some(Verdict::Failed | Verdict::Trying)) if !priority && facts.running => SlotState::Trial,
        Some(Some(Verdict::Bad | Verdict::Failed | Verdict::Trying)) if !selected => SlotState::Bad,
        Some(Some(Verdict::Good)) if !priority => SlotState::Good,
        Some(_) if unmarked => SlotState::Trial,
        Some(_) => SlotState::Prepared,
        None if unmarked => SlotState::Good,
        None => SlotState::Empty,
    }
}

impl SlotState {
    /// Whether the version of a running slot is shown: it is good, or on trial. One that was started past its flags, from
    /// a menu for instance, is no release that this machine has come to.
    pub const fn may_be_shown_running(self) -> bool {
        matches!(self, Self::Good | Self::Trial)
    }

    /// The word in tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Torn => "torn",
            Self::Prepared => "prepared",
            Self::Trial => "trial",
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

/// State of the upgrade in the v1 status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpgradeState {
    /// No upgrade is in progress.
    UpgradeIdle,
    /// A bundle is being staged.
    UpgradePreparing,
    /// A bundle is staged and verified.
    UpgradePrepared,
    /// The new slot is selected, and not marked good yet.
    UpgradeTrial,
}

/// Type of an upgrade; see [`crate::manual::verbs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpgradeType {
    /// Only the software image is staged; no reboot.
    SoftwareOnly,
    /// The platform differs from the running one: reboot into the new slot.
    SoftwareAndPlatform,
}

impl UpgradeType {
    /// The name on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SoftwareOnly => "SOFTWARE_ONLY",
            Self::SoftwareAndPlatform => "SOFTWARE_AND_PLATFORM",
        }
    }
}
