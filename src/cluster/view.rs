//! All keys at one revision, in the form that the driver and the nodes use.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{
    Alive, NodeId, Ordered, Outcome, Protection, Reboot, RebootState, Stage, Standing, Upgrade,
};
use super::store::{Compare, Entry, Key, Revision, Snapshot, Txn, Value, Write};
use crate::units::Blake3;

/// State on which all decisions are based.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Nodes that belong to the cluster.
    pub members: BTreeSet<NodeId>,
    /// Nodes with a lease, with their state.
    pub alive: BTreeMap<NodeId, Alive>,
    /// The upgrade.
    pub upgrade: Upgrade,
    /// Result of each node in it.
    pub outcomes: BTreeMap<NodeId, Outcome>,
    /// The reboot.
    pub reboot: Reboot,
    /// The leader, and the revision of its election; `None`: there is none.
    pub leader: Option<(NodeId, Revision)>,
    /// Nodes that have been away for longer than permitted, as measured by the node that has this view.
    pub lost: BTreeSet<NodeId>,
    /// Whether the present stage, or the present group, takes longer than permitted.
    pub overdue: bool,
    revisions: BTreeMap<Key, Revision>,
}

impl View {
    /// Reads a snapshot.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut view = Self::default();
        // The number of the upgrade decides which results count.
        if let Some(entry) = snapshot.get(&Key::Upgrade) {
            view.apply(Key::Upgrade, Some(entry));
        }
        for (key, entry) in snapshot {
            view.apply(*key, Some(entry));
        }
        view
    }

    /// Applies the change of one key; `None`: the key was deleted. A new upgrade needs a new view, see
    /// [`Replica`](super::replica::Replica). A value of another kind than its key does not occur: the store has refused it before.
    pub(super) fn apply(&mut self, key: Key, entry: Option<&Entry>) {
        match entry {
            Some(entry) => self.revisions.insert(key, entry.modified),
            None => self.revisions.remove(&key),
        };
        match (key, entry.map(|entry| &entry.value)) {
            (Key::Member(node), Some(_)) => _ = self.members.insert(node),
            (Key::Member(node), None) => _ = self.members.remove(&node),
            (Key::Alive(node), Some(Value::Alive(alive))) => _ = self.alive.insert(node, alive.clone()),
            (Key::Alive(node), _) => _ = self.alive.remove(&node),
            (Key::Upgrade, Some(Value::Upgrade(upgrade))) => self.upgrade = upgrade.clone(),
            (Key::Upgrade, _) => self.upgrade = Upgrade::default(),
            (Key::Outcome(id, node), Some(Value::Outcome(outcome))) if id == self.upgrade.id => {
                self.outcomes.insert(node, outcome.clone());
            }
            (Key::Outcome(id, node), None) if id == self.upgrade.id => _ = self.outcomes.remove(&node),
            (Key::Reboot, Some(Value::Reboot(reboot))) => self.reboot = reboot.clone(),
            (Key::Reboot, _) => self.reboot = Reboot::default(),
            (Key::Leader, Some(Value::Leader(node))) => {
                self.leader = entry.map(|entry| (*node, entry.created));
            }
            (Key::Leader, _) => self.leader = None,
            (Key::Outcome(..) | Key::Restart(_), _) => {}
        }
    }

    /// Condition that a key is unchanged since this view.
    pub fn unchanged(&self, key: Key) -> Compare {
        Compare::Modified(key, self.revisions.get(&key).copied().unwrap_or_default())
    }

    /// Transaction of the driver, on the condition that the leader, the upgrade and the reboot are those of this view.
    pub(super) fn driven(&self, writes: Vec<Write>) -> Txn {
        let mut txn = self.ordered(writes);
        let led = self.leader.map_or(0, |(_, created)| created);
        txn.compare.insert(0, Compare::Created(Key::Leader, led));
        txn
    }

    /// Transaction of an order, on the condition that the upgrade and the reboot are those of this view.
    pub(super) fn ordered(&self, writes: Vec<Write>) -> Txn {
        Txn { compare: vec![self.unchanged(Key::Upgrade), self.unchanged(Key::Reboot)], writes }
    }

    /// Conditions that the published state of every node is that of this view, for changes that must not use outdated state.
    pub(super) fn everybody(&self) -> impl Iterator<Item = Compare> + '_ {
        self.members.iter().map(|node| self.unchanged(Key::Alive(*node)))
    }

    /// Members that are away, or about to be because it is their turn to reboot.
    pub fn down(&self) -> impl Iterator<Item = NodeId> + '_ {
        let goes =
            |node: NodeId, alive: &Alive| alive.leaving || self.reboot.current.contains(&(node, alive.boot));
        let down = move |node: &NodeId| self.alive.get(node).is_none_or(|alive| goes(*node, alive));
        self.members.iter().copied().filter(down)
    }

    /// Protection of data in the view of the most cautious node; none where no node is alive.
    pub fn protection(&self) -> Protection {
        let all = || self.alive.values().map(|alive| alive.protection);
        Protection {
            remaining: all().map(|protection| protection.remaining).min().unwrap_or_default(),
            maximum: all().map(|protection| protection.maximum).max().unwrap_or_default(),
            rebuilding: all().any(|protection| protection.rebuilding),
        }
    }

    /// State of the protection of data, in words.
    pub(super) fn protection_words(&self) -> String {
        let unknown =
            self.alive.iter().find_map(|(node, alive)| Some((node, alive, alive.unknown.as_ref()?)));
        let Protection { remaining, maximum, rebuilding } = self.protection();
        match unknown {
            Some((node, alive, _)) if self.tries_again(alive) => format!("{node} asks for it again"),
            Some((node, _, why)) => format!("{node} does not know it: {why}"),
            None if rebuilding => format!("{remaining} of {maximum} nodes may fail, and it is restored"),
            None => format!("{remaining} of {maximum} nodes may fail"),
        }
    }

    /// Number of nodes that may be away without the loss of the store's quorum, if each node is a member of the store.
    pub fn spare(&self) -> u32 {
        let count = self.members.len();
        u32::try_from(count.saturating_sub(count / 2 + 1)).unwrap_or(u32::MAX)
    }

    /// Release that all nodes run by the last verdict; `None`: there was none, or an upgrade or a reboot is in progress.
    pub fn release(&self) -> Option<&Ordered> {
        let rests = self.upgrade.stage == Stage::Idle && self.reboot.state == RebootState::Idle;
        self.upgrade.order.as_ref().filter(|_| rests && self.upgrade.kept)
    }

    /// Whether a node that runs `runs` missed the last upgrade: it was away, or its disk was replaced. A verdict that most of the
    /// other nodes do not follow either is an old one.
    pub fn missed(&self, node: NodeId, runs: Blake3) -> bool {
        let Some(release) = self.release().filter(|release| release.digest != runs) else { return false };
        let others = self.alive.iter().filter(|(other, _)| **other != node && self.members.contains(other));
        let (with, without): (Vec<_>, Vec<_>) = others.partition(|(_, alive)| alive.runs == release.digest);
        !with.is_empty() && with.len() >= without.len()
    }

    /// Whether something had failed in a node before the last resume, and it has not tried again yet.
    pub fn tries_again(&self, alive: &Alive) -> bool {
        alive.failed_in.is_some_and(|attempt| attempt < self.reboot.attempt)
    }

    /// Why a node cannot serve while another one is down; `None`: it can.
    pub(super) fn unfit(&self, node: NodeId) -> Option<String> {
        match self.alive.get(&node) {
            None => Some(format!("{node} is away")),
            Some(Alive { leaving: true, .. }) => Some(format!("{node} is about to reboot")),
            Some(alive) => match &alive.standing {
                Standing::Good if alive.drained => Some(format!("{node} is not back in service")),
                Standing::Good => None,
                Standing::Trial => Some(format!("{node} is on trial")),
                Standing::FellBack(why) => Some(format!("{node} fell back: {why}")),
                Standing::Unhealthy(_) if self.tries_again(alive) => Some(format!("{node} to try again")),
                Standing::Unhealthy(why) => Some(format!("{node} is not healthy: {why}")),
            },
        }
    }
}

/// List of nodes, as part of a sentence.
pub(super) fn names(nodes: impl IntoIterator<Item = NodeId>) -> String {
    nodes.into_iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
}
