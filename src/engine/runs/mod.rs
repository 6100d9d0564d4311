//! What runs: the one answer, by the view alone.
//!
//! | platform | by |
//! |---|---|
//! | that slot | the caller, the kernel, or the firmware says it |
//! | of a disk image the slot that boots next, if it is good | nothing runs from an image |
//! | unknown | none says it |
//!
//! | software | by |
//! |---|---|
//! | a slot on trial | it is in use and the other one is not; the caller has started it; its platform runs on trial |
//! | a good slot | it is selected beside the platform that runs; or the other one is, and is not known to have been started |
//! | unknown | the platform is; or neither of the above |
//!
//! A flag selects a slot; it is never evidence by itself that the slot runs.

use super::view::{SlotView, View};
use crate::state::{KnownBy, RunningSlot, Runs, SlotState};
use crate::units::{Group, Slot};

impl View {
    /// What runs of platform and software.
    pub(super) fn runs(&self) -> Runs {
        let platform = platform(self);
        Runs { software: software(self, &platform), platform }
    }

    /// The version that runs in a group; `None` where that is not known, or its slot has no record.
    pub(super) fn running_version(&self, group: Group) -> Option<&str> {
        let held = self.held(group, self.runs().of(group).slot()?)?;
        let record = held.record().filter(|_| held.state.may_be_shown_running())?;
        Some(&record.manifest.version)
    }
}

fn platform(view: &View) -> RunningSlot {
    let next = || view.in_service(Group::Platform).and_then(|slot| view.held(Group::Platform, slot));
    if let Some((slot, by)) = view.evident() {
        return RunningSlot::Known(slot, by);
    }
    if let Some(why) = view.unknown() {
        return RunningSlot::Unknown(why.to_owned());
    }
    match next() {
        Some(held) if held.state == SlotState::Good => RunningSlot::Known(held.slot, KnownBy::Image),
        Some(held) => RunningSlot::Unknown(format!(
            "{} is {}, and nothing runs from a disk image",
            held.partition.name,
            held.state.word()
        )),
        None => RunningSlot::Unknown("no platform slot boots".to_owned()),
    }
}

fn software(view: &View, platform: &RunningSlot) -> RunningSlot {
    let unknown = |why: String| RunningSlot::Unknown(why);
    let on_trial =
        |slot: &Slot| view.held(Group::Software, *slot).is_some_and(|held| held.state == SlotState::Trial);
    if let Some(slot) = view.in_use_alone().filter(on_trial) {
        return RunningSlot::Known(slot, KnownBy::Use);
    }
    let RunningSlot::Known(booted, by) = platform else {
        return unknown("which platform slot runs is not known".to_owned());
    };
    let Some(held) = view.in_service(Group::Software).and_then(|slot| view.held(Group::Software, slot))
    else {
        return unknown("no software slot is selected".to_owned());
    };
    let name = &held.partition.name;
    match held.state {
        SlotState::Good if *by == KnownBy::Image => RunningSlot::Known(held.slot, KnownBy::Image),
        SlotState::Good => RunningSlot::Known(held.slot, KnownBy::Selected),
        SlotState::Trial if view.is_started(held) => RunningSlot::Known(held.slot, KnownBy::Caller),
        SlotState::Trial if came_up_with(view, held, *booted) => {
            RunningSlot::Known(held.slot, KnownBy::Platform)
        }
        SlotState::Trial => {
            let before = view.held(Group::Software, !held.slot);
            match before.filter(|before| before.state == SlotState::Good) {
                Some(before) => RunningSlot::Known(before.slot, KnownBy::Before),
                None => {
                    unknown(format!("{name} is selected on trial, and nothing shows that it was started"))
                }
            }
        }
        state => unknown(format!("{name} is {}", state.word())),
    }
}

/// Whether software on trial was started by the boot that started its platform on trial.
fn came_up_with(view: &View, software: &SlotView, booted: Slot) -> bool {
    let platform = view.held(Group::Platform, booted).filter(|held| held.state == SlotState::Trial);
    let records = platform.and_then(SlotView::record).zip(software.record());
    records.is_some_and(|(platform, software)| software.manifest.runs_on(&platform.manifest))
}

#[cfg(test)]
mod sampled_tests;
#[cfg(test)]
mod tests;
