//! The ways back: `roll-back`, `cancel`, failed trials, and the record of a fallback that happened by itself.

use super::super::remedy::remedy;
use super::super::view::{SlotView, View};
use super::{Act, Effect, Transition, counts, mark, software, variables};
use crate::boot::RolledBackSlot;
use crate::error::{Error, Remedy, Result};
use crate::slot::{Mark, Verdict};
use crate::state::SlotState;
use crate::units::{Group, Slot};

/// The reason for a roll-back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Requester {
    /// An operator wants the other release.
    ByOperator,
    /// A trial fails: back to what ran before, as the boot loader would do by itself.
    ByTrial,
}

/// Back to the other slot. The marks first: without its flags and unmarked a failed slot looks like a prepared one, and a
/// power cut in between would have it committed again.
pub(super) fn roll_back(view: &View, reason: Option<&str>, asked: Requester) -> Result<Transition> {
    view.check_known()?;
    let trial = |group: Group| view.on_trial().any(|held| held.group == group);
    let groups = if trial(Group::Software) && !trial(Group::Platform) {
        vec![Group::Software]
    } else if software_follows(view) {
        vec![Group::Platform, Group::Software]
    } else {
        vec![Group::Platform]
    };
    let effect = if groups.contains(&Group::Platform) { Effect::Reboot } else { Effect::RestartSoftware };
    let mut flags = view.flags();
    let (mut names, mut left, mut turn) = (Vec::new(), Vec::new(), None);
    for group in groups {
        let (from, to) = way_back(view, group)?;
        if asked == Requester::ByOperator {
            view.slot_above_floor(to)?;
        }
        let leave = match from.state {
            SlotState::Good => RolledBackSlot::Fallback,
            _ => RolledBackSlot::Bad,
        };
        flags = flags.roll_back(group, to.slot, leave)?;
        names.push(to.partition.name.clone());
        if group == Group::Platform {
            turn = view.turn(|choice| choice.back(to.slot, leave));
        }
        left.extend((leave == RolledBackSlot::Bad).then_some(from));
    }
    let marks = left.into_iter().filter_map(|held| match reason {
        Some(reason) => mark(held, Verdict::Failed, reason),
        None => mark(held, Verdict::Bad, "rolled back while on trial"),
    });
    let because = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    let done = format!("rolled back to {}{because}", names.join(" and "));
    Ok(Transition::nothing(effect, done).then(marks).then(variables(turn)).then(view.table_act(flags)))
}

/// The slot that is selected in a group and the good one to return to.
fn way_back(view: &View, group: Group) -> Result<(&SlotView, &SlotView)> {
    let none = |problem: String| Error::NoFallback { problem };
    let from = view.current(group).ok_or_else(|| none(format!("no {group} slot is selected")))?;
    let pair = view.held(group, from).zip(view.held(group, !from));
    let (from, to) = pair.ok_or_else(|| none(format!("the disk has no {group} slots")))?;
    good(view, to)?;
    Ok((from, to))
}

/// Refuses to return to a slot that is not good.
fn good(view: &View, to: &SlotView) -> Result<()> {
    if to.state == SlotState::Good {
        return Ok(());
    }
    let on_trial = view.on_trial().next().is_some();
    let remedy = match to.state {
        _ if on_trial && view.pending() => "reboot to start what is selected".to_owned(),
        _ if on_trial => "mark good what runs, then install another release".to_owned(),
        // Of what runs and is bad, the way back is already selected.
        _ if view.in_service(to.group) == Some(to.slot) => {
            format!("slot {} is selected already, reboot into it", !to.slot)
        }
        SlotState::Prepared | SlotState::Torn => "'qstage cancel' discards it".to_owned(),
        _ => "another release is installed by 'qstage prepare'".to_owned(),
    };
    let problem = format!("{} is {}, not known to be good; {remedy}", to.partition.name, to.state.word());
    Err(Error::NoFallback { problem })
}

/// Whether the other software slot is good and belongs to the platform that a roll-back returns to.
fn software_follows(view: &View) -> bool {
    let (Ok((_, platform)), Ok((from, to))) =
        (way_back(view, Group::Platform), way_back(view, Group::Software))
    else {
        return false;
    };
    match (platform.record(), from.record(), to.record()) {
        (Some(platform), Some(from), Some(to)) => {
            to.manifest.runs_on(&platform.manifest) && !from.manifest.runs_on(&platform.manifest)
        }
        _ => false,
    }
}

/// Discards what was prepared, and deselects what has not been started; or undoes a roll-back before its reboot.
pub(super) fn cancel(view: &View) -> Result<Transition> {
    cancellation(view)?.ok_or_else(|| {
        let trial = view.on_trial().next().map(|held| format!("{} is on trial", held.partition.name));
        let problem = match (trial, remedy(view)) {
            (Some(trial), remedy) => format!("{trial}; {remedy}"),
            (None, remedy @ Remedy::Reboot { .. }) => format!("nothing is prepared; {remedy}"),
            (None, _) => "nothing is prepared".to_owned(),
        };
        Error::NothingToCancel { problem }
    })
}

/// The same; `None` where there is nothing to undo. Its own function, since the remedy of that refusal depends on it.
pub(in crate::engine) fn cancellation(view: &View) -> Result<Option<Transition>> {
    view.booted()?;
    let mut flags = view.flags();
    let (mut discard, mut names, mut turn) = (Vec::new(), Vec::new(), None);
    for held in view.all() {
        let selected = held.state == SlotState::Trial && view.awaits_reboot(held);
        if selected {
            let (_, to) = way_back(view, held.group)?;
            if held.group == Group::Platform {
                turn = view.turn(|choice| choice.back(to.slot, RolledBackSlot::Bad));
            }
            flags = flags.roll_back(held.group, to.slot, RolledBackSlot::Bad)?;
        }
        if selected || matches!(held.state, SlotState::Prepared | SlotState::Torn) {
            discard.push(Act::Void(held.group, held.slot));
            names.push(held.partition.name.clone());
        }
    }
    let mut stay = Vec::new();
    for group in Group::BOTH {
        let good = |slot: &Slot| view.held(group, *slot).filter(|held| held.state == SlotState::Good);
        let pair = view.next(group).zip(view.in_service(group)).filter(|(next, running)| next != running);
        if let Some((_, running)) = pair.filter(|(next, _)| good(next).is_some())
            && let Some(held) = good(&running)
        {
            if group == Group::Platform {
                turn = view.turn(|choice| choice.back(running, RolledBackSlot::Fallback));
            }
            flags = flags.roll_back(group, running, RolledBackSlot::Fallback)?;
            stay.push(held.partition.name.clone());
        }
    }
    let done = match (discard.is_empty(), stay.is_empty()) {
        (false, _) => format!("discarded what was prepared in {}", names.join(" and ")),
        (true, false) if stay.len() == 1 => format!("{} stays selected", stay.concat()),
        (true, false) => format!("{} stay selected", stay.join(" and ")),
        (true, true) => return Ok(None),
    };
    // The flags first: a slot that is still selected must not lose its record.
    let acts = Transition::nothing(Effect::Nothing, done).then(variables(turn));
    Ok(Some(acts.then(view.table_act(flags)).then(discard)))
}

/// Writes the reason of a failed trial into the mark of the running slot; and rolls back, if the trial is over and no loader
/// counts tries.
pub(super) fn trial_failed(view: &View, reason: Option<&str>) -> Result<Transition> {
    // A single check may be run by hand; only a caller that is about to reboot ends the trial.
    let ended = reason.is_none();
    let slot = view.booted()?;
    let held = view.held(Group::Platform, slot).filter(|held| held.state == SlotState::Trial);
    let held = held.ok_or(Error::NoTrial)?;
    let tries_left = held.attributes.tries();
    let told = held.mark().filter(|mark| mark.verdict == Verdict::Failed && mark.tries_left == tries_left);
    let reason = match (reason, told) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(mark)) => mark.reason.clone(),
        (None, None) => "it did not become healthy".to_owned(),
    };
    let done = format!("{} fails its trial: {reason}", held.partition.name);
    let new = Mark { verdict: Verdict::Failed, reason, tries_left, epoch: held.content.epoch() };
    let act = (held.record().is_some() && held.mark() != Some(&new))
        .then(|| Act::Mark(held.group, held.slot, Some(new.clone())));
    let failed = Transition::nothing(Effect::Nothing, done).then(act);
    if !ended || counts(view) || !view.is_selected(held) {
        return Ok(failed);
    }
    let after = view.after(&failed.acts)?;
    Ok(failed.then(roll_back(&after, Some(&new.reason), Requester::ByTrial)?.acts))
}

/// Moves the selection from a software slot whose container fails to the other one, which must be good.
pub(super) fn software_back(view: &View, from: Slot, reason: &str) -> Result<Transition> {
    let (left, to) = (software(view, from)?, software(view, !from)?);
    good(view, to)?;
    let flags = view.flags().roll_back(Group::Software, to.slot, RolledBackSlot::Bad)?;
    let done = format!("rolled back to {}: {reason}", to.partition.name);
    Ok(Transition::nothing(Effect::RestartSoftware, done)
        .then(mark(left, Verdict::Failed, reason))
        .then(view.table_act(flags)))
}

/// Records a fallback that the boot loader or the firmware made by itself: first the reason in the mark of each failed slot,
/// then, in one transaction, their flags are cleared and the running slots selected. Until then the flags of the software
/// still select the slot whose platform fell back. `None`: no slot failed.
pub(in crate::engine) fn settle(view: &View) -> Result<Option<Transition>> {
    let Ok(booted) = view.booted() else { return Ok(None) };
    let good =
        |group, slot| view.held(group, slot).is_some_and(|held: &SlotView| held.state == SlotState::Good);
    let failed: Vec<&SlotView> = view
        .all()
        .iter()
        .filter(|held| view.spent(held) || held.fell)
        .filter(|held| good(held.group, !held.slot))
        .filter(|held| held.group == Group::Software || held.slot != booted)
        .collect();
    if failed.is_empty() {
        return Ok(None);
    }
    let (mut flags, mut turn) = (view.flags(), None);
    for held in &failed {
        if held.group == Group::Platform {
            turn = view.turn(|choice| choice.back(!held.slot, RolledBackSlot::Bad));
        }
        flags = flags.roll_back(held.group, !held.slot, RolledBackSlot::Bad)?;
    }
    // The marks first: without its flags and unmarked a failed slot looks like a prepared one.
    let marks = failed.iter().filter_map(|held| mark(held, Verdict::Failed, &view.failure(held)?));
    let settled = Transition::nothing(Effect::Nothing, String::new()).then(marks);
    Ok(Some(settled.then(variables(turn)).then(view.table_act(flags))))
}
