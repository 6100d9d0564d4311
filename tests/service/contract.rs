//! The wire contract, endpoint by endpoint, against a real service on a disk image.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::clock::HANG;
use crate::harness::server;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use server::{Bench, QSTAGE, Server, check, run};

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error_class"].as_str().unwrap_or_default())
}

/// Every GET answers with what the document says, in this state.
fn every_get_fits_the_document(server: &Server) {
    let document = server.get("/v1/qstage/openapi.json");
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(content) = item["get"]["responses"]["200"]["content"].as_object() else { continue };
        let (kind, body) = content.iter().next().unwrap();
        if path.starts_with("/v1/cluster/") || path.starts_with("/v1/qstage/cluster") {
            let refused = server.call("GET", path, &Value::Null);
            assert_eq!(code(&refused), (409, "UPGRADE_ERROR_NOT_A_CLUSTER"), "a single node, {path}");
        } else if kind == "application/json" {
            check(&document, &body["schema"], &server.get(path), path);
        }
    }
}

#[test]
fn a_platform_upgrade_by_v2_and_v3() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let (v2, v3) = (bench.text("v2.qimg"), bench.text("v3.qimg"));
    every_get_fits_the_document(&server);
    let idle = json!({"state": "UPGRADE_STATE_IDLE", "progress": null, "settings": null, "error_info": null});
    assert_eq!(server.status(), idle);
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 1.0");
    assert_eq!(code(&server.post("/v2/upgrade/commit", &Value::Null)), (409, "UPGRADE_ERROR_NOT_PREPARED"));
    assert_eq!(
        code(&server.post("/v1/qstage/cancel", &Value::Null)),
        (409, "UPGRADE_ERROR_NOTHING_TO_CANCEL")
    );

    let (status, verified) = server.post("/v2/upgrade/verify-image", &json!({"image_path": v2}));
    let good = json!({"target_version": "2.0", "upgrade_type": "SOFTWARE_AND_PLATFORM", "error": null});
    assert_eq!((status, verified), (200, good));
    assert_eq!(server.status(), idle, "looking changes nothing");

    server.prepare(&v2, false);
    let status = server.status();
    assert_eq!(status["settings"]["target_version"], "2.0", "filled from the first status on: {status}");
    assert_ne!(status["state"], "UPGRADE_STATE_IDLE");
    server.reach("PREPARED");
    every_get_fits_the_document(&server);
    assert_eq!(server.slot("platform", "b")["state"], "prepared");
    let settings = json!({"install_path": v2, "target_version": "2.0", "upgrade_type": "SOFTWARE_AND_PLATFORM",
        "auto_commit": false, "do_rolling_reboot": false, "num_nodes_to_reboot": null});
    let prepared = json!({"state": "UPGRADE_STATE_PREPARED", "progress": 100, "settings": settings,
        "error_info": null});
    assert_eq!(server.status(), prepared);
    assert_eq!(server.get("/v2/upgrade/status"), prepared);

    // The same bundle again: nothing is done.
    let prepares = |server: &Server| {
        let text = server.try_call("GET", "/v1/qstage/metrics", "").unwrap().1;
        text.lines().find_map(|l| l.strip_prefix("qstage_prepares_total ")).unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(prepares(&server), 1);
    server.prepare(&v2, false);
    assert_eq!(server.status(), prepared);
    assert_eq!(prepares(&server), 1);
    // Another one replaces it, but not without a word.
    assert_eq!(code(&server.try_prepare(&v3, false)), (409, "UPGRADE_ERROR_OTHER_PREPARED"));
    assert_eq!(server.status(), prepared);
    assert_eq!(server.prepare_with(&v3, "replace=true").0, 202);
    server.reach("PREPARED");
    assert_eq!(server.status()["settings"]["target_version"], "3.0");
    assert_eq!(prepares(&server), 2);

    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null), (202, Value::Null));
    assert_ne!(server.state(), "PREPARED", "left before the answer");
    server.reach("COMMITTED");
    every_get_fits_the_document(&server);
    let slot = server.slot("platform", "b");
    assert_eq!((&slot["state"], &slot["boots_next"]), (&json!("trial"), &json!(true)));
    assert_eq!(server.status()["settings"]["target_version"], "3.0", "kept after the commit");
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 1.0", "until the reboot");
    let blocked = server.get("/v2/upgrade/blocked");
    assert_eq!(blocked["is_blocked"], true);
    assert!(blocked["blocked_reason"].as_str().unwrap().contains("on trial"), "{blocked}");
    assert_eq!(code(&server.try_prepare(&v2, false)), (409, "UPGRADE_ERROR_ON_TRIAL"));
    assert_eq!(code(&server.post("/v2/upgrade/commit", &Value::Null)), (409, "UPGRADE_ERROR_NOT_PREPARED"));

    // "Reboot": the machine comes up from slot b.
    drop(server);
    let server = bench.serve_with(&["--booted", "b"]);
    assert_eq!(server.status(), idle);
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 3.0");
    assert_eq!(server.get("/v1/upgrade/status")["state"], "UPGRADE_TRIAL");
    let (status, report) = server.post("/v1/qstage/mark-good", &json!({}));
    assert_eq!((status, &report["boots_next"]), (200, &json!("b")), "{report}");
    assert_eq!(server.get("/v1/upgrade/status")["state"], "UPGRADE_IDLE");
    assert_eq!(server.get("/v2/upgrade/blocked")["is_blocked"], false);
    let verbs: Vec<Value> =
        server.get("/v1/qstage/history").as_array().unwrap().iter().map(|e| e["verb"].clone()).collect();
    assert_eq!(
        verbs,
        ["cancel", "prepare", "prepare", "commit", "mark-good"],
        "the refused cancel is told too"
    );
    let (status, report) = server.post("/v1/qstage/roll-back", &Value::Null);
    assert_eq!((status, &report["boots_next"]), (200, &json!("a")), "{report}");
}

#[test]
fn a_software_upgrade_commits_by_itself_and_never_shows_prepared() {
    let bench = Bench::new(Some("4M"));
    let mark = bench.text("restarted");
    bench.configure(Some("4M"), &format!("software_restart_command = [\"touch\", {mark:?}]\n"));
    let server = bench.serve();
    server.prepare(&bench.text("soft.qimg"), true);
    let mut seen = BTreeSet::new();
    server.until("committed", |server| {
        let status = server.status();
        assert!(status["error_info"].is_null(), "{status}");
        assert_eq!(status["settings"]["upgrade_type"], "SOFTWARE_ONLY");
        seen.insert(status["state"].as_str().unwrap().to_owned());
        status["state"] == "UPGRADE_STATE_COMMITTED"
    });
    assert!(seen.contains("UPGRADE_STATE_PREPARING"), "{seen:?}");
    assert!(!seen.contains("UPGRADE_STATE_PREPARED"), "{seen:?}");
    assert!(bench.path("restarted").exists(), "the software was restarted before COMMITTED was shown");
    assert_eq!(server.get("/v1/version")["revision_id"], "Demo 1.5");
    assert_eq!(server.slot("platform", "b")["state"], "empty");
    server.post("/v1/qstage/mark-good", &json!({}));
    assert_eq!(server.state(), "IDLE");
    assert_eq!(server.status()["settings"]["target_version"], "1.5", "kept until the next prepare");
    std::fs::remove_file(bench.path("restarted")).unwrap();
    for path in ["node/container-restart", "container-restart", "container-restart/1"] {
        assert_eq!(server.post(&format!("/v1/shutdown/{path}"), &Value::Null), (202, Value::Null));
        std::fs::remove_file(bench.path("restarted")).unwrap();
    }
    assert_eq!(
        code(&server.post("/v1/shutdown/container-restart/2", &Value::Null)),
        (404, "UPGRADE_ERROR_NO_SUCH_NODE")
    );
}

#[test]
fn a_single_node_by_v1() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let (v2, v3) = (bench.text("v2.qimg"), bench.text("v3.qimg"));
    let put = |path: &str, target: &str| {
        let target = format!("UPGRADE_TARGET_{target}");
        server.call("PUT", "/v1/upgrade/settings", &json!({"install_path": path, "target": target}))
    };
    assert_eq!(
        server.get("/v1/upgrade/settings"),
        json!({"install_path": "", "target": "UPGRADE_TARGET_IDLE"})
    );
    assert_eq!(put("", "IDLE").0, 200, "idle already");
    assert_eq!(code(&put(&v2, "ARM")), (409, "UPGRADE_ERROR_NOT_PREPARED"));
    let settings = json!({"install_path": v2, "target": "UPGRADE_TARGET_PREPARE"});
    assert_eq!(put(&v2, "PREPARE"), (200, settings));
    server.reach("PREPARED");
    let text = server.try_call("GET", "/v1/upgrade/status", "").unwrap().1;
    let keys =
        ["install_path", "state", "details", "error_message", "error_state", "is_blocked", "blocked_reason"];
    let places: Vec<_> = keys.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "the order is part of the contract: {text}");
    assert_eq!(server.get("/v1/upgrade/status")["state"], "UPGRADE_PREPARED");
    // Discarded, and again.
    assert_eq!(put("", "IDLE").0, 200);
    assert_eq!(server.state(), "IDLE");
    assert_eq!(server.slot("platform", "b")["state"], "empty");
    assert_eq!(put(&v2, "PREPARE").0, 200);
    server.reach("PREPARED");
    assert_eq!(code(&put(&v3, "ARM")), (409, "UPGRADE_ERROR_NOT_PREPARED"), "not what is prepared");
    let armed = put(&v2, "ARM");
    assert_eq!((armed.0, &armed.1["target"]), (200, &json!("UPGRADE_TARGET_ARM")));
    server.reach("COMMITTED");
    assert_eq!(server.get("/v1/upgrade/status")["state"], "UPGRADE_TRIAL");
    // Until the reboot a commit can be taken back.
    assert_eq!(put("", "IDLE").0, 200);
    assert_eq!(server.slot("platform", "a")["boots_next"], true);
    assert_eq!(server.state(), "IDLE");
}

/// A bundle of software alone: its type, and beside another platform what it needs.
fn software_alone_is_verified(bench: &Bench, server: &Server) {
    for (needed, error) in
        [("1.0..1.9", None), ("2.0", Some("needs platform 2.0, but the running platform is 1.0"))]
    {
        let bundle = bench.path("alone.qimg");
        let mut pack = Command::new(QSTAGE);
        pack.args(["pack", "--force", "--product", "Demo", "--level", "1", "--version", "1.7", "--key"]);
        pack.arg(bench.path("key")).args(["--needs-platform", needed, "--software"]).arg(bench.path("s2"));
        run(pack.arg("-o").arg(&bundle));
        let (status, answer) = server.post("/v2/upgrade/verify-image", &json!({"image_path": bundle}));
        assert_eq!((status, &answer["target_version"]), (200, &json!("1.7")), "{needed}: {answer}");
        assert_eq!(answer["upgrade_type"], "SOFTWARE_ONLY", "{needed}: {answer}");
        let told = answer["error"].as_str();
        assert_eq!(told.is_some(), error.is_some(), "{needed}: {answer}");
        assert!(told.unwrap_or_default().contains(error.unwrap_or_default()), "{needed}: {answer}");
    }
}

#[test]
fn what_is_refused_is_refused_clearly() {
    let bench = Bench::new(Some("2M"));
    let server = bench.serve();
    software_alone_is_verified(&bench, &server);
    let (v2, v3, old) = (bench.text("v2.qimg"), bench.text("v3.qimg"), bench.text("old.qimg"));
    let damaged = bench.text("damaged.qimg");
    let mut bytes = std::fs::read(&v2).unwrap();
    let at = bytes.windows(10).position(|w| w == b"\"version\":").unwrap() + 12;
    bytes[at] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let (cut, bad) = (bench.text("cut.qimg"), bench.text("bad.qimg"));
    std::fs::write(&cut, &std::fs::read(&v2).unwrap()[..2 << 20]).unwrap();

    assert_eq!(code(&server.try_prepare(&old, false)), (409, "UPGRADE_ERROR_DOWNGRADE"));
    assert_eq!(code(&server.try_prepare(&damaged, false)), (400, "UPGRADE_ERROR_BAD_SIGNATURE"));
    assert_eq!(code(&server.try_prepare(&cut, false)), (400, "UPGRADE_ERROR_BUNDLE_TRUNCATED"));
    assert_eq!(code(&server.try_prepare(&bench.text("none"), false)), (400, "UPGRADE_ERROR_OPEN"));
    assert_eq!(code(&server.try_prepare(&bench.text("state"), false)), (400, "UPGRADE_ERROR_BAD_REQUEST"));
    assert_eq!(code(&server.try_prepare("--help", false)), (400, "UPGRADE_ERROR_BAD_REQUEST"));
    for (path, word) in [(&damaged, "signature"), (&old, "older"), (&bench.text("none"), "No such file")] {
        let (status, answer) = server.post("/v2/upgrade/verify-image", &json!({"image_path": path}));
        assert!(status == 200 && answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    assert_eq!(server.state(), "IDLE", "refused before anything began");
    let query = "/v2/upgrade/verify-image?override_compatibility_check=True";
    assert!(server.post(query, &json!({"image_path": old})).1["error"].is_null());

    // Rolling reboots.
    let order = |rolling: Value, nodes: Value| {
        let order = json!({"image_path": v2, "auto_commit": null, "do_rolling_reboot": rolling,
            "num_nodes_to_reboot": nodes});
        let start = json!({"is_rolling": rolling, "num_nodes_to_reboot": nodes});
        let reboot = server.post("/v1/shutdown/reboot/start", &start);
        let prepare = server.post("/v2/upgrade/prepare", &order);
        assert_eq!(code(&reboot), code(&prepare));
        code(&prepare).1.to_owned()
    };
    assert_eq!(order(json!(true), json!(null)), "UPGRADE_ERROR_NOT_A_CLUSTER");
    assert_eq!(order(json!(true), json!(1)), "UPGRADE_ERROR_NOT_A_CLUSTER");
    assert_eq!(order(json!(true), json!(0)), "UPGRADE_ERROR_BAD_REQUEST");
    assert_eq!(order(json!(true), json!(-3)), "UPGRADE_ERROR_BAD_REQUEST");
    assert_eq!(order(json!(false), json!(1)), "UPGRADE_ERROR_BAD_REQUEST");
    // A list is no object, even if each of its values would fit a field.
    for (path, list) in [
        ("/v1/qstage/mark-good", json!([])),
        ("/v2/upgrade/verify-image", json!([v2])),
        ("/v1/shutdown/reboot/start", json!([false, null])),
    ] {
        assert_eq!(code(&server.post(path, &list)), (400, "UPGRADE_ERROR_BAD_REQUEST"), "{path}");
    }
    let start = server.post("/v1/shutdown/reboot/start", &json!({"is_rolling": false}));
    assert_eq!(code(&start), (409, "UPGRADE_ERROR_NOT_CONFIGURED"));
    for verb in ["pause", "resume"] {
        let answer = server.post(&format!("/v1/shutdown/reboot/{verb}"), &Value::Null);
        assert_eq!(code(&answer), (409, "UPGRADE_ERROR_NO_REBOOT"));
    }
    let restart = server.post("/v1/shutdown/node/container-restart", &Value::Null);
    assert_eq!(code(&restart), (409, "UPGRADE_ERROR_NOT_CONFIGURED"));

    // Busy.
    server.prepare(&v2, false);
    assert_eq!(code(&server.try_prepare(&v3, false)), (409, "UPGRADE_ERROR_UPGRADE_BUSY"));
    assert_eq!(code(&server.try_prepare(&v2, true)), (409, "UPGRADE_ERROR_UPGRADE_BUSY"));
    server.prepare(&v2, false);
    for path in ["/v2/upgrade/commit", "/v1/qstage/mark-good", "/v1/qstage/roll-back"] {
        assert_eq!(code(&server.post(path, &json!({}))), (409, "UPGRADE_ERROR_UPGRADE_BUSY"), "{path}");
    }
    assert_eq!(server.status()["settings"]["install_path"], json!(v2));
    server.reach("PREPARED");

    // A prepare that fails half-way shows why, with its settings.
    assert_eq!(server.prepare_with(&bad, "replace=1").0, 202);
    server.until("it fails", |server| server.state() != "PREPARING");
    let status = server.status();
    assert_eq!(
        (&status["state"], &status["settings"]["install_path"]),
        (&json!("UPGRADE_STATE_IDLE"), &json!(bad))
    );
    let error = server.get("/v1/upgrade/status");
    assert!(error["error_state"].as_str().unwrap().starts_with("UPGRADE_ERROR_BUNDLE_FRAME"), "{error}");
    assert_eq!(error["error_message"], status["error_info"]);
}

#[test]
fn a_cancelled_prepare_leaves_nothing_but_its_error() {
    let bench = Bench::new(Some("1M"));
    let server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), true);
    server.until("it writes", |server| server.status()["progress"].as_u64() > Some(5));
    let children = server.children();
    assert_eq!(children.len(), 1, "prepared by a process of its own");
    let nice = std::fs::read_to_string(format!("/proc/{}/stat", children[0])).unwrap();
    let nice = nice.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned();
    assert_eq!(nice, "19", "in the background");
    assert_eq!(server.post("/v1/qstage/cancel", &Value::Null), (200, Value::Null));
    assert!(!server::alive(children[0]), "stopped before the answer");
    let status = server.status();
    assert_eq!(status["state"], "UPGRADE_STATE_IDLE");
    assert!(status["error_info"].as_str().unwrap().contains("cancelled"), "{status}");
    assert_eq!(status["settings"]["target_version"], "2.0");
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_CANCELLED");
    assert_eq!(server.slot("platform", "b")["state"], "empty", "discarded");
    // And from the start again.
    bench.configure(None, "");
    server.prepare(&bench.text("soft.qimg"), false);
    assert!(server.status()["error_info"].is_null(), "the next prepare begins without the error of the last");
    server.reach("PREPARED");
}

#[test]
fn a_bundle_is_streamed_from_a_web_server() {
    let bench = Bench::new(None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v2.qimg", listener.local_addr().unwrap());
    let allowed =
        format!("image_urls = [\"http://{}/\", \"http://127.0.0.1:9/\"]\n", listener.local_addr().unwrap());
    bench.configure(None, &allowed);
    let bytes = std::fs::read(bench.path("v2.qimg")).unwrap();
    // A presigned URL may hold for one time: the planned bundle is the one that is prepared, and is fetched once.
    // A delta beside it has a URL of its own.
    let answers = std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let got = stream.read(&mut request).unwrap_or_default();
            if String::from_utf8_lossy(&request[..got]).contains(".qdelta ") {
                let none = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(none);
                continue;
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
            return listener;
        }
    });
    let server = bench.serve();
    server.prepare(&url, false);
    server.reach("PREPARED");
    assert_eq!(server.get("/v1/upgrade/status")["install_path"], json!(url));
    assert_eq!(server.slot("platform", "b")["version"], "2.0");
    let listener = answers.join().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it was asked for twice");
    let nowhere = "http://127.0.0.1:9/x.qimg";
    assert_eq!(code(&server.try_prepare(nowhere, false)), (502, "UPGRADE_ERROR_NETWORK_CONNECT"));
    assert_eq!(server.state(), "PREPARED");
}

#[test]
fn nothing_begins_while_a_reboot_is_under_way() {
    let bench = Bench::new(None);
    bench.configure(None, "reboot_command = [\"true\"]\n");
    let server = bench.serve();
    let start = server.post("/v1/shutdown/reboot/start", &json!({"is_rolling": false}));
    assert_eq!(start.0, 202, "{start:?}");
    assert_eq!(code(&server.try_prepare(&bench.text("v2.qimg"), false)), (409, "UPGRADE_ERROR_BLOCKED"));
}

/// Rules that a query overrides in both generations of the API, and the one that no remote caller overrides.
#[test]
fn rules_that_a_query_overrides() {
    const OVERRIDE: &str = "override_compatibility_check=true";
    let bench = Bench::new(None);
    bench.pack("again.qimg", "1.0", "p2", "s1");
    bench.pack_with("epoch.qimg", "2.5", "p2", "s2", &["--epoch", "5"]);
    let server = bench.serve();
    let (again, old, v3) = (bench.text("again.qimg"), bench.text("old.qimg"), bench.text("v3.qimg"));
    let put = |server: &Server, bundle: &str, query: &str| {
        let body = json!({"install_path": bundle, "target": "UPGRADE_TARGET_PREPARE"});
        server.call("PUT", &format!("/v1/upgrade/settings?{query}"), &body)
    };
    // The version of the running release with other content: a client could not see that the upgrade took.
    assert_eq!(code(&server.try_prepare(&again, false)), (409, "UPGRADE_ERROR_SAME_VERSION"));
    assert_eq!(code(&put(&server, &again, "")), (409, "UPGRADE_ERROR_SAME_VERSION"));
    // An older version.
    assert_eq!(code(&put(&server, &old, "")), (409, "UPGRADE_ERROR_DOWNGRADE"));
    assert_eq!(server.slot("platform", "b")["state"], "empty");
    let settings = json!({"install_path": old, "target": "UPGRADE_TARGET_PREPARE"});
    assert_eq!(put(&server, &old, OVERRIDE), (200, settings));
    server.reach("PREPARED");
    assert_eq!(server.slot("platform", "b")["version"], "0.9");
    assert_eq!(server.prepare_with(&again, &format!("{OVERRIDE}&replace=true")).0, 202);
    server.reach("PREPARED");
    let slot = server.slot("platform", "b");
    assert_eq!((&slot["state"], &slot["version"]), (&json!("prepared"), &json!("1.0")));
    // A release of a higher epoch proves good: from now on nothing below it is prepared, whatever the query says.
    assert_eq!(server.prepare_with(&bench.text("epoch.qimg"), "replace=true").0, 202);
    server.reach("PREPARED");
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
    server.reach("COMMITTED");
    drop(server);
    let server = bench.serve_with(&["--booted", "b"]);
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200);
    for query in ["", OVERRIDE, "override_compatibility_check=true&retry=true&replace=true"] {
        assert_eq!(code(&server.prepare_with(&v3, query)), (409, "UPGRADE_ERROR_EPOCH"), "{query}");
        assert_eq!(code(&put(&server, &v3, query)), (409, "UPGRADE_ERROR_EPOCH"), "{query}");
    }
    assert_eq!(server.slot("platform", "a")["version"], "1.0");
    assert_eq!(server.state(), "IDLE");
}

/// Orders by each path; the command touches the file `mark` when the answer is out, and nothing else happens.
fn ordered_by(paths: &[&str], mark: &str) {
    let bench = Bench::new(None);
    let (rebooted, halted) = (bench.text("rebooted"), bench.text("halted"));
    let commands =
        format!("reboot_command = [\"touch\", {rebooted:?}]\nhalt_command = [\"touch\", {halted:?}]\n");
    bench.configure(None, &commands);
    for path in paths {
        // A service for each: it takes no other order during a reboot.
        let server = bench.serve();
        assert_eq!(server.post(path, &Value::Null), (202, Value::Null), "{path}");
        assert!(!bench.path(mark).exists(), "{path}: the answer is out before the machine goes down");
        server.until(path, |_| bench.path(mark).exists());
        std::fs::remove_file(bench.path(mark)).unwrap();
        assert!(!bench.path("rebooted").exists() && !bench.path("halted").exists(), "{path}");
        let other = format!("/v1/shutdown/{}/2", if mark == "halted" { "halt" } else { "reboot" });
        assert_eq!(code(&server.post(&other, &Value::Null)), (404, "UPGRADE_ERROR_NO_SUCH_NODE"));
    }
}

#[test]
fn a_reboot_by_each_path() {
    ordered_by(&["/v1/shutdown/reboot/1", "/v1/cluster/reboot", "/v1/node/reboot"], "rebooted");
}

#[test]
fn a_halt_by_each_path() {
    let paths = ["/v1/shutdown/halt", "/v1/shutdown/halt/1", "/v1/cluster/halt", "/v1/node/halt"];
    ordered_by(&paths, "halted");
}

#[test]
fn events_tell_the_state_at_once_and_at_each_change() {
    let bench = Bench::new(Some("4M"));
    let server = bench.serve();
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.write_all(b"GET /v1/qstage/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut text = String::new();
    let mut read = |stream: &mut UnixStream, until: &str| {
        let begun = std::time::Instant::now();
        while !text.contains(until) {
            let mut buffer = [0; 4096];
            if let Ok(len) = stream.read(&mut buffer) {
                text += &String::from_utf8_lossy(&buffer[..len]);
            }
            assert!(begun.elapsed() < HANG, "no {until} in {text}");
        }
    };
    read(&mut stream, "event: status\ndata: {\"state\":\"UPGRADE_STATE_IDLE\"");
    server.prepare(&bench.text("v2.qimg"), false);
    read(&mut stream, "UPGRADE_STATE_PREPARING");
    read(&mut stream, "UPGRADE_STATE_PREPARED");
    // As the document says: its type, the lines of an event, and the object in each.
    let document = server.get("/v1/qstage/openapi.json");
    let operation = &document["paths"]["/v1/qstage/events"]["get"];
    let described = &operation["responses"]["200"];
    let content = described["content"].as_object().unwrap();
    assert_eq!(content.keys().collect::<Vec<_>>(), ["text/event-stream"]);
    let (head, events) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
    let about = described["description"].as_str().unwrap();
    for part in ["event: status", "data: ", "/v3/upgrade/status", "does not end"] {
        assert!(about.contains(part), "'{part}' is not in: {about}");
    }
    let schema = &content["text/event-stream"]["schema"];
    let mut checked = 0;
    for event in events.lines().filter_map(|line| line.strip_prefix("data: ")) {
        // The last one may not be there as a whole.
        if let Ok(event) = serde_json::from_str(event) {
            check(&document, schema, &event, "an event");
            checked += 1;
        }
    }
    assert!(checked >= 3, "{events}");
}
