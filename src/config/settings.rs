//! What holds after command line, file and defaults.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::cluster::ClusterConfig;
use super::{DEFAULT_PATH, ServiceConfig};
use crate::boot::BootFlag;
use crate::container;
use crate::engine::Policy;
use crate::error::{Error, Result};
use crate::gpt::TableMethod;
use crate::host::kexec;
use crate::host::trust::TrustFile;
use crate::source::http::Web;
use crate::units::{BlockSize, Slot};

/// What holds after command line, file and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The disk; there is no default.
    pub(crate) disk: Option<PathBuf>,
    /// The name that a bundle's product must have; `None`: that of the running slot.
    pub(crate) product: Option<String>,
    /// The trusted keys.
    pub(crate) trust: TrustFile,
    /// Which bits rule.
    pub(crate) boot_flag: BootFlag,
    /// How the partition table is changed.
    pub(crate) table: TableMethod,
    /// Where the EFI variables are; `None`: those of this machine's firmware.
    pub(crate) efivars: Option<PathBuf>,
    /// The file that a boot entry starts.
    pub(crate) efi_loader: String,
    /// The slot that runs; `None`: ask the kernel. On the command line only: a file would not change at a switch.
    pub(crate) booted: Option<Slot>,
    pub(crate) assume_unused: bool,
    /// Whether nothing falls back to the other slot once one is good.
    pub(crate) prevent_late_fallback: bool,
    /// Boot attempts of a slot on trial.
    pub(crate) tries: u8,
    /// Logical block size of an image file.
    pub(crate) sector_size: Option<BlockSize>,
    /// Directory of the state file.
    pub(crate) state_dir: PathBuf,
    /// Worker threads; `None`: by the number of cores.
    pub(crate) jobs: Option<NonZeroUsize>,
    /// Bytes per second written at most.
    pub(crate) max_rate: Option<u64>,
    /// Bytes per second written at least in the background, whoever waits.
    pub(crate) min_rate: Option<u64>,
    /// How the software image is run; `None`: by others.
    pub(crate) container: Option<container::Config>,
    /// How the kernel of a slot is started without the boot loader.
    pub(crate) kexec: kexec::Config,
    /// How web servers with bundles are trusted.
    pub(crate) web: Web,
    /// The service.
    pub(crate) service: ServiceConfig,
    /// The cluster that this node belongs to or may join; `None`: a single node.
    pub(crate) cluster: Option<ClusterConfig>,
}

impl Settings {
    /// The disk, which somebody must have named.
    pub(crate) fn disk(&self) -> Result<&Path> {
        self.disk.as_deref().ok_or_else(|| Error::Argument {
            what: "--disk".to_owned(),
            problem: format!("no disk is named; give --disk DISK or set 'disk' in {DEFAULT_PATH}"),
        })
    }

    /// How the software image is run, which somebody must have said.
    pub(crate) fn container(&self) -> Result<&container::Config> {
        self.container.as_ref().ok_or(Error::NoContainer)
    }

    /// The engine's rules, none of them overridden.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            boot_flag: self.boot_flag,
            table: self.table,
            booted: self.booted,
            product: self.product.clone(),
            efi_loader: self.efi_loader.clone(),
            tries: self.tries,
            prevent_late_fallback: self.prevent_late_fallback,
            trust: Some(self.trust.clone()),
            ..Policy::default()
        }
    }
}
