//! Copy of all keys in a node, which its watch keeps current: a change costs the work of that key, whatever the number of nodes.

use super::etcd::KeyChange;
use super::store::Snapshot;
use super::view::View;

/// All keys, and the view of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    snapshot: Snapshot,
    view: View,
}

impl Replica {
    /// Creates the copy from all keys.
    pub fn new(snapshot: Snapshot) -> Self {
        let view = View::new(&snapshot);
        Self { snapshot, view }
    }

    /// Applies changes, in the order in which they were made.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = KeyChange>) {
        let mut other = false;
        for (key, entry) in changes {
            let id = self.view.upgrade.id;
            self.view.apply(key, entry.as_ref());
            other |= self.view.upgrade.id != id;
            match entry {
                Some(entry) => self.snapshot.insert(key, entry),
                None => self.snapshot.remove(&key),
            };
        }
        // A view has the results of one upgrade; those of another one may be here already. Once per upgrade.
        if other {
            self.view = View::new(&self.snapshot);
        }
    }

    /// All keys.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The view of all keys.
    pub const fn view(&self) -> &View {
        &self.view
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::tests::view as cluster;
    use super::super::memory::Memory;
    use super::super::state::{Member, NodeId, Outcome, Reboot, Upgrade};
    use super::super::store::{Key, Store, Txn, Value, Write};
    use super::*;

    /// Differences between two states, in the order of the keys, as a watch sends them.
    fn changes(before: &Snapshot, after: &Snapshot) -> Vec<KeyChange> {
        let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| (*key, None));
        let new = after.iter().filter(|(key, entry)| before.get(key) != Some(entry));
        gone.chain(new.map(|(key, entry)| (*key, Some(entry.clone())))).collect()
    }

    #[test]
    fn changes_lead_to_the_view_of_all_keys() {
        let (mut store, mut seed) = (Memory::default(), 1_u32);
        let mut replica = Replica::default();
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        for _ in 0..3000 {
            let (node, id) = (NodeId(random(4) + 1), u64::from(random(3)));
            let mut alive = cluster(4, 1, 1).alive[&node].clone();
            alive.progress = u8::try_from(random(100)).unwrap();
            let member = Member { uuid: String::new(), address: String::new(), certificate: String::new() };
            let (key, value) = match random(6) {
                0 => (Key::Member(node), Value::Member(member)),
                1 => (Key::Alive(node), Value::Alive(alive)),
                2 => (Key::Upgrade, Value::Upgrade(Upgrade { id, ..Upgrade::default() })),
                3 => (Key::Outcome(id, node), Value::Outcome(Outcome::Failed(random(9).to_string()))),
                4 => {
                    let reboot = Reboot { group: random(5), ..Reboot::default() };
                    (Key::Reboot, Value::Reboot(reboot))
                }
                _ => (Key::Leader, Value::Leader(node)),
            };
            let write = if random(3) == 0 { Write::Delete(key) } else { Write::Put(key, value, None) };
            let before = store.entries().clone();
            store.transact(&Txn { compare: vec![], writes: vec![write] }).unwrap();
            replica.apply(changes(&before, store.entries()));
            assert_eq!(replica, Replica::new(store.entries().clone()));
        }
    }
}
