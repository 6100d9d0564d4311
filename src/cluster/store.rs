//! What is asked of a store: transactions that are compared with revisions, and leases. etcd has both; so has
//! [`Memory`](super::memory::Memory).

use super::state::{Alive, Member, NodeId, Outcome, Reboot, Restart, Upgrade};
use crate::error::Result;

/// Number of a change; 0: never.
pub type Revision = i64;
/// Number of a lease.
pub type LeaseId = i64;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Who belongs to the cluster.
    Member(NodeId),
    /// Who is there.
    Alive(NodeId),
    /// The upgrade.
    Upgrade,
    /// How far a node has come with an upgrade.
    Outcome(u64, NodeId),
    /// The reboot.
    Reboot,
    /// Who drives.
    Leader,
    /// A node is to restart its software.
    Restart(NodeId),
}

/// What stands at a key; the variant is that of the key.
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

/// A key's value and history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What stands there.
    pub value: Value,
    /// The revision at which the key came to be.
    pub created: Revision,
    /// The revision of its last change.
    pub modified: Revision,
    /// It goes with this lease.
    pub lease: Option<LeaseId>,
}

/// All keys at one revision, in the order of the keys.
pub type Snapshot = std::collections::BTreeMap<Key, Entry>;

/// A condition of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key was changed last at this revision; 0: it is not there.
    Modified(Key, Revision),
    /// The key came to be at this revision; 0: it is not there.
    Created(Key, Revision),
}

/// A change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Write {
    /// Sets a key, on a lease or for good.
    Put(Key, Value, Option<LeaseId>),
    /// Removes a key.
    Delete(Key),
}

/// Writes that are done at one revision if all conditions hold, and else not at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The changes.
    pub writes: Vec<Write>,
}

/// A store.
pub trait Store {
    /// All keys, at one revision.
    ///
    /// # Errors
    /// It cannot be reached, or has no quorum.
    fn snapshot(&self) -> Result<Snapshot>;

    /// Runs a transaction; whether its conditions held.
    ///
    /// # Errors
    /// As above; whether it was run is not known then.
    fn transact(&mut self, txn: &Txn) -> Result<bool>;

    /// A new lease.
    ///
    /// # Errors
    /// As above.
    fn grant(&mut self, seconds: u32) -> Result<LeaseId>;

    /// Ends a lease and removes its keys.
    ///
    /// # Errors
    /// As above.
    fn revoke(&mut self, lease: LeaseId) -> Result<()>;
}
