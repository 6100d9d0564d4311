//! The verbs where EFI variables say what boots. The platform's part of a switch is then a [`VariablePlan`] of variables, beside the
//! table, which still selects the software.
//!
//! Both cannot change in one instant, so their order is chosen by the state that a cut between them leaves. `commit`: the
//! table first, then BootNext; a software slot whose platform does not run is not started. All other verbs: the
//! variables first. Either way the old pair runs, or the new one on trial, and the verb run again ends it.

use super::view::View;
use crate::efi::{EfiBoot, VariablePlan};
use crate::state::{BootEntry, SlotState};
use crate::units::{Group, Slot};

impl View {
    /// A change of the EFI variables; `None`: they do not determine what boots.
    pub(super) fn turn(&self, change: impl FnOnce(&EfiBoot) -> VariablePlan) -> Option<VariablePlan> {
        self.efi.as_ref().map(change)
    }

    /// Whether the firmware takes that platform slot.
    pub(super) fn is_chosen(&self, slot: Slot) -> bool {
        self.efi.as_ref().is_some_and(|choice| choice.pending() == Some(slot) || choice.first() == Some(slot))
    }

    /// The good slot that runs although the firmware knows neither slot: on a new machine, and after a reset of its
    /// settings. It has found the slot by itself, as it would find the other one another time.
    pub(super) fn unlisted(&self) -> Option<Slot> {
        let slot = self
            .in_service(Group::Platform)
            .filter(|_| self.efi.as_ref().is_some_and(|c| c.next().is_none()))?;
        self.held(Group::Platform, slot).filter(|held| held.state == SlotState::Good).map(|held| held.slot)
    }

    /// The boot entry of a platform slot.
    pub(super) fn boot_entry(&self, group: Group, slot: Slot) -> Option<BootEntry> {
        let choice = self.efi.as_ref().filter(|_| group == Group::Platform)?;
        let (number, option) = choice.entry(slot)?;
        let nvram = choice.nvram();
        Some(BootEntry {
            name: format!("Boot{number:04X}"),
            description: option.description(),
            file: option.file(),
            active: option.is_active(),
            place: nvram.order().iter().position(|other| *other == number).map(|place| place + 1),
            next: nvram.next() == Some(number),
        })
    }

    /// Foreign entries that the firmware takes before ours.
    pub(super) fn boot_before(&self) -> Vec<String> {
        let before = self.efi.as_ref().map(EfiBoot::foreign_before).unwrap_or_default();
        before.iter().map(|(number, option)| format!("Boot{number:04X} {}", option.description())).collect()
    }
}
