//! Stages of an upgrade: prepare, commit, and the reboot of all nodes at once.
//!
//! ```text
//!   IDLE ─▶ PREPARING ─▶ PREPARED ─┬▶ Gate ─▶ Swap ──────────┬▶ COMMITTED ─▶ IDLE                software
//!             │            ▲       │    │       └▶ SwapBack ─┐ │
//!             └▶ IDLE      └───────┼────┴────────────────────┤ │
//!                          └───────┴▶ Flip ─────────────────┬┼─┴▶ COMMITTED ─▶ REBOOTING ─┬▶ Keep ───▶ IDLE
//!                                      └▶ FlipBack ──────────┘                            └▶ Return ─▶ IDLE
//! ```
//!
//! A rolling upgrade goes directly from PREPARED to COMMITTED: each node selects the new slot at its own turn.

use super::action::{Action, put_reboot, put_upgrade};
use super::group::group;
use super::state::{BootId, NodeId, Outcome, Reboot, RebootState, Stage, Standing, Upgrade};
use super::store::{Key, Value, Write};
use super::view::{View, names};
use crate::state::UpgradeType;

/// Growth of the progress, in percent, that is written: at most twenty writes per upgrade, whatever the number of nodes.
const STEP: u8 = 5;
/// Maximum number of writes that count the nodes that are back from a complete reboot: each is sent to all nodes, and makes those
/// whose turn has not begun try again.
const COUNTS: usize = 20;

pub(super) fn next(view: &View) -> Action {
    let upgrade = &view.upgrade;
    let to = |stage: Stage| write(view, Upgrade { stage, ..upgrade.clone() });
    let fail =
        |stage: Stage, error: String| write(view, Upgrade { stage, error: Some(error), ..upgrade.clone() });
    match upgrade.stage {
        Stage::Idle => plain_reboot(view),
        Stage::Preparing => match trouble(view) {
            Some(error) => fail(Stage::Idle, error),
            None => preparing(view),
        },
        Stage::Prepared => Action::Wait("a commit, or a cancel".to_owned()),
        // Nothing was stopped for the gate, so there is nothing to undo.
        Stage::Gate => match trouble(view).or_else(|| overdue(view, &[Outcome::Ready])) {
            Some(error) => prepared_again(view, error),
            None => when_all(view, &Outcome::Ready, || to(Stage::Swap)),
        },
        Stage::Swap => match trouble(view).or_else(|| overdue(view, &[Outcome::Switched])) {
            Some(error) => fail(Stage::SwapBack, error),
            None => when_all(view, &Outcome::Switched, || to(Stage::Committed)),
        },
        Stage::Flip => match trouble(view).or_else(|| overdue(view, &[Outcome::Switched])) {
            Some(error) => fail(Stage::FlipBack, error),
            None => when_all(view, &Outcome::Switched, || to(Stage::Committed)),
        },
        Stage::SwapBack | Stage::FlipBack => {
            let waiting = undone(view);
            if waiting.is_empty() {
                prepared_again(view, upgrade.error.clone().unwrap_or_default())
            } else {
                Action::Wait(format!("{} to go back", names(waiting)))
            }
        }
        Stage::Committed => committed(view),
        Stage::Rebooting => rebooting(view),
        Stage::Keep => match trouble(view) {
            // All run it, and some have marked it good already: there is no way back. A node that has not returns by itself.
            Some(error) => end(view, Some(error)),
            None => when_all(view, &Outcome::Kept, || end(view, None)),
        },
        Stage::Return => {
            let waiting = undone(view);
            if waiting.is_empty() {
                end(view, upgrade.error.clone())
            } else {
                Action::Wait(format!("{} to return", names(waiting)))
            }
        }
    }
}

/// First stage of a commit.
pub(super) const fn first_stage(upgrade_type: UpgradeType, rolling: bool) -> Stage {
    match (upgrade_type, rolling) {
        (UpgradeType::SoftwareOnly, _) => Stage::Gate,
        (UpgradeType::SoftwareAndPlatform, false) => Stage::Flip,
        (UpgradeType::SoftwareAndPlatform, true) => Stage::Committed,
    }
}

fn write(view: &View, upgrade: Upgrade) -> Action {
    Action::Write(view.driven(vec![put_upgrade(upgrade)]))
}

/// First node that failed or is lost, and why.
fn trouble(view: &View) -> Option<String> {
    let failed = view.members.iter().find_map(|node| match view.outcomes.get(node) {
        Some(Outcome::Failed(why)) => Some(format!("{node}: {why}")),
        _ => None,
    });
    let lost = || view.members.iter().find(|node| view.lost.contains(node));
    failed.or_else(|| lost().map(|node| format!("{node}: it is away")))
}

/// Members without any of these outcomes.
fn without(view: &View, wanted: &[Outcome]) -> Vec<NodeId> {
    let has = |node: &NodeId| view.outcomes.get(node).is_some_and(|outcome| wanted.contains(outcome));
    view.members.iter().filter(|node| !has(node)).copied().collect()
}

fn overdue(view: &View, wanted: &[Outcome]) -> Option<String> {
    let waiting = without(view, wanted);
    (view.overdue && !waiting.is_empty()).then(|| format!("{}: not ready in time", names(waiting)))
}

fn when_all(view: &View, wanted: &Outcome, then: impl FnOnce() -> Action) -> Action {
    let waiting = without(view, std::slice::from_ref(wanted));
    if waiting.is_empty() { then() } else { Action::Wait(names(waiting)) }
}

/// Nodes that have not undone their part yet. A lost node is not among them: it undoes its part when it starts and sees the
/// stage.
fn undone(view: &View) -> Vec<NodeId> {
    let undone = |node: &NodeId| match view.outcomes.get(node) {
        Some(Outcome::Undone | Outcome::Failed(_)) => true,
        _ => view.lost.contains(node),
    };
    view.members.iter().filter(|node| !undone(node)).copied().collect()
}

fn preparing(view: &View) -> Action {
    let upgrade = &view.upgrade;
    let waiting = without(view, &[Outcome::Prepared]);
    if waiting.is_empty() {
        let commits = upgrade.order.as_ref().filter(|order| order.auto_commit);
        let stage = commits.map_or(Stage::Prepared, |order| first_stage(order.upgrade_type, order.rolling));
        return write(view, Upgrade { stage, progress: 100, ..upgrade.clone() });
    }
    let slowest = waiting.iter().map(|node| view.alive.get(node).map_or(0, |alive| alive.progress)).min();
    // At most 99 until all have reported, and never less than was shown before.
    let progress = slowest.unwrap_or_default().min(99);
    if progress >= upgrade.progress.saturating_add(STEP) {
        return write(view, Upgrade { progress, ..upgrade.clone() });
    }
    Action::Wait(names(waiting))
}

/// Returns to the state before the commit, prepared on all nodes. The commit is tried again only after a new order.
fn prepared_again(view: &View, error: String) -> Action {
    let mut upgrade = Upgrade { stage: Stage::Prepared, error: Some(error), ..view.upgrade.clone() };
    if let Some(order) = &mut upgrade.order {
        order.auto_commit = false;
    }
    // The outcome of this commit must not affect the next one.
    let outcome =
        |node: &NodeId| Write::Put(Key::Outcome(upgrade.id, *node), Value::Outcome(Outcome::Prepared), None);
    let mut writes: Vec<Write> = view.members.iter().map(outcome).collect();
    writes.push(put_upgrade(upgrade));
    Action::Write(view.driven(writes))
}

fn committed(view: &View) -> Action {
    let upgrade = &view.upgrade;
    let Some(order) = &upgrade.order else { return end(view, None) };
    if order.upgrade_type == UpgradeType::SoftwareOnly {
        return end(view, None);
    }
    let mut reboot = Reboot {
        state: RebootState::InProgress,
        rolling: order.rolling,
        upgrade_initiated: true,
        // An automatic commit has not decided it before.
        group: upgrade.group.or_else(|| group(view, order.nodes).ok()).unwrap_or(1),
        attempt: view.reboot.attempt,
        ..Reboot::default()
    };
    if order.rolling {
        reboot.todo = in_turn(view);
    } else {
        reboot.current = all_now(view);
    }
    let upgrade = Upgrade { stage: Stage::Rebooting, ..upgrade.clone() };
    Action::Write(view.driven(vec![put_upgrade(upgrade), put_reboot(reboot)]))
}

/// All nodes, with the leader last.
pub(super) fn in_turn(view: &View) -> Vec<NodeId> {
    let leader = view.leader.map(|(node, _)| node);
    let mut all: Vec<NodeId> = view.members.iter().copied().collect();
    all.sort_by_key(|node| Some(*node) == leader);
    all
}

/// All nodes with their present boot. A node that is away has none, so that any boot of it counts as a new one.
pub(super) fn all_now(view: &View) -> Vec<(NodeId, BootId)> {
    let boot = |node: &NodeId| view.alive.get(node).map_or(BootId(0), |alive| alive.boot);
    view.members.iter().map(|node| (*node, boot(node))).collect()
}

/// Nodes of a complete reboot that are back, and those that are not.
fn back(view: &View) -> (Vec<NodeId>, Vec<NodeId>) {
    let is_back = |(node, before): &&(NodeId, BootId)| {
        view.alive.get(node).is_some_and(|alive| alive.boot != *before && !alive.leaving)
    };
    let (back, away): (Vec<&(NodeId, BootId)>, Vec<_>) = view.reboot.current.iter().partition(is_back);
    (back.iter().map(|node| node.0).collect(), away.iter().map(|node| node.0).collect())
}

/// Next action while all nodes reboot at once: one verdict decides for all.
fn rebooting(view: &View) -> Action {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let (back, away) = back(view);
    let wrong = back.iter().find_map(|node| {
        let alive = view.alive.get(node)?;
        match &alive.standing {
            Standing::FellBack(why) | Standing::Unhealthy(why) => Some(format!("{node}: {why}")),
            Standing::Good | Standing::Trial if Some(alive.runs) != target => {
                Some(format!("{node}: it runs {} and not the new release", alive.version))
            }
            Standing::Good | Standing::Trial => None,
        }
    });
    let late = view.overdue.then(|| format!("{}: not back in time", names(away.clone())));
    if let Some(error) = wrong.or(late.filter(|_| !away.is_empty())) {
        return write(view, Upgrade { stage: Stage::Return, error: Some(error), ..view.upgrade.clone() });
    }
    if away.is_empty() {
        return write(view, Upgrade { stage: Stage::Keep, kept: true, ..view.upgrade.clone() });
    }
    count(view, back, &away)
}

/// Updates the number of nodes that are back; in a large cluster not for each of them.
fn count(view: &View, back: Vec<NodeId>, away: &[NodeId]) -> Action {
    let step = view.members.len().div_ceil(COUNTS);
    if back.len() >= view.reboot.done.len() + step {
        return Action::Write(view.driven(vec![put_reboot(Reboot { done: back, ..view.reboot.clone() })]));
    }
    Action::Wait(format!("{} to come back", names(away.iter().copied())))
}

/// Next action of a reboot of all nodes without an upgrade.
fn plain_reboot(view: &View) -> Action {
    let (back, away) = back(view);
    let over = |error: String| {
        let reboot = Reboot { state: RebootState::Idle, done: back.clone(), error, ..view.reboot.clone() };
        Action::Write(view.driven(vec![put_reboot(Reboot { current: Vec::new(), ..reboot })]))
    };
    match (away.is_empty(), view.overdue) {
        (true, _) => over(String::new()),
        (false, true) => over(format!("{}: not back in time", names(away))),
        (false, false) => count(view, back, &away),
    }
}

/// Ends the upgrade and its reboot.
fn end(view: &View, error: Option<String>) -> Action {
    let mut writes = Vec::new();
    if view.reboot.state != RebootState::Idle {
        let done =
            if error.is_none() { view.members.iter().copied().collect() } else { view.reboot.done.clone() };
        let error = error.clone().unwrap_or_default();
        let reboot =
            Reboot { state: RebootState::Idle, current: Vec::new(), done, error, ..view.reboot.clone() };
        writes.push(put_reboot(reboot));
    }
    let kept = view.upgrade.kept || error.is_none();
    writes.push(put_upgrade(Upgrade { stage: Stage::Idle, error, kept, ..view.upgrade.clone() }));
    Action::Write(view.driven(writes))
}
