//! States of slots and upgrades; `report`: the objects that show them to operators and programs.

mod report;

pub use report::{
    BootEntry, DeltaReport, Obstacle, PlanReport, PlannedPayload, PrepareReport, SlotReport, SlotsReport,
    Status, SwitchReport,
};

use serde::{Deserialize, Serialize};

use crate::boot::BootFlag;
use crate::gpt::Attributes;
use crate::slot::{Content, Verdict};

/// What a slot is, derived from its boot flags and its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Nothing whole is in it.
    Empty,
    /// A prepare began and did not end: running it again completes it.
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

/// All that decides what a slot is.
pub struct Evidence<'a> {
    /// Its attributes in the partition table.
    pub attributes: Attributes,
    /// Which of them rule its group.
    pub flag: BootFlag,
    /// Whether something else than flags takes it next: the firmware, by BootNext or as the first in BootOrder
    /// (`efi`); or a kernel that is loaded for kexec.
    pub chosen: bool,
    /// What it says of itself.
    pub content: &'a Content,
    /// Whether this machine runs from it.
    pub running: bool,
}

/// What a slot is.
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
/// Under `legacy` bit 2 says only what boots, and the mark of the slot says whether it proved good. A slot that
/// boots without a record of ours was installed by other means, and is taken for good. One that is marked bad and
/// still selected is one whose roll-back was cut short: it is on trial until that is done. Under `efi` it is the same,
/// with what the firmware chooses for the bit.
///
/// A trial of one boot, by BootNext or by kexec, has no flag while it runs: the slot that is marked so is on trial while it
/// runs or is about to, and has failed when it does neither. BootNext comes before its mark: a slot that runs by `efi`
/// and is not marked is on trial too.
pub fn slot_state(evidence: &Evidence<'_>) -> SlotState {
    let (attributes, priority) = (evidence.attributes, evidence.flag == BootFlag::Priority);
    let verdict = match evidence.content {
        Content::Torn { .. } => return SlotState::Torn,
        Content::Whole(_, mark) => Some(mark.as_ref().map(|mark| mark.verdict)),
        Content::Nothing { .. } => None,
    };
    let selected = match evidence.flag {
        BootFlag::Priority => attributes.priority() > 0,
        BootFlag::Legacy => attributes.legacy_bootable(),
        BootFlag::Efi => evidence.chosen,
    };
    let unmarked = selected || evidence.flag == BootFlag::Efi && evidence.running;
    match verdict {
        _ if priority && attributes.successful() => SlotState::Good,
        _ if priority && selected && (attributes.tries() > 0 || evidence.running) => SlotState::Trial,
        _ if priority && selected => SlotState::Bad,
        Some(Some(Verdict::Trying)) if evidence.chosen => SlotState::Trial,
        Some(Some(Verdict::Failed | Verdict::Trying)) if !priority && evidence.running => SlotState::Trial,
        Some(Some(Verdict::Bad | Verdict::Failed | Verdict::Trying)) if !selected => SlotState::Bad,
        Some(Some(Verdict::Good)) if !priority => SlotState::Good,
        Some(_) if unmarked => SlotState::Trial,
        Some(_) => SlotState::Prepared,
        None if unmarked => SlotState::Good,
        None => SlotState::Empty,
    }
}

impl SlotState {
    /// The word that tables and JSON show.
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

/// State of the upgrade as the v1 status names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpgradeState {
    /// Nothing is under way.
    UpgradeIdle,
    /// A bundle is being staged.
    UpgradePreparing,
    /// A bundle is staged and verified.
    UpgradePrepared,
    /// The new slot is selected; it has not been marked good.
    UpgradeTrial,
}

/// What an upgrade would be; see [`crate::manual::verbs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpgradeType {
    /// Only the software image is staged; no reboot.
    SoftwareOnly,
    /// The platform differs from the running one: reboot into the new slot.
    SoftwareAndPlatform,
}
