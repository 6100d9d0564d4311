//! The driver: decides the next action from the view alone. It keeps no state.

pub use super::action::Action;
use super::state::{RebootState, Stage};
use super::view::View;
use super::{rolling, upgrade};

/// Next action of the leader.
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
