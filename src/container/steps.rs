//! The steps that a swap, a start and a restart share.

use std::time::Duration;

use super::Config;
use super::runtime::{Running, Runtime, Stopped};
use crate::error::{Error, Result};

/// Health of a container that was just started.
pub(super) enum Health {
    /// Healthy, first seen at this time of [`Runtime::clock`].
    Good(Duration),
    /// Not healthy before the deadline, or dead.
    Bad { after: Duration, problem: String },
}

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
            let problem = match problem.as_str() {
                "its program has ended" => problem,
                other => format!("its program has ended ({other})"),
            };
            return Health::Bad { after, problem };
        }
        if after >= config.deadline {
            return Health::Bad { after, problem };
        }
        runtime.pause(config.probe_interval.min(config.deadline - after));
    }
}

/// Releases an arranged container and waits for its health.
pub(super) fn bring_up(runtime: &dyn Runtime, new: &Running, config: &Config) -> Result<Duration> {
    runtime.release(new)?;
    match wait_healthy(runtime, new, config) {
        Health::Good(at) => Ok(at),
        Health::Bad { after, problem } => {
            Err(Error::ContainerUnhealthy { slot: new.slot, seconds: after.as_secs_f64(), problem })
        }
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
