//! The table `[cluster]`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::values::seconds;
use crate::cluster::etcd::EtcdConfig;
use crate::cluster::state::NodeId;
use crate::error::{Error, Result};
use crate::service::cluster::Membership;
use crate::service::cluster::hooks::Hooks;

/// The table `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    pub(crate) endpoints: Vec<String>,
    pub(crate) node: NonZeroU32,
    pub(crate) address: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) reboot_timeout: Option<u64>,
    pub(crate) health_checks: Option<PathBuf>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) health_timeout: Option<u64>,
    pub(crate) drain_command: Option<Vec<String>>,
    pub(crate) undrain_command: Option<Vec<String>>,
    pub(crate) protection_command: Option<Vec<String>>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) hook_timeout: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) commit_timeout: Option<u64>,
}

impl ClusterConfig {
    /// The number of this node.
    pub(crate) const fn node(&self) -> NodeId {
        NodeId(self.node.get())
    }

    /// Access to etcd.
    ///
    /// # Errors
    /// [`Error::Argument`]: one half of a pair is missing.
    pub(crate) fn access(&self) -> Result<EtcdConfig> {
        let half = |pair: &str| Error::Argument {
            what: format!("[cluster] {pair}"),
            problem: "only one of them is set".to_owned(),
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(half("cert and key")),
        };
        let user = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), file.clone())),
            (None, None) => None,
            _ => return Err(half("user and password_file")),
        };
        let prefix = self.prefix.clone().unwrap_or_else(|| "/qstage".to_owned());
        Ok(EtcdConfig {
            endpoints: self.endpoints.clone(),
            ca: self.ca.clone(),
            identity,
            user,
            prefix: format!("{}/", prefix.trim_end_matches('/')),
        })
    }

    /// The settings as the service needs them. `certificate` is that of the service.
    ///
    /// # Errors
    /// [`Error::Argument`]: one half of a pair is missing, or a hook has more time than its turn.
    pub(crate) fn membership(
        &self,
        listen: std::net::SocketAddr,
        certificate: PathBuf,
    ) -> Result<Membership> {
        let time = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        let words = |given: &Option<Vec<String>>| given.clone().unwrap_or_default();
        let hooks = Hooks {
            drain: words(&self.drain_command),
            undrain: words(&self.undrain_command),
            protection: words(&self.protection_command),
            timeout: time(self.hook_timeout, 300),
        };
        let reboot_timeout = time(self.reboot_timeout, 900);
        if !(hooks.drain.is_empty() && hooks.undrain.is_empty()) && hooks.timeout >= reboot_timeout {
            // Else the turn would end before the hook is named that holds it up.
            return Err(Error::Argument {
                what: "[cluster] hook_timeout".to_owned(),
                problem:
                    "it must be less than reboot_timeout, within which the hooks and the reboot must be over"
                        .to_owned(),
            });
        }
        Ok(Membership {
            access: self.access()?,
            node: self.node(),
            address: self.address.clone().unwrap_or_else(|| format!("https://{listen}")),
            certificate,
            reboot_timeout,
            commit_timeout: time(self.commit_timeout, 60),
            health: self.health_checks.clone().unwrap_or_else(|| "/etc/qstage/health.d".into()),
            health_timeout: time(self.health_timeout, 60),
            hooks,
        })
    }
}
