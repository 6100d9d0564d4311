//! What `commit` with a swap, `container start`, `restart` and `stop` would do: processes, sectors and variables, in order.
//! Nothing here takes a lock, starts or stops anything.

use super::Config;
use super::runtime::{Running, Runtime};
use super::start::{Judge, restarts};
use super::swap::not_in_the_way;
use crate::engine::{Change, Engine, SoftwareImage};
use crate::error::{Error, Result};
use crate::state::{SlotState, SwitchReport};
use crate::units::Group;

/// Reason of a failure that has not happened.
const UNHEALTHY: &str = "its container is not healthy";

/// What a [`swap`](fn@super::swap) would do.
///
/// # Errors
/// Those of the swap before its first write.
pub fn swap_dry_run(engine: &Engine<'_>, runtime: &dyn Runtime, config: &Config) -> Result<SwitchReport> {
    let plan = engine.software_swap()?;
    let running = runtime.running()?;
    not_in_the_way(&plan, &running)?;
    let steps = engine.dry_run_each(&[Change::Commit, Change::SoftwareGood(plan.new.slot)])?;
    let [flip, good] = steps.try_into().map_err(|_| internal())?;
    let mut lines = vec![arranged(&plan.new)];
    lines.extend(flip.plan);
    lines.extend(started(&plan.new, &running, config));
    lines.extend(branch("if it is healthy", good.plan));
    let other = match &plan.old {
        Some(old) => {
            let back = Change::SoftwareBack(plan.new.slot, UNHEALTHY);
            let steps = engine.dry_run_each(&[Change::Commit, back])?;
            let mut lines = again(old);
            lines.extend(steps.into_iter().nth(1).ok_or_else(internal)?.plan);
            lines
        }
        None => vec!["container: stop it; its slot stays selected, on trial".to_owned()],
    };
    lines.extend(branch("if it is not healthy", other));
    Ok(SwitchReport { plan: lines, next_step: "nothing".to_owned(), ..flip })
}

/// What [`start`](fn@super::start) would do.
///
/// # Errors
/// Those of the start before its first write.
pub fn start_dry_run(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    judge: Judge,
) -> Result<SwitchReport> {
    let image = engine.software_selected()?;
    let running = runtime.running()?;
    let on_trial = image.state == SlotState::Trial;
    let judged = judge == Judge::Start && on_trial && !engine.platform_on_trial()?;
    let runs = matches!(running.as_slice(), [container] if container.runs(&image));
    // Counting a try of a slot that is not on trial writes nothing.
    let tried = Change::SoftwareTry(image.slot);
    let first = if on_trial && !runs { vec![tried] } else { Vec::new() };
    let then = |last: Change<'_>| -> Result<Vec<String>> {
        let steps = engine.dry_run_each(&[&first[..], &[last]].concat())?;
        Ok(steps.into_iter().last().ok_or_else(internal)?.plan)
    };
    let counted = engine.dry_run(&tried)?;
    let (mut lines, done) = match runs {
        true if !judged => (Vec::new(), format!("{} runs already", image.version)),
        true => (vec![probed(&image, config)], format!("{} runs already, and is judged", image.version)),
        false => {
            let mut lines = if on_trial { counted.plan } else { Vec::new() };
            lines.push(arranged(&image));
            lines.extend(started(&image, &running, config));
            (lines, format!("{} runs from {}", image.version, image.partition))
        }
    };
    if judged || !runs && !image.selected {
        lines.extend(branch("if it is healthy", then(Change::SoftwareGood(image.slot))?));
    }
    let good = |image: &SoftwareImage| image.state == SlotState::Good;
    if judged && let Some(old) = engine.software_image(!image.slot)?.filter(good) {
        let mut back = again(&old);
        back.extend(then(Change::SoftwareBack(image.slot, UNHEALTHY))?);
        lines.extend(branch("if it is not healthy", back));
    }
    Ok(SwitchReport { done, plan: lines, ..counted })
}

/// What [`restart`](fn@super::restart) would do.
///
/// # Errors
/// As [`start_dry_run`].
pub fn restart_dry_run(
    engine: &Engine<'_>,
    runtime: &dyn Runtime,
    config: &Config,
    judge: Judge,
) -> Result<SwitchReport> {
    let Some((old, image)) = restarts(engine, runtime)? else {
        return start_dry_run(engine, runtime, config, judge);
    };
    let mut plan = vec![arranged(&image)];
    plan.extend(started(&image, &[old], config));
    unwritten(engine, format!("{} is restarted from {}", image.version, image.partition), plan)
}

/// What [`stop`](fn@super::stop) would do.
///
/// # Errors
/// Class Disk and Io.
pub fn stop_dry_run(engine: &Engine<'_>, runtime: &dyn Runtime) -> Result<SwitchReport> {
    let running = runtime.running()?;
    let plan: Vec<String> = running.iter().map(stopped).collect();
    let done = if plan.is_empty() { "no container runs" } else { "the container is stopped" };
    unwritten(engine, done.to_owned(), plan)
}

/// The report of what writes nothing to the disk.
fn unwritten(engine: &Engine<'_>, done: String, plan: Vec<String>) -> Result<SwitchReport> {
    let slots = engine.slots()?;
    let next = slots.slots.iter().find(|slot| slot.group == Group::Platform && slot.boots_next);
    let none = || Error::NothingBoots { disk: slots.disk.clone() };
    Ok(SwitchReport {
        done,
        boots_next: next.ok_or_else(none)?.slot,
        next_step: "nothing".to_owned(),
        switch_method: "nothing to write".to_owned(),
        plan,
        dry_run: true,
    })
}

fn arranged(image: &SoftwareImage) -> String {
    format!("container: arrange {} from {}, up to the gate", image.version, image.partition)
}

fn stopped(running: &Running) -> String {
    format!("container: stop {} (software slot {})", running.version, running.slot)
}

fn probed(image: &SoftwareImage, config: &Config) -> String {
    format!("container: probe {} for at most {} s", image.version, config.deadline.as_secs_f64())
}

/// The gap: what runs is stopped, the arranged container is released and probed.
fn started(image: &SoftwareImage, running: &[Running], config: &Config) -> Vec<String> {
    let mut lines: Vec<String> = running.iter().map(stopped).collect();
    lines.push(format!("container: start the program of {}", image.version));
    lines.push(probed(image, config));
    lines
}

/// The way back to an older image.
fn again(old: &SoftwareImage) -> Vec<String> {
    vec![
        arranged(old),
        "container: stop the one that is not healthy".to_owned(),
        format!("container: start the program of {}", old.version),
    ]
}

/// Lines under a condition.
fn branch(when: &str, lines: Vec<String>) -> impl Iterator<Item = String> {
    let lines = if lines.is_empty() { vec!["nothing to write".to_owned()] } else { lines };
    [format!("{when}:")].into_iter().chain(lines.into_iter().map(|line| format!("  {line}")))
}

fn internal() -> Error {
    Error::Internal { what: "a dry run has one report for each change".to_owned() }
}
