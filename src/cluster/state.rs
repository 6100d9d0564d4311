//! The values of the keys.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::UpgradeType;
use crate::units::Blake3;

/// The number of a node, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// Which boot of a node it is: the kernel's `boot_id`. Time is never asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub u128);

/// A node that belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Identity of the machine, so that two machines with one number are told apart.
    pub uuid: String,
    /// Where its service answers.
    pub address: String,
}

/// How what runs has proved itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Marked good, and its health hook passes.
    Good,
    /// On trial.
    Trial,
    /// The last release did not come up, and the one before it runs: why.
    FellBack(String),
    /// It runs, and is not healthy: which check, and its last words.
    Unhealthy(String),
}

/// What the hook of the data layer says of the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Protection {
    /// Further nodes that may fail now.
    pub remaining: u32,
    /// Nodes that may fail when all is whole.
    pub maximum: u32,
    /// Data is being protected anew, whatever the two numbers are.
    #[serde(default)]
    pub rebuilding: bool,
}

impl Protection {
    /// Whether nothing is being protected anew.
    pub const fn whole(self) -> bool {
        self.remaining >= self.maximum && !self.rebuilding
    }
}

/// What a node says of itself for as long as its lease lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Alive {
    /// Its boot.
    pub boot: BootId,
    /// The manifest of what runs.
    pub runs: Blake3,
    /// Its version.
    pub version: String,
    /// How that has proved itself.
    pub standing: Standing,
    /// What it knows of the protection of data; the worst of all counts.
    pub protection: Protection,
    /// Percent of the upgrade that it prepares.
    pub progress: u8,
    /// Why it takes no upgrade.
    pub blocked: Option<String>,
    /// It is about to reboot, because it is its turn.
    pub leaving: bool,
    /// It was taken out of service for its turn, and is not back in service yet.
    #[serde(default)]
    pub drained: bool,
    /// Why it does not know the protection of data; `None`: it does.
    #[serde(default)]
    pub unknown: Option<String>,
}

/// Where an upgrade of the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Nothing is under way.
    #[default]
    Idle,
    /// Each node stages the bundle.
    Preparing,
    /// All nodes have.
    Prepared,
    /// Software: each node brings the new container to its gate; the old one serves.
    Gate,
    /// Software: all swap together.
    Swap,
    /// Software: one failed, all swap back.
    SwapBack,
    /// Platform: all select the new slot.
    Flip,
    /// Platform: one failed, all select the old one again.
    FlipBack,
    /// It is decided; in a rolling reboot no flag is set before the turn of its node.
    Committed,
    /// The nodes reboot.
    Rebooting,
    /// All run the new release, and mark it good.
    Keep,
    /// One fell back, and all return.
    Return,
}

impl Stage {
    /// The state as the status names it.
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

/// What was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ordered {
    /// The manifest of the bundle: what each node compares with what it read.
    pub digest: Blake3,
    /// Path or URL of the bundle.
    pub install_path: String,
    /// Version of the bundle.
    pub target_version: String,
    /// The platform where any node needs it.
    pub upgrade_type: UpgradeType,
    /// Commit as soon as all are prepared.
    pub auto_commit: bool,
    /// Whether the nodes reboot one group after the other.
    pub rolling: bool,
    /// Nodes per group; `None`: by the protection when it begins.
    pub nodes: Option<u32>,
    /// Product and version need not fit what runs.
    #[serde(default)]
    pub overridden: bool,
    /// A release that has failed is tried again.
    #[serde(default)]
    pub retry: bool,
}

/// The upgrade of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// Counts the orders; results name it, so that none of an earlier one counts.
    pub id: u64,
    /// Where it is.
    pub stage: Stage,
    /// What was ordered; kept beside an error, and until the next order.
    pub order: Option<Ordered>,
    /// Why it failed, with the node that did.
    pub error: Option<String>,
    /// The highest percentage that was ever shown.
    pub progress: u8,
    /// The verdict: all nodes ran the new release, and it stays. A node that was away then does what it says.
    pub kept: bool,
    /// Nodes per group of its rolling reboot, as the commit decided; `None`: not yet.
    #[serde(default)]
    pub group: Option<u32>,
}

/// How far a node has come with an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its slots hold the bundle.
    Prepared,
    /// The new container waits at its gate.
    Ready,
    /// The new container runs and is healthy, or the new slot is selected.
    Switched,
    /// It is as it was before the commit.
    Undone,
    /// It runs the new release and has marked it good.
    Kept,
    /// It could not do what was asked for.
    Failed(String),
}

/// An order to one node: to restart its software. The node removes it when that is done; it goes with the lease of who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restart {
    /// Who asked.
    pub by: NodeId,
    /// Why it failed; `None`: it is to be done.
    pub failed: Option<String>,
}

/// State of a reboot of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootState {
    /// None is under way.
    #[default]
    Idle,
    /// It goes on.
    InProgress,
    /// The group under way ends, and no other one begins.
    Paused,
    /// It failed, and goes on by order only.
    PausedDueToError,
}

/// The reboot of the cluster. Who is in `current` holds the right to be down, whether it is alive or not: a right that ended
/// with a lease would let a second node go while the first one boots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Reboot {
    /// Its state.
    pub state: RebootState,
    /// One group after the other.
    pub rolling: bool,
    /// Part of an upgrade: a node selects the new slot at its turn.
    pub upgrade_initiated: bool,
    /// The upgrade is abandoned: at its turn a node returns to the previous release.
    #[serde(default)]
    pub back: bool,
    /// Nodes per group.
    pub group: u32,
    /// Nodes whose turn is to come, in this order.
    pub todo: Vec<NodeId>,
    /// Nodes whose turn it is, each with the boot that it had then.
    pub current: Vec<(NodeId, BootId)>,
    /// Nodes that have come back.
    pub done: Vec<NodeId>,
    /// Why it is paused.
    pub error: String,
}
