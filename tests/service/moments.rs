//! How long each state is shown, and the objects that clients compare in each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::server::{Bench, Server};

/// Minimum time for which COMMITTING and COMMITTED are shown: clients poll once a second.
const SHOWN: Duration = Duration::from_millis(1500);
/// Minimum time between COMMITTED and the reboot.
const BEFORE_REBOOT: Duration = Duration::from_secs(3);

/// A state that was shown.
struct Sight {
    state: String,
    /// Time of the last request that was answered with the state before it.
    after: Instant,
    /// Time of the first answer with it.
    by: Instant,
}

/// Polls the status until it shows `last`, and returns the states since `begun` in order.
fn watch(server: &Server, begun: Instant, last: &str, meanwhile: impl Fn()) -> Vec<Sight> {
    let (mut seen, mut asked): (Vec<Sight>, Instant) = (Vec::new(), begun);
    server.until(last, |server| {
        let now = Instant::now();
        let state = server.state();
        meanwhile();
        let reached = state == last;
        if seen.last().is_none_or(|before| before.state != state) {
            seen.push(Sight { state, after: asked, by: Instant::now() });
        }
        asked = now;
        reached
    });
    seen
}

/// The v1 status, as text, with these parts and no error.
fn v1(bundle: &str, state: &str, blocked: &str) -> String {
    let is_blocked = !blocked.is_empty();
    format!(
        "{{\"install_path\":{bundle:?},\"state\":\"UPGRADE_{state}\",\"details\":\"\",\"error_message\":\"\",\
         \"error_state\":\"UPGRADE_ERROR_NO_ERROR\",\"is_blocked\":{is_blocked},\"blocked_reason\":{blocked:?}}}"
    )
}

fn text(server: &Server) -> String {
    server.try_call("GET", "/v1/upgrade/status", "").unwrap().1
}

#[test]
fn a_reboot_is_shown_before_it_happens() {
    let bench = Bench::new(Some("4M"));
    let mark = bench.path("rebooted");
    bench.configure(Some("4M"), &format!("reboot_command = [\"touch\", {mark:?}]\n"));
    let server = bench.serve();
    let v2 = bench.text("v2.qimg");
    assert_eq!(server.get("/v1/shutdown/reboot/status")["state"], "REBOOT_IDLE");
    server.prepare(&v2, false);
    assert_eq!(text(&server), v1(&v2, "PREPARING", ""));
    server.reach("PREPARED");
    assert_eq!(text(&server), v1(&v2, "PREPARED", ""));
    let begun = Instant::now();
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
    let seen = watch(&server, begun, "REBOOTING", || {
        assert!(!mark.exists(), "clients that poll each second see the reboot first");
    });
    assert_eq!(text(&server), v1(&v2, "REBOOTING", "a reboot is under way"));
    // Clients of the generation of v2 die of an assertion at REBOOTING: they see COMMITTED at the very same time.
    let v2_status = server.get("/v2/upgrade/status");
    assert_eq!(
        (server.state().as_str(), &v2_status["state"]),
        ("REBOOTING", &json!("UPGRADE_STATE_COMMITTED"))
    );
    let reboot = server.get("/v1/shutdown/reboot/status");
    assert_eq!(
        (&reboot["state"], &reboot["upgrade_initiated"]),
        (&json!("REBOOT_IN_PROGRESS"), &json!(true))
    );
    assert_eq!(reboot["total_node_count"], 1);
    server.until("the command runs", |_| mark.exists());
    let rebooted = Instant::now();
    let [committing, committed, rebooting] = &seen[..] else {
        panic!("{:?}", seen.iter().map(|sight| &sight.state).collect::<Vec<_>>())
    };
    assert_eq!([&committing.state, &committed.state], ["COMMITTING", "COMMITTED"]);
    let times = [committed.by - committing.after, rebooting.by - committed.after, rebooted - committed.after];
    println!("COMMITTING {:.2?}, COMMITTED {:.2?}, {:.2?} to the reboot", times[0], times[1], times[2]);
    assert!(times[0] >= SHOWN && times[1] >= SHOWN && times[2] >= BEFORE_REBOOT, "{times:?}");
    drop(server);
    // The machine comes up from the new slot.
    let server = bench.serve_with(&["--booted", "b"]);
    assert!(server.status()["error_info"].is_null());
    let reason = server.get("/v2/upgrade/blocked")["blocked_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("on trial"), "{reason}");
    assert_eq!(text(&server), v1(&v2, "TRIAL", &reason));
    // Details are in the status of our own; after an error they are in its message.
    let own = server.get("/v1/qstage/status");
    assert_ne!(own["details"], "", "{own}");
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200);
    assert!(server.try_prepare(&bench.text("none"), false).0 >= 400);
    let idle = server.get("/v1/upgrade/status");
    assert_eq!((&idle["state"], &idle["details"]), (&json!("UPGRADE_IDLE"), &json!("")), "{idle}");
    assert_ne!(idle["error_state"], "UPGRADE_ERROR_NO_ERROR");
}
