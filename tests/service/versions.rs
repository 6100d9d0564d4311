//! Every generation of the official client against the service: each has its own states, paths and rules.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::process::Output;

use serde_json::{Value, json};
use server::client::Pair;

/// Reboots by a command that touches a file, and powers off by another one.
fn commands(pair: &Pair) -> String {
    let (reboot, halt) = (pair.bench.text("rebooted"), pair.bench.text("halted"));
    format!("reboot_command = [\"touch\", {reboot:?}]\nhalt_command = [\"touch\", {halt:?}]\n")
}

/// The output for its user: it may fail with the service's message, but never by an assertion of its own.
fn told(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("AssertionError") && !text.contains("KeyError"), "{text}");
    text
}

/// What every version asks for that is no upgrade.
fn looks_around(pair: &Pair) {
    let node = pair.json(&["node_state_get"]);
    assert_eq!((&node["state"], &node["cluster_id"]), (&json!("UNCONFIGURED"), &json!("")), "{node}");
    for command in ["nodes_list", "cluster_conf", "protection_status_get", "restriper_status"] {
        let output = pair.qq(&[command]);
        assert!(!output.status.success() && told(&output).contains("needs a cluster"), "{}", told(&output));
    }
    let table = pair.says(&["unconfigured_nodes_list", "--table"]);
    assert!(table.contains("Demo 1.0") || table.contains("Demo"), "{table}");
    assert!(pair.says(&["who_am_i"]).contains("token qq"));
}

/// Prepare and commit as versions from 4.1 on do it, with what goes wrong on the way.
fn upgrades(version: &str) {
    let Some(mut pair) = Pair::of(Some(version).filter(|version| !version.is_empty()), None, "") else {
        return;
    };
    looks_around(&pair);
    let (v2, soft) = (pair.bench.text("v2.qimg"), pair.bench.text("soft.qimg"));
    // A prepared bundle that is cancelled is no success.
    let said = pair.says(&["upgrade_cluster", "prepare", "--path", &soft]);
    assert!(said.contains("Upgrade prepared"), "{said}");
    assert_eq!(pair.server.post("/v1/qstage/cancel", &Value::Null).0, 200);
    let said = pair.says(&["upgrade_status"]);
    assert!(
        said.contains("to 1.5") && said.contains("encountered error: the upgrade was cancelled"),
        "{said}"
    );
    // The obstacle of a commit is reported, and not taken for a machine that reboots already.
    pair.says(&["upgrade_cluster", "prepare", "--path", &v2]);
    pair.restart(&format!("waiting_period = 300000000\n{}", commands(&pair)));
    let said = told(&pair.qq(&["upgrade_cluster", "--path", &v2]));
    assert!(said.contains("encountered error: the waiting period") && !said.contains("committed"), "{said}");
    assert_eq!(pair.server.state(), "PREPARED");
    // Committed, seen, and rebooted after that.
    pair.restart(&commands(&pair));
    let said = pair.says(&["upgrade_cluster", "commit"]);
    assert!(said.contains("Committing upgrade") && said.contains("Upgrade committed"), "{said}");
    let rebooted = pair.bench.path("rebooted");
    pair.server.until("it reboots", |server| server.state() == "REBOOTING" || rebooted.exists());
    assert_eq!(pair.server.get("/v2/upgrade/status")["state"], "UPGRADE_STATE_COMMITTED");
    let said = pair.says(&["upgrade_status"]);
    assert!(said.contains("Upgrade committed") || said.contains("is rebooting"), "{said}");
    assert_eq!(pair.json(&["version"])["revision_id"], "Demo 1.0", "what runs, not what is selected");
}

#[test]
fn version_4_1_1() {
    upgrades("4.1.1");
}

#[test]
fn version_5_0_2() {
    upgrades("5.0.2");
}

#[test]
fn version_7_2_0() {
    upgrades("7.2.0");
}

#[test]
fn the_newest_version() {
    upgrades("");
}

/// By the target API, and with the commands that later versions dropped.
#[test]
fn version_3_3_3() {
    let Some(mut pair) = Pair::of(Some("3.3.3"), None, "") else { return };
    looks_around(&pair);
    let v2 = pair.bench.text("v2.qimg");
    let set = |pair: &Pair, target: &str| {
        pair.json(&["upgrade_config_set", "--path", &v2, "--target", target])["target"].clone()
    };
    assert_eq!(set(&pair, "prepare"), "UPGRADE_TARGET_PREPARE");
    let status = pair.json(&["upgrade_status", "--monitor"]);
    assert_eq!((&status["state"], &status["details"]), (&json!("UPGRADE_PREPARED"), &json!("")));
    assert_eq!(set(&pair, "idle"), "UPGRADE_TARGET_IDLE");
    assert_eq!(pair.json(&["upgrade_status"])["error_state"], "UPGRADE_ERROR_CANCELLED");
    assert_eq!(set(&pair, "idle"), "UPGRADE_TARGET_IDLE");
    assert_eq!(pair.json(&["upgrade_status"])["error_state"], "UPGRADE_ERROR_NO_ERROR", "and cleared");
    set(&pair, "prepare");
    pair.says(&["upgrade_status", "--monitor"]);
    assert_eq!(set(&pair, "arm"), "UPGRADE_TARGET_ARM");
    pair.server.reach("COMMITTED");
    for command in ["halt", "restart"] {
        let said = told(&pair.qq(&[command, "--force"]));
        assert!(said.contains("UPGRADE_ERROR_NOT_CONFIGURED"), "{said}");
    }
    pair.restart(&commands(&pair));
    let halted = pair.bench.path("halted");
    pair.says(&["halt", "--force"]);
    pair.server.until("it is halted", |_| halted.exists());
    std::fs::remove_file(&halted).unwrap();
    pair.server.until("the command has ended", |_| pair.qq(&["halt_cluster", "--force"]).status.success());
    pair.server.until("it is halted", |_| halted.exists());
    let rebooted = pair.bench.path("rebooted");
    pair.server.until("the command has ended", |_| pair.qq(&["restart_cluster", "--force"]).status.success());
    pair.server.until("it is rebooted", |_| rebooted.exists());
}

/// Software is swapped everywhere at once, whatever is said of reboots.
#[test]
fn rolling_has_no_effect_on_software() {
    for version in [None, Some("7.2.0")] {
        let Some(pair) = Pair::of(version, None, "software_restart_command = [\"true\"]\n") else { return };
        let soft = pair.bench.text("soft.qimg");
        let said = pair.says(&["upgrade_cluster", "--rolling", "--path", &soft]);
        assert!(said.contains("Upgrade committed"), "{said}");
        let settings = &pair.server.status()["settings"];
        assert_eq!(
            (&settings["do_rolling_reboot"], &settings["num_nodes_to_reboot"]),
            (&json!(true), &json!(null))
        );
    }
}
