//! Rolling reboot: one group of nodes after the other, and no further group after a failure.
//!
//! | event | state | next |
//! |---|---|---|
//! | start | in progress | the first group, when all other nodes are alive and good |
//! | pause | paused | the current group ends and counts; no other one begins |
//! | resume | in progress | nodes that did not reboot, or fell back, get another turn, first; one that runs what it should and is not healthy tries again what failed |
//! | a node falls back, is not healthy, does not return; another one is lost | paused due to error | nothing, until a resume |
//! | abandon, while it is paused | in progress | the nodes that run the new release return to the previous one, one group after the other |
//! | all have come back | idle | |

use super::action::{Action, put_reboot, put_upgrade};
use super::state::{Alive, BootId, NodeId, Outcome, Reboot, RebootState, Stage, Standing, Upgrade};
use super::store::Write;
use super::view::{View, names};

pub(super) fn next(view: &View) -> Action {
    let reboot = &view.reboot;
    match reboot.state {
        RebootState::Idle => Action::Rest,
        RebootState::PausedDueToError => Action::Wait(format!("a resume: {}", reboot.error)),
        RebootState::Paused if reboot.current.is_empty() => Action::Wait("a resume".to_owned()),
        RebootState::InProgress | RebootState::Paused if !reboot.current.is_empty() => judge(view),
        RebootState::InProgress | RebootState::Paused if reboot.todo.is_empty() => end(view),
        RebootState::InProgress | RebootState::Paused => begin(view),
    }
}

/// Result of the turn of a node.
enum Verdict {
    Back,
    /// Event that is waited for.
    Waits(String),
    Failed(String),
}

fn verdict(view: &View, node: NodeId, before: BootId) -> Verdict {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let Some(alive) = view.alive.get(&node) else { return Verdict::Waits(format!("{node} to come back")) };
    if alive.boot == before {
        if let Some(Outcome::Failed(why)) = view.outcomes.get(&node) {
            return Verdict::Failed(format!("{node}: {why}"));
        }
        return Verdict::Waits(format!("{node} to reboot"));
    }
    match &alive.standing {
        Standing::Unhealthy(_) if view.tries_again(alive) => Verdict::Waits(format!("{node} to try again")),
        Standing::Unhealthy(why) if view.reboot.back => {
            Verdict::Failed(format!("{node} is not healthy: {why}"))
        }
        _ if view.reboot.back && Some(alive.runs) == target => {
            Verdict::Failed(format!("{node} runs the new release after its return"))
        }
        // The release from which it returned may be recorded as a fallback.
        _ if view.reboot.back => whole(view, node, alive),
        Standing::FellBack(why) => Verdict::Failed(format!("{node} fell back: {why}")),
        Standing::Unhealthy(why) => Verdict::Failed(format!("{node} is not healthy: {why}")),
        Standing::Good | Standing::Trial if view.reboot.upgrade_initiated && Some(alive.runs) != target => {
            Verdict::Failed(format!("{node} runs {} and not the new release", alive.version))
        }
        Standing::Trial => Verdict::Waits(format!("{node} to prove good")),
        Standing::Good => whole(view, node, alive),
    }
}

/// Verdict on a node that has booted: it must be in service, and all data protected, before another node may reboot.
fn whole(view: &View, node: NodeId, alive: &Alive) -> Verdict {
    if alive.drained {
        return Verdict::Waits(format!("{node} to be back in service"));
    }
    if !view.protection().whole() {
        let words = view.protection_words();
        return Verdict::Waits(format!("the protection of data, which {node} joins again: {words}"));
    }
    Verdict::Back
}

/// Next action while a group has its turn.
fn judge(view: &View) -> Action {
    let reboot = &view.reboot;
    let (mut back, mut waits, mut failed) = (Vec::new(), Vec::new(), None);
    for (node, before) in &reboot.current {
        match verdict(view, *node, *before) {
            Verdict::Back => back.push(*node),
            Verdict::Waits(what) => waits.push(what),
            Verdict::Failed(why) => failed = failed.or(Some(why)),
        }
    }
    let turn = |node: &NodeId| reboot.current.iter().any(|(current, _)| current == node);
    let second = view.members.iter().find(|node| !turn(node) && !view.alive.contains_key(node));
    let second = || {
        let others = names(reboot.current.iter().map(|(node, _)| *node));
        second.map(|node| format!("{node} is lost during the turn of {others}"))
    };
    let late =
        || view.overdue.then(|| format!("not in time: {}", waits.join(", "))).filter(|_| !waits.is_empty());
    if let Some(error) = failed.or_else(|| ill(view, turn)).or_else(second).or_else(late) {
        return fail(view, error);
    }
    if !waits.is_empty() {
        return Action::Wait(waits.join(", "));
    }
    let mut next = Reboot { current: Vec::new(), ..reboot.clone() };
    next.done.extend(back);
    let mut txn = view.driven(vec![put_reboot(next)]);
    txn.compare.extend(view.everybody());
    Action::Write(txn)
}

/// Problem of a node outside of the group that is no longer healthy: with one more node down, data or service may be at risk.
fn ill(view: &View, in_group: impl Fn(&NodeId) -> bool) -> Option<String> {
    view.members.iter().filter(|node| !in_group(node)).find_map(|node| {
        let alive = view.alive.get(node)?;
        match &alive.standing {
            Standing::Unhealthy(why) if !view.tries_again(alive) => {
                Some(format!("{node} is not healthy: {why}"))
            }
            _ => None,
        }
    })
}

/// Reason why a node cannot serve while another one is down. In an abandoned upgrade a node that fell back can: it runs the
/// release to which all return.
fn unfit(view: &View, node: NodeId) -> Option<String> {
    let fell_back =
        |alive: &Alive| matches!(alive.standing, Standing::FellBack(_)) && !alive.leaving && !alive.drained;
    let serves = view.reboot.back && view.alive.get(&node).is_some_and(fell_back);
    view.unfit(node).filter(|_| !serves)
}

/// Begins the next group, if nothing prevents it.
fn begin(view: &View) -> Action {
    let reboot = &view.reboot;
    if let Some(node) = reboot.todo.iter().copied().find(|node| is_there(view, *node)) {
        if view.alive.get(&node).is_some_and(|alive| alive.leaving) {
            return Action::Wait(format!("{node} to be back in service"));
        }
        // Whatever its boot was when its turn began.
        return match verdict(view, node, BootId(0)) {
            Verdict::Waits(what) => Action::Wait(what),
            Verdict::Failed(why) => fail(view, why),
            Verdict::Back => {
                let mut next = reboot.clone();
                next.todo.retain(|other| *other != node);
                next.done.push(node);
                let mut txn = view.driven(vec![put_reboot(next)]);
                txn.compare.extend(view.everybody());
                Action::Write(txn)
            }
        };
    }
    let size = reboot.group.min(view.spare());
    if size == 0 {
        let count = view.members.len();
        return fail(view, format!("of {count} nodes none can go without the quorum of the store"));
    }
    let mut group: Vec<NodeId> = in_order(view).into_iter().take(size as usize).collect();
    let leader = view.leader.map(|(node, _)| node);
    group.retain(|node| Some(*node) != leader);
    if group.is_empty() {
        return Action::Resign;
    }
    let failed = reboot.todo.iter().find_map(|node| match view.outcomes.get(node)? {
        Outcome::Failed(why) => Some(format!("{node}: {why}")),
        _ => None,
    });
    if let Some(error) = failed.or_else(|| ill(view, |node| group.contains(node))) {
        return fail(view, error);
    }
    let away =
        group.iter().find(|node| !view.alive.contains_key(node)).map(|node| format!("{node} to come back"));
    let staging = || {
        let staging = |node: &NodeId| view.alive.get(node)?.staging.as_ref().map(|staging| (*node, staging));
        let (node, staging) = group.iter().find_map(staging)?;
        Some(format!("{node} to prepare the bundle again: {staging}"))
    };
    let unfit =
        || view.members.iter().filter(|node| !group.contains(node)).find_map(|node| unfit(view, *node));
    if let Some(what) = away.or_else(staging).or_else(unfit) {
        return Action::Wait(what);
    }
    let protection = view.protection();
    if !protection.whole() || (protection.remaining as usize) < group.len() {
        return Action::Wait(format!("the protection of data: {}", view.protection_words()));
    }
    let boots = group.iter().filter_map(|node| Some((*node, view.alive.get(node)?.boot))).collect();
    let mut next = Reboot { current: boots, ..reboot.clone() };
    next.todo.retain(|node| !group.contains(node));
    let mut txn = view.driven(vec![put_reboot(next)]);
    txn.compare.extend(view.everybody());
    Action::Write(txn)
}

/// Nodes still to reboot, in order. In an abandoned upgrade those that are not good come first, because the others wait until
/// all nodes outside of the group are good.
pub(super) fn in_order(view: &View) -> Vec<NodeId> {
    let mut todo = view.reboot.todo.clone();
    if view.reboot.back {
        todo.sort_by_key(|node| view.alive.get(node).is_some_and(|alive| alive.standing == Standing::Good));
    }
    todo
}

/// Whether a node needs no turn, since it runs the release that its turn would lead to: its turn was taken back while it booted,
/// or, in an abandoned upgrade, it fell back or did not have its turn.
fn is_there(view: &View, node: NodeId) -> bool {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let reboot = &view.reboot;
    let runs_it = |alive: &Alive| (Some(alive.runs) == target) != reboot.back;
    reboot.upgrade_initiated && view.alive.get(&node).is_some_and(runs_it)
}

/// Pauses the reboot until a resume. The error is also stored in the upgrade, if the reboot is part of one.
fn fail(view: &View, error: String) -> Action {
    let state = RebootState::PausedDueToError;
    let mut writes = vec![put_reboot(Reboot { state, error: error.clone(), ..view.reboot.clone() })];
    writes.extend(told(view, Some(error)));
    Action::Write(view.driven(writes))
}

/// Write that stores the same error in the upgrade; `None`: the reboot is part of none.
pub(super) fn told(view: &View, error: Option<String>) -> Option<Write> {
    let upgrade = Upgrade { error, ..view.upgrade.clone() };
    view.reboot.upgrade_initiated.then(|| put_upgrade(upgrade))
}

fn end(view: &View) -> Action {
    if view.reboot.back {
        let error = view.upgrade.error.clone().unwrap_or_default();
        let reboot = Reboot { state: RebootState::Idle, error, ..view.reboot.clone() };
        let upgrade = Upgrade { stage: Stage::Idle, kept: false, ..view.upgrade.clone() };
        return Action::Write(view.driven(vec![put_reboot(reboot), put_upgrade(upgrade)]));
    }
    let reboot = Reboot { state: RebootState::Idle, error: String::new(), ..view.reboot.clone() };
    let mut writes = vec![put_reboot(reboot)];
    if view.reboot.upgrade_initiated {
        writes.push(put_upgrade(Upgrade {
            stage: Stage::Idle,
            kept: true,
            error: None,
            ..view.upgrade.clone()
        }));
    }
    Action::Write(view.driven(writes))
}
