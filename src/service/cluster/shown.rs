//! Answers of the API: the same objects as those of a single node, made from the cache. No answer needs a request to etcd.

use serde::Serialize;

use crate::cluster::next::{Action, next_action};
use crate::cluster::state::{Alive, NodeId, Outcome, RebootState, Stage, Standing};
use crate::cluster::store::{Entry, Key, Value};
use crate::cluster::view::View;
use crate::error::Error;
use crate::service::cluster::Cluster;
use crate::service::cluster::cache::Seen;
use crate::service::cluster::orders::Pending;
use crate::service::owner::upgrade::{Failure, LocalUpgrade, Phase, UpgradeSettings};
use crate::service::view::{ClusterPart, RebootStatus, ServiceSnapshot};
use crate::state::UpgradeType;

/// Answer to `GET /v1/qstage/cluster`.
#[derive(Debug, Serialize)]
pub(in crate::service) struct ClusterStatus {
    /// Number of the node that answers.
    node_id: u32,
    /// ACTIVE; STOPPED while the node runs another release than the cluster; UNCONFIGURED; or UNKNOWN before etcd has answered.
    state: &'static str,
    cluster_id: String,
    /// Whether etcd is reachable.
    connected: bool,
    /// Why it is not, so that the answer may be outdated; or why this machine takes no part although its number is that of a
    /// member; empty: neither.
    problem: String,
    /// Number of the leader; null: there is none.
    leader: Option<u32>,
    /// Stage of the upgrade.
    stage: Stage,
    /// Version that all nodes ran when the upgrade was ordered; empty: none is in progress, or that is not known.
    starting_version: String,
    /// Version of the upgrade in progress; empty: none is.
    target_version: String,
    /// Event that the leader waits for; empty: none.
    waits_for: String,
    nodes: Vec<ClusterNode>,
}

/// Node in the answer.
#[derive(Debug, Serialize)]
pub(in crate::service) struct ClusterNode {
    id: u32,
    node_name: String,
    node_status: &'static str,
    address: String,
    uuid: String,
    version: String,
    /// `good`, `trial`, `fell-back`, `unhealthy`, or `away`.
    standing: &'static str,
    /// Reason why it fell back or is unhealthy; empty otherwise.
    reason: String,
    /// Present activity, or the event that it waits for; empty: none.
    doing: String,
    progress: Option<u8>,
}

/// Text that readers without a token see in place of a reason, which may contain paths, devices and addresses.
const UNTOLD: &str = "who has a token sees why";

impl ClusterStatus {
    /// The answer without details, for callers that may only read.
    pub(in crate::service) fn for_readers(mut self) -> Self {
        if !self.problem.is_empty() {
            UNTOLD.clone_into(&mut self.problem);
        }
        self.nodes = self.nodes.into_iter().map(ClusterNode::for_readers).collect();
        self
    }
}

impl ClusterNode {
    /// Whether it is the node with this number.
    pub(in crate::service) fn is(&self, node: NodeId) -> bool {
        self.id == node.0
    }

    /// The node without details, for callers that may only read.
    pub(in crate::service) fn for_readers(mut self) -> Self {
        if !self.reason.is_empty() {
            UNTOLD.clone_into(&mut self.reason);
        }
        if self.doing.starts_with(FAILED) {
            self.doing = format!("{FAILED}: {UNTOLD}");
        }
        self
    }
}

/// Activity of a node that has failed.
const FAILED: &str = "failed";

impl Cluster {
    fn seen(&self) -> Seen {
        self.cache.get()
    }

    fn machine(seen: &Seen, node: NodeId) -> Option<(&str, &str)> {
        match seen.entry(Key::Member(node)) {
            Some(Entry { value: Value::Member(member), .. }) => Some((&member.uuid, &member.address)),
            _ => None,
        }
    }

    /// Whether this node belongs to the cluster. `true` while that is unknown: to act as a single node would be wrong then.
    pub(in crate::service) fn is_member(&self) -> bool {
        self.seen().member(self.node()) != Some(false)
    }

    /// Address of the service of a member; `None`: `node` does not belong to the cluster.
    pub(in crate::service) fn address_of(&self, node: NodeId) -> Option<String> {
        Self::machine(&self.seen(), node).map(|(_, address)| address.to_owned())
    }

    /// The state of a single node, with the upgrade and reboot of the cluster in place of its own.
    pub(in crate::service) fn overlay(&self, own: &ServiceSnapshot) -> ServiceSnapshot {
        if !self.is_member() {
            return own.clone();
        }
        let seen = self.seen();
        let view = seen.view();
        let pending = self.pending();
        let mut shown = own.clone();
        shown.upgrade = upgrade(own, &seen, view, &pending);
        let reboot = reboot(view);
        let protection = view.protection();
        let busy = view.reboot.state != RebootState::Idle || view.upgrade.stage.word() == "REBOOTING";
        let admits = match view.upgrade.stage {
            Stage::Idle | Stage::Prepared => crate::cluster::orders::admission(view).err(),
            _ => None,
        };
        let reason = match (seen.problem.as_ref().or(seen.refused.as_ref()), busy) {
            (Some(problem), _) => Some(problem.clone()),
            (None, true) => Some("a reboot is under way".to_owned()),
            (None, false) => admits.map(|error| match error {
                Error::Blocked { reason } => reason,
                other => other.to_string(),
            }),
        };
        shown.cluster = Some(ClusterPart {
            reboot,
            degraded: view.down().next().is_some() || !protection.whole() || seen.problem.is_some(),
            blocked: reason,
        });
        shown
    }

    /// Number and membership of this node, and the identity of its cluster.
    pub(in crate::service) fn node_state(&self) -> (u32, &'static str, String) {
        let seen = self.seen();
        match (seen.known, seen.member(self.node()) != Some(false)) {
            (false, _) => (self.node().0, "UNKNOWN", String::new()),
            (true, false) => (self.node().0, "UNCONFIGURED", String::new()),
            (true, true) => {
                let view = seen.view();
                let runs = view.alive.get(&self.node()).map(|alive| alive.runs);
                let stopped = runs.is_some_and(|runs| view.missed(self.node(), runs));
                (self.node().0, if stopped { "STOPPED" } else { "ACTIVE" }, seen.identity)
            }
        }
    }

    /// Name of the cluster: what distinguishes it from others on the same etcd.
    pub(in crate::service) fn name(&self) -> String {
        self.membership.access.prefix.trim_matches('/').to_owned()
    }

    /// Number of nodes that may fail now, and when all are there and all data is protected: without the loss of data, as the
    /// hook reports it, and of the quorum of the store.
    pub(in crate::service) fn protection(&self) -> (u32, u32) {
        let seen = self.seen();
        let view = seen.view();
        let (protection, spare) = (view.protection(), view.spare());
        let down = u32::try_from(view.down().count()).unwrap_or(u32::MAX);
        (protection.remaining.min(spare.saturating_sub(down)), protection.maximum.min(spare))
    }

    /// Whether data is not as protected as it can be, as the hook reports it. Without a hook nothing is known to be restored,
    /// although etcd may have lost its spare members.
    pub(in crate::service) fn is_rebuilding(&self) -> bool {
        !self.seen().view().protection().whole()
    }

    /// All members.
    pub(in crate::service) fn nodes(&self) -> Vec<ClusterNode> {
        let seen = self.seen();
        let view = seen.view();
        view.members.iter().filter_map(|node| shown_node(&seen, view, *node)).collect()
    }

    /// Complete state of the cluster.
    pub(in crate::service) fn status(&self) -> ClusterStatus {
        let seen = self.seen();
        let view = seen.view();
        let (node_id, state, cluster_id) = self.node_state();
        let waits_for = match next_action(view) {
            Action::Wait(what) => what,
            Action::Write(_) | Action::Resign if view.leader.is_none() => "a node to lead".to_owned(),
            Action::Rest | Action::Write(_) | Action::Resign => String::new(),
        };
        let upgrade = Some(&view.upgrade).filter(|upgrade| upgrade.stage != Stage::Idle);
        let order = upgrade.and_then(|upgrade| upgrade.order.as_ref());
        ClusterStatus {
            node_id,
            state,
            cluster_id,
            connected: seen.problem.is_none(),
            problem: seen.problem.clone().or(seen.refused.clone()).unwrap_or_default(),
            leader: view.leader.map(|(leader, _)| leader.0),
            stage: view.upgrade.stage,
            starting_version: upgrade.map(|upgrade| upgrade.starting_version.clone()).unwrap_or_default(),
            target_version: order.map(|order| order.target_version.clone()).unwrap_or_default(),
            waits_for,
            nodes: self.nodes(),
        }
    }
}

fn shown_node(seen: &Seen, view: &View, node: NodeId) -> Option<ClusterNode> {
    let (uuid, address) = Cluster::machine(seen, node)?;
    let alive = view.alive.get(&node);
    let (standing, reason) = match alive.map(|alive| &alive.standing) {
        None => ("away", String::new()),
        Some(Standing::Good) => ("good", String::new()),
        Some(Standing::Trial) => ("trial", String::new()),
        Some(Standing::FellBack(why)) => ("fell-back", why.clone()),
        // What failed before a resume is tried again.
        Some(Standing::Unhealthy(_)) if alive.is_some_and(|alive| view.tries_again(alive)) => {
            ("unhealthy", String::new())
        }
        Some(Standing::Unhealthy(why)) => ("unhealthy", why.clone()),
    };
    let preparing = view.upgrade.stage == Stage::Preparing;
    let outcome = view.outcomes.get(&node);
    let progress = match outcome {
        _ if !preparing => alive.and_then(|alive| Some(alive.staging.as_ref()?.percent)),
        Some(Outcome::Prepared) => Some(100),
        _ => Some(alive.map_or(0, |alive| alive.progress)),
    };
    Some(ClusterNode {
        id: node.0,
        node_name: format!("node-{}", node.0),
        node_status: if alive.is_some() { "online" } else { "offline" },
        address: address.to_owned(),
        uuid: uuid.to_owned(),
        version: alive.map(|alive| alive.version.clone()).unwrap_or_default(),
        standing,
        reason,
        doing: doing(view, node, alive, outcome),
        progress,
    })
}

fn doing(view: &View, node: NodeId, alive: Option<&Alive>, outcome: Option<&Outcome>) -> String {
    let reboot = &view.reboot;
    let before = reboot.current.iter().find(|(current, _)| *current == node).map(|(_, boot)| *boot);
    match (before, alive) {
        _ if reboot.state == RebootState::Idle => {}
        (_, Some(Alive { staging: Some(_), .. })) => return "prepares again".to_owned(),
        (Some(_), None) => return "boots".to_owned(),
        (Some(before), Some(alive)) if alive.boot == before => return "is about to reboot".to_owned(),
        (Some(_), Some(_)) => return "is back, and proves itself".to_owned(),
        (None, _) if reboot.done.contains(&node) => return "has rebooted".to_owned(),
        (None, _) if reboot.todo.contains(&node) => return "waits for its turn".to_owned(),
        (None, _) => {}
    }
    match (view.upgrade.stage, outcome) {
        (Stage::Idle, _) => match alive.filter(|alive| view.missed(node, alive.runs)) {
            None => String::new(),
            Some(Alive { blocked: Some(why), .. }) => format!("{FAILED}: {why}"),
            Some(_) => {
                let version = view.release().map(|release| release.target_version.as_str());
                format!("catches up with {}", version.unwrap_or_default())
            }
        },
        (_, Some(Outcome::Failed(why))) => format!("{FAILED}: {why}"),
        (Stage::Preparing, None) => "prepares".to_owned(),
        (Stage::Preparing | Stage::Prepared, Some(_)) => "is prepared".to_owned(),
        (_, Some(outcome)) => format!("{outcome:?}").to_lowercase(),
        (_, None) => String::new(),
    }
}

/// The upgrade of the cluster in the form of an upgrade of a single node.
fn upgrade(own: &ServiceSnapshot, seen: &Seen, view: &View, pending: &Pending) -> LocalUpgrade {
    let upgrade = &view.upgrade;
    let settings = upgrade.order.as_ref().map(|order| UpgradeSettings {
        install_path: order.install_path.clone(),
        target_version: order.target_version.clone(),
        upgrade_type: order.upgrade_type,
        auto_commit: order.auto_commit,
        do_rolling_reboot: order.rolling,
        num_nodes_to_reboot: order.nodes.map(u64::from),
    });
    let rolls = upgrade
        .order
        .as_ref()
        .is_some_and(|order| order.rolling && order.upgrade_type == UpgradeType::SoftwareAndPlatform);
    let begins =
        seen.stage_begun && seen.stage_since.elapsed() < crate::service::cluster::leading::COMMITTING;
    let phase = match (upgrade.stage.word(), pending) {
        ("PREPARED", Pending::Waits) => Phase::Committing,
        ("PREPARING", _) => Phase::Preparing,
        ("PREPARED", _) => Phase::Prepared,
        ("COMMITTING", _) => Phase::Committing,
        ("COMMITTED", _) if rolls && begins => Phase::Committing,
        ("COMMITTED", _) => Phase::Committed,
        ("REBOOTING", _) => Phase::Rebooting,
        _ => Phase::Idle,
    };
    let told = match pending {
        Pending::Failed(error) if phase == Phase::Prepared => Some(error.clone()),
        _ => upgrade.error.clone(),
    };
    let error = told.filter(|_| phase != Phase::Committing).map(|message| {
        let cancelled = Error::Cancelled;
        let code = if message == cancelled.to_string() {
            cancelled.code()
        } else {
            Error::ClusterUpgrade { problem: String::new() }.code()
        };
        Failure { code: code.to_owned(), message }
    });
    // After success the settings are no longer shown, as on a single node.
    let settings = settings.filter(|_| phase != Phase::Idle || error.is_some());
    LocalUpgrade { phase, settings, progress: upgrade.progress, error, ..own.upgrade.clone() }
}

fn reboot(view: &View) -> RebootStatus {
    let reboot = &view.reboot;
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    RebootStatus {
        state: match reboot.state {
            RebootState::Idle => "REBOOT_IDLE",
            RebootState::InProgress => "REBOOT_IN_PROGRESS",
            RebootState::Paused => "REBOOT_PAUSED",
            RebootState::PausedDueToError => "REBOOT_PAUSED_DUE_TO_ERROR",
        },
        rolling: reboot.rolling,
        upgrade_initiated: reboot.upgrade_initiated,
        total_node_count: count(view.members.len()),
        rebooted_node_count: count(reboot.done.len()),
        error_message: reboot.error.clone(),
    }
}
