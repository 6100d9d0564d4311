//! The table `[service]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::values::{address, directories, prefixes, seconds};
use crate::service::ServiceLimits;
use crate::service::http::tokens::TokenFile;
use crate::source::address::Url;
use crate::source::allowed::Allowed;

/// The table `[service]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceConfig {
    #[serde(default, deserialize_with = "address")]
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) tokens: Option<PathBuf>,
    #[serde(default, deserialize_with = "directories")]
    pub(crate) image_paths: Option<Vec<PathBuf>>,
    #[serde(default, deserialize_with = "prefixes")]
    pub(crate) image_urls: Vec<Url>,
    #[serde(default)]
    pub(crate) hosts: Vec<String>,
    pub(crate) reboot_command: Option<Vec<String>>,
    pub(crate) halt_command: Option<Vec<String>>,
    pub(crate) software_restart_command: Option<Vec<String>>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) reboot_timeout: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    pub(crate) waiting_period: Option<u64>,
}

impl ServiceConfig {
    /// Address at which HTTPS is served; by default loopback.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8000)))
    }

    /// Whether the service can reboot the machine.
    pub(crate) fn reboots(&self) -> bool {
        self.reboot_command.as_ref().is_some_and(|command| !command.is_empty())
    }

    /// The file of tokens; by default one that may be missing.
    pub(crate) fn tokens(&self) -> TokenFile {
        TokenFile::new(self.tokens.as_deref())
    }

    /// Bundles that callers may name; by default files in a directory for this purpose, and no server.
    pub(crate) fn allowed(&self) -> Allowed {
        let directories = self.image_paths.clone().unwrap_or_else(|| vec!["/upgrade".into()]);
        Allowed { directories, prefixes: self.image_urls.clone() }
    }

    /// Time limits. The default of five minutes covers the slowest orderly shutdown; a client waits only if it asks for it.
    pub(crate) fn limits(&self) -> ServiceLimits {
        let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        ServiceLimits { reboot: seconds(self.reboot_timeout, 300), waiting: seconds(self.waiting_period, 0) }
    }
}
