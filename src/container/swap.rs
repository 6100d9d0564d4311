//! The instant software upgrade.

use std::time::Duration;

use serde::Serialize;

use super::Config;
use super::runtime::{Running, Runtime};
use super::steps::{Health, bring_up, last_success, milliseconds, stop_all, wait_healthy, with_code};
use crate::engine::{Engine, SoftwareImage, SoftwareSwap};
use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use crate::units::{Downtime, Slot};

/// A swap that succeeded.
#[derive(Debug, Clone, Serialize)]
pub struct SwapReport {
    /// What was done, as a sentence.
    pub done: String,
    /// The software slot that runs now.
    pub slot: Slot,
    /// Its version.
    pub version: String,
    /// The version that ran before; `None` if none did.
    pub from_version: Option<String>,
    /// Time in milliseconds from the last success of the probe on the old container to the first on the new one: an upper
    /// bound of the outage, without a client's own polling. `None` if the old one was not healthy or did not run.
    pub downtime_ms: Option<f64>,
    /// Whether the old container had to be killed.
    pub killed: bool,
    /// What is left to do: always `nothing`. As in the report of a commit, so that programs can treat the two alike.
    pub next_step: &'static str,
    /// The steps in order, each with its time in milliseconds.
    pub steps: Vec<(&'static str, f64)>,
}

/// Commits a prepared software upgrade and makes it run: arranges the new container, flips the boot flags, stops the old
/// one, releases the new one, probes it, marks it good. If it is not healthy before the deadline, the old one runs again and
/// its slot is selected again. The outcome is recorded for `status` and the history.
///
/// A failure before the flip leaves everything as it was. After the flip, whatever happens, the state on the disk leads
/// [`start`](fn@super::start) to a whole slot and, after its tries, to the good one.
///
/// # Errors
/// [`Error::NotPrepared`], [`Error::NeedsReboot`], [`Error::Busy`]; [`Error::ContainerStart`] before the flip;
/// [`Error::SwappedBack`] and [`Error::SwapBack`] after it; class Disk and Io.
pub fn swap(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    progress: &dyn Progress,
) -> Result<SwapReport> {
    swap_together(engine, runtime, config, progress, &Alone)
}

/// The same, at the same time as on other machines and with one verdict for all.
///
/// # Errors
/// As [`swap`](fn@swap), and those of [`Rendezvous::ready`].
pub fn swap_together(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    progress: &dyn Progress,
    others: &dyn Rendezvous,
) -> Result<SwapReport> {
    let result = runtime.lock().and_then(|_lock| {
        let (steps, mark) = (Vec::new(), runtime.clock());
        let mut swap = Swap { engine, runtime, config, progress, others, steps, mark };
        swap.run()
    });
    match result {
        // The holder of the lock reports its own outcome.
        Err(error @ Error::Busy { .. }) => Err(error),
        result => engine.swapped(result, |report| (report.done.clone(), Downtime(report.downtime_ms))),
    }
}

/// The points at which a swap waits for those of other machines.
pub trait Rendezvous: Send + Sync {
    /// The new container waits at its gate, and the old one serves. Returns when the swap may go on.
    ///
    /// # Errors
    /// Why it is not to: the new container is discarded, and nothing has changed.
    fn ready(&self) -> Result<()>;

    /// The new container is healthy and on trial. Returns when it is to be marked good.
    ///
    /// # Errors
    /// Why it is not: the old container runs again.
    fn healthy(&self) -> std::result::Result<(), String>;
}

/// Refuses a swap into a slot that a container still runs from: it runs from an image that is gone. Never observed.
///
/// # Errors
/// [`Error::SlotInUse`].
pub(super) fn not_in_the_way(plan: &SoftwareSwap, running: &[Running]) -> Result<()> {
    let Some(container) = running.iter().find(|container| container.slot == plan.new.slot) else {
        return Ok(());
    };
    let by = format!("container {} runs from it", container.id);
    Err(Error::SlotInUse { partition: plan.new.partition.clone(), by })
}

/// No other node to wait for.
struct Alone;

impl Rendezvous for Alone {
    fn ready(&self) -> Result<()> {
        Ok(())
    }

    fn healthy(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

struct Swap<'a> {
    engine: &'a Engine<'a>,
    runtime: &'a dyn Runtime,
    config: &'a Config,
    progress: &'a dyn Progress,
    others: &'a dyn Rendezvous,
    steps: Vec<(&'static str, f64)>,
    mark: Duration,
}

impl Swap<'_> {
    /// Ends a step.
    fn step(&mut self, name: &'static str) {
        let now = self.runtime.clock();
        self.steps.push((name, milliseconds(now.saturating_sub(self.mark))));
        self.mark = now;
    }

    fn run(&mut self) -> Result<SwapReport> {
        let plan = self.engine.software_swap()?;
        let running = self.runtime.running()?;
        not_in_the_way(&plan, &running)?;
        let new = self.runtime.arrange(&plan.new)?;
        self.step("arrange");
        if let Err(error) = self.others.ready() {
            self.discard(&new);
            return Err(error);
        }
        self.mark = self.runtime.clock();
        if let Err(error) = self.flip(&plan) {
            self.discard(&new);
            return Err(error);
        }
        self.step("commit");
        self.replace(&plan, &running, &new)
    }

    /// Runs the GPT transaction, and checks that it selected the arranged slot.
    fn flip(&self, plan: &SoftwareSwap) -> Result<()> {
        let again = self.engine.software_swap()?;
        if again != *plan {
            let problem = "the slots changed while the container was arranged".to_owned();
            return Err(Error::NotPrepared { problem, remedy: Remedy::CommitOther });
        }
        self.engine.commit(false)?;
        let selected = self.engine.software_selected()?;
        if (selected.slot, selected.blake3) != (plan.new.slot, plan.new.blake3) {
            let what =
                format!("{} is selected after the commit of {}", selected.partition, plan.new.partition);
            return Err(Error::Internal { what });
        }
        Ok(())
    }

    /// The gap, and the steps after it.
    fn replace(&mut self, plan: &SoftwareSwap, running: &[Running], new: &Running) -> Result<SwapReport> {
        let up = running.iter().find_map(|old| last_success(self.runtime, old));
        self.mark = self.runtime.clock();
        let killed = match stop_all(self.runtime, running) {
            Ok(killed) => killed,
            Err(error) => {
                // The old one may still hold its port, so the new one cannot take over.
                self.discard(new);
                return Err(self.flags_back(plan, error));
            }
        };
        self.step("stop");
        if let Err(error) = self.runtime.release(new) {
            return Err(self.back(plan, new, with_code(&error), up));
        }
        self.step("release");
        let healthy = match wait_healthy(self.runtime, new, self.config) {
            Health::Good(at) => at,
            Health::Bad(failed) => {
                return Err(self.back(plan, new, failed.into_reason(new.slot), up));
            }
        };
        self.step("healthy");
        if let Err(problem) = self.others.healthy() {
            return Err(self.back(plan, new, problem, up));
        }
        self.mark = self.runtime.clock();
        // It serves. If the disk fails now, it continues to serve, on trial, and the error is reported.
        self.engine.software_good(plan.new.slot)?;
        self.step("mark-good");
        let downtime = up.map(|up| milliseconds(healthy.saturating_sub(up)));
        let from = plan.old.as_ref().filter(|_| !running.is_empty()).map(|old| old.version.clone());
        Ok(SwapReport {
            done: format!(
                "{} runs from {}, downtime {}",
                plan.new.version,
                plan.new.partition,
                Downtime(downtime)
            ),
            slot: plan.new.slot,
            version: plan.new.version.clone(),
            from_version: from,
            downtime_ms: downtime,
            killed,
            next_step: "nothing",
            steps: std::mem::take(&mut self.steps),
        })
    }

    /// Brings the old container back. The service comes first: it runs before its slot is selected on the disk, since a start
    /// converges from either state after a power cut.
    fn back(&self, plan: &SoftwareSwap, new: &Running, problem: String, up: Option<Duration>) -> Error {
        let version = plan.new.version.clone();
        let Some(old) = &plan.old else {
            return self.give_up(new, version, problem, "there is no older software".to_owned());
        };
        self.progress.notice(&format!("{version}: {problem}; going back to {}", old.version));
        match self.old_again(old, new) {
            Err(error) => {
                let selected = self.engine.software_back(new.slot, &problem).err();
                let back = match selected {
                    Some(second) => format!("{error}; {second}"),
                    None => error.to_string(),
                };
                Error::SwapBack { version, problem, back }
            }
            Ok(at) => match self.engine.software_back(new.slot, &problem) {
                Err(error) => Error::SwapBack { version, problem, back: error.to_string() },
                Ok(_) => Error::SwappedBack {
                    version,
                    problem,
                    running: old.version.clone(),
                    downtime: Downtime(up.map(|up| milliseconds(at.saturating_sub(up)))),
                },
            },
        }
    }

    /// Starts the old container again, with a second attempt if the first fails: nothing else would serve.
    fn old_again(&self, old: &SoftwareImage, new: &Running) -> Result<Duration> {
        // Arranged while the failed one still runs: this takes the longest.
        let again = self.runtime.arrange(old);
        if let Err(error) = self.runtime.stop(new) {
            if let Ok(again) = again {
                self.discard(&again);
            }
            return Err(error);
        }
        again.and_then(|again| bring_up(self.runtime, &again, self.config)).or_else(|error| {
            self.progress.notice(&format!("{error}; trying once more"));
            // Leftovers of the first attempt would interfere.
            stop_all(self.runtime, &self.runtime.running()?)?;
            let again = self.runtime.arrange(old)?;
            bring_up(self.runtime, &again, self.config)
        })
    }

    /// There is nothing to go back to: the new container is stopped, and its slot stays selected, on trial.
    fn give_up(&self, new: &Running, version: String, problem: String, back: String) -> Error {
        self.discard(new);
        Error::SwapBack { version, problem, back }
    }

    /// Restores the boot flags, since the old container runs again.
    fn flags_back(&self, plan: &SoftwareSwap, error: Error) -> Error {
        if plan.old.is_none() {
            return error;
        }
        match self.engine.software_back(plan.new.slot, &error.to_string()) {
            Ok(_) => error,
            Err(second) => Error::SwapBack {
                version: plan.new.version.clone(),
                problem: error.to_string(),
                back: second.to_string(),
            },
        }
    }

    /// Ends a container that is not needed. A failure to end it is not reported, since a more serious error is.
    fn discard(&self, container: &Running) {
        if let Err(error) = self.runtime.stop(container) {
            self.progress.notice(&error.to_string());
        }
    }
}
