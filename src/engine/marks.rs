//! Marks of slots as the verbs write them: none loses the epoch that it remembers.

use super::Engine;
use super::view::{Held, View};
use crate::error::Result;
use crate::host::Access;
use crate::slot::{Mark, Verdict};
use crate::state::SlotState;
use crate::units::Group;

/// Why a good slot lost its flags when the other one was marked good.
pub(super) const NO_LATE_FALLBACK: &str = "the other slot is good, and prevent_late_fallback is set";

impl Engine<'_> {
    /// Writes the verdict on a slot into its mark, which keeps the epoch that it remembers. A slot without a record of ours
    /// has none.
    pub(super) fn set_mark(&self, held: &Held, verdict: Verdict, reason: &str) -> Result<()> {
        self.set_mark_at(held, verdict, reason, 0)
    }

    /// The same, with an epoch that has been good on this machine.
    pub(super) fn set_mark_at(&self, held: &Held, verdict: Verdict, reason: &str, epoch: u64) -> Result<()> {
        let Some(record) = held.record() else { return Ok(()) };
        let epoch = epoch.max(held.content.epoch());
        if held.mark().is_some_and(|old| old.verdict == verdict && old.epoch == epoch) {
            return Ok(());
        }
        let mark = Mark { epoch, ..Mark::new(verdict, reason) };
        let device = self.machine.open_partition(&held.partition, Access::Record)?;
        record.write_mark(&*device, Some(&mark), &held.partition.name)
    }

    /// The platform slot that nothing may fall back to any more once these are good; see
    /// [`Policy::prevent_late_fallback`](super::Policy::prevent_late_fallback).
    pub(super) fn late_fallback<'v>(&self, view: &'v View, good: &[&Held]) -> Option<&'v Held> {
        let platform = good.iter().find(|held| held.group == Group::Platform)?;
        let other = view.held(Group::Platform, !platform.slot)?;
        (self.policy.prevent_late_fallback && other.state == SlotState::Good && other.record().is_some())
            .then_some(other)
    }
}
