//! The configuration file, `/etc/qstage/config.toml`. Every key is optional; `fixtures/config.toml` explains
//! them. Precedence: command line, file, default.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::size;
use crate::boot::BootFlag;
use crate::container;
use crate::efi;
use crate::engine::Policy;
use crate::error::{Error, Result};
use crate::host::kexec;
use crate::service::Limits;
use crate::source::web::Web;
use crate::units::{BlockSize, Slot};

/// Where the file is looked for unless `--config` names one.
const DEFAULT_PATH: &str = "/etc/qstage/config.toml";
/// The largest number of tries that bits 52-55 of a partition entry hold.
const MAX_TRIES: u8 = 15;

/// The file as it is written. An unknown key is an error: a misspelt `boot_flag` must not go unnoticed.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    disk: Option<PathBuf>,
    product: Option<String>,
    trust: Option<PathBuf>,
    boot_flag: Option<BootFlag>,
    efivars: Option<PathBuf>,
    #[serde(default, deserialize_with = "loader")]
    efi_loader: Option<String>,
    #[serde(default, deserialize_with = "tries")]
    tries: Option<u8>,
    #[serde(default, deserialize_with = "sector_size")]
    sector_size: Option<BlockSize>,
    state_dir: Option<PathBuf>,
    jobs: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "rate")]
    max_rate: Option<u64>,
    container: Option<container::Config>,
    #[serde(default)]
    kexec: kexec::Config,
    web_ca: Option<PathBuf>,
    web_insecure: Option<bool>,
    #[serde(default)]
    service: ServiceConfig,
}

/// The table `[service]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceConfig {
    pub(super) listen: Option<SocketAddr>,
    pub(super) socket: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) tokens: Option<PathBuf>,
    pub(super) reboot_command: Option<Vec<String>>,
    pub(super) software_restart_command: Option<Vec<String>>,
    #[serde(default, deserialize_with = "seconds")]
    pub(super) reboot_timeout: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    pub(super) waiting_period: Option<u64>,
}

impl ServiceConfig {
    /// Where HTTPS is served: loopback, unless somebody decides otherwise.
    pub(super) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8000)))
    }

    /// The times: five minutes are enough for the slowest orderly shutdown, and nobody waits who did not ask for it.
    pub(super) fn limits(&self) -> Limits {
        let seconds = |given: Option<u64>, default| Duration::from_secs(given.unwrap_or(default));
        Limits { reboot: seconds(self.reboot_timeout, 300), waiting: seconds(self.waiting_period, 0) }
    }
}

/// What holds after command line, file and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The disk; there is no default.
    pub(super) disk: Option<PathBuf>,
    /// The name that a bundle's product must have; `None`: that of the running slot.
    pub(super) product: Option<String>,
    /// The `allowed_signers` file.
    pub(super) trust: PathBuf,
    /// Which bits rule.
    pub(super) boot_flag: BootFlag,
    /// Where the EFI variables are; `None`: those of this machine's firmware.
    pub(super) efivars: Option<PathBuf>,
    /// The file that a boot entry starts.
    pub(super) efi_loader: String,
    /// The slot that runs; `None`: ask the kernel. On the command line only: a file would not change at a switch.
    pub(super) booted: Option<Slot>,
    /// Boot attempts of a slot on trial.
    pub(super) tries: u8,
    /// Logical block size of an image file.
    pub(super) sector_size: Option<BlockSize>,
    /// Directory of the state file.
    pub(super) state_dir: PathBuf,
    /// Worker threads; `None`: by the number of cores.
    pub(super) jobs: Option<NonZeroUsize>,
    /// Bytes per second written at most.
    pub(super) max_rate: Option<u64>,
    /// How the software image is run; `None`: by others.
    pub(super) container: Option<container::Config>,
    /// How the kernel of a slot is started without the boot loader.
    pub(super) kexec: kexec::Config,
    /// How web servers with bundles are trusted.
    pub(super) web: Web,
    /// The service.
    pub(super) service: ServiceConfig,
}

impl Config {
    /// Reads the named file, or the default one, which may be missing.
    pub(super) fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|problem| Error::Config { path: path.into(), problem }),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::Config { path: path.into(), problem: error.to_string() }),
        }
    }

    /// Parses the text of a file; a problem is told with its line.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let message = error.message().trim_end().replace('\n', ", ");
            match error.span() {
                Some(span) => {
                    let before = text.get(..span.start).unwrap_or(text);
                    format!("line {}: {message}", before.matches('\n').count() + 1)
                }
                None => message,
            }
        })
    }

    /// Fills in the defaults.
    pub(super) fn into_settings(self) -> Settings {
        Settings {
            disk: self.disk,
            product: self.product,
            trust: self.trust.unwrap_or_else(|| "/etc/qstage/allowed_signers".into()),
            boot_flag: self.boot_flag.unwrap_or_default(),
            efivars: self.efivars,
            efi_loader: self.efi_loader.unwrap_or_else(|| efi::default_loader().to_owned()),
            booted: None,
            tries: self.tries.unwrap_or(3),
            sector_size: self.sector_size,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/qstage".into()),
            jobs: self.jobs,
            max_rate: self.max_rate,
            container: self.container,
            kexec: self.kexec,
            web: Web { ca: self.web_ca, insecure: self.web_insecure.unwrap_or(false) },
            service: self.service,
        }
    }
}

impl Settings {
    /// The disk, which somebody must have named.
    pub(super) fn disk(&self) -> Result<&Path> {
        self.disk.as_deref().ok_or_else(|| Error::Argument {
            what: "--disk".to_owned(),
            problem: format!("no disk is named; give --disk DISK or set 'disk' in {DEFAULT_PATH}"),
        })
    }

    /// How the software image is run, which somebody must have said.
    pub(super) fn container(&self) -> Result<&container::Config> {
        self.container.as_ref().ok_or(Error::NoContainer)
    }

    /// The engine's rules, none of them overridden.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            boot_flag: self.boot_flag,
            booted: self.booted,
            product: self.product.clone(),
            efi_loader: self.efi_loader.clone(),
            tries: self.tries,
            ..Policy::default()
        }
    }
}

fn tries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let tries = u8::deserialize(deserializer)?;
    if (1..=MAX_TRIES).contains(&tries) {
        Ok(Some(tries))
    } else {
        Err(D::Error::custom(format!("tries is {tries}, allowed is 1 to {MAX_TRIES}")))
    }
}

/// Seconds; more than ten years are a mistake.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    if seconds > 10 * 366 * 86400 {
        return Err(D::Error::custom(format!("{seconds} seconds are more than ten years")));
    }
    Ok(Some(seconds))
}

/// A path in a FAT as firmware takes it; far shorter than what a node of a device path can hold.
fn loader<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let path = String::deserialize(deserializer)?;
    let valid = path.starts_with('\\') && path.len() <= 255 && !path.contains(['/', '\0']);
    let problem = || format!("efi_loader is '{path}', not a path such as '\\EFI\\BOOT\\BOOTX64.EFI'");
    if valid { Ok(Some(path)) } else { Err(D::Error::custom(problem())) }
}

fn sector_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BlockSize>, D::Error> {
    let bytes = u32::deserialize(deserializer)?;
    BlockSize::from_bytes(bytes)
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("sector_size is {bytes}, allowed are 512 and 4096")))
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size::parse_rate(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/config.toml"));

    /// The sample with its options in force: they stand in it as comments, `#key = value`.
    fn sample_in_force() -> String {
        let is_option = |line: &str| {
            let begins = |c: char| c.is_ascii_lowercase() || c == '[';
            line.strip_prefix('#').is_some_and(|rest| rest.starts_with(begins))
        };
        SAMPLE
            .lines()
            .map(|line| if is_option(line) { &line[1..] } else { line })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_sample_changes_nothing_as_it_is() {
        assert_eq!(Config::parse(SAMPLE).unwrap(), Config::default());
    }

    /// Comments rot. With its options in force the sample must name every key, and the value that it shows
    /// must be the default wherever there is one.
    #[test]
    fn the_sample_shows_every_key_and_the_true_defaults() {
        let sample = sample_in_force();
        let all = Config::parse(&sample).unwrap();
        let Config { disk, product, trust, boot_flag, tries, sector_size, state_dir, jobs, max_rate, .. } =
            all;
        let (web_ca, web_insecure, service) = (all.web_ca, all.web_insecure, all.service);
        assert!(all.efivars.is_some() && all.efi_loader.is_some(), "keys whose default is the machine's");
        check_container(all.container.unwrap(), &sample);
        assert!(disk.is_some() && product.is_some(), "keys without a default");
        assert!(
            jobs.is_some() && max_rate.is_some() && sector_size.is_some() && web_ca.is_some(),
            "keys whose default is automatic"
        );
        assert!(trust.is_some() && boot_flag.is_some() && tries.is_some() && state_dir.is_some());
        let ServiceConfig {
            listen,
            socket,
            certificate,
            key,
            tokens,
            reboot_command,
            software_restart_command,
            reboot_timeout,
            waiting_period,
        } = service;
        assert!(reboot_timeout.is_some() && waiting_period.is_some());
        let times = ServiceConfig { reboot_timeout, waiting_period, ..ServiceConfig::default() };
        assert_eq!(times.limits(), ServiceConfig::default().limits());
        assert!(socket.is_some() && certificate.is_some() && key.is_some() && tokens.is_some());
        assert!(reboot_command.is_some() && software_restart_command.is_some());
        let kexec::Config { command_line, .. } = all.kexec.clone();
        assert!(command_line.is_some(), "an example");
        assert_eq!(kexec::Config { command_line: None, ..all.kexec }, kexec::Config::default());
        let shown = Config { trust, boot_flag, tries, state_dir, web_insecure, ..Config::default() };
        assert!(web_insecure.is_some());
        assert_eq!(shown.into_settings(), Config::default().into_settings());
        assert_eq!(listen, Some(ServiceConfig::default().listen()));
    }

    /// The same for `[container]`: every key of the structure stands in the sample, by the names that Debug prints.
    fn check_container(shown: container::Config, sample: &str) {
        let defaults = container::Config::new(shown.command.clone());
        let debug = format!("{defaults:#?}");
        let keys: Vec<&str> = debug
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
            .filter_map(|line| line.split_once(": ").map(|(key, _)| key))
            .collect();
        assert!(keys.len() > 15, "{keys:?}");
        let section = sample.split("\n[container]\n").nth(1).unwrap();
        for key in keys {
            assert!(
                section.lines().any(|line| line.starts_with(&format!("{key} = "))),
                "{key} is not in the sample"
            );
        }
        let container::Config {
            stop_signal,
            state,
            bind,
            bind_ro,
            environment,
            preread,
            options,
            console,
            probe,
            ..
        } = shown.clone();
        assert!(
            stop_signal.is_some() && state.is_some() && preread.is_some() && console.is_some(),
            "examples"
        );
        let same = container::Config {
            stop_signal,
            state,
            bind,
            bind_ro,
            environment,
            preread,
            options,
            console,
            probe,
            ..defaults
        };
        assert_eq!(shown, same, "what the sample shows is not the default");
    }

    #[test]
    fn problems_name_their_line() {
        for (text, problem) in [
            ("disk = \"/dev/x\"\nboot_flags = \"legacy\"\n", "line 2: unknown field `boot_flags`"),
            ("\n\ntries = 16\n", "line 3: tries is 16, allowed is 1 to 15"),
            ("tries = 0", "line 1: tries is 0"),
            ("\nsector_size = 1024", "line 2: sector_size is 1024"),
            ("max_rate = \"10MB\"", "line 1: 'MB' is ambiguous"),
            ("jobs = 0", "line 1: "),
            ("\ndisk = ", "line 2: "),
            ("efi_loader = 'EFI/x.efi'", "line 1: efi_loader is 'EFI/x.efi', not a path such as"),
            ("boot_flag = \"grub\"", "line 1: unknown variant `grub`"),
            ("[container]\ncommand = [\"/a\"]\ndeadline = 0", "line 3: 0 is not between"),
            ("[service]\nwaiting_period = 400000000", "line 2: 400000000 seconds are more"),
            ("[container]\ncommand = [\"/a\"]\nprobes = 0", "line 3: unknown field `probes`"),
        ] {
            let got = Config::parse(text).unwrap_err();
            assert!(got.starts_with(problem), "{text:?}: {got}");
            assert!(!got.contains('\n'), "{got}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = Config::load(Some(&dir.path().join("none.toml"))).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_CONFIG");
        assert!(error.to_string().contains("none.toml"), "{error}");
    }

    #[test]
    fn a_missing_disk_names_the_remedy() {
        let error = Config::default().into_settings().disk().unwrap_err();
        assert_eq!(error.class().exit_code(), 2);
        assert!(error.to_string().contains("--disk DISK"), "{error}");
    }
}
