//! All keys at one revision, as the driver and the nodes look at them.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Alive, NodeId, Outcome, Protection, Reboot, Standing, Upgrade};
use super::store::{Compare, Entry, Key, Revision, Snapshot, Txn, Value, Write};

/// What is decided on.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Who belongs to the cluster.
    pub members: BTreeSet<NodeId>,
    /// Who is there.
    pub alive: BTreeMap<NodeId, Alive>,
    /// The upgrade.
    pub upgrade: Upgrade,
    /// How far each node has come with it.
    pub outcomes: BTreeMap<NodeId, Outcome>,
    /// The reboot.
    pub reboot: Reboot,
    /// Who drives, and since which revision.
    pub leader: Option<(NodeId, Revision)>,
    /// Nodes that have been away for longer than a node may. Told by the stopwatch of whoever looks.
    pub lost: BTreeSet<NodeId>,
    /// Whether the present stage, or the present group, has taken longer than it may.
    pub overdue: bool,
    revisions: BTreeMap<Key, Revision>,
}

impl View {
    /// Reads a snapshot. A key whose value is of another kind does not exist: the back end has refused it before.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut view = Self::default();
        if let Some(Entry { value: Value::Upgrade(upgrade), .. }) = snapshot.get(&Key::Upgrade) {
            view.upgrade = upgrade.clone();
        }
        for (key, entry) in snapshot {
            view.revisions.insert(*key, entry.modified);
            match (key, &entry.value) {
                (Key::Member(node), _) => {
                    view.members.insert(*node);
                }
                (Key::Alive(node), Value::Alive(alive)) => {
                    view.alive.insert(*node, alive.clone());
                }
                (Key::Outcome(id, node), Value::Outcome(outcome)) if *id == view.upgrade.id => {
                    view.outcomes.insert(*node, outcome.clone());
                }
                (Key::Reboot, Value::Reboot(reboot)) => view.reboot = reboot.clone(),
                (Key::Leader, Value::Leader(node)) => view.leader = Some((*node, entry.created)),
                _ => {}
            }
        }
        view
    }

    /// The condition that a key is as it was seen.
    pub fn unchanged(&self, key: Key) -> Compare {
        Compare::Modified(key, self.revisions.get(&key).copied().unwrap_or_default())
    }

    /// A change of the driver: nobody leads but who led when this was seen, and what it changes is as it was seen.
    pub(super) fn driven(&self, writes: Vec<Write>) -> Txn {
        let mut txn = self.ordered(writes);
        let led = self.leader.map_or(0, |(_, created)| created);
        txn.compare.insert(0, Compare::Created(Key::Leader, led));
        txn
    }

    /// A change that an operator orders, or a node reports: what it was decided on is as it was seen.
    pub(super) fn ordered(&self, writes: Vec<Write>) -> Txn {
        Txn { compare: vec![self.unchanged(Key::Upgrade), self.unchanged(Key::Reboot)], writes }
    }

    /// Conditions that every node is there, or away, as it was seen: for what must not be begun on old news.
    pub(super) fn everybody(&self) -> impl Iterator<Item = Compare> + '_ {
        self.members.iter().map(|node| self.unchanged(Key::Alive(*node)))
    }

    /// The protection of data as the most careful node sees it; none where nobody is there.
    pub fn protection(&self) -> Protection {
        let all = || self.alive.values().map(|alive| alive.protection);
        Protection {
            remaining: all().map(|protection| protection.remaining).min().unwrap_or_default(),
            maximum: all().map(|protection| protection.maximum).max().unwrap_or_default(),
            rebuilding: all().any(|protection| protection.rebuilding),
        }
    }

    /// How the protection of data stands, in words.
    pub(super) fn protection_words(&self) -> String {
        let unknown = self.alive.iter().find_map(|(node, alive)| Some((node, alive.unknown.as_ref()?)));
        let Protection { remaining, maximum, rebuilding } = self.protection();
        match unknown {
            Some((node, why)) => format!("{node} does not know it: {why}"),
            None if rebuilding => format!("{remaining} of {maximum} nodes may fail, and it is restored"),
            None => format!("{remaining} of {maximum} nodes may fail"),
        }
    }

    /// Nodes that may be away at a time without the store losing its quorum, where each node is one of its members.
    pub fn spare(&self) -> u32 {
        let count = self.members.len();
        u32::try_from(count.saturating_sub(count / 2 + 1)).unwrap_or(u32::MAX)
    }

    /// Why a node is not fit to hold the others up while one is down; `None`: it is.
    pub(super) fn unfit(&self, node: NodeId) -> Option<String> {
        match self.alive.get(&node) {
            None => Some(format!("{node} is away")),
            Some(Alive { leaving: true, .. }) => Some(format!("{node} is about to reboot")),
            Some(alive) => match &alive.standing {
                Standing::Good if alive.drained => Some(format!("{node} is not back in service")),
                Standing::Good => None,
                Standing::Trial => Some(format!("{node} is on trial")),
                Standing::FellBack(why) => Some(format!("{node} fell back: {why}")),
                Standing::Unhealthy(why) => Some(format!("{node} is not healthy: {why}")),
            },
        }
    }
}

/// Names of nodes in a sentence.
pub(super) fn names(nodes: impl IntoIterator<Item = NodeId>) -> String {
    nodes.into_iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
}
