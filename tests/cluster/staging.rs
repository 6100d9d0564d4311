//! A node that fell back has lost its bundle: it prepares it again before its next turn, with the time that the transfer needs.
//! A node that runs the new release needs neither.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::machine::sfdisk;
use crate::lab::{Lab, Node};

/// Time limit for the return of a node, which takes some seconds on a busy machine. The transfer takes longer.
const LIMIT: Duration = Duration::from_secs(15);

/// Fills a slot with other bytes: what is in place is not transferred.
fn damage(node: &Node, partition: &str) {
    let disk = node.path("disk");
    let table = sfdisk(&disk);
    let rows = table["partitions"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == partition).unwrap();
    let [at, len] = ["start", "size"].map(|key| row[key].as_u64().unwrap() * 512);
    let file = File::options().write(true).open(disk).unwrap();
    file.write_all_at(&vec![0xa5; usize::try_from(len).unwrap()], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_node_prepares_again_before_its_turn_and_not_within_it() {
    let Some(lab) = Lab::with(3, &format!("reboot_timeout = {}\n", LIMIT.as_secs()), None) else { return };
    let (v2, aside) = (lab.bench.path("v2.qimg"), lab.bench.path("aside"));
    let node = lab.node(1);
    assert_eq!(node.prepare(v2.to_str().unwrap(), false, true).0, 202);
    node.until("prepared", |node| node.state() == "PREPARED");
    // From its next start on each node writes the 4 MiB of the platform in 20 s.
    for node in &lab.nodes {
        let path = node.path("config");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("max_rate = \"200K\"\n{text}")).unwrap();
        node.breaks(true);
    }
    let reboot = || node.get("/v1/shutdown/reboot/status");
    let paused = |what: &str| {
        node.until(what, |_| reboot()["state"] == "REBOOT_PAUSED_DUE_TO_ERROR");
        reboot()["error_message"].as_str().unwrap().to_owned()
    };
    // Before a node can come back: it would begin to prepare at once.
    fs::rename(&v2, &aside).unwrap();
    assert_eq!(node.post("/v2/upgrade/commit", &Value::Null), 202);
    let told = paused("the first falls back");
    let first: usize = told.strip_prefix("node ").and_then(|rest| rest[..1].parse().ok()).unwrap();
    assert!(told.contains("fell back"), "{told}");
    lab.nodes.iter().for_each(|node| node.breaks(false));
    let boots = lab.node(first).boots();
    // A bundle that is gone pauses the reboot before the turn begins.
    assert_eq!(node.post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    let told = paused("it cannot prepare");
    assert!(told.starts_with(&format!("node {first}: ")) && told.contains("v2.qimg"), "{told}");
    assert_eq!(lab.node(first).boots(), boots);
    fs::rename(&aside, &v2).unwrap();
    damage(lab.node(first), "platform_b");
    // The cluster waits for the transfer, as long as it takes, and shows how far it is. The node is up meanwhile.
    let begun = Instant::now();
    assert_eq!(node.post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    let mut shown = Vec::new();
    node.until("it counts", |node| {
        let (status, reboot) = (node.try_get("/v1/qstage/cluster"), reboot());
        assert_eq!(reboot["state"], "REBOOT_IN_PROGRESS", "{reboot}");
        let waits = status.as_ref().map(|status| status["waits_for"].to_string()).unwrap_or_default();
        if waits.contains(&format!("node {first} to prepare the bundle again: ")) {
            let status = status.unwrap();
            let own = &status["nodes"][first - 1];
            assert_eq!(
                (own["node_status"].as_str(), own["doing"].as_str()),
                (Some("online"), Some("prepares again"))
            );
            shown.push((begun.elapsed(), own["progress"].as_u64().unwrap()));
        }
        reboot["rebooted_node_count"] == 1
    });
    let (last, percent) = *shown.last().unwrap();
    println!("prepared again in {last:.1?}, returned after {:.1?}", begun.elapsed());
    assert!(last > LIMIT && percent > 0, "the transfer was not longer than the limit: {shown:?}");
    assert_eq!(lab.node(first).boots(), boots + 1);
    counts_without_a_turn(&lab, first);
}

/// The turn of the next node is taken back while it boots. It returns with the new release, and needs no other turn: that would
/// prepare a bundle that is installed.
fn counts_without_a_turn(lab: &Lab, first: usize) {
    let (node, mut next) = (lab.node(first), None);
    let boots: Vec<u32> = lab.nodes.iter().map(Node::boots).collect();
    node.until("the next one goes", |_| {
        let went = |node: &&Node| {
            let is_down = || node.try_get("/v1/version").is_none();
            node.number != first && (node.boots() > boots[node.number - 1] || is_down())
        };
        next = lab.nodes.iter().find(went);
        next.is_some()
    });
    let next = next.unwrap();
    let output = node.qstage(&["cluster", "take-back", &next.number.to_string()]);
    if !output.status.success() {
        // It was faster.
        assert!(String::from_utf8_lossy(&output.stderr).contains("NO_REBOOT"), "{output:?}");
        return;
    }
    let own = |node: &Node| node.get("/v1/qstage/cluster")["nodes"][next.number - 1].clone();
    node.until("it is good", |node| own(node)["version"] == "2.0" && own(node)["standing"] == "good");
    let boots = next.boots();
    assert_eq!(node.post("/v1/shutdown/reboot/resume", &Value::Null), 200);
    node.until("it counts", |node| {
        let reboot = node.get("/v1/shutdown/reboot/status");
        let told = reboot["error_message"].as_str().unwrap();
        assert!(!told.starts_with(&format!("node {}: ", next.number)), "{told}");
        reboot["rebooted_node_count"].as_u64() >= Some(2)
    });
    assert_eq!(next.boots(), boots, "it rebooted again");
}
