//! What a leader may do, and the writes that its actions consist of.

use super::state::{Reboot, Upgrade};
use super::store::{Key, Txn, Value, Write};

/// What the leader does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing is under way.
    Rest,
    /// Nothing now, and what is waited for: the status shows it.
    Wait(String),
    /// This transaction. Where its conditions do not hold any more, it looks again.
    Write(Txn),
    /// It gives up to lead: it is its own turn.
    Resign,
}

/// The upgrade changes.
pub(super) fn put_upgrade(upgrade: Upgrade) -> Write {
    Write::Put(Key::Upgrade, Value::Upgrade(upgrade), None)
}

/// The reboot changes.
pub(super) fn put_reboot(reboot: Reboot) -> Write {
    Write::Put(Key::Reboot, Value::Reboot(reboot), None)
}
