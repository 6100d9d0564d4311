//! The epoch floor: the highest epoch that was ever marked good on this machine. Nothing below it is prepared, committed or
//! rolled back to without a flag that only a local root can give ([`Policy::allow_epoch_rollback`](super::Policy::allow_epoch_rollback)).
//!
//! It is remembered in the marks of the slots, each of which survives what happens to the other one and to `/var`, and in an
//! EFI variable where EFI variables rule, which survives a new installation of both. The highest of all counts. A mark
//! that cannot be read any more, or one that an older release has written, says nothing, and takes nothing away.

use super::transition::Act;
use super::view::{SlotView, View};
use crate::bundle::manifest::ManifestFields;
use crate::error::{Error, Result};
use crate::slot::{Content, Mark, Verdict};
use crate::state::SlotState;
use crate::units::Group;

impl SlotView {
    /// The epoch that this slot records: that of its mark, and its own if it is good.
    fn testifies(&self) -> u64 {
        let own = self.record().filter(|_| self.state == SlotState::Good);
        self.content.epoch().max(own.map_or(0, |record| record.manifest.epoch))
    }
}

impl View {
    /// The highest epoch that was ever marked good here, by the records of slots and UEFI; 0 if there is none.
    pub(super) fn floor(&self) -> u64 {
        let variable = self.efi.as_ref().map_or(0, |choice| choice.nvram().epoch());
        self.all().iter().map(SlotView::testifies).fold(variable, u64::max)
    }

    /// Refuses a release that is below the floor.
    ///
    /// # Errors
    /// [`Error::Epoch`].
    pub(super) fn above_floor(&self, claims: &ManifestFields) -> Result<()> {
        let (epoch, floor) = (claims.epoch, self.floor());
        if epoch >= floor || self.policy.allow_epoch_rollback {
            return Ok(());
        }
        Err(Error::Epoch { version: claims.version.clone(), epoch, floor })
    }

    /// The same for what a slot holds; one without a record is of no epoch.
    ///
    /// # Errors
    /// [`Error::Epoch`].
    pub(super) fn slot_above_floor(&self, held: &SlotView) -> Result<()> {
        if let Some(record) = held.record() {
            return self.above_floor(&record.manifest);
        }
        let floor = self.floor();
        if floor == 0 || self.policy.allow_epoch_rollback {
            return Ok(());
        }
        Err(Error::Epoch { version: held.partition.name.clone(), epoch: 0, floor })
    }

    /// Why the running slots cannot be compared with: an obstacle of its own, never a permission. A slot whose end was
    /// never written was installed by other means, and is no obstacle as long as nothing here remembers a release of ours.
    pub(super) fn running_unknown(&self) -> Option<Error> {
        let found = |group: Group| {
            let held = self.held(group, self.in_service(group)?)?;
            let found = match &held.content {
                Content::Whole(..) => return None,
                Content::Torn { .. } => "a prepare has begun to overwrite it".to_owned(),
                // Software that nothing selects does not run; it is only where the first image will go.
                Content::Nothing { .. } if group == Group::Software && held.state == SlotState::Empty => {
                    return None;
                }
                Content::Nothing { why, traces, .. } if *traces || self.floor() > 0 => why.clone(),
                Content::Nothing { .. } => return None,
            };
            Some(Error::RunningUnknown { partition: held.partition.name.clone(), found })
        };
        if self.policy.allow_epoch_rollback { None } else { Group::BOTH.into_iter().find_map(found) }
    }
}

/// The acts that raise the floor in the marks of all slots that have one, but for those that are about to be marked
/// themselves. Where all say so already, there is none.
///
/// Each is one write of one block. A cut within it costs that mark, which is that of a slot below the floor: what it
/// could be used for is what the floor forbids.
pub(super) fn raised<'v>(
    view: &'v View,
    epoch: u64,
    but: &[&SlotView],
) -> impl Iterator<Item = Act> + use<'v> {
    let but: Vec<_> = but.iter().map(|held| (held.group, held.slot)).collect();
    let below = move |held: &&SlotView| held.testifies() < epoch && !but.contains(&(held.group, held.slot));
    view.all().iter().filter(below).filter_map(move |held| {
        held.record()?;
        let mark = match (held.mark(), held.state) {
            (Some(mark), _) => mark.clone(),
            // Good by its flags alone: a mark says the same.
            (None, SlotState::Good) => Mark::new(Verdict::Good, "marked good"),
            (None, _) => return None,
        };
        Some(Act::Mark(held.group, held.slot, Some(Mark { epoch, ..mark })))
    })
}

/// The floor after these slots have been marked good.
pub(super) fn with(view: &View, good: &[&SlotView]) -> u64 {
    let epochs = good.iter().filter_map(|held| Some(held.record()?.manifest.epoch));
    epochs.fold(view.floor(), u64::max)
}
