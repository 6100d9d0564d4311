//! Values of the keys.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::UpgradeType;
use crate::units::Blake3;

/// Number of a node, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// Identity of one boot of a node: the kernel's `boot_id`. No clock is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub u128);

/// A node that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Identity of the machine, which distinguishes two machines with the same node number.
    pub uuid: String,
    /// Address of its service.
    pub address: String,
    /// Certificate of its service, as PEM, by which the other nodes know it; empty: it is not known.
    #[serde(default)]
    pub certificate: String,
}

/// State of the running release of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Marked good, and its health hook passes.
    Good,
    /// On trial.
    Trial,
    /// The last release did not come up, and the one before it runs; with the reason.
    FellBack(String),
    /// The release runs and is not healthy; with the check that failed and its last output.
    Unhealthy(String),
}

impl Standing {
    /// Why it fell back or is not healthy; empty: neither.
    pub fn reason(&self) -> &str {
        match self {
            Self::FellBack(why) | Self::Unhealthy(why) => why,
            Self::Good | Self::Trial => "",
        }
    }
}

/// Protection of the data of the whole cluster, as the `protection` hook of a node reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Protection {
    /// Number of further nodes that may fail now.
    pub remaining: u32,
    /// Number of nodes that may fail when all data is protected.
    pub maximum: u32,
    /// Protection of data is being restored, whatever the two numbers are.
    #[serde(default)]
    pub rebuilding: bool,
}

impl Protection {
    /// Whether all data is protected, and nothing is being restored.
    pub const fn whole(self) -> bool {
        self.remaining >= self.maximum && !self.rebuilding
    }
}

/// Version of the keys and of their meaning. It is raised whenever nodes of two versions could not act on the same keys.
pub const PROTOCOL: u32 = 1;

/// Staging of the ordered bundle before a turn, since a fallback or a return has discarded it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Staging {
    /// Progress, in percent.
    pub percent: u8,
    /// Device or server that does not answer; `None`: it proceeds.
    #[serde(default)]
    pub stalled: Option<String>,
}

impl fmt::Display for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent)?;
        self.stalled.as_ref().map_or(Ok(()), |stalled| write!(f, ", {stalled} does not answer"))
    }
}

/// State that a node publishes for the duration of its lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Alive {
    /// Present boot of the node.
    pub boot: BootId,
    /// Digest of the manifest of the running release.
    pub runs: Blake3,
    /// BLAKE3 of the image of the running platform; `None`: it is not known. Nodes that run the same software may differ in it.
    #[serde(default)]
    pub platform: Option<Blake3>,
    /// Version of the running release.
    pub version: String,
    /// Product of the running release; empty: it is not known.
    #[serde(default)]
    pub product: String,
    /// [`PROTOCOL`] of its qstage; 0: it is older than the field.
    #[serde(default)]
    pub protocol: u32,
    /// State of the running release.
    pub standing: Standing,
    /// Protection of data as this node knows it; the worst of all nodes counts.
    pub protection: Protection,
    /// Progress of its prepare, in percent.
    pub progress: u8,
    /// Why it accepts no upgrade; `None`: it does.
    pub blocked: Option<String>,
    /// The node has taken its turn and is about to reboot.
    pub leaving: bool,
    /// It was taken out of service for its turn, and is not back in service yet.
    #[serde(default)]
    pub drained: bool,
    /// Why it does not know the protection of data; `None`: it is known.
    #[serde(default)]
    pub unknown: Option<String>,
    /// [`Reboot::attempt`] in which it became unhealthy, or its protection of data unknown; `None`: neither is the case, or its
    /// qstage is older than the field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_in: Option<u32>,
    /// Its turn needs the bundle, which it stages first; `None`: it has the bundle, or needs none, or its qstage is older than the
    /// field, and stages within the turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<Staging>,
}

/// Stage of an upgrade of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// No upgrade is in progress.
    #[default]
    Idle,
    /// Each node stages the bundle.
    Preparing,
    /// All nodes have staged it.
    Prepared,
    /// Software: each node starts the new container up to its gate; the old one serves.
    Gate,
    /// Software: all nodes swap together.
    Swap,
    /// Software: one node failed, all swap back.
    SwapBack,
    /// Platform: all nodes select the new slot.
    Flip,
    /// Platform: one node failed, all select the old slot again.
    FlipBack,
    /// The commit is decided. In a rolling reboot no boot flag is set before the turn of its node.
    Committed,
    /// The nodes reboot.
    Rebooting,
    /// All nodes run the new release, and mark it good.
    Keep,
    /// A node failed or did not come back, and all return to the previous release.
    Return,
}

impl Stage {
    /// Name of the stage in the status.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "IDLE",
            Self::Preparing => "PREPARING",
            Self::Prepared => "PREPARED",
            Self::Gate | Self::Swap | Self::SwapBack | Self::Flip | Self::FlipBack => "COMMITTING",
            Self::Committed => "COMMITTED",
            Self::Rebooting | Self::Keep | Self::Return => "REBOOTING",
        }
    }
}

/// Order of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ordered {
    /// Digest of the manifest of the bundle; each node compares the bundle that it reads with it.
    pub digest: Blake3,
    /// Path or URL of the bundle.
    pub install_path: String,
    /// Node that received the order; one that has nothing at that path fetches the bundle from it. `None`: a URL.
    #[serde(default)]
    pub source: Option<NodeId>,
    /// Version of the bundle.
    pub target_version: String,
    /// Includes the platform if any node needs it.
    pub upgrade_type: UpgradeType,
    /// Whether the commit begins as soon as all nodes are prepared.
    pub auto_commit: bool,
    /// Whether the nodes reboot one group after the other.
    pub rolling: bool,
    /// Nodes per group; `None`: the protection at the commit decides.
    pub nodes: Option<u32>,
    /// Whether a product or version that does not fit the running release is accepted.
    #[serde(default)]
    pub overridden: bool,
    /// Whether a release that has failed before is tried again.
    #[serde(default)]
    pub retry: bool,
}

#[cfg(test)]
impl Ordered {
    /// An order of software alone, for unit tests.
    pub(crate) fn sample() -> Self {
        Self {
            digest: Blake3([2; 32]),
            install_path: "/x".to_owned(),
            source: None,
            target_version: "2".to_owned(),
            upgrade_type: UpgradeType::SoftwareOnly,
            auto_commit: false,
            rolling: false,
            nodes: None,
            overridden: false,
            retry: false,
        }
    }
}

/// The upgrade of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// Counter of the orders. The keys of results contain it, so that results of an earlier order do not count.
    pub id: u64,
    /// Present stage.
    pub stage: Stage,
    /// Order of the upgrade; also present after an error, until the next order.
    pub order: Option<Ordered>,
    /// Why it failed, with the node; `None`: it has not failed.
    pub error: Option<String>,
    /// Highest progress shown so far, in percent.
    pub progress: u8,
    /// Verdict: all nodes ran the new release, and it stays. A node that was away at that time follows it later.
    pub kept: bool,
    /// Nodes per group of its rolling reboot, as the commit decided; `None`: not decided yet.
    #[serde(default)]
    pub group: Option<u32>,
    /// Version that all nodes ran when it was ordered; empty: the qstage that received the order is older than the field.
    #[serde(default)]
    pub starting_version: String,
}

/// Result of a node in an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its slots contain the bundle.
    Prepared,
    /// The new container waits at its gate.
    Ready,
    /// The new container runs and is healthy, or the new slot is selected.
    Switched,
    /// The node is in the state before the commit.
    Undone,
    /// The node runs the new release and has marked it good.
    Kept,
    /// The node failed; with the reason.
    Failed(String),
}

/// Order to one node to restart its software. The node deletes it when that is done; until then it lasts as long as the lease
/// of the requesting node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restart {
    /// Node that requests the restart; after a failure, the node that failed.
    pub by: NodeId,
    /// Why the restart failed; `None`: it is not done yet.
    pub failed: Option<String>,
}

/// State of a reboot of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootState {
    /// No reboot is in progress.
    #[default]
    Idle,
    /// The reboot is in progress.
    InProgress,
    /// The current group ends, and no other one begins.
    Paused,
    /// The reboot failed, and continues only after an order.
    PausedDueToError,
}

/// Reboot of the cluster. A node in `current` has the right to be down, whether it is alive or not: a right that ended with a
/// lease would let a second node reboot while the first one boots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Reboot {
    /// State of the reboot.
    pub state: RebootState,
    /// Whether the nodes reboot one group after the other; `false`: all at once.
    pub rolling: bool,
    /// Whether the reboot is part of an upgrade; in a rolling one a node selects the new slot at its turn.
    pub upgrade_initiated: bool,
    /// Whether the upgrade is abandoned: at its turn a node returns to the previous release.
    #[serde(default)]
    pub back: bool,
    /// Nodes per group.
    pub group: u32,
    /// Nodes whose turn has not begun yet, in order.
    pub todo: Vec<NodeId>,
    /// Nodes whose turn it is, each with its boot at the start of the turn.
    pub current: Vec<(NodeId, BootId)>,
    /// Nodes that have come back.
    pub done: Vec<NodeId>,
    /// Why the reboot is paused or has failed; empty: neither.
    pub error: String,
    /// Number of resumes of all reboots. After each, a node tries again what had failed before it.
    #[serde(default)]
    pub attempt: u32,
}
