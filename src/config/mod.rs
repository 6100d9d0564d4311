//! The configuration file, `/etc/qstage/config.toml`. Every key is optional; `fixtures/config.toml` explains
//! them. Precedence: command line, file, default.

mod cluster;
mod message;
mod network;
mod reboot;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod values;

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use network::NetworkConfig;
use reboot::RebootConfig;
use serde::Deserialize;
use values::{loader, rate, seconds, sector_size, tries};

pub(crate) use self::cluster::ClusterConfig;
pub(crate) use self::service::ServiceConfig;
pub(crate) use self::settings::Settings;
pub(crate) use self::values::parse_listener;
use crate::boot::BootFlag;
use crate::bundle::trust::Demand;
use crate::container;
use crate::efi;
use crate::error::{Error, Result};
use crate::gpt::TableMethod;
use crate::host::files::read_trusted_text;
use crate::host::kexec;
use crate::host::trust::{DEFAULT_TRUST, TrustFile};
use crate::source::InputTimeout;
use crate::units::BlockSize;

/// Path of the file unless `--config` names another.
const DEFAULT_PATH: &str = "/etc/qstage/config.toml";

/// Largest configuration in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// The file as written. An unknown key is an error: a misspelt `boot_flag` must not go unnoticed.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    disk: Option<PathBuf>,
    product: Option<String>,
    trust: Option<PathBuf>,
    threshold: Option<NonZeroUsize>,
    principal: Option<String>,
    boot_flag: Option<BootFlag>,
    table: Option<TableMethod>,
    efivars: Option<PathBuf>,
    #[serde(default, deserialize_with = "loader")]
    efi_loader: Option<String>,
    #[serde(default, deserialize_with = "tries")]
    tries: Option<u8>,
    #[serde(default, deserialize_with = "sector_size")]
    sector_size: Option<BlockSize>,
    prevent_late_fallback: Option<bool>,
    state_dir: Option<PathBuf>,
    jobs: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "rate")]
    max_rate: Option<u64>,
    #[serde(default, deserialize_with = "rate")]
    min_rate: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    input_timeout: Option<u64>,
    container: Option<container::Config>,
    #[serde(default)]
    kexec: kexec::KexecConfig,
    web_ca: Option<PathBuf>,
    web_insecure: Option<bool>,
    #[serde(default)]
    network: NetworkConfig,
    #[serde(default)]
    service: ServiceConfig,
    #[serde(default)]
    reboot: RebootConfig,
    cluster: Option<ClusterConfig>,
}

impl Config {
    /// Reads the named file, or the default file, which may be missing.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let read = read_trusted_text(path, CONFIG_MAX);
        let outcome = read.as_ref().map_or_else(ToString::to_string, |text| format!("{} bytes", text.len()));
        tracing::debug!("configuration {}: {outcome}", path.display());
        match read {
            Ok(text) => Self::parse(&text).map_err(|problem| Error::Config { path: path.into(), problem }),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::Config { path: path.into(), problem: error.to_string() }),
        }
    }

    /// The default file.
    pub(crate) fn default_path() -> &'static Path {
        Path::new(DEFAULT_PATH)
    }

    /// Parses the text of a file; the error names the line.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let message = message::plain(&error.message().trim_end().replace('\n', ", "));
            error.span().map_or(message.clone(), |span| message::at(text, span.start, &message))
        })
    }

    /// Fills in the defaults.
    pub(crate) fn into_settings(self) -> Settings {
        Settings {
            disk: self.disk,
            product: self.product,
            trust: TrustFile {
                path: self.trust.unwrap_or_else(|| DEFAULT_TRUST.into()),
                demand: Demand {
                    threshold: self.threshold.unwrap_or(NonZeroUsize::MIN),
                    principal: self.principal,
                },
            },
            boot_flag: self.boot_flag.unwrap_or_default(),
            table: self.table.unwrap_or_default(),
            efivars: self.efivars,
            efi_loader: self.efi_loader.unwrap_or_else(|| efi::default_loader().to_owned()),
            booted: None,
            assume_unused: false,
            tries: self.tries.unwrap_or(3),
            prevent_late_fallback: self.prevent_late_fallback.unwrap_or(false),
            sector_size: self.sector_size,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/qstage".into()),
            jobs: self.jobs,
            max_rate: self.max_rate,
            min_rate: self.min_rate,
            input_timeout: self.input_timeout.map_or_else(InputTimeout::default, InputTimeout),
            container: self.container,
            kexec: self.kexec,
            max_download: self.network.max_download,
            web: self.network.into_web(self.web_ca, self.web_insecure.unwrap_or(false)),
            service: self.service,
            reboot: self.reboot,
            cluster: self.cluster,
        }
    }
}

/// The file as it is written, without its comments; `None` where there is none.
///
/// # Errors
/// Of reading; it is no TOML.
pub(crate) fn value(path: &Path) -> io::Result<Option<serde_json::Value>> {
    let text = match read_trusted_text(path, CONFIG_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let table: toml::Table = toml::from_str(&text).map_err(io::Error::other)?;
    Ok(Some(serde_json::to_value(table)?))
}
