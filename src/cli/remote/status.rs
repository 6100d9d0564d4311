//! The status of an upgrade, as the service shows it.

use serde::{Deserialize, Serialize};

use crate::service::owner::upgrade::UpgradeSettings;

pub(super) const COMMITTED: &str = "UPGRADE_STATE_COMMITTED";

/// The v3 status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct V3Status {
    pub(super) state: String,
    pub(super) progress: Option<u64>,
    pub(super) settings: Option<UpgradeSettings>,
    pub(super) error_info: Option<String>,
}

impl V3Status {
    pub(super) fn is_idle(&self) -> bool {
        self.state == "UPGRADE_STATE_IDLE"
    }

    /// Whether the nodes of a cluster switch to the release, or have switched.
    pub(super) fn committed(&self) -> bool {
        [COMMITTED, "UPGRADE_STATE_REBOOTING"].contains(&self.state.as_str())
    }

    /// Whether it changes without another command. A single node takes its status with it when it reboots.
    pub(super) fn moves(&self, cluster: bool) -> bool {
        let moves = ["UPGRADE_STATE_PREPARING", "UPGRADE_STATE_COMMITTING"];
        moves.contains(&self.state.as_str()) || (cluster && self.committed())
    }
}
