//! The official client on a cluster: what the newest version shows of the nodes, and what older ones show of an upgrade.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::load::bound;
use crate::lab::{Lab, Node};

/// The commands of the newest client that read the state of a cluster, run at one node.
pub(crate) struct Shown {
    /// `online` or `offline`, by number.
    pub(crate) nodes: Vec<String>,
    /// Remaining and maximum failures of nodes, and the activity of the restriper.
    pub(crate) protection: (u64, u64, String),
    pub(crate) blocked: Value,
    pub(crate) reboot: Value,
}

/// Output of a client that ended well, without a mistake of its own.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !err.contains("Traceback"), "{command:?}: {err}");
    String::from_utf8(output.stdout).unwrap()
}

impl Shown {
    /// `None`: there is no client.
    pub(crate) fn at(lab: &Lab, number: usize) -> Option<Self> {
        lab.client(number, &[])?;
        let read = |args: &[&str]| -> Value {
            let text = said(&mut lab.client(number, args).unwrap());
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {text}"))
        };
        let nodes = read(&["nodes_list"]);
        // The same node alone, as it is in the list.
        let third = read(&["nodes_list", "--node", "3"]);
        assert_eq!((&third["id"], &third["uuid"]), (&json!(3), &nodes[2]["uuid"]), "{third}");
        let (protection, restriper) = (read(&["protection_status_get"]), read(&["restriper_status"]));
        let field = |name: &str| protection[name].as_u64().unwrap();
        assert_eq!(read(&["cluster_conf"])["cluster_name"], "lab");
        let own = read(&["node_state_get"]);
        assert_eq!((&own["node_id"], &own["state"]), (&json!(number), &json!("ACTIVE")), "{own}");
        assert_ne!(own["cluster_id"], "");
        let text = said(&mut lab.client(number, &["unconfigured_nodes_list", "--table"]).unwrap());
        assert!(text.contains("No unconfigured nodes found"), "{text}");
        let status = |node: &Value| node["node_status"].as_str().unwrap().to_owned();
        Some(Self {
            nodes: nodes.as_array().unwrap().iter().map(status).collect(),
            protection: (
                field("remaining_node_failures"),
                field("max_node_failures"),
                restriper["status"].as_str().unwrap().to_owned(),
            ),
            blocked: read(&["upgrade_blocked"]),
            reboot: read(&["reboot_status"]),
        })
    }

    /// All is well, and an upgrade may begin.
    pub(crate) fn is_well(&self) {
        assert_eq!(self.nodes, ["online"; 3]);
        assert_eq!(self.protection, (1, 1, "NOT_RUNNING".to_owned()));
        let well = json!({"is_blocked": false, "cluster_degraded": false, "blocked_reason": ""});
        assert_eq!(self.blocked, well);
        assert_eq!(
            (&self.reboot["state"], &self.reboot["error_message"]),
            (&json!("REBOOT_IDLE"), &json!(""))
        );
    }

    /// A rolling reboot is paused because of `error`; `away`: a node is still down.
    pub(crate) fn is_paused_by(&self, error: &str, away: Option<usize>) {
        let status = |node| if Some(node) == away { "offline" } else { "online" };
        assert_eq!(self.nodes, [1, 2, 3].map(status));
        // There is no hook that knows of data to restore.
        assert_eq!(self.protection, (u64::from(away.is_none()), 1, "NOT_RUNNING".to_owned()));
        let blocked = json!({"is_blocked": true, "cluster_degraded": away.is_some(),
            "blocked_reason": "a reboot is under way"});
        assert_eq!(self.blocked, blocked);
        let reboot = &self.reboot;
        assert_eq!(
            (&reboot["state"], &reboot["rolling"]),
            (&json!("REBOOT_PAUSED_DUE_TO_ERROR"), &json!(true))
        );
        assert_eq!(reboot["total_node_count"], 3, "{reboot}");
        assert!(reboot["error_message"].as_str().unwrap().contains(error), "{reboot}");
    }
}

/// Commands that concern all nodes: the software restarts on each, and a halt of one node alone is refused.
pub(crate) fn of_all_nodes(lab: &Lab) {
    let restarts =
        |node: &Node| std::fs::read_to_string(node.path("restarts")).unwrap_or_default().lines().count();
    let before: Vec<usize> = lab.nodes.iter().map(restarts).collect();
    let Some(mut client) = lab.client(1, &["container_restart_cluster", "--force"]) else { return };
    said(&mut client);
    for (node, before) in lab.nodes.iter().zip(before) {
        assert_eq!(restarts(node), before + 1, "node {}", node.number);
    }
    // Each node that failed is named.
    std::fs::write(lab.node(3).path("sick"), "").unwrap();
    let (status, refused) = lab.node(1).call("/v1/shutdown/container-restart", &Value::Null);
    let told = refused["description"].as_str().unwrap();
    assert!(status >= 400 && told.contains("node 3: ") && !told.contains("node 2: "), "{refused}");
    let output = lab.client(2, &["halt_cluster", "--force"]).unwrap().output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("/v1/shutdown/halt/NODE at its own address"), "{told}");
    // A reboot of one node is refused for each of them, and a halt names the address.
    for path in ["/v1/node/reboot", "/v1/shutdown/reboot/1", "/v1/shutdown/reboot/2"] {
        let (status, refused) = lab.node(1).call(path, &Value::Null);
        let told = refused["description"].as_str().unwrap();
        assert!(status == 409 && told.contains("/v1/shutdown/reboot/start"), "{path}: {refused}");
    }
    let (status, refused) = lab.node(1).call("/v1/shutdown/halt/2", &Value::Null);
    let told = refused["description"].as_str().unwrap();
    assert!(
        status >= 400 && told.ends_with(&format!("send the request to {}", lab.node(2).address())),
        "{told}"
    );
    for path in ["/v1/shutdown/reboot/9", "/v1/shutdown/halt/9", "/v1/shutdown/halt/x"] {
        assert_eq!(lab.node(1).call(path, &Value::Null).0, 404, "{path}");
    }
    assert_eq!(lab.node(1).try_call("GET", "/v1/cluster/nodes/9", "").unwrap().0, 404);
}

/// A complete reboot as the oldest client orders it.
pub(crate) fn restarts_all(lab: &Lab) {
    let boots = || lab.nodes.iter().map(Node::boots).collect::<Vec<u32>>();
    let before = boots();
    let Some(mut client) = lab.client_of(Some("3.3.3"), 1, &["restart_cluster", "--force"]) else { return };
    said(&mut client);
    for (node, before) in lab.nodes.iter().zip(before) {
        node.until("it has rebooted", |node| {
            let status = node.try_get("/v1/shutdown/reboot/status");
            node.boots() == before + 1 && status.is_some_and(|status| status["state"] == "REBOOT_IDLE")
        });
    }
}

/// An older client that follows an upgrade from its first status to its end.
pub(crate) struct Follower {
    version: &'static str,
    child: Child,
}

impl Follower {
    /// The versions that know upgrades of a cluster, each at another node. Empty: there are no clients.
    pub(crate) fn all(lab: &Lab) -> Vec<Self> {
        let start = |(at, version): (usize, &'static str)| {
            let mut client = lab.client_of(Some(version), at + 1, &["upgrade_status"])?;
            let child = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            Some(Self { version, child })
        };
        ["4.1.1", "5.0.2", "7.2.0"].into_iter().enumerate().filter_map(start).collect()
    }

    /// It has seen the upgrade to `version` to the commit, and knew each state.
    pub(crate) fn ends(self, version: &str) {
        let output = self.child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let told = format!("to {version} in progress. This will be a SOFTWARE_AND_PLATFORM upgrade");
        // One that starts slowly sees the end only.
        let late = ["Cluster is rebooting", "No upgrade currently in progress"];
        let late = late.iter().any(|end| text.contains(end));
        let whole = text.contains(&told)
            && text.contains("Upgrade committed")
            && ["Cluster will reboot shortly", "Cluster is rebooting"].iter().any(|last| text.contains(last));
        assert!(
            output.status.success() && (whole || late) && !text.contains("rror"),
            "{}: {text}",
            self.version
        );
    }
}

/// A client that requests the status of one node, also while this node reboots.
pub(crate) struct Poller {
    end: Arc<AtomicBool>,
    work: JoinHandle<Vec<Output>>,
}

impl Poller {
    /// The newest version and an older one. Empty: there are no clients.
    pub(crate) fn both(lab: &Lab, number: usize) -> Vec<Self> {
        let start = |version: Option<&str>| {
            let mut client = lab.client_of(version, number, &["upgrade_status", "--raw"])?;
            let end = Arc::<AtomicBool>::default();
            let ends = Arc::clone(&end);
            let work = std::thread::spawn(move || {
                let mut outputs = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    outputs.push(client.output().unwrap());
                }
                // The upgrade is over.
                outputs.push(client.output().unwrap());
                outputs
            });
            Some(Self { end, work })
        };
        [None, Some("5.0.2")].into_iter().filter_map(start).collect()
    }

    /// The upgrade has ended well: no answer was an error, and no state followed a later one.
    pub(crate) fn ends(self) {
        const ORDER: [&str; 6] = ["PREPARING", "PREPARED", "COMMITTING", "COMMITTED", "REBOOTING", "IDLE"];
        self.end.store(true, Ordering::Relaxed);
        let mut last = 0;
        for output in self.work.join().unwrap() {
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if !output.status.success() {
                // Only while nothing listens.
                let told = format!("{out}{err}");
                assert!(told.contains("Connection error") && !told.contains("Traceback"), "{told}");
                continue;
            }
            let status: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
            let state = status["state"].as_str().unwrap().trim_start_matches("UPGRADE_STATE_");
            let now = ORDER.iter().position(|known| *known == state).unwrap_or_else(|| panic!("{status}"));
            assert!(now >= last && status["error_info"].is_null(), "after {}: {status}", ORDER[last]);
            last = now;
        }
        assert_eq!(ORDER[last], "IDLE");
    }
}

/// The state by the status of each version at a node while the cluster is in `state`. The older ones know no REBOOTING.
pub(crate) fn older_show(lab: &Lab, number: usize, state: &str) {
    let v2 = if state == "REBOOTING" { "COMMITTED" } else { state };
    for (version, command, expected) in [
        ("3.3.3", &["upgrade_status"][..], format!("UPGRADE_{state}")),
        ("4.1.1", &["upgrade_status", "--raw"], format!("UPGRADE_STATE_{v2}")),
        ("5.0.2", &["upgrade_status", "--raw"], format!("UPGRADE_STATE_{v2}")),
        ("7.2.0", &["upgrade_status", "--raw"], format!("UPGRADE_STATE_{state}")),
    ] {
        let Some(mut client) = lab.client_of(Some(version), number, command) else { return };
        let status: Value = serde_json::from_str(&said(&mut client)).unwrap();
        assert_eq!(status["state"], expected.as_str(), "{version}: {status}");
    }
}

/// The oldest client, which knows single nodes only: its writes are refused on a member, and its status is that of the cluster.
pub(crate) fn oldest_is_refused(lab: &Lab, path: &str) {
    for (command, args) in [
        ("upgrade_config_set", &["--path", path, "--target", "prepare"][..]),
        ("upgrade_config_set", &["--path", path, "--target", "arm"]),
        ("upgrade_config_set", &["--path", path, "--target", "idle"]),
    ] {
        let Some(mut client) = lab.client_of(Some("3.3.3"), 2, &[&[command], args].concat()) else { return };
        let output = client.output().unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            !output.status.success() && told.contains("UPGRADE_ERROR_CLUSTER_MEMBER"),
            "{args:?}: {told}"
        );
    }
}

/// A client that polls every 90 s keeps its connection, over TLS to a member and over its socket.
#[test]
#[ignore = "full: 95 s; the unit tests of the listeners have shorter limits"]
fn a_connection_that_is_idle_for_90_s() {
    let Some(lab) = Lab::new(1) else { return };
    let node = lab.node(1);
    let request = "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let address = node.address().replace("https://", "");
    let mut tls = bound("openssl");
    tls.args(["s_client", "-quiet", "-connect", &address]).stderr(Stdio::null());
    let mut tls = tls.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ask, mut answers) = (tls.stdin.take().unwrap(), tls.stdout.take().unwrap());
    let mut unix = std::os::unix::net::UnixStream::connect(node.path("socket")).unwrap();
    fn read(from: &mut impl Read) {
        let mut text = String::new();
        while !text.contains("build_date") || !text.ends_with('}') {
            let mut buffer = [0; 4096];
            let count = from.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "the connection was closed: {text}");
            text += &String::from_utf8_lossy(&buffer[..count]);
        }
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    let begun = Instant::now();
    for pause in [Duration::ZERO, Duration::from_secs(90)] {
        std::thread::sleep(pause);
        ask.write_all(request.as_bytes()).unwrap();
        unix.write_all(request.as_bytes()).unwrap();
        read(&mut answers);
        read(&mut unix);
    }
    assert!(begun.elapsed() >= Duration::from_secs(90));
    let _ = tls.kill();
    let _ = tls.wait();
}
