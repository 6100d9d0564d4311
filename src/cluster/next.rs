//! The driver: what is to be done next, from what is seen. It remembers nothing.

pub use super::action::Action;
use super::state::{RebootState, Stage};
use super::view::View;
use super::{rolling, upgrade};

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
