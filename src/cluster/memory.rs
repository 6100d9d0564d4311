//! A store in memory with the semantics of etcd: one revision per transaction that changes something, a new `created` for
//! each creation, and leases that remove their keys when they end.

use std::collections::BTreeSet;

use super::store::{Compare, Entry, Key, LeaseId, Revision, Snapshot, Store, Txn, Write};
use crate::error::{Error, Result};

/// Store in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Memory {
    revision: Revision,
    entries: Snapshot,
    leases: BTreeSet<LeaseId>,
    granted: LeaseId,
}

impl Memory {
    /// All keys.
    pub const fn entries(&self) -> &Snapshot {
        &self.entries
    }

    /// Number of changes since the store was created.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Grants a lease with this number: to an exploration of states, successive leases of a node must be equal.
    pub fn grant_as(&mut self, lease: LeaseId) -> LeaseId {
        self.leases.insert(lease);
        lease
    }

    fn holds(&self, compare: &Compare) -> bool {
        let of = |key: &Key, get: fn(&Entry) -> Revision| self.entries.get(key).map_or(0, get);
        match compare {
            Compare::Modified(key, revision) => of(key, |entry| entry.modified) == *revision,
            Compare::Created(key, revision) => of(key, |entry| entry.created) == *revision,
        }
    }

    /// The same content with revisions that express only whether each of the conditions `held` still holds. Two stores that
    /// are equal after that behave equally for ever, whatever their histories were.
    #[must_use]
    pub fn canonical(mut self, held: &mut [Compare]) -> Self {
        for compare in held {
            let holds = self.holds(compare);
            let (Compare::Modified(_, revision) | Compare::Created(_, revision)) = compare;
            *revision = match *revision {
                // That a key does not exist may become true again.
                0 => 0,
                _ if holds => 1,
                _ => Revision::MIN,
            };
        }
        for entry in self.entries.values_mut() {
            (entry.created, entry.modified) = (1, 1);
        }
        self.revision = 1;
        self
    }
}

impl Store for Memory {
    fn snapshot(&self) -> Result<Snapshot> {
        Ok(self.entries.clone())
    }

    fn transact(&mut self, txn: &Txn) -> Result<bool> {
        if !txn.compare.iter().all(|compare| self.holds(compare)) {
            return Ok(false);
        }
        let revision = self.revision + 1;
        for write in &txn.writes {
            match write {
                Write::Put(key, value, lease) => {
                    if let Some(gone) = lease.filter(|lease| !self.leases.contains(lease)) {
                        return Err(Error::Internal { what: format!("lease {gone} is over") });
                    }
                    let created = self.entries.get(key).map_or(revision, |entry| entry.created);
                    let entry = Entry { value: value.clone(), created, modified: revision, lease: *lease };
                    self.entries.insert(*key, entry);
                    self.revision = revision;
                }
                Write::Delete(key) => {
                    if self.entries.remove(key).is_some() {
                        self.revision = revision;
                    }
                }
            }
        }
        Ok(true)
    }

    fn grant(&mut self, _seconds: u32) -> Result<LeaseId> {
        self.granted += 1;
        self.leases.insert(self.granted);
        Ok(self.granted)
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        self.leases.remove(&lease);
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.lease != Some(lease));
        self.revision += Revision::from(self.entries.len() != before);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::NodeId;
    use super::super::store::Value;
    use super::*;

    fn put(key: Key, lease: Option<LeaseId>) -> Txn {
        Txn { compare: vec![], writes: vec![Write::Put(key, Value::Leader(NodeId(1)), lease)] }
    }

    fn of(store: &Memory, key: Key) -> Option<(Revision, Revision)> {
        store.entries().get(&key).map(|entry| (entry.created, entry.modified))
    }

    #[test]
    fn revisions_and_leases_are_those_of_etcd() {
        let mut store = Memory::default();
        assert!(store.transact(&put(Key::Leader, None)).unwrap());
        assert!(store.transact(&put(Key::Leader, None)).unwrap());
        assert_eq!(of(&store, Key::Leader), Some((1, 2)), "changed, not created anew");
        let old = Txn { compare: vec![Compare::Modified(Key::Leader, 1)], ..put(Key::Upgrade, None) };
        assert!(!store.transact(&old).unwrap() && of(&store, Key::Upgrade).is_none(), "all or nothing");
        let new = Txn { compare: vec![Compare::Created(Key::Upgrade, 0)], ..put(Key::Upgrade, None) };
        assert!(store.transact(&new).unwrap() && !store.transact(&new).unwrap(), "once");
        let lease = store.grant(10).unwrap();
        store.transact(&put(Key::Reboot, Some(lease))).unwrap();
        store.revoke(lease).unwrap();
        assert_eq!(
            (of(&store, Key::Reboot), store.revision()),
            (None, 5),
            "one revision for all of its keys"
        );
        assert!(store.transact(&put(Key::Reboot, Some(lease))).is_err(), "the lease is over");
        store.transact(&put(Key::Reboot, None)).unwrap();
        assert_eq!(of(&store, Key::Reboot), Some((6, 6)), "created anew");
    }

    #[test]
    fn stores_that_behave_equally_are_equal() {
        let mut store = Memory::default();
        store.transact(&put(Key::Leader, None)).unwrap();
        let mut held = [Compare::Modified(Key::Leader, 1), Compare::Created(Key::Upgrade, 0)];
        let mut same = store.canonical(&mut held);
        assert!(held.iter().all(|compare| same.holds(compare)));
        same.transact(&put(Key::Leader, None)).unwrap();
        let mut same = same.canonical(&mut held);
        assert!(!same.holds(&held[0]) && same.holds(&held[1]));
        same.transact(&put(Key::Leader, None)).unwrap();
        assert!(!same.canonical(&mut held).holds(&held[0]), "what does not hold never holds again");
    }
}
