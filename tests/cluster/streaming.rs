//! The bundle, from the node that received the order to those that have nothing at its path.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::etcd::{Certificates, Etcd};
use crate::harness::server::{Bench, run};
use crate::lab::{Lab, Node};

/// Requests a path of the service of a node with curl.
fn curl(lab: &Lab, path: &str, identity: Option<&Certificates>, args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["--silent", "--insecure", "--max-time", "20", "--write-out", "%{http_code}"]).args(args);
    if let Some(Certificates { cert, key, .. }) = identity {
        command.arg("--cert").arg(cert).arg("--key").arg(key);
    }
    command.arg(format!("{}{path}", lab.node(1).address())).output().unwrap()
}

/// Number of times that a node has fetched a bundle from another one, by its log.
fn fetched(node: &Node) -> usize {
    let log = fs::read_to_string(node.path("log")).unwrap();
    log.matches("it is fetched from another node").count()
}

#[test]
fn a_bundle_that_only_one_node_has() {
    let Some(etcd) = Etcd::start(true) else { return };
    let bench = Bench::new(None);
    let private = bench.path("private");
    fs::create_dir(&private).unwrap();
    let (v2, v3) = (private.join("v2.qimg"), private.join("v3.qimg"));
    fs::copy(bench.path("v2.qimg"), &v2).unwrap();
    fs::copy(bench.path("v3.qimg"), &v3).unwrap();
    for number in [2, 3] {
        let dir = bench.path(&format!("node{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("hidden"), private.to_str().unwrap()).unwrap();
    }
    let own = |name: &str| etcd.path(name).display().to_string();
    let access =
        format!("ca = {:?}\ncert = {:?}\nkey = {:?}\n", own("ca.pem"), own("node.pem"), own("node.key"));
    let member =
        Certificates { ca: etcd.path("ca.pem"), cert: etcd.path("node.pem"), key: etcd.path("node.key") };
    let lab = Lab::on(etcd, bench, 3, &access, None);
    let (node, text) = (lab.node(1), |path: &Path| path.display().to_string());
    let digest = |path: &Path| {
        let mut plan = Command::new(crate::harness::server::QSTAGE);
        plan.args(["plan", "--json", "--config"]).arg(node.path("config")).arg("--booted").arg("a").arg(path);
        let report: Value = serde_json::from_slice(&plan.output().unwrap().stdout).unwrap();
        report["manifest"].as_str().unwrap().to_owned()
    };
    let at = |digest: &str| format!("/v1/qstage/cluster/bundle/{digest}");
    let code = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text[text.len() - 3..].to_owned()
    };
    // Nothing is ordered.
    assert_eq!(code(&curl(&lab, &at(&digest(&v2)), Some(&member), &[])), "409");
    assert_eq!(node.prepare(&text(&v2), false, false).0, 202);
    node.until("prepared on all", |node| node.state() == "PREPARED");
    assert_eq!([1, 2, 3].map(|number| fetched(lab.node(number))), [0, 1, 1]);
    for node in &lab.nodes {
        let slots = node.get("/v1/qstage/slots");
        assert!(slots["slots"].as_array().unwrap().iter().any(|slot| slot["state"] == "prepared"), "{slots}");
    }
    // It is for nodes only, the ordered one only, and in ranges.
    let whole = fs::read(&v2).unwrap();
    let good = curl(&lab, &at(&digest(&v2)), Some(&member), &[]);
    assert!(good.stdout[..good.stdout.len() - 3] == whole[..] && code(&good) == "200");
    let part = curl(&lab, &at(&digest(&v2)), Some(&member), &["--range", "1000-1999"]);
    assert!(part.stdout[..part.stdout.len() - 3] == whole[1000..2000] && code(&part) == "206");
    assert_eq!(code(&curl(&lab, &at(&digest(&v3)), Some(&member), &[])), "409");
    let token = ["--header", "Authorization: Bearer secret"];
    assert_eq!(code(&curl(&lab, &at(&digest(&v2)), None, &token)), "403");
    assert_eq!(code(&curl(&lab, &at(&digest(&v2)), None, &[])), "403");
    // Its certificate gives a node no other right.
    let order = ["--data", "{}", "--header", "Content-Type: application/json"];
    let refused = code(&curl(&lab, "/v2/upgrade/commit", Some(&member), &order));
    assert!(["401", "403"].contains(&refused.as_str()), "{refused}");
    // A certificate of another authority: the handshake fails.
    let dir = tempfile::tempdir().unwrap();
    let foreign = curl(&lab, &at(&digest(&v2)), Some(&Certificates::new(dir.path())), &[]);
    assert!(!foreign.status.success() && code(&foreign) == "000", "{foreign:?}");
    // Another bundle at the path is not passed on under the digest of the first one.
    let (ordered, other) = (digest(&v2), digest(&v3));
    run(Command::new("cp").arg(&v3).arg(&v2));
    assert_eq!(code(&curl(&lab, &at(&other), Some(&member), &[])), "409");
    assert_eq!(code(&curl(&lab, &at(&ordered), Some(&member), &[])), "500");
}
