//! The leader: what it measures by its clock, how long people see each of its decisions, and the log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::state::{BootId, NodeId, Reboot, RebootState, Stage};
use crate::cluster::store::{Value, Write};
use crate::cluster::view::View;
use crate::service::cluster::cache::Seen;
use crate::state::UpgradeType;

/// Minimum time for which COMMITTING, and then COMMITTED, is shown; see STATUS.md and `owner.rs`.
pub(super) const COMMITTING: Duration = Duration::from_millis(1500);
const COMMITTED: Duration = Duration::from_millis(3000);

/// Time that a node may be away during a prepare or a commit.
const LOST: Duration = Duration::from_secs(30);
/// Time limit of all nodes for a gate; a swap has half of it, a flip twice as much.
const TOGETHER: Duration = Duration::from_secs(30);

/// Times that every node measures, since any node can become the leader.
pub(super) struct Times {
    /// Members that are away, with the time at which this node first saw that.
    away: BTreeMap<NodeId, Instant>,
    /// Group whose turn it is and the attempt, and the time at which the turn began, or was resumed.
    group: ((Vec<(NodeId, BootId)>, u32), Instant),
    /// Time limit for the return of a node from a reboot.
    reboot_timeout: Duration,
}

impl Times {
    pub(super) fn new(reboot_timeout: Duration) -> Self {
        Self { away: BTreeMap::new(), group: ((Vec::new(), 0), Instant::now()), reboot_timeout }
    }

    /// Records what has begun since the last look.
    pub(super) fn look(&mut self, view: &View) {
        self.away.retain(|node, _| !view.alive.contains_key(node) && view.members.contains(node));
        for node in view.members.iter().filter(|node| !view.alive.contains_key(node)) {
            self.away.entry(*node).or_insert_with(Instant::now);
        }
        let ((group, attempt), _) = &self.group;
        if *group != view.reboot.current || *attempt != view.reboot.attempt {
            self.group = ((view.reboot.current.clone(), view.reboot.attempt), Instant::now());
        }
    }

    /// The view with lost nodes and overdue stages, for a decision.
    pub(super) fn timed(&self, seen: &Seen) -> View {
        let mut view = seen.view().clone();
        view.lost =
            self.away.iter().filter(|(_, since)| since.elapsed() > LOST).map(|(node, _)| *node).collect();
        let reboots = view.reboot.state != RebootState::Idle && !view.reboot.current.is_empty();
        let since_stage = seen.stage_since.elapsed();
        view.overdue = match view.upgrade.stage {
            _ if reboots => self.group.1.elapsed() > self.reboot_timeout,
            Stage::Gate => since_stage > TOGETHER,
            // Half, so that the way back ends within half a minute too.
            Stage::Swap => since_stage > TOGETHER / 2,
            Stage::Flip => since_stage > TOGETHER * 2,
            _ => false,
        };
        view
    }
}

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
