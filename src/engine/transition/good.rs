//! `mark-good`, and the tries and the verdict of a container that is well.

use super::super::epoch;
use super::super::remedy::remedy;
use super::super::view::{SlotView, View};
use super::{Act, Effect, Transition, mark_at, no_image, software, variables};
use crate::boot::RolledBackSlot;
use crate::error::{Error, Result};
use crate::slot::Verdict;
use crate::state::SlotState;
use crate::units::{Group, Slot};

/// Why a good slot lost its flags when the other one was marked good.
const NO_LATE_FALLBACK: &str = "the other slot is good, and prevent_late_fallback is set";

/// What is said where nothing is on trial.
fn nothing_on_trial(view: &View) -> Result<String> {
    let running = view.held(Group::Platform, view.booted()?);
    Ok(match running.filter(|held| held.state != SlotState::Good) {
        Some(held) => {
            format!("nothing to do: {} runs and is {}, not on trial", held.partition.name, held.state.word())
        }
        None => "nothing to do: what runs is good already".to_owned(),
    })
}

/// What runs on trial is good, or that platform slot is.
pub(super) fn mark_good(view: &View, slot: Option<Slot>) -> Result<Transition> {
    let candidates: Vec<&SlotView> = match slot {
        Some(slot) => view.held(Group::Platform, slot).into_iter().collect(),
        None => {
            view.booted()?;
            // The health of the machine says nothing of software that was not started.
            let runs = |held: &&SlotView| !view.awaits_reboot(held) && !view.is_unstarted(held);
            view.on_trial().filter(runs).collect()
        }
    };
    let mut flags = view.flags();
    let (mut names, mut turn) = (Vec::new(), None);
    for held in &candidates {
        if held.state == SlotState::Torn || held.state == SlotState::Empty {
            let problem = format!("{} holds nothing whole", held.partition.name);
            return Err(Error::NothingToMark { problem });
        }
        if slot.is_some() {
            view.slot_above_floor(held)?;
        }
        flags = flags.mark_good(held.group, held.slot)?;
        if held.group == Group::Platform {
            turn = view.turn(|choice| choice.keep(held.slot));
        }
        names.push(held.partition.name.clone());
    }
    if names.is_empty() && slot.is_none() {
        turn = view.unlisted().and_then(|slot| view.turn(|choice| choice.keep(slot)));
    }
    let floor = epoch::with(view, &candidates);
    let late = late_fallback(view, &candidates);
    if let Some(late) = late {
        flags = flags.make_unbootable(late.group, late.slot)?;
        turn = view.turn(|choice| choice.back(!late.slot, RolledBackSlot::Bad));
    }
    turn = turn.map(|turn| turn.store_epoch(floor));
    let done = match (names.is_empty(), slot) {
        (true, None) if turn.is_some() => "the slot that runs is good, and now in BootOrder".to_owned(),
        (true, _) => match view.on_trial().next() {
            Some(held) => {
                format!("nothing to do: {} has not been started yet; {}", held.partition.name, remedy(view))
            }
            None => nothing_on_trial(view)?,
        },
        (false, Some(_)) => format!("{} is good and selected", names.join(" and ")),
        (false, None) => format!("{} proved good", names.join(" and ")),
    };
    let marked: Vec<&SlotView> = candidates.iter().copied().chain(late).collect();
    let good = candidates.iter().filter_map(|held| mark_at(held, Verdict::Good, "marked good", floor));
    let marks: Vec<Act> = good.chain(epoch::raised(view, floor, &marked)).collect();
    // Before its flags go: without them and unmarked it looks like a prepared slot.
    let late = late.and_then(|late| mark_at(late, Verdict::Bad, NO_LATE_FALLBACK, floor));
    // The marks first: under legacy they are the only sign, and they say nothing before the slot is selected. In a trial
    // by kexec or BootNext nothing selects it: marked good before the flags it would look as if it had been left on purpose.
    let unselected = candidates.iter().any(|held| !view.is_selected(held));
    let (before, after) = if unselected { (Vec::new(), marks) } else { (marks, Vec::new()) };
    // BootOrder before all: a slot that is good and not in it would be left at the next boot.
    Ok(Transition::nothing(Effect::Nothing, done)
        .then(variables(turn))
        .then(before)
        .then(late)
        .then(view.table_act(flags))
        .then(after))
}

/// The platform slot that nothing may fall back to any more once these are good; see
/// [`Policy::prevent_late_fallback`](crate::Policy::prevent_late_fallback).
fn late_fallback<'v>(view: &'v View, good: &[&SlotView]) -> Option<&'v SlotView> {
    let platform = good.iter().find(|held| held.group == Group::Platform)?;
    let other = view.held(Group::Platform, !platform.slot)?;
    (view.policy.prevent_late_fallback && other.state == SlotState::Good && other.record().is_some())
        .then_some(other)
}

/// One start of a software slot on trial is counted before it is made.
pub(super) fn software_try(view: &View, slot: Slot) -> Result<Transition> {
    let held = software(view, slot)?;
    let none = Transition::nothing(Effect::Nothing, String::new());
    if held.attributes.successful() || held.attributes.tries() == 0 {
        return Ok(none);
    }
    Ok(none.then(view.table_act(view.flags().count_try(Group::Software, slot)?)))
}

/// The container of a software slot is healthy: the slot is good and selected.
pub(super) fn software_good(view: &View, slot: Slot) -> Result<Transition> {
    let held = software(view, slot)?;
    if held.record().is_none() {
        return Err(no_image(view, slot));
    }
    let done = format!("{} proved good", held.partition.name);
    let floor = epoch::with(view, &[held]);
    Ok(Transition::nothing(Effect::RestartSoftware, done)
        .then(mark_at(held, Verdict::Good, "its container is healthy", floor))
        .then(epoch::raised(view, floor, &[held]))
        .then(view.table_act(view.flags().mark_good(Group::Software, slot)?)))
}
