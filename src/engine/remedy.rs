//! The remedy of a refusal, from the state of the slots. Whether an alternative would be accepted is decided by the
//! transition itself, so that no message can name one that is refused.

use super::transition::{Change, cancellation, of};
use super::view::View;
use crate::error::Remedy;
use crate::units::Group;

/// What an operator can do now, whatever the bundle.
pub(super) fn remedy(view: &View) -> Remedy {
    let cancel = || matches!(cancellation(view), Ok(Some(_)));
    let roll_back = || of(&Change::RollBack(None), view).is_ok();
    let mut trials = view.on_trial().peekable();
    if trials.peek().is_some() {
        // A mark does not end the trial of what was not started.
        return if view.pending() {
            Remedy::Start { cancel: cancel() }
        } else if trials.any(|held| view.is_unstarted(held)) {
            Remedy::StartSoftware { roll_back: roll_back() }
        } else {
            Remedy::EndTrial { roll_back: roll_back() }
        };
    }
    let (next, running) = (view.next(Group::Platform), view.in_service(Group::Platform));
    if let (Some(slot), Some(running)) = (next, running)
        && slot != running
    {
        return Remedy::Reboot { slot, stay: cancel().then_some(running) };
    }
    let failed = view.all().iter().any(|held| view.failure(held).is_some());
    if failed && !view.policy.retry {
        let mut again = view.clone();
        again.policy.retry = true;
        if of(&Change::Commit, &again).is_ok() {
            return Remedy::PrepareOrRetry;
        }
    }
    Remedy::Prepare
}
