//! Orders of operators, and when each is allowed. An order is checked on one view and becomes a transaction on the condition
//! that this view still holds, so that no order is accepted on an outdated state.

use super::action::{put_reboot, put_upgrade};
pub use super::admission::admission;
use super::group::group;
use super::rolling::told;
use super::state::{BootId, NodeId, Ordered, Outcome, Reboot, RebootState, Stage, Standing, Upgrade};
use super::store::{Key, Txn, Value, Write};
use super::upgrade::{all_now, first_stage, in_turn};
use super::view::View;
use crate::error::{Error, Remedy, Result};
use crate::state::UpgradeType;

/// Error shown for an abandoned upgrade.
const ABANDONED: &str = "the upgrade was abandoned";

/// Orders the prepare of a bundle on all nodes.
///
/// # Errors
/// [`Error::UpgradeBusy`], [`Error::Blocked`], [`Error::BadRequest`]: see [`admission`]; `group` for a rolling reboot.
pub fn prepare(view: &View, order: Ordered) -> Result<Txn> {
    idle(view)?;
    admission(view)?;
    if order.rolling && order.upgrade_type == UpgradeType::SoftwareAndPlatform {
        group(view, order.nodes)?;
    }
    let id = view.upgrade.id + 1;
    // All run the same.
    let starting_version = view.alive.values().next().map(|alive| alive.version.clone()).unwrap_or_default();
    let (stage, order) = (Stage::Preparing, Some(order));
    let mut txn =
        view.ordered(vec![put_upgrade(Upgrade { id, stage, order, starting_version, ..Upgrade::default() })]);
    // Reports of the previous order, which are no longer used.
    let old = view.outcomes.keys().map(|node| Write::Delete(Key::Outcome(view.upgrade.id, *node)));
    txn.writes.extend(old);
    txn.compare.extend(view.everybody());
    Ok(txn)
}

/// Orders the commit of the prepared bundle. The number of nodes per group is decided now, by the present protection.
///
/// # Errors
/// [`Error::NotPrepared`]; otherwise as [`admission`], and `group` for a rolling reboot.
pub fn commit(view: &View) -> Result<Txn> {
    let upgrade = &view.upgrade;
    let (Stage::Prepared, Some(order)) = (upgrade.stage, &upgrade.order) else {
        return Err(not_prepared(upgrade.stage));
    };
    admission(view)?;
    let rolling = order.rolling && order.upgrade_type == UpgradeType::SoftwareAndPlatform;
    let group = if rolling { Some(group(view, order.nodes)?) } else { None };
    let stage = first_stage(order.upgrade_type, rolling);
    let upgrade = Upgrade { stage, error: None, kept: false, group, ..upgrade.clone() };
    Ok(view.ordered(vec![put_upgrade(upgrade)]))
}

/// Changes how the nodes reboot after the commit of the prepared bundle. Other orders: [`prepare`].
///
/// # Errors
/// [`Error::NotPrepared`]; as `group` for a rolling reboot.
pub fn reboot_settings(view: &View, rolling: bool, nodes: Option<u32>) -> Result<Txn> {
    let upgrade = &view.upgrade;
    let (Stage::Prepared, Some(order)) = (upgrade.stage, &upgrade.order) else {
        return Err(not_prepared(upgrade.stage));
    };
    if rolling && order.upgrade_type == UpgradeType::SoftwareAndPlatform {
        group(view, nodes)?;
    }
    let order = Some(Ordered { rolling, nodes, ..order.clone() });
    Ok(view.ordered(vec![put_upgrade(Upgrade { order, ..upgrade.clone() })]))
}

/// Stores why a commit did not begin: the order was accepted before, so that its sender reads the reason in the status.
pub fn commit_failed(view: &View, error: String) -> Txn {
    view.ordered(vec![put_upgrade(Upgrade { error: Some(error), ..view.upgrade.clone() })])
}

/// Ends a prepare, discards the prepared bundle, or clears the error of an upgrade that is over.
///
/// # Errors
/// [`Error::NothingToCancel`]; [`Error::UpgradeBusy`] after the commit.
pub fn cancel(view: &View) -> Result<Txn> {
    let upgrade = &view.upgrade;
    let error = match upgrade.stage {
        Stage::Preparing | Stage::Prepared => Some(Error::Cancelled.to_string()),
        // The user has read the error.
        Stage::Idle if upgrade.error.is_some() => None,
        Stage::Idle => return Err(Error::NothingToCancel { problem: "nothing is prepared".to_owned() }),
        stage => return Err(Error::UpgradeBusy { doing: stage.word().to_lowercase() }),
    };
    Ok(view.ordered(vec![put_upgrade(Upgrade { stage: Stage::Idle, error, ..upgrade.clone() })]))
}

/// Orders a reboot without an upgrade.
///
/// # Errors
/// As [`prepare`]; [`Error::BadRequest`] also for a number of nodes without `rolling`.
pub fn reboot(view: &View, rolling: bool, nodes: Option<u32>) -> Result<Txn> {
    match view.upgrade.stage {
        Stage::Idle | Stage::Prepared => {}
        stage => return Err(Error::UpgradeBusy { doing: stage.word().to_lowercase() }),
    }
    if view.reboot.state != RebootState::Idle {
        return Err(Error::Blocked { reason: "a reboot is under way".to_owned() });
    }
    let attempt = view.reboot.attempt;
    let mut reboot = Reboot { state: RebootState::InProgress, rolling, attempt, ..Reboot::default() };
    if rolling {
        admission(view)?;
        reboot.group = group(view, nodes)?;
        reboot.todo = in_turn(view);
    } else if nodes.is_some() {
        return Err(Error::BadRequest {
            problem: "a number of nodes has a meaning with a rolling reboot only".to_owned(),
        });
    } else {
        reboot.current = all_now(view);
    }
    // A failure of an earlier upgrade is none of this reboot.
    let mut writes = vec![put_reboot(reboot)];
    writes.extend(reset_failures(view));
    Ok(view.ordered(writes))
}

/// Pauses a rolling reboot: the current group ends, and no other one begins.
///
/// # Errors
/// [`Error::NoReboot`].
pub fn pause(view: &View) -> Result<Txn> {
    let reboot = &view.reboot;
    if !reboot.rolling || reboot.state != RebootState::InProgress {
        return Err(Error::NoReboot);
    }
    Ok(view.ordered(vec![put_reboot(Reboot { state: RebootState::Paused, ..reboot.clone() })]))
}

/// Resumes a rolling reboot, and clears its error. Nodes of the failed group that did not reboot, or do not run what they should,
/// get another turn, first; a node that is down is waited for. The others of the group have rebooted: what failed in them after
/// that is tried again.
///
/// # Errors
/// [`Error::NoReboot`].
pub fn resume(view: &View) -> Result<Txn> {
    let reboot = &view.reboot;
    let (state, attempt) = (RebootState::InProgress, reboot.attempt.saturating_add(1));
    let mut next = Reboot { state, attempt, error: String::new(), ..reboot.clone() };
    match reboot.state {
        RebootState::Paused => {}
        RebootState::PausedDueToError => again(view, &mut next),
        RebootState::Idle | RebootState::InProgress => return Err(Error::NoReboot),
    }
    let mut writes = vec![put_reboot(next)];
    writes.extend(told(view, reboot.back.then(|| ABANDONED.to_owned())));
    writes.extend(reset_failures(view));
    Ok(view.ordered(writes))
}

/// Abandons a paused rolling upgrade: the nodes that run the new release return to the previous one, one group after the other,
/// those that are not good first.
///
/// # Errors
/// [`Error::NoReboot`]: there is no rolling upgrade, or it is abandoned already; [`Error::Blocked`]: it is in progress.
pub fn abandon(view: &View) -> Result<Txn> {
    let reboot = &view.reboot;
    if !reboot.rolling || !reboot.upgrade_initiated || reboot.back || reboot.state == RebootState::Idle {
        return Err(Error::NoReboot);
    }
    let blocked = |reason: &str| Err(Error::Blocked { reason: reason.to_owned() });
    match reboot.state {
        RebootState::PausedDueToError => {}
        RebootState::Paused if reboot.current.is_empty() => {}
        RebootState::Paused => return blocked("the group under way has not ended yet"),
        _ => return blocked("the rolling reboot is in progress; pause it first ('qstage cluster pause')"),
    }
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let went =
        |node: &NodeId| reboot.done.contains(node) || reboot.current.iter().any(|(turn, _)| turn == node);
    let runs = |node: &NodeId| match view.alive.get(node) {
        Some(alive) => Some(alive.runs) == target || alive.leaving,
        None => went(node),
    };
    let mut todo = in_turn(view);
    todo.retain(runs);
    let why = if reboot.error.is_empty() { String::new() } else { format!(": {}", reboot.error) };
    let next = Reboot {
        state: RebootState::InProgress,
        back: true,
        todo,
        current: Vec::new(),
        done: Vec::new(),
        error: String::new(),
        attempt: reboot.attempt.saturating_add(1),
        ..reboot.clone()
    };
    let mut writes = vec![put_reboot(next)];
    writes.extend(told(view, Some(format!("{ABANDONED}{why}"))));
    writes.extend(reset_failures(view));
    Ok(view.ordered(writes))
}

/// Withdraws the right to be down from a node that does not come back. After that the rolling reboot is paused until a
/// resume, because the operator has to look after the node first.
///
/// # Errors
/// [`Error::NoReboot`]: it is not that node's turn in a rolling reboot.
pub fn take_back(view: &View, node: NodeId) -> Result<Txn> {
    let reboot = &view.reboot;
    if !reboot.rolling || !reboot.current.iter().any(|(current, _)| *current == node) {
        return Err(Error::NoReboot);
    }
    let error = format!("the turn of {node} was taken back");
    let mut next = Reboot { state: RebootState::PausedDueToError, error: error.clone(), ..reboot.clone() };
    next.current.retain(|(current, _)| *current != node);
    next.todo.insert(0, node);
    let mut writes = vec![put_reboot(next)];
    writes.extend(told(view, Some(error)));
    Ok(view.ordered(writes))
}

/// Resets failed outcomes, which would make the next attempt fail too.
fn reset_failures(view: &View) -> impl Iterator<Item = Write> {
    let failed = view.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
    let again =
        |node| Write::Put(Key::Outcome(view.upgrade.id, node), Value::Outcome(Outcome::Prepared), None);
    failed.map(move |(node, _)| again(*node))
}

/// Puts the nodes of the failed group that need another turn first in the order again.
fn again(view: &View, reboot: &mut Reboot) {
    let target = view.upgrade.order.as_ref().map(|order| order.digest);
    let has_rebooted = |(node, before): &(NodeId, BootId)| {
        view.alive.get(node).is_some_and(|alive| {
            let runs_it = !reboot.upgrade_initiated || (Some(alive.runs) == target) != reboot.back;
            let fell_back = matches!(alive.standing, Standing::FellBack(_)) && !reboot.back;
            alive.boot != *before && runs_it && !fell_back
        })
    };
    let (stay, again): (Vec<_>, Vec<_>) = reboot.current.iter().copied().partition(has_rebooted);
    reboot.current = stay;
    reboot.todo.splice(0..0, again.into_iter().map(|(node, _)| node));
}

/// The refusal of what needs a prepared bundle.
pub fn not_prepared(stage: Stage) -> Error {
    match stage {
        Stage::Idle | Stage::Prepared => {
            Error::NotPrepared { problem: "no bundle is prepared".to_owned(), remedy: Remedy::Prepare }
        }
        stage => Error::UpgradeBusy { doing: stage.word().to_lowercase() },
    }
}

fn idle(view: &View) -> Result<()> {
    match view.upgrade.stage {
        Stage::Idle if view.reboot.state == RebootState::Idle => Ok(()),
        Stage::Idle => Err(Error::Blocked { reason: "a reboot is under way".to_owned() }),
        Stage::Prepared => {
            let version = view.upgrade.order.as_ref().map(|order| order.target_version.clone());
            Err(Error::OtherPrepared { version: version.unwrap_or_default() })
        }
        stage => Err(Error::UpgradeBusy { doing: stage.word().to_lowercase() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::tests::view;
    use super::super::membership::{NODES_MAX, admits_member, remove};
    use super::*;
    use crate::cluster::state::BootId;

    #[test]
    fn how_many_go_at_a_time() {
        for (nodes, may_fail, asked, wanted) in [
            (3, 1, None, Some(1)),
            (5, 2, None, Some(1)),
            (7, 3, None, Some(2)),
            (7, 3, Some(3), Some(3)),
            (9, 4, None, Some(3)),
            (11, 5, None, Some(4)),
            (16, 7, None, Some(6)),
            // By the protection of data, although the store could lose more.
            (16, 3, None, Some(2)),
            (16, 1, None, Some(1)),
            (7, 3, Some(4), None),
            (7, 3, Some(0), None),
            // The store keeps its quorum, however many nodes the data could lose.
            (3, 2, Some(2), None),
            (4, 2, None, Some(1)),
            (2, 1, None, None),
            (1, 1, None, None),
            (5, 0, None, None),
        ] {
            let got = group(&view(nodes, may_fail, may_fail), asked);
            assert_eq!(got.as_ref().ok().copied(), wanted, "{nodes} nodes, {may_fail} may fail: {got:?}");
        }
        let alone = group(&view(2, 1, 1), None).unwrap_err().to_string();
        assert!(alone.contains("quorum"), "{alone}");
        // An order without a number stays one: the commit decides it, by the protection of then.
        let upgrade_type = UpgradeType::SoftwareAndPlatform;
        let order = Ordered { rolling: true, upgrade_type, ..Ordered::sample() };
        let stored = |txn: Txn| {
            let upgrade = |write: Write| match write {
                Write::Put(_, Value::Upgrade(upgrade), _) => Some(upgrade),
                _ => None,
            };
            txn.writes.into_iter().find_map(upgrade).unwrap()
        };
        let mut prepared = stored(prepare(&view(9, 4, 4), order).unwrap());
        assert_eq!(prepared.starting_version, "1");
        assert_eq!((prepared.order.as_ref().unwrap().nodes, prepared.group), (None, None));
        prepared.stage = Stage::Prepared;
        for (may_fail, wanted) in [(4, 3), (3, 2), (2, 1), (1, 1)] {
            let mut now = view(9, may_fail, may_fail);
            now.upgrade = prepared.clone();
            assert_eq!(stored(commit(&now).unwrap()).group, Some(wanted), "{may_fail} may fail");
        }
    }

    #[test]
    fn a_cluster_has_as_many_nodes_as_a_transaction_of_etcd_can_concern() {
        // The default of etcd, `--max-txn-ops`.
        const OPERATIONS: usize = 128;
        let most = u32::try_from(NODES_MAX).unwrap();
        let mut view = view(most, 2, 2);
        assert_eq!(admits_member(&view).unwrap_err().code(), "UPGRADE_ERROR_MEMBERSHIP");
        view.outcomes = view.members.iter().map(|node| (*node, Outcome::Prepared)).collect();
        let order = Ordered::sample();
        let ordered = prepare(&view, order.clone()).unwrap();
        assert!(ordered.compare.len() <= OPERATIONS && ordered.writes.len() <= OPERATIONS);
        // The largest one of the driver resets the results of all nodes.
        view.upgrade = Upgrade { stage: Stage::SwapBack, order: Some(order), ..Upgrade::default() };
        view.outcomes.values_mut().for_each(|outcome| *outcome = Outcome::Undone);
        let crate::cluster::next::Action::Write(back) = crate::cluster::next::next_action(&view) else {
            panic!("nothing is left to do")
        };
        assert!(back.writes.len() > NODES_MAX && back.writes.len() <= OPERATIONS);
    }

    #[test]
    fn a_failure_of_an_earlier_upgrade_is_none_of_a_reboot() {
        let mut view = view(3, 1, 1);
        view.outcomes.insert(NodeId(2), Outcome::Failed("the bundle is not there".into()));
        for rolling in [false, true] {
            let txn = reboot(&view, rolling, None).unwrap();
            let key = Key::Outcome(view.upgrade.id, NodeId(2));
            let reset = Write::Put(key, Value::Outcome(Outcome::Prepared), None);
            assert!(txn.writes.contains(&reset), "{:?}", txn.writes);
        }
    }

    /// Its turn was taken back while it booted. A second one would prepare what is installed.
    #[test]
    fn a_node_that_runs_the_new_release_has_no_second_turn() {
        let mut view = view(3, 1, 1);
        let new = crate::units::Blake3([2; 32]);
        view.upgrade.order = Some(Ordered { digest: new, ..Ordered::sample() });
        let alive = view.alive.get_mut(&NodeId(2)).unwrap();
        (alive.boot, alive.runs) = (BootId(2), new);
        let todo = vec![NodeId(2), NodeId(3)];
        let state = RebootState::InProgress;
        view.reboot =
            Reboot { state, rolling: true, upgrade_initiated: true, group: 1, todo, ..Reboot::default() };
        let next = match crate::cluster::next::next_action(&view) {
            crate::cluster::next::Action::Write(mut txn) => txn.writes.swap_remove(0),
            other => panic!("{other:?}"),
        };
        let Write::Put(Key::Reboot, Value::Reboot(next), _) = next else { panic!("{next:?}") };
        assert_eq!((next.todo, next.done), (vec![NodeId(3)], vec![NodeId(2)]));
    }

    #[test]
    fn a_resume_gives_another_turn_to_nodes_that_need_it() {
        let mut view = view(7, 3, 3);
        let new = crate::units::Blake3([2; 32]);
        view.upgrade.order = Some(Ordered { digest: new, ..Ordered::sample() });
        let mut alive = |node: u32, act: &dyn Fn(&mut crate::cluster::state::Alive)| {
            let alive = view.alive.get_mut(&NodeId(node)).unwrap();
            (alive.boot, alive.runs) = (BootId(2), new);
            act(alive);
        };
        alive(1, &|alive| (alive.standing, alive.failed_in) = (Standing::Unhealthy("x".into()), Some(3)));
        alive(2, &|alive| {
            (alive.standing, alive.runs) = (Standing::FellBack("x".into()), crate::units::Blake3([1; 32]))
        });
        alive(3, &|alive| (alive.boot, alive.runs) = (BootId(1), crate::units::Blake3([1; 32])));
        alive(4, &|_| {});
        view.alive.remove(&NodeId(5));
        let state = RebootState::PausedDueToError;
        view.reboot = Reboot {
            state,
            rolling: true,
            upgrade_initiated: true,
            group: 1,
            attempt: 3,
            ..Reboot::default()
        };
        view.reboot.current = (1..=5).map(|node| (NodeId(node), BootId(1))).collect();
        view.reboot.todo = vec![NodeId(6)];
        let resumed = |view: &View| match resume(view).unwrap().writes.swap_remove(0) {
            Write::Put(_, Value::Reboot(reboot), _) => reboot,
            other => panic!("{other:?}"),
        };
        let next = resumed(&view);
        assert_eq!(next.current, [1, 4].map(|node| (NodeId(node), BootId(1))), "these have rebooted");
        assert_eq!((next.todo.clone(), next.attempt), ([2, 3, 5, 6].map(NodeId).to_vec(), 4));
        // The old failure does not count, and that node does not count as back either.
        view.reboot = next;
        let waits = |view: &View| match crate::cluster::next::next_action(view) {
            crate::cluster::next::Action::Wait(what) => what,
            other => panic!("{other:?}"),
        };
        view.alive.insert(NodeId(5), view.alive[&NodeId(6)].clone());
        assert_eq!(waits(&view), "node 1 to try again");
        view.reboot.current.clear();
        assert_eq!(waits(&view), "node 1 to try again", "no group begins");
        // One of the new attempt counts, as does one of an older qstage.
        for failed_in in [Some(4), None] {
            view.alive.get_mut(&NodeId(1)).unwrap().failed_in = failed_in;
            assert!(matches!(
                crate::cluster::next::next_action(&view),
                crate::cluster::next::Action::Write(_)
            ));
        }
        // In an abandoned upgrade a node that runs the new release has not returned.
        view.reboot = Reboot {
            state,
            back: true,
            current: vec![(NodeId(1), BootId(1)), (NodeId(2), BootId(1))],
            ..view.reboot
        };
        let next = resumed(&view);
        assert_eq!((next.current, next.todo[0]), (vec![(NodeId(2), BootId(1))], NodeId(1)));
    }

    #[test]
    fn pause_and_resume_are_for_a_rolling_reboot() {
        let mut view = view(3, 1, 1);
        let code = |result: Result<Txn>| result.map(|_| ()).map_err(|error| error.code());
        for act in [pause as fn(&View) -> Result<Txn>, resume] {
            assert_eq!(code(act(&view)), Err("UPGRADE_ERROR_NO_REBOOT"));
        }
        view.reboot = Reboot { state: RebootState::InProgress, ..Reboot::default() };
        assert_eq!(code(pause(&view)), Err("UPGRADE_ERROR_NO_REBOOT"), "complete");
        view.reboot.rolling = true;
        assert_eq!((code(pause(&view)), code(resume(&view))), (Ok(()), Err("UPGRADE_ERROR_NO_REBOOT")));
        assert_eq!(code(take_back(&view, NodeId(2))), Err("UPGRADE_ERROR_NO_REBOOT"), "it is not its turn");
        view.reboot.current = vec![(NodeId(2), BootId(1))];
        assert_eq!(code(take_back(&view, NodeId(2))), Ok(()));
        assert_eq!(code(remove(&view, NodeId(3))), Err("UPGRADE_ERROR_UPGRADE_BUSY"));
        view.reboot.upgrade_initiated = true;
        assert_eq!(code(abandon(&view)), Err("UPGRADE_ERROR_BLOCKED"), "it goes on");
        view.reboot.state = RebootState::Paused;
        assert_eq!(code(abandon(&view)), Err("UPGRADE_ERROR_BLOCKED"), "a group is under way");
        assert_eq!(code(remove(&view, NodeId(3))), Err("UPGRADE_ERROR_UPGRADE_BUSY"), "it is there");
        view.alive.remove(&NodeId(3));
        assert_eq!(code(remove(&view, NodeId(3))), Ok(()));
        view.reboot.state = RebootState::PausedDueToError;
        assert_eq!(code(abandon(&view)), Ok(()));
        view.reboot.back = true;
        assert_eq!(code(abandon(&view)), Err("UPGRADE_ERROR_NO_REBOOT"), "once");
        view.upgrade.stage = Stage::Flip;
        assert_eq!(code(reboot(&view, true, None)), Err("UPGRADE_ERROR_UPGRADE_BUSY"));
    }
}
