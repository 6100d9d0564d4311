//! Hooks around the turn of a node: their input, the guarantees while they run, and the result of a reboot whose hook fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::harness::server::Bench;
use crate::lab::{Lab, Node};

/// Logs each call, and runs the script of the file with the name of the hook, if it exists.
const HOOK: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 9
input=$(cat)
[ "$1" = protection ] || echo "$1 $QSTAGE_NODE $QSTAGE_REASON $QSTAGE_VERSION $QSTAGE_TARGET_VERSION" >> hooks.log
[ "$1" = protection ] || echo "$input" >> hooks.json
# No descriptor of the disk or of a lock leads here.
ls -l /proc/$$/fd | grep -E 'disk|lock' >> hooks.fds
[ -e "$1" ] && . "./$1"
[ "$1" = protection ] && [ ! -e protection ] && echo '{"remaining": 1, "maximum": 1}'
exit 0
"#;

struct Hooked {
    lab: Lab,
}

impl Hooked {
    fn new() -> Option<Self> {
        let etcd = Etcd::start(false)?;
        let bench = Bench::new(None);
        let hook = bench.text("hook");
        fs::write(&hook, HOOK).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let words = |name: &str| format!("{name}_command = [{hook:?}, {name:?}]\n");
        let text = words("drain") + &words("undrain") + &words("protection") + "hook_timeout = 3\n";
        Some(Self { lab: Lab::on(etcd, bench, 3, &text, None) })
    }

    fn on(&self, hook: &str, script: Option<&str>) {
        match script {
            Some(script) => fs::write(self.lab.bench.path(hook), script).unwrap(),
            None => fs::remove_file(self.lab.bench.path(hook)).unwrap(),
        }
    }

    /// Calls since the last look, as (hook, node, the rest).
    fn calls(&self) -> Vec<(String, usize, String)> {
        let path = self.lab.bench.path("hooks.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(&path);
        let call = |line: &str| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            (next(), next().parse().unwrap(), next().trim().to_owned())
        };
        text.lines().map(call).collect()
    }

    fn reboot(&self) -> Value {
        self.lab.node(1).get("/v1/shutdown/reboot/status")
    }

    fn until(&self, state: &str) -> String {
        self.lab.node(1).until(state, |node| node.get("/v1/shutdown/reboot/status")["state"] == state);
        self.reboot()["error_message"].as_str().unwrap().to_owned()
    }

    /// Resumes the reboot at one node, and waits until another one has seen that.
    fn resume(&self) {
        let before = self.reboot()["error_message"].clone();
        assert_eq!(self.lab.node(2).post("/v1/shutdown/reboot/resume", &Value::Null), 200);
        self.lab.node(1).until("the resume is seen", |_| self.reboot()["error_message"] != before);
    }

    /// Resumes the reboot; from the answer on no status of any node has the failure from before, also not if it is paused again
    /// before the hook has run.
    fn resume_clears(&self, failure: &str) {
        assert!(self.reboot()["error_message"].as_str().unwrap().contains(failure));
        let node = self.lab.node(1);
        assert_eq!(node.post("/v1/shutdown/reboot/resume", &Value::Null), 200);
        let clears = || {
            for path in ["/v1/qstage/cluster", "/v1/shutdown/reboot/status", "/v3/upgrade/status"] {
                let status = node.get(path).to_string();
                assert!(!status.contains(failure), "{status}");
            }
        };
        clears();
        for order in ["pause", "resume"] {
            // The hook may have ended already, and the reboot with it, or failed for another reason.
            let (status, answer) = node.call(&format!("/v1/shutdown/reboot/{order}"), &Value::Null);
            assert!([200, 409].contains(&status), "{order}: {answer}");
            clears();
        }
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            clears();
        }
    }

    fn start(&self) {
        let order = json!({"is_rolling": true, "num_nodes_to_reboot": null});
        let node = self.lab.node(1);
        node.until("it may start", |node| node.call("/v1/shutdown/reboot/start", &order).0 == 202);
    }
}

/// Another process uses the disk of the node.
fn lent(node: &Node) {
    let output = node.qstage(&["mark-good"]);
    assert!(output.status.success(), "{output:?}");
}

fn boots(lab: &Lab) -> u32 {
    lab.nodes.iter().map(|node| node.boots() - 1).sum()
}

#[test]
fn hooks_run_around_each_turn_and_pause_it_when_they_fail() {
    let Some(hooked) = Hooked::new() else { return };
    let lab = &hooked.lab;
    let v2 = lab.bench.text("v2.qimg");
    // An upgrade: out of service before the new slot is selected, back in service after it is marked good.
    hooked.on("drain", Some("grep -q . state 2>/dev/null && exit 7; echo $QSTAGE_NODE > state\n"));
    hooked.on("undrain", Some("rm -f state\n"));
    assert_eq!(lab.node(1).prepare(&v2, true, true).0, 202);
    lab.node(1).until("it rolls", |node| node.state() == "REBOOTING");
    lab.node(1).until("all are through", |node| node.state() == "IDLE");
    assert!(lab.nodes.iter().all(|node| node.version() == "Demo 2.0" && node.boots() == 2));
    let calls = hooked.calls();
    assert_eq!(calls.len(), 6, "{calls:?}");
    for pair in calls.chunks(2) {
        let [drain, undrain] = pair else { panic!() };
        assert_eq!(
            (drain.0.as_str(), undrain.0.as_str(), drain.1),
            ("drain", "undrain", undrain.1),
            "{calls:?}"
        );
        assert_eq!((drain.2.as_str(), undrain.2.as_str()), ("upgrade 1.0 2.0", "upgrade 2.0 2.0"));
    }
    let input = fs::read_to_string(lab.bench.path("hooks.json")).unwrap();
    let input: Value = serde_json::from_str(input.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&input["v"], &input["nodes"], &input["target_version"]),
        (&json!(1), &json!([1, 2, 3]), &json!("2.0"))
    );
    assert_eq!(input["group"], json!([input["node"]]));
    // A drain that fails: no node reboots, the name and output of the hook are shown, and the node is in service again.
    hooked.on("drain", Some("echo still 3 clients >&2; exit 3\n"));
    hooked.start();
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(told.ends_with("the hook 'drain' ended with exit status: 3: still 3 clients"), "{told}");
    assert_eq!(boots(lab), 3, "none has gone down");
    let first: usize = told.strip_prefix("node ").and_then(|rest| rest[..1].parse().ok()).unwrap();
    lab.node(1).until("it is in service again", |_| {
        fs::read_to_string(lab.bench.path("hooks.log")).unwrap().contains(&format!("undrain {first}"))
    });
    hooked.calls();
    // A drain that hangs: the disk can be used meanwhile; the hook is killed, and the error names it.
    hooked.on("drain", Some("echo waiting for clients >&2; sleep 60\n"));
    hooked.resume();
    lab.node(1).until("it hangs", |_| {
        fs::read_to_string(lab.bench.path("hooks.log")).is_ok_and(|text| text.contains("drain"))
    });
    let held = hooked.calls()[0].1;
    lent(lab.node(held));
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(told.ends_with("the hook 'drain' did not end within 3.0 s: waiting for clients"), "{told}");
    assert_eq!(boots(lab), 3);
    // An undrain that fails is reported too, and no other node reboots.
    hooked.on("drain", None);
    hooked.on("undrain", Some("echo no way back >&2; exit 5\n"));
    hooked.resume();
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(
        told.contains("is not healthy: the hook 'undrain' ended with exit status: 5: no way back"),
        "{told}"
    );
    // A resume clears that at once and runs the hook at once, long before its own time; it hangs, the disk can be used meanwhile,
    // it is killed, and named.
    hooked.on("undrain", Some("echo waiting for the balancer >&2; sleep 60\n"));
    let failed = lab.node(hooked.calls().last().unwrap().1);
    let boots = failed.boots();
    hooked.resume_clears("no way back");
    lab.node(1).until("it hangs", |_| {
        fs::read_to_string(lab.bench.path("hooks.log")).is_ok_and(|text| text.contains("undrain"))
    });
    lent(failed);
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(told.contains("the hook 'undrain' did not end within 3.0 s: waiting for the balancer"), "{told}");
    // One that works ends the turn: the node has rebooted already.
    hooked.on("undrain", None);
    hooked.resume_clears("waiting for the balancer");
    lab.node(1).until("it counts", |_| hooked.reboot()["rebooted_node_count"].as_u64() > Some(0));
    assert_eq!(failed.boots(), boots, "it does not reboot again");
    let fds = fs::read_to_string(lab.bench.path("hooks.fds")).unwrap();
    assert_eq!(fds, "", "a hook has a disk or a lock");
}

#[test]
fn what_the_protection_hook_says_holds_the_next_group() {
    let Some(hooked) = Hooked::new() else { return };
    let (lab, node) = (&hooked.lab, hooked.lab.node(1));
    let waits = |what: &str| {
        node.until(what, |node| {
            node.get("/v1/qstage/cluster")["waits_for"].as_str().is_some_and(|waits| waits.contains(what))
        });
    };
    node.until("it is asked", |node| node.get("/v2/upgrade/blocked")["is_blocked"] == false);
    assert_eq!(node.get("/v1/cluster/protection/status")["max_node_failures"], 1);
    // The first node has had its turn: the second one waits for the protection of data.
    hooked.start();
    hooked.on("protection", Some("echo '{\"remaining\": 0, \"maximum\": 1}'\n"));
    waits("0 of 1 nodes may fail");
    assert_eq!(node.get("/v1/cluster/protection/restriper/status")["status"], "RUNNING");
    let blocked = node.get("/v2/upgrade/blocked");
    assert_eq!(
        (&blocked["is_blocked"], &blocked["cluster_degraded"]),
        (&json!(true), &json!(true)),
        "{blocked}"
    );
    hooked.on("protection", Some("echo '{\"remaining\": 1, \"maximum\": 1, \"rebuilding\": true}'\n"));
    waits("1 of 1 nodes may fail, and it is restored");
    assert_eq!(node.get("/v1/cluster/protection/restriper/status")["status"], "RUNNING");
    assert!(boots(lab) <= 1, "none went meanwhile");
    // A hook that fails for longer than permitted pauses the reboot with its message.
    hooked.on("protection", Some("echo lost the data layer >&2; exit 2\n"));
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(told.contains("the hook 'protection' ended with exit status: 2: lost the data layer"), "{told}");
    assert!(boots(lab) <= 1, "none went meanwhile");
    // One that hangs does too, and the disk can be used meanwhile.
    hooked.on("protection", Some("sleep 60\n"));
    for node in &lab.nodes {
        lent(node);
    }
    // A resume asks anew, and the previous failure no longer counts.
    hooked.resume_clears("lost the data layer");
    let told = hooked.until("REBOOT_PAUSED_DUE_TO_ERROR");
    assert!(told.contains("the hook 'protection' did not end within 3.0 s"), "{told}");
    assert!(boots(lab) <= 1, "none went meanwhile");
    hooked.on("protection", None);
    node.until("all are well", |node| {
        node.get("/v1/qstage/cluster")["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|node| node["standing"] == "good")
    });
    assert_eq!(hooked.reboot()["state"], "REBOOT_PAUSED_DUE_TO_ERROR", "it never goes on by itself");
    assert_eq!(node.post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    hooked.until("REBOOT_IDLE");
    assert_eq!(lab.most_down(), 1);
}
