//! The flags that several verbs share.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{environment, values};
use crate::boot::BootFlag;
use crate::bundle::Trust;
use crate::config::{Config, Settings};
use crate::doctor::Setup;
use crate::engine::Policy;
use crate::error::{Error, Result};
use crate::host::trust::TrustFile;
use crate::progress::Progress;
use crate::source::InputTimeout;
use crate::source::http::Web;
use crate::units::size;
use crate::units::{BlockSize, Slot};

/// Adds a flag and its value, as one word each, for another process.
fn word(words: &mut Vec<OsString>, flag: &str, value: Option<impl Into<OsString>>) {
    if let Some(value) = value {
        words.extend([flag.into(), value.into()]);
    }
}

/// `--config`: for verbs that use the trusted keys or the rates of the configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(super) struct ConfigArgs {
    /// Configuration file [default: /etc/qstage/config.toml]
    ///
    /// Options of the command line override it. The default file may be missing; a
    /// file that is named here may not. [env: QSTAGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file that `--config` or the environment names; `None`: the default file.
    pub(super) fn named(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| environment::path(environment::CONFIG))
    }

    /// The configuration with its defaults.
    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(Config::load(self.named().as_deref())?.into_settings())
    }
}

/// `--state-dir`, `--config`: all that a client of a service needs to know of its own machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(super) struct PlacesArgs {
    /// Directory of the journal [default: /var/lib/qstage]
    ///
    /// It has the history, and the last error and the origin of its bundle for 'status';
    /// a service stores its certificate there. It may be lost at any time: the slots
    /// describe themselves. [env: QSTAGE_STATE_DIR]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    #[command(flatten)]
    config: ConfigArgs,
}

impl PlacesArgs {
    fn state_dir(&self) -> Option<PathBuf> {
        self.state_dir.clone().or_else(|| environment::path(environment::STATE_DIR))
    }

    /// The configuration with its defaults, and this directory.
    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(self.over(self.config.settings()?))
    }

    fn over(&self, mut settings: Settings) -> Settings {
        settings.state_dir = self.state_dir().unwrap_or(settings.state_dir);
        settings
    }
}

/// `--mirror`, `--input-timeout`: for verbs that read a bundle from a web server or a pipe.
#[derive(Debug, Args)]
#[command(next_help_heading = "Source of the bundle")]
pub(super) struct InputArgs {
    /// Another URL of the bundle, used if the first one fails; may be repeated
    ///
    /// With a slash at its end: a URL below which a file with the bundle's name is
    /// looked for. Used before the mirrors of the configuration. A mirror that fails,
    /// stalls, is much slower, or sends other bytes is abandoned. Every frame is verified
    /// in any case.
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,

    /// Longest silence of a pipe in seconds; 0: no limit [default: 300]
    ///
    /// For standard input and FIFOs: if no byte arrives for this time, the verb fails.
    /// Web servers have limits of their own, in the table 'network'.
    #[arg(long, value_name = "SECONDS", value_parser = values::whole::<u32>)]
    input_timeout: Option<u32>,
}

impl InputArgs {
    /// The network settings with these mirrors.
    pub(super) fn web(&self, settings: &Settings) -> Web {
        let mut web = settings.web.clone();
        web.mirrors.splice(..0, self.mirrors.iter().cloned());
        web
    }

    /// The limit of a pipe's silence.
    pub(super) fn timeout(&self, settings: &Settings) -> InputTimeout {
        self.input_timeout.map_or(settings.input_timeout, |seconds| InputTimeout(seconds.into()))
    }
}

/// Flags that describe the machine on which a verb works.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(super) struct MachineArgs {
    /// Disk with the slots: a block device or an image file
    ///
    /// A whole disk, not a partition. Required here or as 'disk' in the configuration;
    /// 'slots', 'status' and 'doctor' find it by the names of its partitions too.
    /// [env: QSTAGE_DISK]
    #[arg(long, short, value_name = "DISK")]
    disk: Option<PathBuf>,

    /// Flag that decides which slot boots [default: priority]
    #[arg(long, value_name = "KIND")]
    boot_flag: Option<BootFlag>,

    /// Directory of the EFI variables [default: /sys/firmware/efi/efivars]
    ///
    /// For --boot-flag efi. An image file has no firmware; its variables are files in
    /// a directory, each with four bytes of attributes and the data, as in efivarfs.
    #[arg(long, value_name = "DIR")]
    efivars: Option<PathBuf>,

    /// Slot that runs, if the kernel does not report it: a or b
    ///
    /// Needed for image files and for disks that this machine did not boot from.
    #[arg(long, value_name = "SLOT")]
    booted: Option<Slot>,

    /// Logical block size of an image file: 512 or 4096 [default: detected]
    ///
    /// In bytes, detected by the place of the partition table. For a block device the
    /// kernel reports it.
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector_size)]
    sector_size: Option<BlockSize>,

    /// Write a slot also if it is unknown whether it is in use
    ///
    /// Without /sys or /proc, as in a container, mounts of a slot cannot be seen.
    /// A slot that is known to be in use is refused anyway.
    #[arg(long)]
    assume_unused: bool,

    #[command(flatten)]
    places: PlacesArgs,
}

impl MachineArgs {
    fn disk(&self) -> Option<PathBuf> {
        self.disk.clone().or_else(|| environment::path(environment::DISK))
    }

    /// Whether the command line itself names the disk.
    pub(super) const fn names_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Settings of the command line, then of the configuration, then the defaults.
    pub(super) fn settings(&self) -> Result<Settings> {
        Ok(self.over(self.places.config.settings()?))
    }

    /// The settings with what the command line says.
    fn over(&self, mut settings: Settings) -> Settings {
        settings.booted = self.booted;
        settings.assume_unused = self.assume_unused;
        settings.boot_flag = self.boot_flag.unwrap_or(settings.boot_flag);
        settings.efivars = self.efivars.clone().or(settings.efivars);
        settings.sector_size = self.sector_size.or(settings.sector_size);
        settings.disk = self.disk().or(settings.disk);
        self.places.over(settings)
    }

    /// The same for a verb that goes on without a configuration that cannot be used.
    pub(super) fn setup(&self) -> Setup {
        let file = self.places.config.named().unwrap_or_else(|| Config::default_path().to_owned());
        match self.settings() {
            Ok(settings) => Setup { settings, problem: None, file },
            Err(problem) => {
                let settings = self.over(Config::default().into_settings());
                Setup { settings, problem: Some(problem), file }
            }
        }
    }

    /// The same flags, for another process. Paths are made absolute, since it may have another working directory.
    pub(super) fn words(&self) -> Result<Vec<OsString>> {
        let mut words = Vec::new();
        word(&mut words, "--disk", absolute(self.disk().as_deref())?);
        word(&mut words, "--boot-flag", self.boot_flag.map(BootFlag::word));
        word(&mut words, "--efivars", absolute(self.efivars.as_deref())?);
        word(&mut words, "--booted", self.booted.map(|slot| slot.to_string()));
        word(&mut words, "--sector-size", self.sector_size.map(|size| size.bytes().to_string()));
        word(&mut words, "--state-dir", absolute(self.places.state_dir().as_deref())?);
        words.extend(self.assume_unused.then(|| "--assume-unused".into()));
        word(&mut words, "--config", absolute(self.places.config.named().as_deref())?);
        Ok(words)
    }
}

/// Flags that name the trusted keys.
#[derive(Debug, Args)]
#[command(next_help_heading = "Trust")]
pub(super) struct TrustArgs {
    /// Keys that may sign [default: /etc/qstage/allowed_signers]
    ///
    /// An OpenSSH allowed_signers file, see ssh-keygen(1). It may have several keys,
    /// so that one can be replaced by another. [env: QSTAGE_TRUST]
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,

    /// Accept a bundle without checking its signature: development only
    ///
    /// Every source of a bundle then controls the machine.
    #[arg(long, conflicts_with = "trust")]
    unsigned_for_development: bool,
}

impl TrustArgs {
    fn named(&self) -> Option<PathBuf> {
        self.trust.clone().or_else(|| environment::path(environment::TRUST))
    }

    /// The same flags, for another process.
    pub(super) fn words(&self) -> Result<Vec<OsString>> {
        let mut words = Vec::new();
        let trust = self.named().filter(|_| !self.unsigned_for_development);
        word(&mut words, "--trust", absolute(trust.as_deref())?);
        words.extend(self.unsigned_for_development.then(|| "--unsigned-for-development".into()));
        Ok(words)
    }

    /// The trusted keys, those of the command line before those of the configuration.
    pub(super) fn open(&self, configured: &TrustFile, progress: &dyn Progress) -> Result<Trust> {
        if self.unsigned_for_development {
            progress.notice("the signature is not checked (--unsigned-for-development)");
            return Ok(Trust::dangerously_unsigned());
        }
        self.file(configured).read()
    }

    /// The engine's policy without overrides, with the keys by which installed releases are judged.
    pub(super) fn policy(&self, settings: &Settings) -> Policy {
        let trust = (!self.unsigned_for_development).then(|| self.file(&settings.trust));
        Policy { trust, ..settings.policy() }
    }

    /// The file of the command line, else that of the configuration.
    pub(super) fn file(&self, configured: &TrustFile) -> TrustFile {
        match self.named() {
            Some(path) => TrustFile { path, demand: configured.demand.clone() },
            None => configured.clone(),
        }
    }
}

fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Open { path, source }
    };
    path.map(|path| std::path::absolute(path).map_err(failed(path))).transpose()
}

/// Flags that override a rule.
#[derive(Debug, Args)]
#[command(next_help_heading = "Overrides")]
pub(super) struct OverrideArgs {
    /// Accept a bundle that has failed its trial on this machine
    #[arg(long)]
    retry: bool,

    /// Accept a version older than the running one
    #[arg(long)]
    allow_downgrade: bool,

    /// Accept an epoch that is too low: a release with a known vulnerability
    ///
    /// Lower than the highest that was ever marked good on this machine. Also accepts
    /// a bundle if the running slot has no readable record.
    #[arg(long)]
    allow_epoch_rollback: bool,

    /// Accept a bundle for another product
    #[arg(long)]
    override_product: bool,
}

impl OverrideArgs {
    /// The policy with these overrides.
    pub(super) fn policy(&self, policy: Policy) -> Policy {
        Policy {
            retry: self.retry,
            allow_downgrade: self.allow_downgrade,
            allow_epoch_rollback: self.allow_epoch_rollback,
            override_product: self.override_product,
            ..policy
        }
    }
}

/// `--allow-epoch-rollback`, for verbs that need none of the other overrides.
#[derive(Debug, Args)]
pub(super) struct EpochArgs {
    /// Accept an epoch that is too low: a release with a known vulnerability
    ///
    /// Lower than the highest that was ever marked good on this machine.
    #[arg(long)]
    pub(super) allow_epoch_rollback: bool,
}

/// `--jobs`.
#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    /// Worker threads [default: processor cores + 2; to write a slot + 10, at most 16]
    #[arg(long, short, value_name = "N", value_parser = values::count)]
    pub(super) jobs: Option<NonZeroUsize>,
}
