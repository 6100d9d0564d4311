//! Actions of a leader, and the writes that they consist of.

use super::state::{Reboot, Upgrade};
use super::store::{Key, Txn, Value, Write};

/// Action of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing is in progress.
    Rest,
    /// Wait, for the reason in the text, which the status shows.
    Wait(String),
    /// Run this transaction. If its conditions no longer hold, the leader reads the state again.
    Write(Txn),
    /// Resign as the leader, because it is the turn of the leader itself.
    Resign,
}

/// Write that changes the upgrade.
pub(super) fn put_upgrade(upgrade: Upgrade) -> Write {
    Write::Put(Key::Upgrade, Value::Upgrade(upgrade), None)
}

/// Write that changes the reboot.
pub(super) fn put_reboot(reboot: Reboot) -> Write {
    Write::Put(Key::Reboot, Value::Reboot(reboot), None)
}
