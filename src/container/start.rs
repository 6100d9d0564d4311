//! Start at boot, stop, restart, status.

use serde::Serialize;

use super::Config;
use super::runtime::{Running, Runtime};
use super::steps::{Health, bring_up, last_success, milliseconds, stop_all, wait_healthy};
use crate::engine::{Engine, SoftwareImage};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::state::SlotState;
use crate::units::{Downtime, Slot};

/// Result of a start or restart.
#[derive(Debug, Clone, Serialize)]
pub struct StartReport {
    /// What was done, as a sentence.
    pub done: String,
    /// The software slot that runs now.
    pub slot: Slot,
    /// Its version.
    pub version: String,
    /// Reason why a slot on trial was abandoned for this one; `None` if none was.
    pub went_back: Option<String>,
    /// The version that was abandoned; `None` if none was.
    pub gave_up: Option<String>,
    /// As in [`SwapReport`](super::SwapReport).
    pub downtime_ms: Option<f64>,
}

impl StartReport {
    /// The failure of the upgrade that this start abandoned; `None` if it abandoned nothing.
    pub fn failure(&self) -> Option<Error> {
        let (problem, version) = self.went_back.clone().zip(self.gave_up.clone())?;
        let (running, downtime) = (self.version.clone(), Downtime(self.downtime_ms));
        Some(Error::SwappedBack { version, problem, running, downtime })
    }
}

/// The running container, and the slot that a start would choose.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerStatus {
    /// The container that runs; `None` if none does.
    pub running: Option<Running>,
    /// Whether its probe succeeds now.
    pub healthy: bool,
    /// Reason why the probe fails; empty if healthy.
    pub problem: String,
    /// The software slot that a start would choose; `None` if there is none.
    pub selected: Option<Slot>,
    /// State of that slot.
    pub state: Option<SlotState>,
    /// Openings of the isolation of the running container, or of the next one; empty: none.
    pub open: Vec<String>,
}

/// Who decides whether a slot on trial is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// The process that starts its container, by the probe.
    Start,
    /// Another process, later: a container that starts is neither marked good nor replaced by that of the other slot.
    Elsewhere,
}

/// Makes the container of the selected slot run, whatever runs now: at boot, after a crash in the middle of a swap, or for
/// an operator. A slot on trial uses up one of its tries, and is marked good when it is healthy. If it is not, the other
/// slot is started and selected, provided that it is good. While the platform is on trial too, nothing of that is decided
/// here: the machine's health check judges both.
///
/// # Errors
/// [`Error::NoSoftware`], [`Error::ContainerStart`], [`Error::ContainerUnhealthy`]; class Disk and Io.
pub fn start(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    progress: &dyn Progress,
    judge: Judge,
) -> Result<StartReport> {
    let result = runtime.lock().and_then(|_lock| Start { engine, runtime, config, progress, judge }.run());
    if let Some(error) = result.as_ref().ok().and_then(StartReport::failure) {
        // The start succeeded; the upgrade that it was to complete did not.
        let _ = engine.outcome("container-start", Err(error), |_: &()| String::new());
        return result;
    }
    kept(engine, "container-start", result, |report| report.done.clone())
}

struct Start<'a> {
    engine: &'a Engine<'a>,
    runtime: &'a dyn Runtime,
    config: &'a Config,
    progress: &'a dyn Progress,
    judge: Judge,
}

impl Start<'_> {
    fn run(&self) -> Result<StartReport> {
        let image = self.engine.software_selected()?;
        let running = self.runtime.running()?;
        let decides = self.judge == Judge::Start && image.state == SlotState::Trial;
        let judged = decides && !self.engine.platform_on_trial()?;
        let up = running.iter().find_map(|old| last_success(self.runtime, old));
        let (healthy, done) = match running.as_slice() {
            [container] if container.runs(&image) => {
                if !judged {
                    return Ok(self.report(&image, format!("{} runs already", image.version)));
                }
                // A crash happened between its start and its mark.
                (self.judge(container), format!("{} runs already, and proved good", image.version))
            }
            _ => (self.replace(&image, &running), format!("{} runs from {}", image.version, image.partition)),
        };
        match healthy {
            Ok(at) => {
                if judged || !image.selected {
                    self.engine.software_good(image.slot)?;
                }
                let downtime = up.zip(at).map(|(up, at)| milliseconds(at.saturating_sub(up)));
                Ok(StartReport { downtime_ms: downtime, ..self.report(&image, done) })
            }
            Err(error) if judged => self.back(&image, error),
            Err(error) => Err(error),
        }
    }

    fn judge(&self, container: &Running) -> Result<Option<std::time::Duration>> {
        match wait_healthy(self.runtime, container, self.config) {
            Health::Good(_) => Ok(None),
            Health::Bad(failed) => Err(failed.into_error(container.slot)),
        }
    }

    fn replace(&self, image: &SoftwareImage, running: &[Running]) -> Result<Option<std::time::Duration>> {
        if image.state == SlotState::Trial {
            // Before any of its programs runs: they may crash the machine.
            self.engine.software_try(image.slot)?;
        }
        let new = self.runtime.arrange(image)?;
        if let Err(error) = stop_all(self.runtime, running) {
            self.discard(&new);
            return Err(error);
        }
        bring_up(self.runtime, &new, self.config).map(Some)
    }

    /// Starts the good slot instead of the one whose trial failed.
    fn back(&self, failed: &SoftwareImage, error: Error) -> Result<StartReport> {
        let good = |image: &SoftwareImage| image.state == SlotState::Good;
        let Some(old) = self.engine.software_image(!failed.slot)?.filter(good) else { return Err(error) };
        let problem = error.to_string();
        self.progress.notice(&format!("{problem}; going back to {}", old.version));
        let again = self.runtime.arrange(&old)?;
        let stopped = self.runtime.running().and_then(|all| {
            let others: Vec<Running> = all.into_iter().filter(|one| one.id != again.id).collect();
            stop_all(self.runtime, &others)
        });
        if let Err(error) = stopped {
            self.discard(&again);
            return Err(error);
        }
        let up = bring_up(self.runtime, &again, self.config);
        self.engine.software_back(failed.slot, &problem)?;
        up?;
        let done = format!("{} runs from {}: {problem}", old.version, old.partition);
        let gave_up = Some(failed.version.clone());
        Ok(StartReport { went_back: Some(problem), gave_up, ..self.report(&old, done) })
    }

    fn discard(&self, container: &Running) {
        if let Err(error) = self.runtime.stop(container) {
            self.progress.notice(&error.to_string());
        }
    }

    fn report(&self, image: &SoftwareImage, done: String) -> StartReport {
        StartReport {
            done,
            slot: image.slot,
            version: image.version.clone(),
            went_back: None,
            gave_up: None,
            downtime_ms: None,
        }
    }
}

/// Stops the container and starts the same image again; if none runs, starts the selected slot. No upgrade.
///
/// # Errors
/// As [`start`], and [`Error::ContainerStop`].
pub fn restart(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    progress: &dyn Progress,
    judge: Judge,
) -> Result<StartReport> {
    let again = || {
        let _lock = runtime.lock()?;
        let Some((old, image)) = restarts(engine, runtime)? else { return Ok(None) };
        let new = runtime.arrange(&image)?;
        let up = last_success(runtime, &old);
        if let Err(error) = runtime.stop(&old) {
            if let Err(second) = runtime.stop(&new) {
                progress.notice(&second.to_string());
            }
            return Err(error);
        }
        let at = bring_up(runtime, &new, config)?;
        let downtime = up.map(|up| milliseconds(at.saturating_sub(up)));
        Ok(Some(StartReport {
            done: format!("{} was restarted from {}", image.version, image.partition),
            slot: image.slot,
            version: image.version,
            went_back: None,
            gave_up: None,
            downtime_ms: downtime,
        }))
    };
    match again() {
        // None runs, or its slot now holds another image: the boot flags decide.
        Ok(None) => start(engine, runtime, config, progress, judge),
        Ok(Some(report)) => kept(engine, "container-restart", Ok(report), |report| report.done.clone()),
        Err(error) => kept(engine, "container-restart", Err(error), |_| String::new()),
    }
}

/// The one container that runs, and its image; `None`: none runs, or its slot holds another image by now.
pub(super) fn restarts(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
) -> Result<Option<(Running, SoftwareImage)>> {
    let running = runtime.running()?;
    let [old] = running.as_slice() else { return Ok(None) };
    let image = engine.software_image(old.slot)?.filter(|image| old.runs(image));
    Ok(image.map(|image| (old.clone(), image)))
}

/// Stops every container that runs; returns those that were stopped.
///
/// # Errors
/// [`Error::Busy`], [`Error::ContainerStop`].
pub fn stop(engine: &Engine<'_>, runtime: &dyn Runtime) -> Result<Vec<Running>> {
    let result = runtime.lock().and_then(|_lock| {
        let running = runtime.running()?;
        stop_all(runtime, &running)?;
        Ok(running)
    });
    kept(engine, "container-stop", result, |stopped| match stopped.as_slice() {
        [] => "no container ran".to_owned(),
        all => all.iter().map(|one| format!("{} was stopped", one.version)).collect::<Vec<_>>().join(", "),
    })
}

/// Reports the running container and its health. Takes no lock and changes nothing.
///
/// # Errors
/// Class Disk and Io.
pub fn status(engine: &Engine<'_>, runtime: &dyn Runtime) -> Result<ContainerStatus> {
    let selected = match engine.software_selected() {
        Ok(image) => Some(image),
        Err(Error::NoSoftware { .. }) => None,
        Err(error) => return Err(error),
    };
    let running = runtime.running()?.into_iter().next();
    let health =
        running.as_ref().map_or_else(|| Err("no container runs".to_owned()), |one| runtime.probe(one));
    let open = runtime.openings(running.as_ref());
    Ok(ContainerStatus {
        running,
        healthy: health.is_ok(),
        problem: health.err().unwrap_or_default(),
        selected: selected.as_ref().map(|image| image.slot),
        state: selected.map(|image| image.state),
        open,
    })
}

/// Records a failure as the last error. A success is only a line of the history: it does not clear a failed upgrade.
fn kept<T>(engine: &Engine<'_>, verb: &str, result: Result<T>, done: impl FnOnce(&T) -> String) -> Result<T> {
    match result {
        Ok(value) => {
            engine.remark(verb, done(&value));
            Ok(value)
        }
        Err(error @ Error::Busy { .. }) => Err(error),
        Err(error) => engine.outcome(verb, Err(error), |_: &T| String::new()),
    }
}
