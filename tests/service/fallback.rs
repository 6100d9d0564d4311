//! A new platform that failed to boot, as clients see it: the failure is shown everywhere, until it is cleared or the platform
//! is tried again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::process::Command;

use serde_json::{Value, json};
use server::{Bench, Server, run};

/// The boot loader has used up the tries of slot b and boots slot a.
pub(super) fn falls_back(bench: &Bench, number: &Value) {
    run(Command::new("cgpt").args(["add", "-i", &number.to_string(), "-T", "0"]).arg(bench.path("disk")));
}

fn metric(server: &Server) -> String {
    let text = server.try_call("GET", "/v1/qstage/metrics", "").unwrap().1;
    text.lines().filter(|line| line.starts_with("qstage_upgrade_error")).collect::<Vec<_>>().join(" ")
}

fn shows_it(server: &Server, bundle: &str) {
    let status = server.status();
    assert_eq!(status["state"], "UPGRADE_STATE_IDLE");
    let told = status["error_info"].as_str().unwrap_or_default();
    assert!(told.contains("2.0 in platform_b did not come up"), "{status}");
    let settings = &status["settings"];
    assert_eq!((&settings["target_version"], &settings["install_path"]), (&json!("2.0"), &json!(bundle)));
    let v1 = server.get("/v1/upgrade/status");
    assert_eq!((&v1["error_state"], &v1["error_message"]), (&json!("UPGRADE_ERROR_FELL_BACK"), &json!(told)));
    let reboot = server.get("/v1/shutdown/reboot/status");
    assert_eq!((&reboot["state"], &reboot["error_message"]), (&json!("REBOOT_IDLE"), &json!(told)));
    let metric = metric(server);
    assert!(
        metric
            .contains("qstage_upgrade_error 1 qstage_upgrade_error_info{code=\"UPGRADE_ERROR_FELL_BACK\"} 1")
    );
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 1.0");
}

fn shows_nothing(server: &Server) {
    let status = server.status();
    assert_eq!(
        status,
        json!({"state": "UPGRADE_STATE_IDLE", "progress": null, "settings": null, "error_info": null})
    );
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NO_ERROR");
    assert_eq!(server.get("/v1/shutdown/reboot/status")["error_message"], "");
    assert!(metric(server).contains("qstage_upgrade_error 0"));
}

#[test]
fn a_fallback_is_named_until_it_is_cleared() {
    // Whether the service ran in the slot that failed makes no difference.
    for seen in [false, true] {
        let bench = Bench::new(None);
        let v2 = bench.text("v2.qimg");
        let server = bench.serve();
        server.prepare(&v2, true);
        server.reach("COMMITTED");
        let number = server.slot("platform", "b")["partition"].clone();
        drop(server);
        if seen {
            let server = bench.serve_with(&["--booted", "b"]);
            assert_eq!(server.get("/v1/version")["revision_id"], "Demo 2.0");
        }
        falls_back(&bench, &number);
        let server = bench.serve();
        shows_it(&server, &v2);
        // Others that are refused do not hide it.
        std::fs::write(bench.path("junk.qimg"), [7; 4096]).unwrap();
        assert_eq!(server.try_prepare(&bench.text("junk.qimg"), false).0, 400);
        let (status, answer) = server.try_prepare(&v2, false);
        assert_eq!((status, &answer["error_class"]), (409, &json!("UPGRADE_ERROR_FAILED_BEFORE")));
        let description = answer["description"].as_str().unwrap();
        assert!(description.contains("prepare?retry=true") && !description.contains("--retry"), "{answer}");
        shows_it(&server, &v2);
        drop(server);
        let server = bench.serve();
        shows_it(&server, &v2);
        // Cleared, and for good.
        if seen {
            let idle = json!({"install_path": "", "target": "UPGRADE_TARGET_IDLE"});
            assert_eq!(server.call("PUT", "/v1/upgrade/settings", &idle).0, 200);
        } else {
            assert_eq!(server.post("/v1/qstage/cancel", &Value::Null).0, 200);
        }
        shows_nothing(&server);
        drop(server);
        let server = bench.serve();
        shows_nothing(&server);
        assert_eq!(server.post("/v1/qstage/cancel", &Value::Null).0, 409, "nothing is left to clear");
        // Tried again, without a word of the last time.
        assert_eq!(server.prepare_with(&v2, "retry=true").0, 202);
        server.reach("PREPARED");
        assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
        server.reach("COMMITTED");
        drop(server);
        falls_back(&bench, &number);
        shows_it(&bench.serve(), &v2);
    }
}

/// A release whose trial failed, and one that holds nothing whole: what an operator may mark good without another prepare.
#[test]
fn a_failed_release_is_marked_good() {
    let bench = Bench::new(None);
    let v2 = bench.text("v2.qimg");
    let server = bench.serve();
    let mark = |server: &Server, slot: &str| server.post("/v1/qstage/mark-good", &json!({"slot": slot}));
    let class = |answer: (u16, Value)| (answer.0, answer.1["error_class"].as_str().unwrap().to_owned());
    assert_eq!(class(mark(&server, "b")), (409, "UPGRADE_ERROR_NOTHING_TO_MARK".to_owned()));
    assert_eq!(class(mark(&server, "c")), (400, "UPGRADE_ERROR_BAD_REQUEST".to_owned()));
    server.prepare(&v2, true);
    server.reach("COMMITTED");
    let number = server.slot("platform", "b")["partition"].clone();
    drop(server);
    falls_back(&bench, &number);
    let server = bench.serve();
    shows_it(&server, &v2);
    assert_eq!(server.slot("platform", "b")["state"], "bad");
    let (status, report) = mark(&server, "b");
    assert_eq!((status, &report["boots_next"]), (200, &json!("b")), "{report}");
    let slot = server.slot("platform", "b");
    assert_eq!((&slot["state"], &slot["boots_next"]), (&json!("good"), &json!(true)), "{slot}");
    // It boots next; the failure stays visible until a user clears it, or prepares.
    let v1 = server.get("/v1/upgrade/status");
    assert_eq!(v1["error_state"], "UPGRADE_ERROR_FELL_BACK", "{v1}");
    assert!(server.status()["error_info"].as_str().unwrap().contains("did not come up"));
    drop(server);
    let server = bench.serve_with(&["--booted", "b"]);
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 2.0");
    assert_eq!(server.slot("platform", "b")["state"], "good");
}
