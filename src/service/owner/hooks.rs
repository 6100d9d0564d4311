//! Actions of the service beyond the disk: reboot the machine, restart the software. They are traits, since a container
//! runtime implements them too.

use std::time::Duration;

use crate::container::{Rendezvous, StartReport};
use crate::error::{Error, Result};
use crate::host::outside;
use crate::host::program::{End, Program};
use crate::service::owner::disk::Place;
use crate::state::UpgradeType;
use crate::units::Downtime;

/// Time limit of a command of the configuration: software may need long to stop.
const LIMIT: Duration = Duration::from_secs(600);

/// Restarts the software (the container) as it is, without an upgrade.
pub trait ContainerRestart: Send + Sync {
    /// Restarts the software, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::NotConfigured`] if there is no way to restart it; else the failure.
    fn restart(&self) -> Result<()>;

    /// Swaps the software for the prepared one, together with other nodes: it waits for `others` before anything changes, and
    /// again before the new software is marked good. Returns the result as a sentence.
    ///
    /// # Errors
    /// Why the old software runs still or again.
    fn swap_together(&self, place: &Place, others: &dyn Rendezvous) -> Result<String>;

    /// Whether [`start`](Self::start) is to be called when the service starts.
    fn starts(&self) -> bool {
        false
    }

    /// Whether the last [`start`](Self::start) was refused because this node missed an upgrade of its cluster, and nothing has
    /// started the software since.
    fn is_held(&self) -> bool {
        false
    }

    /// Starts the software that the flags select, whatever runs now: an earlier service may have been killed between the
    /// switch and the start.
    ///
    /// # Errors
    /// The failure. A fallback from a slot on trial to the good one is none.
    fn start(&self) -> Result<StartReport> {
        let (what, key) = ("start the software".to_owned(), "container".to_owned());
        Err(Error::NotConfigured { what, key })
    }
}

/// The action after a written switch.
pub trait AfterCommit: Send + Sync {
    /// Whether [`run`](Self::run) reboots the machine: clients are informed before the call.
    fn reboots(&self, kind: UpgradeType) -> bool;

    /// Whether [`run`](Self::run), or a restart of the software, starts the selected software without marking it good: then
    /// only the service knows that it was started.
    fn restarts_selected(&self) -> bool {
        false
    }

    /// The way to reboot the machine, for messages.
    fn reboot_words(&self) -> String;

    /// Whether [`halt`](Self::halt) does anything.
    fn halts(&self) -> bool;

    /// Powers the machine off.
    ///
    /// # Errors
    /// [`Error::Command`].
    fn halt(&self) -> Result<()>;

    /// Whether a container of ours runs the software: [`run`](Self::run) of a commit that is a swap
    /// ([`CommitMethod`](crate::engine::CommitMethod)) writes the switch itself, as one of its steps.
    fn swaps(&self) -> bool {
        false
    }

    /// Makes the switch take effect, and returns the result as a sentence. For software it returns when the new one is healthy
    /// and marked good, or, with an error, when the old one runs again.
    ///
    /// # Errors
    /// The obstacle; the slots show the state.
    fn run(&self, kind: UpgradeType) -> Result<String>;
}

/// Both by commands of the configuration. Without a command, that action is left to the operator.
#[derive(Debug, Clone, Default)]
pub struct Commands {
    /// Program and arguments that reboot the machine; empty: no command.
    pub reboot: Vec<String>,
    /// Program and arguments that restart the software; empty: no command.
    pub restart: Vec<String>,
    /// Program and arguments that power the machine off; empty: no command.
    pub halt: Vec<String>,
}

impl ContainerRestart for Commands {
    fn restart(&self) -> Result<()> {
        if self.restart.is_empty() {
            let (what, key) = ("restart the software".to_owned(), "software_restart_command".to_owned());
            return Err(Error::NotConfigured { what, key });
        }
        run(&self.restart)
    }

    fn swap_together(&self, place: &Place, others: &dyn Rendezvous) -> Result<String> {
        if self.restart.is_empty() {
            return self.restart().map(|()| String::new());
        }
        let before = place.look()?.disk;
        let version = before.prepared.map(|(_, version, _)| version).unwrap_or_default();
        let running = before.software.unwrap_or_default();
        others.ready()?;
        place.commit()?;
        let healthy = self.restart().map_err(|error| error.to_string()).and_then(|()| others.healthy());
        let Err(problem) = healthy else {
            place.mark_good(None)?;
            return Ok(format!("{version} runs"));
        };
        match place.roll_back().and_then(|_| self.restart()) {
            Ok(()) => Err(Error::SwappedBack { version, problem, running, downtime: Downtime(None) }),
            Err(error) => Err(Error::SwapBack { version, problem, back: error.to_string() }),
        }
    }
}

impl AfterCommit for Commands {
    fn reboots(&self, kind: UpgradeType) -> bool {
        kind == UpgradeType::SoftwareAndPlatform && !self.reboot.is_empty()
    }

    fn restarts_selected(&self) -> bool {
        !self.restart.is_empty()
    }

    fn reboot_words(&self) -> String {
        self.reboot.join(" ")
    }

    fn halts(&self) -> bool {
        !self.halt.is_empty()
    }

    fn halt(&self) -> Result<()> {
        run(&self.halt)
    }

    fn run(&self, kind: UpgradeType) -> Result<String> {
        match kind {
            UpgradeType::SoftwareAndPlatform if self.reboot.is_empty() => {
                Ok("reboot to start the new slot".to_owned())
            }
            UpgradeType::SoftwareAndPlatform => run(&self.reboot).map(|()| "rebooting".to_owned()),
            UpgradeType::SoftwareOnly if self.restart.is_empty() => {
                Ok("restart the software to start the new one".to_owned())
            }
            UpgradeType::SoftwareOnly => run(&self.restart)
                .map(|()| "the software was restarted; mark it good when it runs well".to_owned()),
        }
    }
}

/// Runs a command of the configuration to its end. A failure is reported with its output.
fn run(words: &[String]) -> Result<()> {
    let failed = |problem: String| Error::Command { command: words.join(" "), problem };
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    // Its output must not mix with the service's own.
    // It belongs to the machine: the read-only directories of the service's unit are not meant for it.
    let outcome = outside::run(|| Program::new(program, LIMIT).args(arguments).answer().run());
    let outcome = outcome
        .and_then(std::convert::identity)
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    match outcome.end {
        end if end.success() => Ok(()),
        End::Exited(status) => Err(failed(format!("ended with {status}: {}", outcome.last_words))),
        End::TimedOut(_) => Err(failed(format!("{}: {}", outcome.end, outcome.last_words))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_commands_people_are_told_what_to_do() {
        let none = Commands::default();
        assert_eq!(none.restart().unwrap_err().code(), "UPGRADE_ERROR_NOT_CONFIGURED");
        for kind in [UpgradeType::SoftwareOnly, UpgradeType::SoftwareAndPlatform] {
            assert!(!none.reboots(kind));
            assert!(none.run(kind).unwrap().contains("to start the new"));
        }
    }

    #[test]
    fn a_failing_command_is_told_with_its_words() {
        let words = ["sh", "-c", "echo no disk >&2; exit 3"].map(str::to_owned).to_vec();
        let commands = Commands { reboot: words, restart: vec!["/nowhere/x".into()], halt: Vec::new() };
        assert!(commands.reboots(UpgradeType::SoftwareAndPlatform));
        let error = AfterCommit::run(&commands, UpgradeType::SoftwareAndPlatform).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no disk"), "{error}");
        let error = commands.restart().unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_COMMAND");
        assert!(error.to_string().contains("cannot be started"));
    }
}
