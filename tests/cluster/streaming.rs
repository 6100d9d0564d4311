//! The bundle, from the node that received the order to those that have nothing at its path.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::etcd::{Certificates, Etcd};
use crate::harness::server::{Bench, run};
use crate::lab::{Lab, Node};

/// Passes connections on to a node, and counts the bytes that come from it.
struct Wire {
    port: u16,
    target: Arc<Mutex<String>>,
    bytes: Arc<AtomicUsize>,
}

impl Wire {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            target: Arc::default(),
            bytes: Arc::default(),
        };
        let (target, bytes) = (Arc::clone(&wire.target), Arc::clone(&wire.bytes));
        // It ends with the test program.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target.lock().unwrap().as_str()) else { continue };
                let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || copy(&near, &far, &AtomicUsize::new(0)));
                let bytes = Arc::clone(&bytes);
                std::thread::spawn(move || copy(&ends.1, &ends.0, &bytes));
            }
        });
        wire
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, bytes: &AtomicUsize) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        bytes.fetch_add(count, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

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

/// Certificates of the nodes, as part of the configuration.
fn identity(etcd: &Etcd) -> String {
    let own = |name: &str| etcd.path(name).display().to_string();
    format!("ca = {:?}\ncert = {:?}\nkey = {:?}\n", own("ca.pem"), own("node.pem"), own("node.key"))
}

/// Makes a directory empty for a node that is not started yet.
fn hides(bench: &Bench, number: usize, directory: &Path) {
    let dir = bench.path(&format!("node{number}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("hidden"), directory.to_str().unwrap()).unwrap();
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
        hides(&bench, number, &private);
    }
    // The others reach the node that has it, by way of a counter.
    let wire = Wire::new();
    let access = format!("{}address = \"https://127.0.0.1:{}\"\n", identity(&etcd), wire.port);
    let member =
        Certificates { ca: etcd.path("ca.pem"), cert: etcd.path("node.pem"), key: etcd.path("node.key") };
    let lab = Lab::on(etcd, bench, 3, &access, None);
    let (node, text) = (lab.node(1), |path: &Path| path.display().to_string());
    *wire.target.lock().unwrap() = node.address().replace("https://", "");
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
    let copies = wire.bytes.load(Ordering::Relaxed) as f64 / whole.len() as f64;
    println!("{copies:.3} copies of {} bytes on the wire for two nodes", whole.len());
    assert!((2.0..2.1).contains(&copies), "one copy per node: {copies}");
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

/// The node that is read from dies in the middle: the rest comes from another one that has the bundle.
#[test]
fn a_source_that_dies() {
    let Some(etcd) = Etcd::start(true) else { return };
    let bench = Bench::new(None);
    let private = bench.path("private");
    fs::create_dir(&private).unwrap();
    let v2 = private.join("v2.qimg");
    fs::copy(bench.path("v2.qimg"), &v2).unwrap();
    hides(&bench, 3, &private);
    let access = identity(&etcd);
    // 6 MiB take some seconds.
    let lab = Lab::on(etcd, bench, 3, &access, Some("1M"));
    let (first, second, third) = (lab.node(1), lab.node(2), lab.node(3));
    assert_eq!(first.prepare(v2.to_str().unwrap(), false, false).0, 202);
    let of_third = |node: &Node| node.get("/v1/qstage/cluster")["nodes"][2]["progress"].clone();
    second.until("it is in the middle", |node| of_third(node).as_u64().is_some_and(|percent| percent >= 10));
    first.power(false);
    second.until("it has all", |node| of_third(node) == 100);
    assert!(first.try_get("/v1/version").is_none() && fetched(third) == 1);
    first.power(true);
    // The order has survived, and the node that died prepares too.
    for node in [first, second, third] {
        node.until("prepared on all", |node| {
            node.try_get("/v3/upgrade/status").is_some_and(|v| v["state"] == "UPGRADE_STATE_PREPARED")
        });
    }
}
