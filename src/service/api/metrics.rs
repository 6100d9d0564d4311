//! Metrics in the text format of Prometheus, version 0.0.4.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::service::api::Shared;
use crate::service::owner::upgrade::Phase;
use crate::service::view::ServiceSnapshot;
use crate::state::{Runs, SlotReport};

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(api): Shared) -> impl IntoResponse {
    let answers: Vec<u64> = api.answers.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
    ([(header::CONTENT_TYPE, TYPE)], render(&api.snapshot(), &answers))
}

fn render(snapshot: &ServiceSnapshot, answers: &[u64]) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP qstage_{name} {help}\n# TYPE qstage_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "qstage_{name}{labels} {value}");
        }
    };
    let plain = |value: u64| vec![(String::new(), value)];
    let upgrade = &snapshot.upgrade;
    let states = Phase::ALL.iter().map(|phase| {
        (format!("{{state=\"{}\"}}", phase.word().to_lowercase()), u64::from(*phase == upgrade.phase))
    });
    metric("upgrade_state", "gauge", "1 for the state that the upgrade is in.", states.collect());
    metric("upgrade_progress_percent", "gauge", "Progress of the prepare.", plain(upgrade.progress.into()));
    let error = snapshot.error();
    metric("upgrade_error", "gauge", "1 while an error is shown.", plain(error.is_some().into()));
    let code = error.as_ref().map(|error| (format!("{{code=\"{}\"}}", escape(&error.code)), 1));
    metric("upgrade_error_info", "gauge", "The code of the error that is shown.", code.into_iter().collect());
    let blocked = snapshot.status.as_ref().is_some_and(|status| status.is_blocked);
    metric("upgrade_blocked", "gauge", "1 while no upgrade may begin.", plain(blocked.into()));
    metric(
        "disk_readable",
        "gauge",
        "1 if the last look at the disk succeeded.",
        plain(snapshot.disk_error.is_none().into()),
    );
    metric(
        "device_silent_seconds",
        "gauge",
        "For how long a device has not answered the prepare or the service.",
        plain(snapshot.silence().map_or(0, |(_, seconds)| seconds)),
    );
    let labels = |slot: &SlotReport| {
        format!(
            "{{group=\"{}\",slot=\"{}\",state=\"{}\",version=\"{}\"}}",
            slot.group,
            slot.slot,
            slot.state.word(),
            escape(slot.version.as_deref().unwrap_or_default())
        )
    };
    let slots = |is: &dyn Fn(&SlotReport, &Runs) -> bool| {
        let all =
            snapshot.slots.iter().flat_map(|report| report.slots.iter().map(|slot| (slot, &report.runs)));
        all.map(|(slot, runs)| (labels(slot), u64::from(is(slot, runs)))).collect()
    };
    metric(
        "slot_boots_next",
        "gauge",
        "1 for the slots that the next boot takes.",
        slots(&|slot, _| slot.boots_next),
    );
    metric(
        "slot_runs",
        "gauge",
        "1 for the slots that run, as far as is known.",
        slots(&|slot, runs| runs.is_running(slot.group, slot.slot)),
    );
    let downtime = snapshot.last_swap.as_ref().and_then(|swap| swap.downtime_ms);
    let downtime = downtime.map(|ms| (String::new(), ms as u64));
    metric(
        "swap_downtime_milliseconds",
        "gauge",
        "How long the software was down at its last swap.",
        downtime.into_iter().collect(),
    );
    metric("prepares_total", "counter", "Prepares begun.", plain(snapshot.counts.prepares));
    metric("commits_total", "counter", "Commits begun.", plain(snapshot.counts.commits));
    metric("failures_total", "counter", "Prepares and commits that failed.", plain(snapshot.counts.failures));
    let by_class =
        answers.iter().enumerate().map(|(n, count)| (format!("{{status=\"{}xx\"}}", n + 1), *count));
    metric("http_responses_total", "counter", "Answers to requests.", by_class.collect());
    text
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
        assert_eq!(text.matches("\"} 1\n").count(), 2, "idle, and one 4xx:\n{text}");
        assert!(text.contains("qstage_http_responses_total{status=\"2xx\"} 7\n"));
        assert_eq!(escape("a\"b\\\n"), "a\\\"b\\\\\\n");
    }
}
