//! Before a slot is written: no flag lets it boot, and it does not look prepared.

use super::super::checks::blocked;
use super::super::view::{SlotView, View};
use super::{Act, Effect, Transition, mark, variables};
use crate::error::Result;
use crate::slot::Verdict;
use crate::state::SlotState;
use crate::units::{Group, Slot};

/// Makes the targets unbootable, durably and in one switch, and voids what an earlier bundle prepared in the other group:
/// it must not be committed together with this one.
///
/// Before that they are marked bad. Without its flags a slot that once booted, and is whole, looks as if it had just
/// been prepared; a power cut before its footer is torn would let `commit` select an old release.
pub(in crate::engine) fn withdraw(view: &View, targets: &[(Group, Slot)]) -> Result<Transition> {
    let out = out(view, targets, "being replaced")?;
    let stale = Group::BOTH.into_iter().filter(|group| !targets.iter().any(|(target, _)| target == group));
    let stale = stale.filter_map(|group| {
        let held = view.held(group, view.target(group).ok()?)?;
        let half = matches!(held.state, SlotState::Prepared | SlotState::Torn);
        half.then_some(Act::Void(group, held.slot))
    });
    Ok(out.then(stale))
}

/// Voids the platform slot that does not run, as before a prepare. The record last: a slot that may still boot must not
/// lose it.
pub(in crate::engine) fn lend(view: &View) -> Result<Transition> {
    if let Some(obstacle) = blocked(view) {
        return Err(obstacle);
    }
    let slot = view.target(Group::Platform)?;
    let out = out(view, &[(Group::Platform, slot)], "lent for a measurement")?;
    Ok(out.then([Act::Void(Group::Platform, slot)]))
}

fn out(view: &View, targets: &[(Group, Slot)], reason: &str) -> Result<Transition> {
    let mut flags = view.flags();
    for (group, slot) in targets {
        flags = flags.make_unbootable(*group, *slot)?;
    }
    let held = targets.iter().filter_map(|(group, slot)| view.held(*group, *slot));
    let marks =
        held.filter(|held| SlotView::is_unjudged(held)).filter_map(|held| mark(held, Verdict::Bad, reason));
    let platform = targets.iter().find(|(group, _)| *group == Group::Platform);
    let turn = platform.and_then(|(_, slot)| view.turn(|choice| choice.withdraw(*slot)));
    Ok(Transition::nothing(Effect::Nothing, String::new())
        .then(marks)
        .then(variables(turn))
        .then(view.table_act(flags)))
}
