//! The table `[reboot]`.

use std::time::Duration;

use serde::Deserialize;

use super::values::seconds;
use crate::error::{Error, Result};
use crate::service::fleet::FleetLock;

/// The table `[reboot]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RebootConfig {
    pub(crate) fleet_lock: Option<String>,
    pub(crate) fleet_lock_group: Option<String>,
    pub(crate) fleet_lock_id: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) fleet_lock_timeout: Option<u64>,
}

impl RebootConfig {
    /// The lock that a reboot needs; `None`: none. `machine` is the default of `fleet_lock_id`.
    ///
    /// # Errors
    /// [`Error::Argument`]: the address is no URL, or the machine has no name.
    pub(crate) fn lock(&self, machine: &str) -> Result<Option<FleetLock>> {
        let wrong = |what: &str, problem: &str| Error::Argument {
            what: format!("[reboot] {what}"),
            problem: problem.to_owned(),
        };
        let Some(url) = &self.fleet_lock else { return Ok(None) };
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(wrong("fleet_lock", "it is no URL such as http://HOST:3333"));
        }
        let id = self.fleet_lock_id.clone().unwrap_or_else(|| machine.to_owned());
        if id.is_empty() {
            return Err(wrong("fleet_lock_id", "this machine has no /etc/machine-id; set a name"));
        }
        Ok(Some(FleetLock {
            url: url.trim_end_matches('/').to_owned(),
            group: self.fleet_lock_group.clone().unwrap_or_else(|| "default".to_owned()),
            id,
            timeout: Duration::from_secs(self.fleet_lock_timeout.unwrap_or(3600)),
        }))
    }
}
