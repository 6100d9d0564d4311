//! `qstage serve`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::args::{MachineArgs, TrustArgs};
use super::outlet;
use super::verbose::level;
use crate::boot::BootFlag;
use crate::config::parse_listener;
use crate::error::Result;
use crate::service::fleet::LockedReboot;
use crate::service::owner::disk::{Place, StartedSoftware};
use crate::service::owner::hooks::{AfterCommit, Commands, ContainerRestart};
use crate::service::owner::software::Software;
use crate::service::owner::worker::Arguments;
use crate::service::{self, Listener, Service};
use crate::units::text;

/// Serve upgrades over REST, with HTTPS and a Unix socket
///
/// Implements the v1, v2 and v3 upgrade API, and /v1/qstage for what that API lacks;
/// /v1/qstage/openapi.json describes both. Logs JSON lines to standard error, with one
/// audit record per change. Addresses and access rights are set in the configuration.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address of the HTTPS listener [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listener)]
    listen: Option<SocketAddr>,

    /// Unix socket for local use; 'none' for none [default: /run/qstage/service.sock]
    ///
    /// The default is root's; other users have none.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Give every caller all privileges: development only
    #[arg(long)]
    insecure_no_auth: bool,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl ServeArgs {
    pub(super) fn run(&self, verbose: u8) -> Result<()> {
        let settings = self.machine.settings()?;
        let configured = &settings.service;
        let certificate = settings.certificate()?;
        let commands = Commands {
            reboot: configured.reboot_command.clone().unwrap_or_default(),
            restart: configured.software_restart_command.clone().unwrap_or_default(),
            halt: configured.halt_command.clone().unwrap_or_default(),
        };
        let place = Place {
            disk: settings.disk()?.to_owned(),
            sector_size: settings.sector_size,
            efivars: settings.efivars.clone(),
            assume_unused: settings.assume_unused,
            state_dir: settings.state_dir.clone(),
            policy: self.trust.policy(&settings),
            started: StartedSoftware::default(),
        };
        let (after_commit, container): (Arc<dyn AfterCommit>, Arc<dyn ContainerRestart>) =
            match settings.container.clone() {
                Some(config) => {
                    let cluster = settings.software_start()?;
                    let (place, held) = (place.clone(), AtomicBool::default());
                    let software = Arc::new(Software { place, config, commands, cluster, held });
                    (software.clone(), software)
                }
                None => (Arc::new(commands.clone()), Arc::new(commands)),
            };
        let listen = self.listen.unwrap_or(configured.listen());
        let cluster = settings.membership(listen)?;
        let lock = settings.fleet_lock()?;
        let mut limits = configured.limits();
        // Covers both the wait for the lock and the shutdown.
        limits.reboot += lock.as_ref().map_or(Duration::ZERO, |lock| lock.timeout);
        let locked = lock.map(|lock| Arc::new(LockedReboot::new(lock, &place, Arc::clone(&after_commit))));
        let after_commit = locked.clone().map_or(after_commit, |locked| locked);
        let access = Listener {
            listen,
            socket: Listener::socket(self.socket.as_deref().or(configured.socket.as_deref())),
            certificate,
            tokens: configured.tokens(),
            hosts: configured.hosts.clone(),
            insecure_no_auth: self.insecure_no_auth,
        };
        let service = Service {
            place,
            arguments: Arguments {
                machine: [self.machine.words()?, self.trust.words()?].concat(),
                prepare: Vec::new(),
            },
            after_commit,
            container,
            limits,
            fleet: locked,
            allowed: configured.allowed(),
            cluster,
        };
        // A log that cannot be written is no reason not to serve; the dropped lines are reported later.
        outlet::err().report_loss(lost_lines);
        let _ = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(level(verbose, tracing::Level::INFO))
            .with_writer(|| LogLines)
            .log_internal_errors(false)
            .try_init();
        if settings.boot_flag == BootFlag::Legacy {
            tracing::warn!(
                "boot_flag 'legacy': the boot loader has no trials, and this service starts none by kexec. What it commits boots until it is rolled back; 'qstage commit --trial kexec' on the machine itself makes a trial"
            );
        }
        service::serve(service, &access)
    }
}

/// Lines of the log, without terminal control characters: they contain untrusted text, and JSON need not escape all of it.
struct LogLines;

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The formatter writes a whole line at once.
        outlet::err().offer(text::json(&String::from_utf8_lossy(line)).as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line that reports dropped lines: written when the log can be written again.
fn lost_lines(lines: u64) -> String {
    format!("{{\"level\":\"WARN\",\"message\":\"{lines} lines of the log were lost\",\"lost\":{lines}}}\n")
}
