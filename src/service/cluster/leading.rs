//! Decisions of the leader as people see them: how long each is shown, and the log.

use std::time::Duration;

use crate::cluster::state::{Reboot, Stage};
use crate::cluster::store::{Value, Write};
use crate::cluster::view::View;
use crate::service::cluster::cache::Seen;
use crate::state::UpgradeType;

/// Minimum time for which COMMITTING, and then COMMITTED, is shown; see STATUS.md and `owner.rs`.
pub(super) const COMMITTING: Duration = Duration::from_millis(1500);
const COMMITTED: Duration = Duration::from_millis(3000);

/// Whether clients that poll once a second may not have seen the present stage yet.
pub(super) fn is_early(seen: &Seen, view: &View) -> bool {
    let order = view.upgrade.order.as_ref();
    let platform = order.is_some_and(|order| order.upgrade_type == UpgradeType::SoftwareAndPlatform);
    let rolling = platform && order.is_some_and(|order| order.rolling);
    let shown = match view.upgrade.stage {
        Stage::Gate | Stage::Flip | Stage::SwapBack | Stage::FlipBack => COMMITTING,
        // A rolling upgrade has no stage before it, and shows COMMITTING for its first part.
        Stage::Committed if rolling => COMMITTING + COMMITTED,
        Stage::Committed => COMMITTED,
        _ => return false,
    };
    seen.stage_since.elapsed() < shown
}

/// Logs a decision of the leader.
pub(super) fn log(write: &Write) {
    match write {
        Write::Put(_, Value::Upgrade(upgrade), _) => {
            let error = upgrade.error.as_deref().unwrap_or_default();
            tracing::info!(upgrade = upgrade.id, stage = ?upgrade.stage, progress = upgrade.progress, error, "cluster: decided");
        }
        Write::Put(_, Value::Reboot(Reboot { state, current, done, error, .. }), _) => {
            let current: Vec<u32> = current.iter().map(|(node, _)| node.0).collect();
            let done: Vec<u32> = done.iter().map(|node| node.0).collect();
            tracing::info!(state = ?state, current = ?current, done = ?done, error, "cluster: decided");
        }
        _ => {}
    }
}
