//! Who belongs to the cluster.

use super::action::put_reboot;
use super::state::{Member, NodeId, RebootState, Stage};
use super::store::{Compare, Key, Txn, Value, Write};
use super::view::View;
use crate::error::{Error, Result};

/// Maximum number of nodes: some transactions concern each node, and etcd permits 128 operations in one.
pub const NODES_MAX: usize = 120;

/// Checks that the cluster takes another member.
///
/// # Errors
/// [`Error::UpgradeBusy`], [`Error::Membership`].
pub(super) fn admits_member(view: &View) -> Result<()> {
    if view.upgrade.stage != Stage::Idle || view.reboot.state != RebootState::Idle {
        return Err(Error::UpgradeBusy { doing: "the cluster is upgraded".to_owned() });
    }
    if view.members.len() >= NODES_MAX {
        return Err(Error::Membership {
            problem: format!("the cluster has {NODES_MAX} nodes, which is the most"),
        });
    }
    Ok(())
}

/// Makes a node a member, on the condition that neither an upgrade nor a reboot has begun since the view.
///
/// # Errors
/// [`Error::UpgradeBusy`], [`Error::Membership`].
pub fn join(view: &View, node: NodeId, member: Member) -> Result<Txn> {
    admits_member(view)?;
    let mut txn = view.ordered(vec![Write::Put(Key::Member(node), Value::Member(member), None)]);
    txn.compare.push(Compare::Created(Key::Member(node), 0));
    Ok(txn)
}

/// Ends the membership of a node. During an upgrade this is possible only while the rolling reboot is paused and the node is
/// away: a node that is lost for good must not prevent the others from continuing, or from returning.
///
/// # Errors
/// [`Error::NoSuchNode`], [`Error::UpgradeBusy`].
pub fn remove(view: &View, node: NodeId) -> Result<Txn> {
    if !view.members.contains(&node) {
        return Err(Error::NoSuchNode { node: node.0.to_string() });
    }
    let paused = matches!(view.reboot.state, RebootState::Paused | RebootState::PausedDueToError);
    let lost = view.reboot.rolling && paused && !view.alive.contains_key(&node);
    let idle = view.upgrade.stage == Stage::Idle && view.reboot.state == RebootState::Idle;
    if !idle && !lost {
        return Err(Error::UpgradeBusy { doing: "the cluster is upgraded".to_owned() });
    }
    let mut writes = vec![Write::Delete(Key::Member(node)), Write::Delete(Key::Alive(node))];
    if lost {
        let mut next = view.reboot.clone();
        next.current.retain(|(turn, _)| *turn != node);
        next.todo.retain(|other| *other != node);
        next.done.retain(|other| *other != node);
        writes.push(put_reboot(next));
    }
    let mut txn = view.ordered(writes);
    txn.compare.push(view.unchanged(Key::Alive(node)));
    Ok(txn)
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::super::orders::prepare;
    use super::super::state::{Alive, Ordered};
    use super::super::store::Store;
    use super::*;

    fn member() -> Member {
        Member { uuid: String::new(), address: String::new(), certificate: String::new() }
    }

    /// A store with a cluster of three equal nodes that rests.
    fn store() -> Memory {
        let mut store = Memory::default();
        let alive = super::super::admission::tests::view(3, 1, 1).alive;
        let put = |(node, alive): (NodeId, Alive)| {
            let writes =
                [(Key::Member(node), Value::Member(member())), (Key::Alive(node), Value::Alive(alive))];
            writes.map(|(key, value)| Write::Put(key, value, None))
        };
        let writes = alive.into_iter().flat_map(put).collect();
        assert!(store.transact(&Txn { compare: vec![], writes }).unwrap());
        store
    }

    /// The answer to one of two orders may arrive after the other one was decided: only one of them is carried out.
    #[test]
    fn no_node_joins_or_leaves_an_upgrade_that_has_begun_meanwhile() {
        for prepare_first in [true, false] {
            let mut store = store();
            let view = View::new(&store.snapshot().unwrap());
            let prepared = prepare(&view, Ordered::sample()).unwrap();
            let joined = join(&view, NodeId(4), member()).unwrap();
            let left = remove(&view, NodeId(3)).unwrap();
            if prepare_first {
                assert!(store.transact(&prepared).unwrap());
                assert!(!store.transact(&joined).unwrap(), "the upgrade was decided without it");
                assert!(!store.transact(&left).unwrap());
            } else {
                assert!(store.transact(&joined).unwrap() && store.transact(&left).unwrap());
                assert!(!store.transact(&joined).unwrap(), "once");
                assert!(!store.transact(&prepared).unwrap(), "node 3 has left");
            }
        }
    }

    /// Every stage, and every state of a reboot.
    #[test]
    fn members_stay_the_same_during_an_upgrade() {
        let busy = |result: Result<Txn>| result.unwrap_err().code() == "UPGRADE_ERROR_UPGRADE_BUSY";
        let at_rest = View::new(&store().snapshot().unwrap());
        for stage in [
            Stage::Preparing,
            Stage::Prepared,
            Stage::Gate,
            Stage::Swap,
            Stage::SwapBack,
            Stage::Flip,
            Stage::FlipBack,
            Stage::Committed,
            Stage::Rebooting,
            Stage::Keep,
            Stage::Return,
        ] {
            let mut view = at_rest.clone();
            view.upgrade.stage = stage;
            assert!(busy(join(&view, NodeId(4), member())) && busy(remove(&view, NodeId(3))), "{stage:?}");
        }
        for state in [RebootState::InProgress, RebootState::Paused, RebootState::PausedDueToError] {
            let mut view = at_rest.clone();
            (view.reboot.state, view.reboot.rolling) = (state, true);
            assert!(busy(join(&view, NodeId(4), member())) && busy(remove(&view, NodeId(3))), "{state:?}");
            // One that is away for good must not prevent the others from an end.
            view.alive.remove(&NodeId(3));
            assert_eq!(remove(&view, NodeId(3)).is_ok(), state != RebootState::InProgress, "{state:?}");
            assert!(busy(join(&view, NodeId(4), member())), "{state:?}");
        }
    }
}
