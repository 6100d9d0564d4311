//! A service that is killed in every state: the interrupted step is reported, nothing is lost, and the upgrade can continue.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::clock::HANG;
use crate::harness::server;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Bench, alive};

fn error(server: &server::Server) -> Value {
    server.get("/v1/upgrade/status")["error_state"].clone()
}

#[test]
fn killed_while_idle_prepared_and_committed_nothing_is_lost() {
    let bench = Bench::new(None);
    let mut server = bench.serve();
    let before = server.status();
    server.kill();
    let mut server = bench.serve();
    assert_eq!(server.status(), before);
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
    let before = server.status();
    server.kill();
    let mut server = bench.serve();
    assert_eq!(server.status(), before);
    // Without its own file the disk shows the same, except for facts of the order alone.
    server.kill();
    std::fs::remove_dir_all(bench.path("state")).unwrap();
    let mut server = bench.serve();
    assert_eq!(server.status(), before);
    server.post("/v2/upgrade/commit", &Value::Null);
    server.reach("COMMITTED");
    let before = server.status();
    server.kill();
    let mut server = bench.serve();
    assert_eq!(server.status(), before);
    server.kill();
    // The new slot failed: the loader took the old one again.
    let text = std::fs::read_to_string(bench.path("state/service.json")).unwrap();
    let mut kept: Value = serde_json::from_str(&text).unwrap();
    kept["boot"]["id"] = json!("another boot");
    std::fs::write(bench.path("state/service.json"), kept.to_string()).unwrap();
    let server = bench.serve();
    assert_eq!(error(&server), "UPGRADE_ERROR_FELL_BACK");
    assert_eq!(server.status()["settings"]["target_version"], "2.0");
}

#[test]
fn killed_while_preparing_the_child_ends_and_the_next_start_says_so() {
    let bench = Bench::new(Some("1M"));
    let mut server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), true);
    server.until("it writes", |server| server.status()["progress"].as_u64() > Some(10));
    let child = server.children()[0];
    assert!(alive(child));
    server.kill();
    until_it_ends(child);
    bench.configure(None, "");
    let server = bench.serve();
    let status = server.status();
    assert_eq!(status["state"], "UPGRADE_STATE_IDLE");
    assert!(status["error_info"].as_str().unwrap().contains("the service ended"), "{status}");
    assert_eq!(status["settings"]["install_path"], json!(bench.text("v2.qimg")));
    assert_eq!(error(&server), "UPGRADE_ERROR_SERVICE_ENDED");
    assert_eq!(server.slot("platform", "b")["state"], "torn");
    let history = server.get("/v1/qstage/history");
    assert!(
        history.as_array().unwrap().iter().any(|e| e["code"] == "UPGRADE_ERROR_SERVICE_ENDED"),
        "{history}"
    );
    server.prepare(&bench.text("v2.qimg"), true);
    server.reach("COMMITTED");
}

/// Waits for a process of a service that was killed. Others reap it.
fn until_it_ends(child: u32) {
    let begun = Instant::now();
    while alive(child) {
        assert!(begun.elapsed() < HANG, "the process outlives its service");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The machine is about to reboot, and the service is killed (as every reboot does), but the machine stays up.
#[test]
fn killed_while_rebooting_it_is_committed() {
    let bench = Bench::new(None);
    bench.configure(None, "reboot_command = [\"true\"]\n");
    let mut server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), true);
    server.reach("REBOOTING");
    server.kill();
    let server = bench.serve();
    assert_eq!(server.state(), "COMMITTED");
    assert!(server.status()["error_info"].is_null());
    assert_eq!(server.slot("platform", "b")["boots_next"], true);
}

/// The service is killed at many moments around the commit of an upgrade that commits by itself.
#[test]
fn killed_around_the_commit_it_is_one_or_the_other() {
    let bench = Bench::new(None);
    let mut ends = std::collections::BTreeSet::new();
    // How long a whole one takes here and now.
    let mut server = bench.serve();
    let begun = Instant::now();
    server.prepare(&bench.text("soft.qimg"), true);
    server.reach("COMMITTED");
    let whole = begun.elapsed();
    assert_eq!(server.post("/v1/qstage/roll-back", &Value::Null).0, 200);
    server.kill();
    for percent in [0, 15, 30, 45, 55, 65, 75, 85, 95, 130, 500, 2000] {
        // The last ones are for a machine that became slow meanwhile.
        if percent > 130 && ends.len() > 1 {
            break;
        }
        let mut server = bench.serve();
        let begun = Instant::now();
        server.prepare(&bench.text("soft.qimg"), true);
        std::thread::sleep((whole * percent / 100).saturating_sub(begun.elapsed()));
        let children = server.children();
        server.kill();
        let mut server = bench.serve();
        let status = server.status();
        let slot = server.slot("software", "b");
        let state = status["state"].as_str().unwrap();
        ends.insert(state.to_owned());
        match state {
            "UPGRADE_STATE_IDLE" => assert!(!status["error_info"].is_null() && slot["boots_next"] == false),
            "UPGRADE_STATE_PREPARED" => {
                assert_eq!(status["settings"]["auto_commit"], false, "nobody commits behind one's back");
                assert!(!status["error_info"].is_null() && slot["boots_next"] == false, "{status}");
            }
            "UPGRADE_STATE_COMMITTED" => {
                assert!(status["error_info"].is_null() && slot["boots_next"] == true, "{status} {slot}");
            }
            other => panic!("{other}: {status}"),
        }
        // Back to the beginning for the next round.
        if state == "UPGRADE_STATE_COMMITTED" {
            assert_eq!(server.post("/v1/qstage/roll-back", &Value::Null).0, 200);
        }
        server.kill();
        // A prepare that has lost its service ends soon, not at once; until then the next one is refused.
        children.into_iter().for_each(until_it_ends);
    }
    assert!(ends.len() > 1, "the moments were all alike: {ends:?}");
}

#[test]
fn a_killed_prepare_is_an_error_and_not_the_end_of_the_service() {
    let bench = Bench::new(Some("1M"));
    let server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), true);
    server.until("it writes", |server| server.status()["progress"].as_u64() > Some(5));
    let pid = nix::unistd::Pid::from_raw(server.children()[0] as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    server.until("it is seen", |server| server.state() == "IDLE");
    assert_eq!(error(&server), "UPGRADE_ERROR_WORKER");
    assert!(server.status()["error_info"].as_str().unwrap().contains("signal 9"));
    bench.configure(None, "");
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
}

#[test]
fn an_orderly_end_stops_the_prepare_and_says_so() {
    let bench = Bench::new(Some("1M"));
    let mut server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), false);
    server.until("it writes", |server| server.status()["progress"].as_u64() > Some(5));
    let child = server.children()[0];
    server.end();
    assert!(!alive(child));
    assert!(!bench.path("socket").exists(), "the socket is tidied up");
    let server = bench.serve();
    assert_eq!(error(&server), "UPGRADE_ERROR_SERVICE_ENDED");
}

/// What others do to the disk is followed: the command line needs no service, and the service must not mind.
#[test]
fn the_command_line_beside_the_service_is_followed() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let qstage = |args: &[&str]| {
        let output = bench.qstage(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let v2 = bench.text("v2.qimg");
    qstage(&["prepare", &v2, "--booted", "a"]);
    server.reach("PREPARED");
    assert_eq!(server.status()["settings"]["install_path"], json!(v2));
    qstage(&["commit", "--booted", "a"]);
    server.reach("COMMITTED");
    qstage(&["cancel", "--booted", "a"]);
    server.reach("IDLE");
}
