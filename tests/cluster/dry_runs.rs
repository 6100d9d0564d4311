//! Orders as dry runs: the plan or the refusal, and no key of etcd.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::lab::{Lab, Node};

/// Runs an order dry at a node of a cluster at rest. Returns its exit code, and its output or its message.
fn dry(lab: &Lab, node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let before = lab.etcd.keys();
    let output = node.qstage(&[args, &["--dry-run"]].concat());
    // Meanwhile a node may publish its state, or lose its lease on a busy machine. No order changes one of these keys alone.
    let mut wrote = lab.etcd.changed(&before);
    wrote.retain(|key| !key.contains("/alive/") && !key.ends_with("/leader"));
    assert!(wrote.is_empty(), "{args:?} wrote {wrote:?}");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[track_caller]
fn plans(lab: &Lab, node: &Node, args: &[&str], says: &[&str]) {
    let (code, text) = dry(lab, node, args);
    assert!(code == Some(0) && text.contains("; the plan, nothing was written:\n"), "{args:?}: {text}");
    for part in says {
        assert!(text.contains(part), "{args:?}: '{part}' is not in: {text}");
    }
}

#[track_caller]
fn refuses(lab: &Lab, node: &Node, args: &[&str], error: &str) {
    let (code, text) = dry(lab, node, args);
    assert!(
        code != Some(0) && text.contains(&format!("[UPGRADE_ERROR_{error}]")),
        "{args:?}: {code:?} {text}"
    );
}

/// While nothing is in progress. Node 3 leaves and joins again.
pub(crate) fn at_rest(lab: &Lab) {
    let (node, v2) = (lab.node(2), lab.bench.text("v2.qimg"));
    let says =
        ["prepare 2.0 on all nodes from ", "SOFTWARE_AND_PLATFORM", "write upgrade: {", "\"rolling\":true"];
    plans(lab, node, &["upgrade", &v2, "--rolling"], &says);
    refuses(lab, node, &["upgrade", &v2, "--rolling", "-n", "2"], "BAD_REQUEST");
    refuses(lab, node, &["upgrade", &lab.bench.text("old.qimg")], "DOWNGRADE");
    refuses(lab, node, &["upgrade", "--commit"], "NOT_PREPARED");
    for verb in ["pause", "resume", "abandon"] {
        refuses(lab, node, &["cluster", verb], "NO_REBOOT");
    }
    refuses(lab, node, &["cluster", "take-back", "1"], "NO_REBOOT");
    refuses(lab, node, &["cluster", "leave", "9"], "NO_SUCH_NODE");
    // Another member leaves by itself.
    refuses(lab, node, &["cluster", "leave", "1"], "MEMBERSHIP");
    plans(lab, node, &["cluster", "join"], &["node 2 joins"]);
    let third = lab.node(3);
    plans(lab, third, &["cluster", "leave"], &["node 3 leaves", "delete members/3", "delete alive/3"]);
    assert!(third.qstage(&["cluster", "leave"]).status.success());
    let state = |node: &Node| node.get("/v1/node/state")["state"].clone();
    third.until("it has left", |node| state(node) == "UNCONFIGURED");
    let gone = || lab.node(1).get("/v1/qstage/cluster")["nodes"].as_array().unwrap().len() == 2;
    lab.node(1).until("all see that", |_| gone());
    plans(lab, third, &["cluster", "join"], &["node 3 joins", "write members/3: {", "\"address\":"]);
    assert_eq!(state(third), "UNCONFIGURED");
    assert!(third.qstage(&["cluster", "join"]).status.success());
    lab.node(1).until("it is back", |node| node.get("/v1/qstage/cluster")["nodes"][2]["standing"] == "good");
}

/// While a bundle is prepared on all nodes.
pub(crate) fn when_prepared(lab: &Lab, v2: &str) {
    let node = lab.node(1);
    plans(
        lab,
        node,
        &["upgrade", "--commit"],
        &["commit the prepared bundle on all nodes", "write upgrade: {"],
    );
    refuses(lab, node, &["upgrade", &lab.bench.text("v3.qimg")], "OTHER_PREPARED");
    // The same again changes nothing.
    let (code, text) = dry(lab, node, &["upgrade", v2, "--rolling"]);
    assert!(code == Some(0) && !text.contains("write "), "{text}");
    assert_eq!(node.state(), "PREPARED");
}

/// While a rolling reboot is paused, with `gone` away.
pub(crate) fn when_paused(lab: &Lab, at: &Node, gone: usize) {
    let gone = gone.to_string();
    let says = [&*format!("withdraw the turn of node {gone}"), "write reboot: {", "was taken back"];
    plans(lab, at, &["cluster", "take-back", &gone], &says);
    plans(lab, at, &["cluster", "resume"], &["go on", "write reboot: {"]);
    refuses(lab, at, &["cluster", "pause"], "NO_REBOOT");
    plans(lab, at, &["cluster", "leave", &gone], &[&*format!("delete members/{gone}"), "write reboot: {"]);
    refuses(lab, at, &["upgrade", &lab.bench.text("v2.qimg")], "BLOCKED");
    assert_eq!(at.get("/v1/shutdown/reboot/status")["state"], "REBOOT_PAUSED_DUE_TO_ERROR");
}
