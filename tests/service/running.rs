//! What the service shows as running, and the error that it shows: both are the same in all of its answers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use serde_json::{Value, json};
use server::{Bench, Server};

fn version(server: &Server) -> String {
    let version = server.get("/v1/version")["revision_id"].as_str().unwrap().to_owned();
    let detailed = server.get("/v1/qstage/status");
    assert!(
        version.ends_with(&format!(" {}", detailed["version"].as_str().unwrap())),
        "{version} {detailed}"
    );
    version
}

/// The slots that the metrics name as running, as group and version.
fn metric(server: &Server, name: &str) -> Vec<String> {
    let text = server.try_call("GET", "/v1/qstage/metrics", "").unwrap().1;
    let lines =
        text.lines().filter(|line| line.starts_with(&format!("qstage_{name}{{")) && line.ends_with(" 1"));
    let label = |line: &str, key: &str| {
        line.split(&format!("{key}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    lines.map(|line| format!("{} {}", label(line, "group"), label(line, "version"))).collect()
}

fn commits(server: &Server, bundle: &str) {
    server.prepare(bundle, false);
    server.reach("PREPARED");
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
    server.until("it is committed", |server| {
        let running = version(server);
        let state = server.state();
        // The flags select the new release; it is started by a command, by hand, or by a reboot.
        assert!(
            state != "COMMITTING" || running.ends_with(" 1.0"),
            "{running} while the commit is under way"
        );
        assert!(server.status()["error_info"].is_null());
        state == "COMMITTED"
    });
}

/// With neither a container nor a command that restarts it, new software runs by an explicit order: not when the flags
/// select it, which scripts that wait for another version would take for the end of the upgrade.
#[test]
fn software_that_nobody_started_is_not_shown_as_running() {
    let bench = Bench::new(None);
    let (soft, v3) = (bench.text("soft.qimg"), bench.text("v3.qimg"));
    let server = bench.serve();
    commits(&server, &soft);
    assert_eq!(version(&server), "Demo 1.0");
    assert_eq!(metric(&server, "slot_runs"), ["platform 1.0", "software 1.0"]);
    assert_eq!(metric(&server, "slot_boots_next"), ["platform 1.0", "software 1.5"]);
    let details = server.get("/v1/qstage/status")["details"].clone();
    assert!(details.as_str().unwrap().contains("restart the software to start it"), "{details}");
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200);
    assert_eq!(version(&server), "Demo 1.5");
    // It stays so while a platform waits for its reboot, whose software the flags select already.
    server.until("idle", |server| server.state() == "IDLE");
    server.prepare(&v3, true);
    server.reach("COMMITTED");
    assert_eq!(server.slot("software", "a")["state"], "trial");
    assert_eq!(version(&server), "Demo 1.5");
    assert_eq!(metric(&server, "slot_runs"), ["platform 1.0", "software 1.5"]);
    assert_eq!(metric(&server, "slot_boots_next"), ["platform 3.0", "software 3.0"]);
    drop(server);
    assert_eq!(version(&bench.serve_with(&["--booted", "b"])), "Demo 3.0");
}

/// What the service restarted itself runs, also after the service was started again.
#[test]
fn software_that_the_service_restarted_runs() {
    let bench = Bench::new(None);
    let soft = bench.text("soft.qimg");
    bench.configure(None, "software_restart_command = [\"true\"]\n");
    let server = bench.serve();
    commits(&server, &soft);
    assert_eq!(version(&server), "Demo 1.5");
    drop(server);
    let server = bench.serve();
    assert_eq!(
        (version(&server).as_str(), &server.slot("software", "b")["state"]),
        ("Demo 1.5", &json!("trial"))
    );
    assert_eq!(server.post("/v1/qstage/roll-back", &Value::Null).0, 200);
    assert_eq!(version(&server), "Demo 1.0");
    // Restarted by order, where the command of the commit was not there yet.
    drop(server);
    bench.configure(None, "");
    let server = bench.serve();
    assert_eq!(server.prepare_with(&soft, "retry=true").0, 202);
    server.reach("PREPARED");
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
    server.reach("COMMITTED");
    assert_eq!(version(&server), "Demo 1.0");
    drop(server);
    bench.configure(None, "software_restart_command = [\"true\"]\n");
    let server = bench.serve();
    assert_eq!(version(&server), "Demo 1.0");
    assert_eq!(server.post("/v1/shutdown/container-restart", &Value::Null).0, 202);
    assert_eq!(version(&server), "Demo 1.5");
}

/// A failure of the command line is shown in all answers, or in none.
#[test]
fn an_error_that_only_the_disk_knows_is_the_same_in_all_answers() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let bad = bench.text("bad.qimg");
    assert!(!bench.qstage(&["prepare", &bad, "--booted", "a"]).status.success());
    server.until("it is told", |server| {
        server.get("/v1/upgrade/status")["error_state"] != "UPGRADE_ERROR_NO_ERROR"
    });
    let (v1, v3) = (server.get("/v1/upgrade/status"), server.status());
    assert_eq!(v1["error_message"], v3["error_info"], "{v1} {v3}");
    assert_eq!((&v3["state"], &v3["settings"]["install_path"]), (&json!("UPGRADE_STATE_IDLE"), &json!(bad)));
    let code = v1["error_state"].as_str().unwrap();
    let text = server.try_call("GET", "/v1/qstage/metrics", "").unwrap().1;
    assert!(
        text.contains("qstage_upgrade_error 1\n") && text.contains(&format!("{{code=\"{code}\"}} 1\n")),
        "{text}"
    );
    assert_eq!(server.post("/v1/qstage/cancel", &Value::Null).0, 200);
    server.until("it is over", |server| server.status()["error_info"].is_null());
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NO_ERROR");
    assert!(server.status()["settings"].is_null());
}
