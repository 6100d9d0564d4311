//! Metrics in the text format of Prometheus, version 0.0.4.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::error::NO_ERROR;
use crate::host::journal::seconds;
use crate::service::api::Shared;
use crate::service::owner::upgrade::Phase;
use crate::service::owner::waiting_period::uptime;
use crate::service::view::ServiceSnapshot;
use crate::state::SlotReport;

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(api): Shared) -> impl IntoResponse {
    let answers: Vec<u64> = api.answers.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
    ([(header::CONTENT_TYPE, TYPE)], render(&api.snapshot(), &answers))
}

/// The text under construction. Names and units follow the conventions of Prometheus, which `promtool check metrics` checks.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    /// Appends a metric; each sample has its labels and its value. A metric without samples is left out.
    fn metric(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "# HELP qstage_{name} {help}\n# TYPE qstage_{name} {kind}");
        }
        for (labels, value) in samples {
            let _ = writeln!(self.0, "qstage_{name}{labels} {value}");
        }
    }

    /// A gauge with one value; `None` leaves it out.
    fn gauge(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        self.metric(name, "gauge", help, value.into().map(|value| (String::new(), value)));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, "counter", help, [(String::new(), value as f64)]);
    }
}

/// 1 for true.
fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn render(snapshot: &ServiceSnapshot, answers: &[u64]) -> String {
    let mut text = Exposition::default();
    let build = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    text.metric("build_info", "gauge", "The version of the program; always 1.", [(build, 1.0)]);
    let upgrade = &snapshot.upgrade;
    let states = Phase::ALL.iter().map(|phase| {
        (format!("{{state=\"{}\"}}", phase.word().to_lowercase()), flag(*phase == upgrade.phase))
    });
    text.metric("upgrade_state", "gauge", "1 for the state that the upgrade is in.", states);
    text.gauge("upgrade_progress_percent", "Progress of the prepare.", f64::from(upgrade.progress));
    let error = snapshot.error();
    text.gauge("upgrade_error", "1 while an error is shown.", flag(error.is_some()));
    let code = error.as_ref().map(|error| (format!("{{code=\"{}\"}}", escape(&error.code)), 1.0));
    text.metric("upgrade_error_info", "gauge", "The code of the error that is shown.", code);
    let blocked = snapshot.status.as_ref().is_some_and(|status| status.is_blocked);
    text.gauge("upgrade_blocked", "1 while no upgrade may begin.", flag(blocked));
    let age = upgrade.waiting.trial_age(uptime()).map(|seconds| seconds as f64);
    text.gauge("trial_age_seconds", "For how long a release has been on trial in this boot.", age);
    text.gauge(
        "disk_readable",
        "1 if the last look at the disk succeeded.",
        flag(snapshot.disk_error.is_none()),
    );
    let silence = snapshot.silence().map_or(0, |(_, seconds)| seconds);
    let help = "For how long a device has not answered the prepare or the service.";
    text.gauge("device_silent_seconds", help, silence as f64);
    slots(&mut text, snapshot);
    journal(&mut text, snapshot);
    text.counter("prepares_total", "Prepares begun.", snapshot.counts.prepares);
    text.counter("commits_total", "Commits begun.", snapshot.counts.commits);
    text.counter("failures_total", "Prepares and commits that failed.", snapshot.counts.failures);
    let by_class =
        answers.iter().enumerate().map(|(n, count)| (format!("{{status=\"{}xx\"}}", n + 1), *count as f64));
    text.metric("http_responses_total", "counter", "Answers to requests.", by_class);
    text.0
}

/// A metric per slot.
fn slots(text: &mut Exposition, snapshot: &ServiceSnapshot) {
    let Some(report) = &snapshot.slots else { return };
    let place = |slot: &SlotReport| format!("group=\"{}\",slot=\"{}\"", slot.group, slot.slot);
    let content = |slot: &SlotReport| {
        let version = escape(slot.version.as_deref().unwrap_or_default());
        format!("{{{},state=\"{}\",version=\"{version}\"}}", place(slot), slot.state.word())
    };
    let next = report.slots.iter().map(|slot| (content(slot), flag(slot.boots_next)));
    text.metric("slot_boots_next", "gauge", "1 for the slots that the next boot takes.", next);
    let is_running = |slot: &SlotReport| report.runs.is_running(slot.group, slot.slot);
    let runs = report.slots.iter().map(|slot| (content(slot), flag(is_running(slot))));
    text.metric("slot_runs", "gauge", "1 for the slots that run, as far as is known.", runs);
    let tries = report.slots.iter().map(|slot| (format!("{{{}}}", place(slot)), f64::from(slot.tries)));
    text.metric("slot_tries_left", "gauge", "Boots that are left of the trial of a slot.", tries);
}

/// What the journal remembers. Times are those of the machine's clock.
fn journal(text: &mut Exposition, snapshot: &ServiceSnapshot) {
    let journal = &snapshot.journal;
    let downtime = journal.last_swap.as_ref().and_then(|swap| swap.downtime_ms).map(|ms| ms / 1000.0);
    let help = "How long the software was down at its last swap.";
    text.gauge("swap_downtime_seconds", help, downtime);
    let success = journal.last_success.as_deref().and_then(seconds);
    let help = "When a release was last marked good, by the clock of the machine.";
    text.gauge("last_success_timestamp_seconds", help, success);
    let scrubs = || {
        let all = journal.scrubs.iter();
        all.filter_map(|(slot, event)| {
            Some((format!("{{slot=\"{}\"}}", escape(slot)), event, seconds(&event.time)?))
        })
    };
    let help = "When a slot was last read by a scrub, by the clock of the machine.";
    text.metric("slot_scrub_timestamp_seconds", "gauge", help, scrubs().map(|(slot, _, time)| (slot, time)));
    let sound = scrubs().map(|(slot, event, _)| (slot, flag(event.code == NO_ERROR)));
    text.metric("slot_scrub_sound", "gauge", "1 if the last scrub of a slot found no damage.", sound);
}

/// Escapes a label: a version comes from a bundle, and must not end its label.
fn escape(value: &str) -> String {
    crate::units::text::shown(value).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_state_is_one() {
        let text = render(&ServiceSnapshot::default(), &[0, 7, 0, 1, 0]);
        assert_eq!(text.matches("qstage_upgrade_state{").count(), Phase::ALL.len());
        assert_eq!(text.matches("\"} 1\n").count(), 3, "the version, idle, and one 4xx:\n{text}");
        assert!(text.contains("qstage_http_responses_total{status=\"2xx\"} 7\n"));
        assert_eq!(escape("a\"b\\\n"), "a\\\"b\\\\\\n");
    }
}
