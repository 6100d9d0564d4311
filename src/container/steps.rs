//! The steps that a swap, a start and a restart share.

use std::time::Duration;

use super::Config;
use super::runtime::{Exit, Running, Runtime, Stopped};
use crate::error::{Error, Result};
use crate::units::Slot;

/// Health of a container that was just started.
pub(super) enum Health {
    /// Healthy, first seen at this time of [`Runtime::clock`].
    Good(Duration),
    /// Not healthy before the deadline, or ended.
    Bad(Failed),
}

/// Why a container that was just started does not serve.
pub(super) struct Failed {
    /// Time since its start.
    after: Duration,
    problem: String,
    /// Whether a program was not found or could not be executed, by the exit status.
    program: bool,
}

impl Failed {
    /// The failure of a start from this slot.
    pub(super) fn into_error(self, slot: Slot) -> Error {
        let seconds = self.after.as_secs_f64();
        if self.program {
            let problem = format!("after {seconds:.1} s {}", self.problem);
            return Error::ContainerProgram { slot, problem };
        }
        Error::ContainerUnhealthy { slot, seconds, problem: self.problem }
    }

    /// The reason to swap back.
    pub(super) fn into_reason(self, slot: Slot) -> String {
        if self.program {
            return with_code(&self.into_error(slot));
        }
        format!("not healthy after {:.1} s: {}", self.after.as_secs_f64(), self.problem)
    }
}

/// An error as the cause of another one, whose code is that of the whole.
pub(super) fn with_code(error: &Error) -> String {
    format!("{error} [{}]", error.code())
}

/// Meaning of an exit status by which a shell, env(1) and others report a program (POSIX, XCU 2.8.2). A program may also end
/// with it by itself, which the message says. Status 203 of systemd.exec(5) does not get here: systemd as process 1 of a
/// container stays, and one that starts nspawn reports it before the gate.
fn meaning(exit: &Exit) -> Option<&'static str> {
    match exit {
        Exit::Status(126) => Some("a command could not be executed"),
        Exit::Status(127) => Some("a command was not found"),
        _ => None,
    }
}

/// The failure of a container whose program has ended. `problem` is that of the last probe.
fn ended(exit: Option<&Exit>, after: Duration, problem: &str) -> Failed {
    let meaning = exit.and_then(meaning);
    let how = match (exit, meaning) {
        (Some(exit), Some(meaning)) => {
            format!(" with {exit}, as shells do when {meaning} (its program may mean something else by it)")
        }
        (Some(exit @ Exit::Signal(_)), None) => format!(" by {exit}"),
        (Some(exit), None) => format!(" with {exit}"),
        (None, _) => String::new(),
    };
    let probe = if problem == ENDED { String::new() } else { format!(" ({problem})") };
    Failed { after, problem: format!("{ENDED}{how}{probe}"), program: meaning.is_some() }
}

/// What the probe of a container says whose program has ended.
pub(super) const ENDED: &str = "its program has ended";

/// Number of probes of a container that is about to be stopped.
const ATTEMPTS: usize = 3;

/// Time of the last success of the probe on a container that is about to be stopped; `None` if it is not healthy: then there
/// is no service that could be interrupted.
pub(super) fn last_success(runtime: &dyn Runtime, old: &Running) -> Option<Duration> {
    (0..ATTEMPTS).find_map(|_| runtime.probe(old).ok().map(|()| runtime.clock()))
}

/// Probes until the probe succeeds or the deadline has passed.
pub(super) fn wait_healthy(runtime: &dyn Runtime, new: &Running, config: &Config) -> Health {
    let begun = runtime.clock();
    loop {
        let problem = match runtime.probe(new) {
            Ok(()) => return Health::Good(runtime.clock()),
            Err(problem) => problem,
        };
        let after = runtime.clock().saturating_sub(begun);
        // A container that has ended will not become healthy.
        let gone = runtime.running().is_ok_and(|all| all.iter().all(|one| one.id != new.id));
        if gone {
            return Health::Bad(ended(runtime.exit(new).as_ref(), after, &problem));
        }
        if after >= config.deadline {
            return Health::Bad(Failed { after, problem, program: false });
        }
        runtime.pause(config.probe_interval.min(config.deadline - after));
    }
}

/// Releases an arranged container and waits for its health.
pub(super) fn bring_up(runtime: &dyn Runtime, new: &Running, config: &Config) -> Result<Duration> {
    runtime.release(new)?;
    match wait_healthy(runtime, new, config) {
        Health::Good(at) => Ok(at),
        Health::Bad(failed) => Err(failed.into_error(new.slot)),
    }
}

/// Stops all containers; returns whether one had to be killed. The first failure is returned after all have been tried.
pub(super) fn stop_all(runtime: &dyn Runtime, running: &[Running]) -> Result<bool> {
    let mut killed = false;
    let mut failed = None;
    for container in running {
        match runtime.stop(container) {
            Ok(stopped) => killed |= stopped == Stopped::Killed,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(killed), Err)
}

/// Time in milliseconds, rounded to the microsecond.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
