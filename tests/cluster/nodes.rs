//! Upgrades of three real nodes on one etcd: complete and rolling, with failures in the middle.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::{Follower, Poller, Shown, of_all_nodes, older_show, oldest_is_refused, restarts_all};
use crate::dry_runs;
use crate::harness::server::{check, check_example, run};
use crate::lab::Lab;

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The official client upgrades the cluster through one node, and gets no answer that it does not know.
#[test]
fn a_rolling_upgrade_by_the_official_client() {
    let Some(lab) = Lab::new(3) else { return };
    let v2 = lab.bench.text("v2.qimg");
    let before = lab.etcd.revision();
    let Some(mut client) = lab.client(1, &["upgrade_cluster", "--rolling", "--path", &v2]) else { return };
    let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Those that see PREPARED leave it to the operator.
    lab.node(1).until("it is committed", |node| !["IDLE", "PREPARING", "PREPARED"].contains(&&*node.state()));
    let (followers, pollers) = (Follower::all(&lab), Poller::both(&lab, 3));
    lab.node(1)
        .until("it rolls", |node| node.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_IN_PROGRESS");
    // A view at another node, which follows it to the end, also through the reboot of that node.
    let (code, out, err) = said(&lab.node(2).qstage(&["watch"]));
    assert!(code == Some(0) && out.starts_with("2.0 committed"), "{code:?} {out}{err}");
    for line in
        ["node 1: ", "node 2: ", "node 3: ", ": 1.0 good, waits for its turn", ": 2.0 good, has rebooted"]
    {
        assert!(err.contains(line), "'{line}' is missing: {err}");
    }
    let output = client.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("Upgrade committed") && !said.contains("rror"),
        "{said}"
    );
    followers.into_iter().for_each(|follower| follower.ends("2.0"));
    for node in &lab.nodes {
        node.until("all are through", |node| node.state() == "IDLE");
    }
    pollers.into_iter().for_each(Poller::ends);
    for node in &lab.nodes {
        assert_eq!((node.version().as_str(), node.slot().as_str()), ("Demo 2.0", "b"));
        assert_eq!(node.boots(), 2, "each booted once");
        assert_eq!(node.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NO_ERROR");
    }
    let reboot = lab.node(1).get("/v1/shutdown/reboot/status");
    assert_eq!(
        (&reboot["state"], &reboot["rebooted_node_count"]),
        (&json!("REBOOT_IDLE"), &json!(3)),
        "{reboot}"
    );
    assert_eq!(lab.most_down(), 1, "one at a time");
    let writes = lab.etcd.revision() - before;
    println!("{writes} revisions of etcd for a rolling upgrade of 3 nodes");
    assert!(writes <= 3 * 40, "{writes} revisions");
}

#[test]
fn a_complete_upgrade_and_a_node_that_falls_back() {
    let Some(lab) = Lab::new(3) else { return };
    let (v2, node) = (lab.bench.text("v2.qimg"), lab.node(1));
    // Prepared on all nodes, and shown by each; cancelled, and discarded on all nodes.
    assert_eq!(node.prepare(&v2, false, false).0, 202);
    lab.node(3).until("prepared", |node| node.state() == "PREPARED");
    // The answers of a member are those of the document.
    let document = node.get("/v1/qstage/openapi.json");
    for path in [
        "/v1/qstage/cluster",
        "/v1/cluster/nodes/",
        "/v1/cluster/nodes/{node_id}",
        "/v1/cluster/settings",
        "/v1/cluster/protection/status",
        "/v1/cluster/protection/restriper/status",
        "/v1/cluster/restriper/status",
        "/v1/node/state",
    ] {
        let content = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"];
        let answer = node.get(&path.replace("{node_id}", "2"));
        check(&document, &content["schema"], &answer, path);
        check_example(&document, content, &answer, path);
    }
    assert_eq!(lab.node(2).prepare(&v2, false, false).0, 202, "the same again");
    assert_eq!(lab.node(2).prepare(&lab.bench.text("v3.qimg"), false, false).0, 409);
    assert_eq!(lab.node(2).post("/v1/qstage/cancel", &Value::Null), 200);
    lab.node(3).until("cancelled", |node| node.state() == "IDLE");
    let status = lab.node(3).get("/v3/upgrade/status");
    assert!(
        status["error_info"].as_str().unwrap().contains("cancelled") && status["settings"].is_object(),
        "{status}"
    );
    let empty = |node: &crate::lab::Node| {
        let slots = node.get("/v1/qstage/slots");
        slots["slots"].as_array().unwrap().iter().all(|slot| slot["state"] != "prepared")
    };
    for node in &lab.nodes {
        node.until("what was prepared is discarded", empty);
    }
    assert_eq!(node.call("/v2/upgrade/commit", &Value::Null).0, 409);
    // The next status after an order shows it: a client takes IDLE after its prepare for the end of the upgrade.
    for _ in 0..6 {
        node.until("it is taken", |node| node.prepare(&v2, false, false).0 == 202);
        assert_ne!(node.state(), "IDLE");
        assert_eq!(node.post("/v1/qstage/cancel", &Value::Null), 200);
        assert_eq!(node.state(), "IDLE");
    }
    for node in &lab.nodes {
        node.until("nothing is left of it", empty);
    }
    // Node 2 does not come up with the new release: all return by one verdict, and a unit that marks good cannot prevent that.
    lab.node(2).breaks(true);
    lab.node(1).marks_at_boot();
    // Each state with the time of the last request before it, and that of its first answer. The first was seen above.
    let mut asked = Instant::now();
    let (mut states, mut shown) = (vec!["PREPARING".to_owned()], vec![(asked, asked)]);
    assert_eq!(node.prepare(&v2, true, false).0, 202);
    let following = std::thread::scope(|scope| {
        let following = scope.spawn(|| Follower::all(&lab));
        node.until("it is over", |node| {
            let now = Instant::now();
            if let Some(status) = node.try_get("/v3/upgrade/status") {
                let state = status["state"].as_str().unwrap().trim_start_matches("UPGRADE_STATE_").to_owned();
                assert!(state != "PREPARED", "never shown with auto_commit: {status}");
                if states.last() != Some(&state) {
                    states.push(state.clone());
                    shown.push((asked, Instant::now()));
                }
                asked = now;
                return state == "IDLE" && states.contains(&"REBOOTING".to_owned());
            }
            false
        });
        following.join().unwrap()
    });
    assert_eq!(states, ["PREPARING", "COMMITTING", "COMMITTED", "REBOOTING", "IDLE"]);
    following.into_iter().for_each(|follower| follower.ends("2.0"));
    // Clients that poll each second see both, and the nodes go down no sooner than 3 s after COMMITTED.
    let (committing, committed) = (shown[2].1 - shown[1].0, shown[3].1 - shown[2].0);
    let down = lab.first_down().unwrap() - shown[2].0;
    println!(
        "COMMITTING {committing:.2?}, COMMITTED {committed:.2?}, {down:.2?} to the first node that goes down"
    );
    assert!(committing.min(committed) >= Duration::from_millis(1500) && down >= Duration::from_secs(3));
    for node in &lab.nodes {
        node.until("the old release runs again", |node| node.version() == "Demo 1.0" && node.slot() == "a");
        let told = node.get("/v3/upgrade/status")["error_info"].clone();
        assert!(told.as_str().unwrap_or_default().contains("node 2"), "{told}");
        assert_eq!(node.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_CLUSTER_UPGRADE");
        assert!(node.get("/v1/shutdown/reboot/status")["error_message"].as_str().unwrap().contains("node 2"));
    }
    let forestalled = lab.node(1).marks_at_boot();
    assert!(forestalled.contains("UPGRADE_ERROR_CLUSTER_VERDICT"), "{forestalled}");
    // A second attempt: all nodes, at once.
    lab.node(2).breaks(false);
    let boots: Vec<u32> = lab.nodes.iter().map(crate::lab::Node::boots).collect();
    node.until("it may be tried again", |node| {
        let order = json!({"image_path": v2, "auto_commit": true, "do_rolling_reboot": false, "num_nodes_to_reboot": null});
        node.call("/v2/upgrade/prepare?retry=true", &order).0 == 202
    });
    lab.node(2).until("it has begun", |node| node.state() != "IDLE");
    let pollers = Poller::both(&lab, 2);
    node.until("all run it", |_| {
        lab.nodes
            .iter()
            .all(|node| node.try_get("/v1/version").is_some_and(|v| v["revision_id"] == "Demo 2.0"))
    });
    node.until("it is over", |node| node.state() == "IDLE");
    for (node, before) in lab.nodes.iter().zip(boots) {
        assert_eq!(node.boots(), before + 1);
        node.until("good", |node| {
            node.get("/v1/qstage/cluster")["nodes"][node.number - 1]["standing"] == "good"
        });
        node.until("it is over here too", |node| node.state() == "IDLE");
    }
    pollers.into_iter().for_each(Poller::ends);
    assert!(lab.node(3).get("/v3/upgrade/status")["error_info"].is_null());
}

#[test]
fn a_rolling_upgrade_with_pauses_errors_and_no_etcd() {
    let Some(mut lab) = Lab::new(3) else { return };
    let v2 = lab.bench.text("v2.qimg");
    let reboot = |lab: &Lab, number: usize| lab.node(number).get("/v1/shutdown/reboot/status");
    for (path, wanted) in [("/v1/shutdown/reboot/pause", 409), ("/v1/shutdown/reboot/resume", 409)] {
        assert_eq!(lab.node(1).call(path, &Value::Null).0, wanted, "{path}");
    }
    let many =
        json!({"image_path": v2, "auto_commit": false, "do_rolling_reboot": true, "num_nodes_to_reboot": 2});
    assert_eq!(lab.node(1).call("/v2/upgrade/prepare", &many).0, 400, "of three nodes one may go");
    assert_eq!(lab.node(1).prepare(&v2, false, true).0, 202);
    lab.node(1).until("prepared", |node| node.state() == "PREPARED");
    older_show(&lab, 3, "PREPARED");
    oldest_is_refused(&lab, &v2);
    dry_runs::when_prepared(&lab, &v2);
    // The same bundle takes other settings of its reboot and stays prepared; every member sends that as an event.
    for rolling in [false, true] {
        assert_eq!(lab.node(2).prepare(&v2, false, rolling).0, 202);
        let shown = |node: &crate::lab::Node| {
            node.get("/v3/upgrade/status")["settings"]["do_rolling_reboot"] == rolling
        };
        lab.node(3).until("the settings are shown", shown);
        assert_eq!(lab.node(3).state(), "PREPARED");
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sN", "--max-time", "3", "http://x/v1/qstage/events", "--unix-socket"]);
        let events = curl.arg(lab.node(3).path("socket")).output().unwrap();
        let events = String::from_utf8_lossy(&events.stdout).into_owned();
        assert!(events.contains(&format!("\"do_rolling_reboot\":{rolling}")), "{events}");
    }
    // Without etcd every answer comes from the last known state, a prepare is refused, a commit is accepted and waits.
    lab.etcd.stop();
    lab.node(1).until("it is noticed", |node| node.get("/v1/qstage/cluster")["connected"] == false);
    let blocked = lab.node(1).get("/v2/upgrade/blocked");
    assert!(blocked["blocked_reason"].as_str().unwrap().contains("etcd does not answer"), "{blocked}");
    assert_eq!(lab.node(1).get("/v3/upgrade/status")["settings"]["do_rolling_reboot"], true);
    assert_eq!(lab.node(1).prepare(&v2, false, true).0, 503);
    assert_eq!(lab.node(1).post("/v2/upgrade/commit", &Value::Null), 202);
    assert_eq!(lab.node(1).state(), "COMMITTING");
    // Node 3, the third in order or the leader, will not come up. Another node reboots; pauses take effect.
    for node in &lab.nodes {
        node.breaks(node.number == 3);
    }
    lab.etcd.again();
    lab.node(1)
        .until("it goes on", |node| node.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_IN_PROGRESS");
    let (code, out, err) = said(&lab.node(2).qstage(&["cluster", "pause"]));
    assert!(code == Some(0) && out.contains("paused after the group under way"), "{code:?} {out}{err}");
    lab.node(1).until("the group ends", |node| {
        let reboot = node.get("/v1/shutdown/reboot/status");
        reboot["state"] == "REBOOT_PAUSED" && reboot["rebooted_node_count"] == 1
            || reboot["state"] == "REBOOT_PAUSED_DUE_TO_ERROR"
    });
    let done: u32 = lab.nodes.iter().map(|node| node.boots() - 1).sum();
    assert_eq!(done, 1, "the group under way ends, and none begins");
    let blocked = lab.node(1).get("/v2/upgrade/blocked");
    assert_eq!(
        (&blocked["is_blocked"], &blocked["blocked_reason"]),
        (&json!(true), &json!("a reboot is under way"))
    );
    if reboot(&lab, 1)["state"] == "REBOOT_PAUSED" {
        assert_eq!(lab.node(2).post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    }
    // The reboot pauses at the first node that falls back, and every node shows it.
    lab.node(1).until("it stops", |node| {
        node.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_PAUSED_DUE_TO_ERROR"
    });
    let begun = Instant::now();
    older_show(&lab, 1, "REBOOTING");
    if let Some(shown) = Shown::at(&lab, 1) {
        shown.is_paused_by("node 3 fell back", None);
    }
    std::thread::sleep(Duration::from_secs(3).saturating_sub(begun.elapsed()));
    for node in &lab.nodes {
        let told = node.get("/v1/shutdown/reboot/status")["error_message"].clone();
        assert!(told.as_str().unwrap().contains("node 3 fell back"), "{told}");
        let status = node.get("/v3/upgrade/status");
        assert_eq!((&status["error_info"], &status["state"]), (&told, &json!("UPGRADE_STATE_REBOOTING")));
    }
    let boots: Vec<u32> = lab.nodes.iter().map(crate::lab::Node::boots).collect();
    assert_eq!(lab.node(3).boots(), 2, "{boots:?}");
    // Abandoned: the nodes with the new release return, one after the other, and the error reports it.
    let went: Vec<usize> =
        lab.nodes.iter().filter(|node| node.version() == "Demo 2.0").map(|node| node.number).collect();
    assert!(!went.is_empty());
    let output = lab.node(2).qstage(&["cluster", "abandon"]);
    assert!(output.status.success(), "{output:?}");
    lab.node(1).until("all are back", |node| node.state() == "IDLE");
    for node in &lab.nodes {
        node.until("the old release runs", |node| node.version() == "Demo 1.0" && node.slot() == "a");
        let again = u32::from(went.contains(&node.number));
        assert_eq!(node.boots(), boots[node.number - 1] + again, "node {}", node.number);
        let status = node.get("/v3/upgrade/status");
        let told = status["error_info"].as_str().unwrap();
        assert!(told.starts_with("the upgrade was abandoned: node 3 fell back"), "{told}");
    }
    assert_eq!(reboot(&lab, 1)["state"], "REBOOT_IDLE");
    // A second attempt from the start pauses at the same node, which can be resumed too.
    let order = json!({"image_path": v2, "auto_commit": true, "do_rolling_reboot": true, "num_nodes_to_reboot": null});
    lab.node(1)
        .until("it may be tried again", |node| node.call("/v2/upgrade/prepare?retry=true", &order).0 == 202);
    lab.node(1).until("it stops again", |node| {
        node.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_PAUSED_DUE_TO_ERROR"
    });
    // After a repair a resume retries the node: it stages the release again that the fallback had discarded.
    lab.node(3).breaks(false);
    assert_eq!(lab.node(1).post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    lab.node(1).until("all are through", |node| node.state() == "IDLE");
    for node in &lab.nodes {
        assert_eq!(node.version(), "Demo 2.0");
    }
    assert_eq!(lab.most_down(), 1, "one at a time");
    assert_eq!(reboot(&lab, 2)["error_message"], "");
}

#[test]
fn a_node_that_never_returns_and_one_that_was_never_well() {
    // On a busy machine a node needs some seconds for its return.
    let Some(lab) = Lab::with(3, "reboot_timeout = 15\n", None) else { return };
    let status = |number: usize| lab.node(number).get("/v1/qstage/cluster");
    if let Some(shown) = Shown::at(&lab, 2) {
        shown.is_well();
    }
    // An idle cluster writes nothing; it reads, and renews its leases. On a busy machine a lease may be lost meanwhile.
    let wrote = |_| {
        let before = lab.etcd.keys();
        std::thread::sleep(Duration::from_secs(4));
        lab.etcd.changed(&before)
    };
    let windows: Vec<_> = (0..4).map(wrote).take_while(|wrote| !wrote.is_empty()).collect();
    assert!(windows.len() < 4, "it wrote in each: {windows:?}");
    of_all_nodes(&lab);
    dry_runs::at_rest(&lab);
    lab.nodes.iter().for_each(|node| node.stays_down(true));
    let order = json!({"is_rolling": true, "num_nodes_to_reboot": null});
    assert_eq!(lab.node(1).post("/v1/shutdown/reboot/start", &order), 202);
    let first = || (1..=3).find(|number| lab.node(*number).is_down());
    lab.node(1).until("the first is down", |_| first().is_some());
    let gone = first().unwrap();
    let other = if gone == 1 { 2 } else { 1 };
    lab.node(other).until("it is led", |_| status(other)["leader"].is_u64());
    let leader = status(other)["leader"].as_u64().unwrap() as usize;
    assert_ne!(gone, leader, "who leads goes last");
    // It is known at once, although its lease lasts a while.
    assert_eq!(lab.node(leader).get("/v2/upgrade/blocked")["cluster_degraded"], true);
    let protection = lab.node(leader).get("/v1/cluster/protection/status");
    assert_eq!(protection["remaining_node_failures"], 0, "{protection}");
    let told =
        || lab.node(leader).get("/v1/shutdown/reboot/status")["error_message"].as_str().unwrap().to_owned();
    lab.node(leader).until("its name is told", |_| told().contains(&format!("node {gone}")));
    assert_eq!(lab.node(leader).get("/v1/shutdown/reboot/status")["state"], "REBOOT_PAUSED_DUE_TO_ERROR");
    lab.node(leader).until("it is away", |_| status(leader)["nodes"][gone - 1]["standing"] == "away");
    if let Some(shown) = Shown::at(&lab, leader) {
        shown.is_paused_by(&format!("node {gone}"), Some(gone));
    }
    dry_runs::when_paused(&lab, lab.node(leader), gone);
    // The node comes back later; the reboot does not continue by itself.
    lab.nodes.iter().for_each(|node| node.stays_down(false));
    lab.node(gone).until("it is back", |node| node.try_get("/v1/version").is_some());
    lab.node(leader).until("all see it", |_| status(leader)["nodes"][gone - 1]["standing"] == "good");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(lab.node(leader).get("/v1/shutdown/reboot/status")["state"], "REBOOT_PAUSED_DUE_TO_ERROR");
    // An operator takes back its turn and resumes; then all nodes reboot.
    let output = lab.node(leader).qstage(&["cluster", "take-back", &gone.to_string()]);
    assert!(output.status.success(), "{output:?}");
    let output = lab.node(leader).qstage(&["cluster", "resume"]);
    assert!(output.status.success(), "{output:?}");
    lab.node(leader)
        .until("all are through", |node| node.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_IDLE");
    assert_eq!(lab.node(1).get("/v1/shutdown/reboot/status")["rebooted_node_count"], 3);
    restarts_all(&lab);
    let shown = lab.node(1).qstage(&["cluster", "status"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("node 3") && shown.contains("1.0") && shown.contains("good"), "{shown}");
}

/// The clock of one member is twenty years fast, that of another as much slow: nothing depends on clocks. And an obstacle of a
/// commit is shown in the status.
#[test]
fn clocks_that_are_wrong_by_years() {
    let Some(lab) = Lab::new(3) else { return };
    let source = lab.bench.path("clock.c");
    std::fs::write(&source, CLOCK).unwrap();
    let year = || run(Command::new("date").args(["--utc", "+%Y"])).trim().parse::<i32>().unwrap();
    for (number, years) in [(2, 20), (3, -20)] {
        let node = lab.node(number);
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", &format!("-DYEARS={years}"), "-o"]).arg(node.path("clock.so"));
        run(cc.arg(&source).arg("-ldl"));
        node.power(false);
        node.until("it is down", |node| node.try_get("/v1/version").is_none());
        node.power(true);
        let wrong = year() + years;
        node.until("its clock is wrong", |node| {
            let log = std::fs::read_to_string(node.path("log")).unwrap();
            [wrong - 1, wrong, wrong + 1].iter().any(|year| log.contains(&format!("\"{year}-")))
        });
    }
    let good = |node: &crate::lab::Node| {
        let status = node.try_get("/v1/qstage/cluster");
        let good = |status: Value| (0..3).all(|at| status["nodes"][at]["standing"] == "good");
        status.is_some_and(good)
    };
    let (node, v2) = (lab.node(2), lab.bench.text("v2.qimg"));
    node.until("all are well", good);
    node.until("it is taken", |node| node.prepare(&v2, false, true).0 == 202);
    lab.node(3).until("prepared", |node| node.state() == "PREPARED");
    // A node is lost before the commit.
    lab.node(3).power(false);
    node.until("it is away", |node| node.get("/v1/qstage/cluster")["nodes"][2]["standing"] == "away");
    assert_eq!(node.post("/v2/upgrade/commit", &Value::Null), 202);
    assert_eq!(node.state(), "COMMITTING");
    let told = |node: &crate::lab::Node| node.get("/v3/upgrade/status")["error_info"].clone();
    node.until("the obstacle is shown", |node| told(node) == "node 3 is away" && node.state() == "PREPARED");
    assert_eq!(lab.node(1).get("/v3/upgrade/status")["settings"]["install_path"], json!(v2));
    lab.node(3).power(true);
    node.until("all are well again", good);
    let boots: Vec<u32> = lab.nodes.iter().map(crate::lab::Node::boots).collect();
    assert_eq!(node.post("/v2/upgrade/commit", &Value::Null), 202);
    node.until("it rolls", |node| node.state() == "REBOOTING");
    for node in &lab.nodes {
        node.until("all are through", |node| {
            node.try_get("/v3/upgrade/status").is_some_and(|v| v["state"] == "UPGRADE_STATE_IDLE")
        });
        assert_eq!((node.version().as_str(), node.boots()), ("Demo 2.0", boots[node.number - 1] + 1));
        assert!(told(node).is_null(), "{}", told(node));
    }
}

/// The clock of a process, wrong by YEARS.
const CLOCK: &str = "
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, \"clock_gettime\");
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) at->tv_sec += YEARS * 31556952L;
    return result;
}
";

/// A node whose disk is from before an upgrade catches up by itself, and the others are not disturbed.
#[test]
fn a_node_that_missed_an_upgrade() {
    let Some(lab) = Lab::new(3) else { return };
    let (node, third) = (lab.node(1), lab.node(3));
    let (disk, before) = (third.path("disk"), lab.bench.path("disk-before"));
    std::fs::copy(&disk, &before).unwrap();
    // The command follows it to the end, also through the reboot of the node that it talks to.
    let v2 = lab.bench.text("v2.qimg");
    let output = node.qstage(&["upgrade", &v2, "--rolling", "-n", "1", "--commit"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("2.0 committed"), "{out}{err}");
    for line in ["node 3: 1.0 good, prepares", ": 1.0 good, waits for its turn", ": 2.0 good, has rebooted"] {
        assert!(err.contains(line), "'{line}' is missing: {err}");
    }
    assert!(err.contains("waits for node ") && lab.most_down() == 1, "{err}");
    let good = |node: &crate::lab::Node, number: usize| {
        let status = node.try_get("/v1/qstage/cluster");
        status.is_some_and(|status| status["nodes"][number - 1]["standing"] == "good")
    };
    for node in &lab.nodes {
        node.until("it runs 2.0", |node| {
            node.try_get("/v1/version").is_some_and(|v| v["revision_id"] == "Demo 2.0")
        });
    }
    node.until("it is over", |node| node.state() == "IDLE" && (1..=3).all(|number| good(node, number)));
    let boots: Vec<u32> = lab.nodes.iter().map(crate::lab::Node::boots).collect();
    third.power(false);
    third.until("it is down", |node| node.try_get("/v1/version").is_none());
    std::fs::copy(&before, &disk).unwrap();
    third.power(true);
    third.until("it is stopped", |node| {
        node.try_get("/v1/node/state").is_some_and(|state| state["state"] == "STOPPED")
    });
    let status = node.get("/v1/qstage/cluster");
    let doing = status["nodes"][2]["doing"].as_str().unwrap();
    assert!(doing == "catches up with 2.0" || doing.is_empty(), "{status}");
    node.until("it has caught up", |node| {
        node.get("/v1/qstage/cluster")["nodes"][2]["version"] == "2.0" && good(node, 3)
    });
    third.until("it takes part", |node| {
        node.try_get("/v1/node/state").is_some_and(|state| state["state"] == "ACTIVE")
    });
    assert_eq!((third.slot().as_str(), third.boots()), ("b", boots[2] + 2));
    assert_eq!((lab.node(1).boots(), lab.node(2).boots()), (boots[0], boots[1]));
    node.until("the next upgrade is admitted", |node| node.get("/v2/upgrade/blocked")["is_blocked"] == false);
}
