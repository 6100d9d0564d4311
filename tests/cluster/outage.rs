//! A commit while etcd does not answer: it waits, and then reports in the status. That it continues when etcd answers in time is
//! part of the rolling upgrade in `nodes.rs`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::harness::clock::Clock;
use serde_json::{Value, json};

use crate::lab::{Lab, Node, call};

/// Time for which the commit of this test waits.
const WAIT: Duration = Duration::from_secs(3);

fn v3(node: &Node) -> Value {
    node.get("/v3/upgrade/status")
}

#[test]
fn a_commit_waits_for_etcd_and_then_reports_that_nothing_has_changed() {
    let Some(mut lab) = Lab::with(2, &format!("commit_timeout = {}\n", WAIT.as_secs()), None) else { return };
    let soft = lab.bench.text("soft.qimg");
    assert_eq!(lab.node(1).prepare(&soft, false, false).0, 202);
    for node in &lab.nodes {
        node.until("prepared", |node| node.state() == "PREPARED");
    }
    let shown = lab.node(2).qstage(&["cluster", "status"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("prepared from 1.0 to 1.5, waits for a commit"), "{shown}");
    let disk = |node: &Node| fs::read(node.path("disk")).unwrap();
    let before: Vec<Vec<u8>> = lab.nodes.iter().map(disk).collect();
    lab.etcd.stop();
    let (begun, clock) = (Instant::now(), Clock::start());
    assert_eq!(lab.node(1).post("/v2/upgrade/commit", &Value::Null), 202);
    let status = v3(lab.node(1));
    if begun.elapsed() < WAIT {
        let shown = (&status["state"], &status["error_info"]);
        assert_eq!(shown, (&json!("UPGRADE_STATE_COMMITTING"), &Value::Null));
    }
    lab.node(1).until("it is over", |node| node.state() != "COMMITTING");
    let waited = begun.elapsed();
    assert!(waited >= WAIT && clock.elapsed() < WAIT * 6, "{waited:?}");
    let status = v3(lab.node(1));
    let told = status["error_info"].as_str().unwrap();
    assert!(status["state"] == "UPGRADE_STATE_PREPARED" && told.contains("etcd does not answer"), "{status}");
    assert_eq!(status["settings"]["target_version"], "1.5", "{status}");
    // The node that was not asked shows the last known state.
    assert_eq!((v3(lab.node(2))["state"].clone(), lab.node(2).boots()), (json!("UPGRADE_STATE_PREPARED"), 1));
    for (node, before) in lab.nodes.iter().zip(&before) {
        assert!(disk(node) == *before, "the disk of node {} has changed", node.number);
        assert!(node.version() == "Demo 1.0" && !node.path("restarts").exists());
    }
    // With etcd nothing goes on by itself; the next commit does.
    lab.etcd.again();
    for node in &lab.nodes {
        node.until("it sees etcd", |node| node.get("/v1/qstage/cluster")["connected"] == true);
    }
    // Each node shows the error, also one that was not asked, until the next order.
    for node in &lab.nodes {
        node.until("it shows the error", |node| {
            let status = v3(node);
            assert_eq!(status["state"], "UPGRADE_STATE_PREPARED", "{status}");
            status["error_info"].as_str().is_some_and(|told| told.contains("etcd does not answer"))
        });
    }
    lab.node(1).until("committed", |node| {
        let status = v3(node);
        if status["state"] == "UPGRADE_STATE_PREPARED" {
            // A node may have lost its lease meanwhile.
            node.call("/v2/upgrade/commit", &Value::Null);
        }
        status["state"] == "UPGRADE_STATE_IDLE"
    });
    for node in &lab.nodes {
        node.until("the new software runs", |node| node.version() == "Demo 1.5");
    }
    restarts_once(&mut lab);
}

/// etcd is away at the end of a restart that another node has ordered: its result is reported later, and the software is not
/// restarted again.
fn restarts_once(lab: &mut Lab) {
    let (from, to) = (lab.node(1).path(""), lab.node(2).path(""));
    let restarts = || fs::read_to_string(to.join("restarts")).unwrap_or_default().lines().count();
    for node in &lab.nodes {
        node.until("it is led", |node| {
            let status = node.get("/v1/qstage/cluster");
            let nodes = status["nodes"].as_array().unwrap();
            !status["leader"].is_null() && nodes.iter().all(|node| node["standing"] == "good")
        });
    }
    for fails in [false, true] {
        let before = restarts();
        fs::write(to.join("slow"), "").unwrap();
        if fails {
            fs::write(to.join("sick"), "").unwrap();
        }
        let asking = from.join("socket");
        let asked = std::thread::spawn(move || {
            call(&asking, "POST", "/v1/shutdown/container-restart/2", "", Duration::from_secs(150)).unwrap()
        });
        lab.node(2).until("it restarts", |_| restarts() > before);
        lab.etcd.stop();
        fs::remove_file(to.join("slow")).unwrap();
        lab.node(2).until("it has restarted", |_| to.join("restarted").exists());
        // Time for the node to notice that it cannot report that.
        std::thread::sleep(Duration::from_secs(2));
        lab.etcd.again();
        let (status, text) = asked.join().unwrap();
        assert!(if fails { text.contains("node 2: ") } else { status < 300 }, "{status} {text}");
        assert_eq!(restarts(), before + 1, "the software was restarted once");
        fs::remove_file(to.join("restarted")).unwrap();
    }
    // Nothing of it is left: the next order is accepted.
    assert_eq!(lab.node(1).post("/v1/shutdown/container-restart/2", &Value::Null), 202);
    restarts_without_a_client(lab);
}

/// A client that closes its connection in the middle of a restart on all nodes: the failure of another node is read all the same.
/// Before, its order remained, and the next one was refused.
fn restarts_without_a_client(lab: &Lab) {
    let restarts =
        |node: &Node| fs::read_to_string(node.path("restarts")).unwrap_or_default().lines().count();
    let before: Vec<usize> = lab.nodes.iter().map(restarts).collect();
    for node in &lab.nodes {
        fs::write(node.path("slow"), "").unwrap();
    }
    fs::write(lab.node(2).path("sick"), "").unwrap();
    let order = || {
        let mut client = UnixStream::connect(lab.node(1).path("socket")).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let head = "POST /v1/shutdown/container-restart HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        client.write_all(head.as_bytes()).unwrap();
        client
    };
    let mut client = order();
    lab.node(1).until("both restart", |_| {
        // A refusal: a node is away at this moment.
        if client.read(&mut [0]).is_ok() {
            client = order();
        }
        lab.nodes.iter().zip(&before).all(|(node, before)| restarts(node) > *before)
    });
    drop(client);
    lab.node(1).until("the audit log has it", |node| {
        let log = fs::read_to_string(node.path("log")).unwrap();
        log.contains("request whose client closed the connection before the answer")
    });
    fs::remove_file(lab.node(2).path("slow")).unwrap();
    lab.node(2).until("its failure is in etcd", |_| {
        lab.etcd.says(&["get", "--print-value-only", "/lab/restart/2"]).contains(r#""failed":""#)
    });
    fs::remove_file(lab.node(1).path("slow")).unwrap();
    lab.node(1).until("nothing is left of it", |node| {
        node.call("/v1/shutdown/container-restart/2", &Value::Null).0 == 202
    });
}
