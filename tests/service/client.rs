//! The official client of the upgrade API, unchanged, against the service.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use server::client::Pair;

#[test]
fn looking() {
    let Some(pair) = Pair::new(None, "") else { return };
    let v2 = pair.bench.text("v2.qimg");
    assert_eq!(pair.json(&["version"])["revision_id"], "Demo 1.0");
    assert_eq!(pair.json(&["upgrade_blocked"])["is_blocked"], false);
    assert_eq!(pair.json(&["upgrade_status", "--raw"])["state"], "UPGRADE_STATE_IDLE");
    assert!(pair.says(&["upgrade_status"]).contains("No upgrade currently in progress"));
    assert_eq!(pair.json(&["reboot_status"])["state"], "REBOOT_IDLE");
    assert_eq!(pair.json(&["upgrade_verify_image", "--path", &v2])["target_version"], "2.0");
    let soft = pair.bench.text("soft.qimg");
    assert_eq!(pair.json(&["upgrade_verify_image", "--path", &soft])["upgrade_type"], "SOFTWARE_ONLY");
    let none = pair.json(&["upgrade_verify_image", "--path", &pair.bench.text("none.qimg")]);
    assert!(none["error"].as_str().unwrap().contains("No such file"), "{none}");
    assert_eq!(pair.json(&["unconfigured_upgrade_config"])["target"], "UPGRADE_TARGET_IDLE");
    let output = pair.qq(&["container_restart"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("NOT_CONFIGURED"));
}

#[test]
fn an_immediate_platform_upgrade() {
    let Some(pair) = Pair::new(Some("3M"), "") else { return };
    let said = pair.says(&["upgrade_cluster", "--path", &pair.bench.text("v2.qimg")]);
    let wanted = "Upgrade from version 1.0 to 2.0 in progress. This will be a SOFTWARE_AND_PLATFORM upgrade.";
    for words in [wanted, "Preparing upgrade", "Upgrade committed", "Cluster will reboot shortly"] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    assert_eq!(pair.server.state(), "COMMITTED");
    let blocked = pair.json(&["upgrade_blocked"]);
    assert_eq!(blocked["is_blocked"], true, "{blocked}");
    let refused = pair.qq(&["upgrade_cluster", "--path", &pair.bench.text("v3.qimg")]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("on trial"));
}

#[test]
fn a_software_upgrade_in_two_steps() {
    let Some(pair) = Pair::new(Some("2M"), "software_restart_command = [\"true\"]\n") else { return };
    let soft = pair.bench.text("soft.qimg");
    let said = pair.says(&["upgrade_cluster", "prepare", "--path", &soft]);
    assert!(
        said.contains("This will be a SOFTWARE_ONLY upgrade") && said.contains("commit it to proceed"),
        "{said}"
    );
    assert_eq!(pair.server.state(), "PREPARED");
    // Again, the same: it stays as it is.
    assert!(pair.says(&["upgrade_cluster", "prepare", "--path", &soft]).contains("commit it to proceed"));
    let said = pair.says(&["upgrade_cluster", "commit"]);
    assert!(said.contains("Upgrade committed") && said.contains("containers across the cluster"), "{said}");
    assert_eq!(pair.json(&["version"])["revision_id"], "Demo 1.5");
    assert!(pair.says(&["container_restart"]).contains("The container is restarting"));
    assert!(!pair.qq(&["upgrade_cluster", "commit"]).status.success(), "nothing is prepared");
}

#[test]
fn an_upgrade_that_commits_by_itself_is_monitored() {
    let Some(pair) = Pair::new(Some("2M"), "reboot_command = [\"true\"]\n") else { return };
    let v2 = pair.bench.text("v2.qimg");
    let said = pair.says(&["upgrade_cluster", "prepare", "--auto-commit", "--path", &v2]);
    assert!(said.contains("Upgrade committed"), "{said}");
}

#[test]
fn without_monitoring_and_with_a_second_one() {
    let Some(pair) = Pair::new(Some("1M"), "") else { return };
    pair.says(&["upgrade_cluster", "--no-monitor", "--path", &pair.bench.text("v2.qimg")]);
    let monitor = pair.command(&["upgrade_status"]).stdout(Stdio::piped()).spawn().unwrap();
    let output = monitor.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Preparing upgrade") && said.contains("Upgrade committed"), "{said}");
}

#[test]
fn failed_and_cancelled_prepares_are_told() {
    let Some(pair) = Pair::new(Some("1M"), "") else { return };
    let said = pair.says(&["upgrade_cluster", "--path", &pair.bench.text("bad.qimg")]);
    assert!(said.contains("Upgrade encountered error: platform, frame"), "{said}");
    let refused = pair.qq(&["upgrade_cluster", "--path", &pair.bench.text("old.qimg")]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("older than the running"));
    let rolling = pair.qq(&["upgrade_cluster", "--rolling", "--path", &pair.bench.text("v2.qimg")]);
    assert!(String::from_utf8_lossy(&rolling.stderr).contains("needs a cluster"));

    let v2 = pair.bench.text("v2.qimg");
    let monitor = pair.command(&["upgrade_cluster", "--path", &v2]).stdout(Stdio::piped()).spawn().unwrap();
    pair.server.until("it writes", |server| server.status()["progress"].as_u64() > Some(20));
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(pair.server.post("/v1/qstage/cancel", &json!({})).0, 200);
    let output = monitor.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Upgrade encountered error: the upgrade was cancelled"), "{said}");
}

/// A bundle that cannot be opened: the client gets the error, as does one that reads the status later; the next upgrade works.
#[test]
fn a_refused_bundle_is_seen_by_who_looks_later() {
    let Some(pair) = Pair::new(None, "") else { return };
    let junk = pair.bench.path("junk.qimg");
    std::fs::write(&junk, [7; 4096]).unwrap();
    let refused = pair.qq(&["upgrade_cluster", "--path", junk.to_str().unwrap()]);
    assert!(!refused.status.success());
    let said = pair.says(&["upgrade_status"]);
    assert!(said.contains("Upgrade encountered error: tar header"), "{said}");
    assert_eq!(pair.json(&["upgrade_blocked"])["is_blocked"], false);
    let said = pair.says(&["upgrade_cluster", "--path", &pair.bench.text("v2.qimg")]);
    assert!(said.contains("Upgrade committed"), "{said}");
    assert!(pair.json(&["version"])["build_date"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_single_node_by_v1() {
    let Some(pair) = Pair::new(Some("3M"), "") else { return };
    let v2 = pair.bench.text("v2.qimg");
    let set =
        |target: &str| pair.json(&["unconfigured_upgrade_config_set", "--path", &v2, "--target", target]);
    assert_eq!(set("prepare")["target"], "UPGRADE_TARGET_PREPARE");
    let status = pair.json(&["unconfigured_upgrade_status", "--monitor"]);
    assert_eq!((&status["state"], &status["install_path"]), (&json!("UPGRADE_PREPARED"), &json!(v2)));
    assert_eq!(set("idle")["target"], "UPGRADE_TARGET_IDLE");
    let output = pair.qq(&["unconfigured_upgrade_status", "--monitor"]);
    assert!(!output.status.success(), "nothing is prepared any more");
    set("prepare");
    pair.says(&["unconfigured_upgrade_status", "--monitor"]);
    assert_eq!(set("arm")["target"], "UPGRADE_TARGET_ARM");
    pair.server.reach("COMMITTED");
}
