//! Metrics, alert rules and dashboard, judged by Prometheus' own promtool.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::fallback::falls_back;
use crate::harness::server::{Bench, Server};

/// Where the rules and the dashboard of the package are.
fn packaged(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/packaging/prometheus").join(file)
}

/// Runs promtool on files; `false`: there is none on this machine, which is a failure in CI.
fn promtool(args: &[&str], file: &Path) -> bool {
    let mut command = Command::new("promtool");
    command.args(args);
    let of_metrics = args == ["check", "metrics"];
    // Its check of metrics reads standard input.
    if of_metrics {
        command.stdin(fs::File::open(file).unwrap());
    } else {
        command.arg(file).stdin(Stdio::null());
    }
    match command.output() {
        Ok(output) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            // A lint of a metric is a message, and an exit code only in later versions.
            let clean = output.status.success() && (!of_metrics || err.is_empty());
            assert!(clean, "promtool {args:?}: {out}{err}\n{}", fs::read_to_string(file).unwrap());
            true
        }
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "CI has promtool");
            eprintln!("SKIPPED: needs promtool (package prometheus)");
            false
        }
    }
}

fn metrics(server: &Server) -> String {
    server.try_call("GET", "/v1/qstage/metrics", "").unwrap().1
}

/// The names of the metrics.
fn names(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// A unit test of rules: the samples of a scrape, unchanged for ten minutes, and what each alert must be then.
fn rule_test(bench: &Bench, text: &str, alerts: &Value) -> PathBuf {
    let series: Vec<Value> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
            let comma = if labels == "}" { "" } else { "," };
            json!({"series": format!("{name}{{job=\"qstage\",instance=\"node-1\"{comma}{labels}"), "values": format!("{value}x10")})
        })
        .collect();
    let test = json!({
        "rule_files": [packaged("alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": alerts}],
    });
    // JSON is YAML.
    let file = bench.path("rule-test.yml");
    fs::write(&file, test.to_string()).unwrap();
    file
}

/// The alerts of the package; each rule begins with its name.
fn alerts() -> Vec<String> {
    let rules = fs::read_to_string(packaged("alerts.yml")).unwrap();
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn a_fallback_raises_its_alert_and_a_healthy_machine_none() {
    let bench = Bench::new(None);
    let v2 = bench.text("v2.qimg");
    let server = bench.serve();
    let healthy = metrics(&server);
    server.prepare(&v2, true);
    server.reach("COMMITTED");
    server.until("the trial is seen", |server| metrics(server).contains("\nqstage_trial_age_seconds "));
    let trial = metrics(&server);
    assert!(trial.contains("qstage_slot_tries_left{group=\"platform\",slot=\"b\"} 3\n"), "{trial}");
    let number = server.slot("platform", "b")["partition"].clone();
    drop(server);
    falls_back(&bench, &number);
    let server = bench.serve();
    server.until("the fallback is seen", |server| metrics(server).contains("FELL_BACK"));
    let fallen = metrics(&server);
    let silent = |except: &str| -> Vec<Value> {
        let others = alerts().into_iter().filter(|name| name != except);
        others.map(|name| json!({"eval_time": "6m", "alertname": name})).collect()
    };
    assert!(alerts().len() >= 10, "{:?}", alerts());
    for (text, fired) in [(healthy, ""), (trial, ""), (fallen, "QstageFellBack")] {
        let mut expected = silent(fired);
        if !fired.is_empty() {
            let rules = fs::read_to_string(packaged("alerts.yml")).unwrap();
            let description = rules.split("description: '").nth(1).unwrap().split("'\n").next().unwrap();
            expected.push(json!({"eval_time": "1m", "alertname": fired, "exp_alerts": [{
                "exp_labels": {"severity": "critical", "job": "qstage", "instance": "node-1",
                    "code": "UPGRADE_ERROR_FELL_BACK"},
                "exp_annotations": {"summary": "node-1 fell back to its previous release", "description": description},
            }]}));
        }
        let file = bench.path("metrics");
        fs::write(&file, &text).unwrap();
        if !promtool(&["check", "metrics"], &file) {
            return;
        }
        promtool(&["test", "rules"], &rule_test(&bench, &text, &json!(expected)));
    }
}

/// Success and scrubs are remembered, and shown as figures.
#[test]
fn success_and_scrubs_have_their_times() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let figure = |name: &str| -> Option<f64> {
        let text = metrics(&server);
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    let (scrub, sound) =
        ("qstage_slot_scrub_timestamp_seconds{slot=\"a\"}", "qstage_slot_scrub_sound{slot=\"a\"}");
    let success = "qstage_last_success_timestamp_seconds";
    assert_eq!((figure(scrub), figure(sound), figure(success)), (None, None, None));
    let build = concat!("qstage_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(figure(build), Some(1.0));
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let (before, recent) =
        (now() - 1.0, |time: Option<f64>, before: f64| time.is_some_and(|at| at >= before && at <= now()));
    assert!(bench.qstage(&["verify", "--slot", "a"]).status.success());
    server.until("the scrub is shown", |_| recent(figure(scrub), before) && figure(sound) == Some(1.0));
    // A boot at which nothing is to be marked is no success.
    assert!(bench.qstage(&["mark-good", "--booted", "a"]).status.success());
    server.prepare(&bench.text("soft.qimg"), true);
    server.reach("COMMITTED");
    assert_eq!(figure(success), None);
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({"slot": null})).0, 200);
    server.until("the success is shown", |_| recent(figure(success), before));
    // Damage that a scrub finds.
    let slot = server.slot("platform", "a");
    let disk = fs::OpenOptions::new().write(true).open(bench.path("disk")).unwrap();
    let table = gpt::GptConfig::new().open(bench.path("disk")).unwrap();
    let part = &table.partitions()[&(slot["partition"].as_u64().unwrap() as u32)];
    std::os::unix::fs::FileExt::write_all_at(&disk, &[0xa5; 4096], part.first_lba * 512 + 65536).unwrap();
    assert!(!bench.qstage(&["verify", "--slot", "a"]).status.success());
    server.until("the damage is shown", |_| figure(sound) == Some(0.0));
    fs::write(bench.path("metrics"), metrics(&server)).unwrap();
    promtool(&["check", "metrics"], &bench.path("metrics"));
}

#[test]
fn rules_and_dashboard_of_the_package_are_sound() {
    if !promtool(&["check", "rules"], &packaged("alerts.yml")) {
        return;
    }
    promtool(&["test", "rules"], &packaged("alerts-test.yml"));
    // The queries of the dashboard, as rules, which is how promtool parses them.
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(packaged("dashboard.json")).unwrap()).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap().replace("$instance", ".*").replace("$job", "qstage"))
        .collect();
    assert!(queries.len() > 15, "{queries:?}");
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("dashboard:query{number}"), "expr": query}))
        .collect();
    let bench = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = bench.path().join("queries.yml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules"], &file);
}

/// What rules and dashboard ask for is served under that name.
#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let bench = Bench::new(None);
    let server = bench.serve();
    // Those that need an event first.
    let mut served: BTreeSet<String> = [
        "qstage_upgrade_error_info",
        "qstage_trial_age_seconds",
        "qstage_swap_downtime_seconds",
        "qstage_last_success_timestamp_seconds",
        "qstage_slot_scrub_timestamp_seconds",
        "qstage_slot_scrub_sound",
    ]
    .map(str::to_owned)
    .into();
    served.extend(names(&metrics(&server)));
    let mut asked = BTreeSet::new();
    for file in ["alerts.yml", "dashboard.json", "alerts-test.yml"] {
        let text = fs::read_to_string(packaged(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked.extend(words.filter(|word| word.starts_with("qstage_")).map(str::to_owned));
    }
    assert!(asked.len() > 12, "{asked:?}");
    let missing: Vec<_> = asked.difference(&served).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
