//! Settings in force: command line, file and defaults merged.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::cluster::ClusterConfig;
use super::reboot::RebootConfig;
use super::{DEFAULT_PATH, ServiceConfig};
use crate::boot::BootFlag;
use crate::container;
use crate::engine::Policy;
use crate::error::{Error, Result};
use crate::gpt::TableMethod;
use crate::host::kexec;
use crate::host::machine_id;
use crate::host::trust::TrustFile;
use crate::service::cluster::{Membership, SoftwareStart, awaits_verdict};
use crate::service::fleet::FleetLock;
use crate::service::http::tls::CERTIFICATE;
use crate::source::InputTimeout;
use crate::source::http::Web;
use crate::units::{BlockSize, Slot};

/// Settings in force after command line, file and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The disk; `None`: not configured, there is no default.
    pub(crate) disk: Option<PathBuf>,
    /// Product that a bundle must be for; `None`: that of the running slot.
    pub(crate) product: Option<String>,
    /// The trusted keys.
    pub(crate) trust: TrustFile,
    /// The boot flag that decides which slot boots.
    pub(crate) boot_flag: BootFlag,
    /// Method by which the partition table is changed.
    pub(crate) table: TableMethod,
    /// Directory of the EFI variables; `None`: efivarfs of this machine.
    pub(crate) efivars: Option<PathBuf>,
    /// The file that an EFI boot entry starts.
    pub(crate) efi_loader: String,
    /// The running slot; `None`: as the kernel reports it. On the command line only: a file would not change at a switch.
    pub(crate) booted: Option<Slot>,
    pub(crate) assume_unused: bool,
    /// Whether mark-good forbids a later fallback to the other slot.
    pub(crate) prevent_late_fallback: bool,
    /// Number of boot attempts of a slot on trial.
    pub(crate) tries: u8,
    /// Sector size of an image file; `None`: the size at which a table is found.
    pub(crate) sector_size: Option<BlockSize>,
    /// Directory of the journal.
    pub(crate) state_dir: PathBuf,
    /// Number of worker threads; `None`: by the number of cores.
    pub(crate) jobs: Option<NonZeroUsize>,
    /// Maximum write rate in bytes per second; `None`: no limit.
    pub(crate) max_rate: Option<u64>,
    /// Minimum write rate in the background in bytes per second, also while other processes wait; `None`: no minimum.
    pub(crate) min_rate: Option<u64>,
    /// Longest silence of a pipe that a bundle is read from.
    pub(crate) input_timeout: InputTimeout,
    /// Container of the software image; `None`: qstage does not run it.
    pub(crate) container: Option<container::Config>,
    /// Start of a slot's kernel without the boot loader.
    pub(crate) kexec: kexec::KexecConfig,
    /// Maximum download for one upgrade in bytes; `None`: no limit.
    pub(crate) max_download: Option<u64>,
    /// Transfers from web servers, and their trust.
    pub(crate) web: Web,
    /// The service.
    pub(crate) service: ServiceConfig,
    /// The lock that a reboot needs.
    pub(crate) reboot: RebootConfig,
    /// The cluster that this node belongs to or may join; `None`: a single node.
    pub(crate) cluster: Option<ClusterConfig>,
}

impl Settings {
    /// The disk; an error if none is configured.
    pub(crate) fn disk(&self) -> Result<&Path> {
        self.disk.as_deref().ok_or_else(|| Error::Argument {
            what: "--disk".to_owned(),
            problem: format!("no disk is named; give --disk DISK or set 'disk' in {DEFAULT_PATH}"),
        })
    }

    /// Whether what is on trial here is for all nodes of a cluster to decide on.
    pub(crate) fn awaits_verdict(&self) -> bool {
        let node = self.cluster.as_ref().map(ClusterConfig::node);
        node.is_some_and(|node| awaits_verdict(&self.state_dir, node))
    }

    /// The condition of the cluster on a start of the software; `None`: a single node.
    pub(crate) fn software_start(&self) -> Result<Option<SoftwareStart>> {
        let start = |cluster: &ClusterConfig| {
            let (node, state_dir) = (cluster.node(), self.state_dir.clone());
            cluster.access().map(|access| SoftwareStart { access, node, state_dir })
        };
        self.cluster.as_ref().map(start).transpose()
    }

    /// Files of the certificate and the key of the service; `None`: a self-signed one.
    ///
    /// # Errors
    /// [`Error::Argument`]: one half of the pair is missing.
    pub(crate) fn certificate(&self) -> Result<Option<(PathBuf, PathBuf)>> {
        match (&self.service.certificate, &self.service.key) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.clone(), key.clone()))),
            (None, None) => Ok(None),
            _ => Err(Error::Argument {
                what: "[service] certificate and key".to_owned(),
                problem: "only one of them is set; set the other one too, or neither".to_owned(),
            }),
        }
    }

    /// The membership of a cluster, for a service that listens there; `None`: a single node.
    ///
    /// # Errors
    /// [`Error::Argument`]: the configuration contradicts itself.
    pub(crate) fn membership(&self, listen: SocketAddr) -> Result<Option<Membership>> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        let own = self.certificate()?.map(|(certificate, _)| certificate);
        let membership =
            cluster.membership(listen, own.unwrap_or_else(|| self.state_dir.join(CERTIFICATE)))?;
        if !self.service.reboots() {
            let problem = "a member of a cluster needs a 'reboot_command' in [service]; set it".to_owned();
            return Err(Error::Argument { what: "[cluster]".to_owned(), problem });
        }
        Ok(Some(membership))
    }

    /// The lock that a reboot of this machine needs; `None`: none.
    ///
    /// # Errors
    /// [`Error::Argument`]: the configuration contradicts itself.
    pub(crate) fn fleet_lock(&self) -> Result<Option<FleetLock>> {
        let Some(lock) = self.reboot.lock(&machine_id())? else { return Ok(None) };
        let problem = if self.cluster.is_some() {
            "members of a cluster reboot in turn without a lock server; remove [reboot] or [cluster]"
        } else if self.service.reboots() {
            return Ok(Some(lock));
        } else {
            "without a 'reboot_command' in [service] the service does not reboot the machine; set it, or remove [reboot]"
        };
        Err(Error::Argument { what: "[reboot] fleet_lock".to_owned(), problem: problem.to_owned() })
    }

    /// The container; an error if none is configured.
    pub(crate) fn container(&self) -> Result<&container::Config> {
        self.container.as_ref().ok_or(Error::NoContainer)
    }

    /// The engine's policy, without overrides.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            boot_flag: self.boot_flag,
            table: self.table,
            booted: self.booted,
            software_started: None,
            container: self.container.is_some(),
            product: self.product.clone(),
            efi_loader: self.efi_loader.clone(),
            tries: self.tries,
            max_download: self.max_download,
            prevent_late_fallback: self.prevent_late_fallback,
            trust: Some(self.trust.clone()),
            ..Policy::default()
        }
    }
}
