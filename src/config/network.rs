//! Table `[network]`: transfers of bundles from web servers.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::values::{rate, seconds, size};
use crate::source::http::{Roots, TransferLimits, Web};

/// The table as written.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkConfig {
    #[serde(default)]
    roots: Vec<Roots>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
    credentials: Option<PathBuf>,
    proxy: Option<String>,
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default, deserialize_with = "seconds")]
    connect_timeout: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    stall_timeout: Option<u64>,
    #[serde(default, deserialize_with = "rate")]
    least_rate: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    least_rate_time: Option<u64>,
    retries: Option<u32>,
    deltas: Option<bool>,
    #[serde(default, deserialize_with = "size")]
    pub(super) max_download: Option<u64>,
}

impl NetworkConfig {
    /// Fills in the defaults. `ca` and `insecure` are older than this table and stand outside of it in the file.
    pub(crate) fn into_web(self, ca: Option<PathBuf>, insecure: bool) -> Web {
        let defaults = TransferLimits::default();
        let time = |seconds: Option<u64>, default| seconds.map_or(default, Duration::from_secs);
        Web {
            ca,
            insecure,
            roots: self.roots,
            client_certificate: self.client_certificate,
            client_key: self.client_key,
            credentials: self.credentials,
            proxy: self.proxy,
            mirrors: self.mirrors,
            no_deltas: !self.deltas.unwrap_or(true),
            front_only: false,
            redirects: None,
            limits: TransferLimits {
                connect: time(self.connect_timeout, defaults.connect),
                stall: time(self.stall_timeout, defaults.stall),
                least_rate: self.least_rate.unwrap_or(defaults.least_rate),
                least_rate_time: time(self.least_rate_time, defaults.least_rate_time),
                retries: self.retries.unwrap_or(defaults.retries),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample with its options uncommented has every key, and shows the true default if there is one.
    #[test]
    fn the_sample_shows_every_key_and_the_true_defaults() {
        let sample = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/config.toml"));
        let section = sample.split("\n[network]\n").nth(1).unwrap().split("\n[").next().unwrap();
        let keys: String = section
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
            .map(|line| format!("{line}\n"))
            .collect();
        let NetworkConfig {
            roots,
            client_certificate,
            client_key,
            credentials,
            proxy,
            mirrors,
            connect_timeout,
            stall_timeout,
            least_rate,
            least_rate_time,
            retries,
            deltas,
            max_download,
        } = toml::from_str(&keys).unwrap();
        assert!(!roots.is_empty() && client_certificate.is_some() && client_key.is_some());
        assert!(credentials.is_some() && proxy.is_some() && !mirrors.is_empty());
        assert!(deltas.is_some() && max_download.is_some());
        let limits = NetworkConfig {
            deltas,
            connect_timeout,
            stall_timeout,
            least_rate,
            least_rate_time,
            retries,
            ..NetworkConfig::default()
        };
        assert!(connect_timeout.is_some() && stall_timeout.is_some() && retries.is_some());
        assert!(least_rate.is_some() && least_rate_time.is_some());
        assert_eq!(limits.into_web(None, false), Web::default());
    }
}
