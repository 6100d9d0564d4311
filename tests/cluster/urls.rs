//! A bundle at a URL, prepared by a cluster: every node fetches it by its own way, and checks its own rules for images.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::etcd::Etcd;
use crate::harness::server::{Bench, MIB, QSTAGE, noise, run};
use crate::harness::web::{Asked, Server, end, partial, status};
use crate::lab::{Lab, Node};

/// How the way of a node to the server behaves.
const GOOD: usize = 0;
/// The first connection for the bundle breaks in its middle.
const BREAKS: usize = 1;
/// There is no such file.
const GONE: usize = 2;

/// The proxy of a node. For the node it is the server, so that bytes and faults are its own.
struct Way {
    server: Server,
    manner: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Way {
    fn new(bench: &Bench) -> Self {
        let root = bench.dir.path().to_owned();
        let (manner, bytes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (behaves, count) = (Arc::clone(&manner), Arc::clone(&bytes));
        let server = Server::of_all(move |asked, stream| {
            let name = asked.path.rsplit('/').next().unwrap();
            // `whole`: the same bundle without deltas beside it.
            let delta = name.ends_with(".qdelta");
            let file = fs::read(root.join(name)).ok().filter(|_| !(delta && asked.path.contains("/whole/")));
            let (Some(file), false) = (file, behaves.load(Ordering::Relaxed) == GONE) else {
                return status("404 Not Found", "", stream);
            };
            let len = end(asked, &file) - asked.at;
            let cut = len > 1 << 20
                && behaves.compare_exchange(BREAKS, GOOD, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            sends(asked, &file, if cut { len / 2 } else { len }, stream, &count)
        });
        Self { server, manner, bytes }
    }
}

/// Sends the first `len` bytes of what was requested, and counts what was taken. Without a small buffer it would count much that
/// no process reads: a client ends a response when another one has brought the rest.
fn sends(
    asked: &Asked,
    file: &[u8],
    len: usize,
    stream: &mut TcpStream,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_send_buffer_size(&*stream, 64 << 10)?;
    stream.write_all(partial(asked, file, "ETag: \"1\"\r\n").as_bytes())?;
    for chunk in file[asked.at..asked.at + len].chunks(16 << 10) {
        stream.write_all(chunk)?;
        count.fetch_add(chunk.len(), Ordering::Relaxed);
    }
    Ok(())
}

fn holds(node: &Node) -> bool {
    let slots = node.get("/v1/qstage/slots");
    slots["slots"].as_array().unwrap().iter().any(|slot| slot["state"] == "prepared")
}

/// Prepares on all nodes; returns the bytes that came by the way of each.
fn prepares(lab: &Lab, ways: &[Way], url: &str) -> Vec<usize> {
    let node = lab.node(1);
    ways.iter().for_each(|way| way.bytes.store(0, Ordering::Relaxed));
    node.until("it is admitted", |node| node.prepare(url, false, false).0 == 202);
    node.until("prepared", |node| {
        let status = node.get("/v3/upgrade/status");
        assert!(status["error_info"].is_null(), "{status}");
        status["state"] == "UPGRADE_STATE_PREPARED"
    });
    assert!(lab.nodes.iter().all(holds));
    assert_eq!(node.get("/v3/upgrade/status")["settings"]["install_path"], json!(url));
    ways.iter().map(|way| way.bytes.load(Ordering::Relaxed)).collect()
}

fn cancels(lab: &Lab) {
    assert_eq!(lab.node(2).post("/v1/qstage/cancel", &Value::Null), 200);
    for node in &lab.nodes {
        node.until("it is discarded", |node| !holds(node));
    }
}

/// A prepare that fails at node 3; returns the error.
fn fails(lab: &Lab, url: &str) -> String {
    let node = lab.node(1);
    node.until("it is admitted", |node| node.prepare(url, false, false).0 == 202);
    for node in &lab.nodes {
        node.until("it has failed", |node| node.state() == "IDLE");
        node.until("the others discard it", |node| !holds(node));
    }
    let told = lab.node(2).get("/v3/upgrade/status");
    let told = told["error_info"].as_str().unwrap_or_else(|| panic!("{told}"));
    assert!(told.starts_with("node 3: "), "{told}");
    told.to_owned()
}

#[test]
fn a_bundle_at_a_url() {
    let Some(etcd) = Etcd::start(false) else { return };
    let bench = Bench::new(None);
    // The next release, whose platform differs from the running one in some bytes.
    let mut image = fs::read(bench.path("p1")).unwrap();
    image[1_500_000..1_500_100].fill(7);
    fs::write(bench.path("p5"), &image).unwrap();
    bench.pack("v5.qimg", "5.0", "p5", "s1");
    fs::write(bench.path("p4"), noise(4 * MIB, 8)).unwrap();
    fs::write(bench.path("s4"), noise(2 * MIB, 9)).unwrap();
    bench.pack("v4.qimg", "4.0", "p4", "s4");
    let base = blake3::hash(&fs::read(bench.path("p1")).unwrap()).to_hex();
    let delta = format!("v5.qimg.from-{}.qdelta", &base[..16]);
    run(Command::new(QSTAGE)
        .arg("delta")
        .arg(bench.path("v1.qimg"))
        .arg(bench.path("v5.qimg"))
        .arg("-o")
        .arg(bench.path(&delta)));
    let root = bench.dir.path().to_owned();
    let len = |name: &str| fs::metadata(root.join(name)).unwrap().len() as usize;
    let (whole, delta) = (len("v5.qimg"), len(&delta));
    let ways: Vec<Way> = (1..=3).map(|_| Way::new(&bench)).collect();
    for (number, way) in (1..).zip(&ways) {
        let dir = bench.path(&format!("node{number}"));
        fs::create_dir(&dir).unwrap();
        // Node 3 may read less.
        let more = if number == 3 { "" } else { ", \"http://bundles.test/other/\"" };
        let text =
            format!("image_urls = [\"http://bundles.test/whole/\", \"http://bundles.test/r/\"{more}]\n");
        fs::write(dir.join("service.toml"), text).unwrap();
        let text = format!("[network]\nproxy = \"http://{}\"\nretries = 2\n", way.server.host());
        fs::write(dir.join("last.toml"), text).unwrap();
    }
    let lab = Lab::on(etcd, bench, 3, "", None);
    let heads = 300 << 10;
    // A delta beside it: each node takes that. The slots are empty, and the delta has little more than what differs.
    let came = prepares(&lab, &ways, "http://bundles.test/r/v5.qimg");
    println!("{came:?} bytes for a delta of {delta}");
    assert!(came.iter().all(|bytes| *bytes < delta + heads) && delta < whole * 2 / 3, "{came:?} of {delta}");
    cancels(&lab);
    // One copy over the way of each node. The asked one plans first, for which it reads the head.
    let whole = len("v2.qimg");
    let came = prepares(&lab, &ways, "http://bundles.test/whole/v2.qimg");
    println!("{came:?} bytes for a bundle of {whole}");
    assert!(came.iter().all(|bytes| (whole..whole + heads).contains(bytes)), "{came:?} of {whole}");
    cancels(&lab);
    // A server that dies for one node, and is there again: what had come is not fetched again.
    ways[2].manner.store(BREAKS, Ordering::Relaxed);
    let came = prepares(&lab, &ways, "http://bundles.test/whole/v4.qimg");
    println!("{came:?} bytes, one cut");
    assert_eq!(ways[2].manner.load(Ordering::Relaxed), GOOD, "it was cut");
    assert!(came[2] < len("v4.qimg") * 5 / 4, "half of it had come: {came:?}");
    cancels(&lab);
    // It stays away: the error names node and URL, and no node keeps anything.
    ways[2].manner.store(GONE, Ordering::Relaxed);
    let told = fails(&lab, "http://bundles.test/whole/v2.qimg");
    assert!(told.contains("http://bundles.test/whole/v2.qimg") && told.contains("404"), "{told}");
    ways[2].manner.store(GOOD, Ordering::Relaxed);
    // The rules of one node forbid the URL; nothing is requested.
    let before = ways[2].server.requests();
    let told = fails(&lab, "http://bundles.test/other/v5.qimg");
    assert!(told.contains("'image_urls'"), "{told}");
    assert_eq!(ways[2].server.requests(), before);
    // Those of the asked node: refused at once.
    let (status, answer) = lab.node(3).prepare("http://bundles.test/other/v5.qimg", false, false);
    assert!(status == 400 && answer["description"].as_str().unwrap().contains("'image_urls'"), "{answer}");
}
