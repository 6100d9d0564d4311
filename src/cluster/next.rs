//! The driver: what is to be done next, from what is seen. It remembers nothing.

use super::state::{Reboot, RebootState, Stage, Upgrade};
use super::store::{Key, Txn, Value, Write};
use super::view::View;
use super::{rolling, upgrade};

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

/// What whoever leads does next.
pub fn next_action(view: &View) -> Action {
    let reboots = view.reboot.state != RebootState::Idle;
    if reboots && view.reboot.rolling {
        rolling::next(view)
    } else if reboots || view.upgrade.stage != Stage::Idle {
        upgrade::next(view)
    } else {
        Action::Rest
    }
}

/// The upgrade changes.
pub(super) fn put_upgrade(upgrade: Upgrade) -> Write {
    Write::Put(Key::Upgrade, Value::Upgrade(upgrade), None)
}

/// The reboot changes.
pub(super) fn put_reboot(reboot: Reboot) -> Write {
    Write::Put(Key::Reboot, Value::Reboot(reboot), None)
}
