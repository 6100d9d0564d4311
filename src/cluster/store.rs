//! Requirements of a store: transactions with conditions on revisions, and leases. etcd has both, and so has
//! [`Memory`](super::memory::Memory).

use super::state::{Alive, Member, NodeId, Outcome, Reboot, Restart, Upgrade};
use crate::error::Result;

/// Number of a change, from 1; 0: no change.
pub type Revision = i64;
/// Number of a lease.
pub type LeaseId = i64;

/// Key of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A node that belongs to the cluster.
    Member(NodeId),
    /// Present state of a node, on its lease.
    Alive(NodeId),
    /// The upgrade.
    Upgrade,
    /// Result of a node in the upgrade with this number.
    Outcome(u64, NodeId),
    /// The reboot.
    Reboot,
    /// The leader.
    Leader,
    /// Order to a node to restart its software.
    Restart(NodeId),
}

/// Value of a key; the variant is that of the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "as in Key")]
pub enum Value {
    Member(Member),
    Alive(Alive),
    Upgrade(Upgrade),
    Outcome(Outcome),
    Reboot(Reboot),
    Leader(NodeId),
    Restart(Restart),
}

/// Value of a key, with its history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Value of the key.
    pub value: Value,
    /// Revision at which the key was created.
    pub created: Revision,
    /// Revision of its last change.
    pub modified: Revision,
    /// Lease whose end deletes the key; `None`: it has no lease.
    pub lease: Option<LeaseId>,
}

/// All keys at one revision, in the order of the keys.
pub type Snapshot = std::collections::BTreeMap<Key, Entry>;

/// Condition of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The last change of the key was at this revision; 0: the key does not exist.
    Modified(Key, Revision),
    /// The key was created at this revision; 0: the key does not exist.
    Created(Key, Revision),
}

/// Change of a transaction.
#[allow(clippy::large_enum_variant, reason = "nearly all changes are puts")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Write {
    /// Sets a key, on a lease or permanently.
    Put(Key, Value, Option<LeaseId>),
    /// Deletes a key.
    Delete(Key),
}

/// Writes that are all done at one revision if all conditions hold, and otherwise not at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The changes.
    pub writes: Vec<Write>,
}

/// Store of the common state of a cluster.
pub trait Store {
    /// All keys, at one revision.
    ///
    /// # Errors
    /// The store cannot be reached, or has no quorum.
    fn snapshot(&self) -> Result<Snapshot>;

    /// Runs a transaction and returns whether its conditions held.
    ///
    /// # Errors
    /// As [`Self::snapshot`]; after an error it is not known whether the transaction was run.
    fn transact(&mut self, txn: &Txn) -> Result<bool>;

    /// Grants a new lease of this duration.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    fn grant(&mut self, seconds: u32) -> Result<LeaseId>;

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    fn revoke(&mut self, lease: LeaseId) -> Result<()>;
}
