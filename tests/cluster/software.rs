//! Upgrades of the software alone: all nodes swap together, or none does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::etcd::Etcd;
use crate::harness::clock::Clock;
use crate::harness::containers::{Poller, answer, can_run, image_of};
use crate::harness::server::Bench;
use crate::lab::{Lab, Node};

/// Times of the restarts of the software of a node, in seconds.
fn restarts(node: &Node) -> Vec<f64> {
    let text = fs::read_to_string(node.path("restarts")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn slots(node: &Node) -> Vec<(String, String)> {
    let slots = node.get("/v1/qstage/slots");
    let all = slots["slots"].as_array().unwrap().iter().filter(|slot| slot["group"] == "software");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|slot| (text(&slot["version"]), text(&slot["state"]))).collect()
}

/// Software that is not our container: a swap is the command that restarts it.
#[test]
fn all_nodes_swap_together_or_none_does() {
    let Some(lab) = Lab::new(3) else { return };
    let (soft, node) = (lab.bench.text("soft.qimg"), lab.node(1));
    lab.bench.pack("soft2.qimg", "1.6", "p1", "s1");
    let soft2 = lab.bench.text("soft2.qimg");
    let clock = Clock::start();
    // The official client; the rolling flag has no effect.
    let Some(mut client) = lab.client(1, &["upgrade_cluster", "--rolling", "--path", &soft]) else { return };
    let output = client.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("Upgrade committed") && !said.contains("rror"),
        "{said}"
    );
    node.until("it is over", |node| node.state() == "IDLE");
    for node in &lab.nodes {
        node.until("marked good", |node| slots(node).contains(&("1.5".into(), "good".into())));
        assert_eq!((node.version().as_str(), node.boots(), restarts(node).len()), ("Demo 1.5", 1, 1));
    }
    let at: Vec<f64> = lab.nodes.iter().map(|node| restarts(node)[0]).collect();
    let spread = at.iter().copied().fold(f64::MIN, f64::max) - at.iter().copied().fold(f64::MAX, f64::min);
    // Some tenths of a second, if the machine does nothing else.
    println!("{spread:.3} s from the first to the last swap");
    assert!(spread < 1.0 + clock.stalled().as_secs_f64(), "{at:?}");
    // One node is not healthy: all return, the status reports it, and the prepared bundle can be committed again.
    fs::write(lab.node(2).path("sick"), "").unwrap();
    node.until("it is admitted", |node| node.prepare(&soft2, false, false).0 == 202);
    node.until("prepared", |node| node.state() == "PREPARED");
    assert_eq!(node.post("/v2/upgrade/commit", &Value::Null), 202);
    let begun = Instant::now();
    lab.node(3).until("it goes back", |node| {
        let status = node.get("/v3/upgrade/status");
        status["state"] == "UPGRADE_STATE_PREPARED" && !status["error_info"].is_null()
    });
    let (back, told) = (begun.elapsed(), node.get("/v3/upgrade/status")["error_info"].clone());
    println!("{back:.1?} for a swap of all nodes and the way back");
    assert!(back < Duration::from_secs(30) && told.as_str().unwrap().starts_with("node 2: "), "{told}");
    for node in &lab.nodes {
        node.until("it shows what runs", |node| node.version() == "Demo 1.5");
        assert!(slots(node).contains(&("1.5".into(), "good".into())), "{:?}", slots(node));
    }
    assert_eq!(lab.node(2).post("/v2/upgrade/commit", &Value::Null), 202);
    for node in &lab.nodes {
        node.until("1.6 is good", |node| slots(node).contains(&("1.6".into(), "good".into())));
    }
    node.until("it is over", |node| node.state() == "IDLE");
    assert!(node.get("/v3/upgrade/status")["error_info"].is_null());
    // A node orders a restart of the software of another node, and reports a failure of that node.
    let before: Vec<usize> = lab.nodes.iter().map(|node| restarts(node).len()).collect();
    assert_eq!(node.post("/v1/shutdown/container-restart/3", &Value::Null), 202);
    let after: Vec<usize> = lab.nodes.iter().map(|node| restarts(node).len()).collect();
    assert_eq!(after, [before[0], before[1], before[2] + 1]);
    fs::write(lab.node(2).path("sick"), "").unwrap();
    let (status, refused) = node.call("/v1/shutdown/container-restart/2", &Value::Null);
    assert!(status >= 400 && refused["description"].as_str().unwrap().contains("node 2: "), "{refused}");
    assert_eq!(node.call("/v1/shutdown/container-restart/9", &Value::Null).0, 404);
}

/// Software in our container: the new container waits at its gate for those of the other nodes.
#[test]
fn containers_of_all_nodes_swap_within_a_second() {
    if !can_run() {
        return;
    }
    let Some(etcd) = Etcd::start(false) else { return };
    let bench = Bench::new(None);
    for (bundle, version) in [("v1.qimg", "1.0"), ("app.qimg", "1.1"), ("app2.qimg", "1.2")] {
        let image = image_of(bench.dir.path(), version, "good", "squashfs");
        bench.pack(bundle, version, "p1", image.file_name().unwrap().to_str().unwrap());
    }
    let container = "[container]\ncommand = [\"/app\", \"{PORT}\"]\nprobe = \"http://127.0.0.1:{PORT}/\"\nnetwork = \"host\"\nusers = \"host\"\n\
        state = \"{DIR}/app:/state\"\nrun_dir = \"{DIR}/run\"\nstop_timeout = 1\ndeadline = 5\n\
        options = [\"--resolv-conf=off\", \"--timezone=off\"]\n";
    let lab = Lab::on(etcd, bench, 3, container, None);
    let node = lab.node(1);
    for node in &lab.nodes {
        node.until("it serves", |node| answer(node.app).as_deref() == Some("1.0"));
    }
    let before = lab.bench.path("disk-before");
    fs::copy(lab.node(3).path("disk"), &before).unwrap();
    let pollers: Vec<Poller> = lab.nodes.iter().map(|node| Poller::new(node.app)).collect();
    let swapped = |version: &'static str| -> Vec<_> {
        let watch = |node: &Node| {
            let port = node.app;
            std::thread::spawn(move || {
                let begun = Instant::now();
                while answer(port).as_deref() != Some(version) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "it does not serve {version}");
                    std::thread::sleep(Duration::from_millis(5));
                }
                Instant::now()
            })
        };
        lab.nodes.iter().map(watch).collect()
    };
    let (watched, clock) = (swapped("1.1"), Clock::start());
    assert_eq!(node.prepare(&lab.bench.text("app.qimg"), true, false).0, 202);
    let at: Vec<Instant> = watched.into_iter().map(|watch| watch.join().unwrap()).collect();
    let spread = *at.iter().max().unwrap() - *at.iter().min().unwrap();
    for node in &lab.nodes {
        node.until("good", |node| slots(node).contains(&("1.1".into(), "good".into())));
    }
    node.until("it is over", |node| node.state() == "IDLE");
    let gaps: Vec<Duration> = pollers.into_iter().map(|poller| poller.done().0).collect();
    println!("{spread:.2?} from the first to the last swap; downtime per node: {gaps:.2?}");
    assert!(spread < Duration::from_secs(1) + clock.stalled(), "{spread:?}");
    catches_up(&lab, &before);
    // A node whose health checks fail: all return.
    fs::create_dir_all(lab.node(3).path("health.d")).unwrap();
    let check = lab.node(3).path("health.d/10-app");
    fs::write(&check, "#!/bin/sh\necho the new one is slow >&2; exit 1\n").unwrap();
    fs::set_permissions(&check, fs::Permissions::from_mode(0o755)).unwrap();
    node.until("it is admitted", |node| node.prepare(&lab.bench.text("app2.qimg"), false, false).0 == 202);
    node.until("prepared", |node| node.state() == "PREPARED");
    let begun = Instant::now();
    assert_eq!(node.post("/v2/upgrade/commit", &Value::Null), 202);
    node.until("all went back", |node| {
        let status = node.get("/v3/upgrade/status");
        status["state"] == "UPGRADE_STATE_PREPARED" && !status["error_info"].is_null()
    });
    println!("{:.1?} for a swap of all containers and the way back", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(30));
    let told = node.get("/v3/upgrade/status")["error_info"].as_str().unwrap().to_owned();
    assert!(told.starts_with("node 3: ") && told.contains("the new one is slow"), "{told}");
    for node in &lab.nodes {
        assert_eq!(answer(node.app).as_deref(), Some("1.1"));
        node.until("it shows what runs", |node| node.version() == "Demo 1.1");
    }
}

/// A member whose disk is from before the upgrade does not start the old software: it swaps to that of the others by itself, and
/// they are not disturbed.
fn catches_up(lab: &Lab, before: &Path) {
    let (node, third) = (lab.node(1), lab.node(3));
    let good = |node: &Node| slots(node).contains(&("1.1".into(), "good".into()));
    let off = || {
        third.power(false);
        third.until("it is down", |node| node.try_get("/v1/version").is_none());
    };
    // The bundle is away at first, so that it stays stopped for a while.
    let (bundle, away) = (lab.bench.path("app.qimg"), lab.bench.path("away.qimg"));
    fs::rename(&bundle, &away).unwrap();
    off();
    third.stop_container();
    fs::copy(before, third.path("disk")).unwrap();
    third.power(true);
    third.until("it is stopped", |node| {
        node.try_get("/v1/node/state").is_some_and(|state| state["state"] == "STOPPED")
    });
    third.until("it has tried", |_| {
        let doing = &node.get("/v1/qstage/cluster")["nodes"][2]["doing"];
        doing.as_str().unwrap().starts_with("failed: it cannot catch up")
    });
    assert_eq!(answer(third.app), None, "the old software must not run");
    let output = third.qstage(&["container", "start", "--booted", "a"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && said.contains("node 3 missed the upgrade"), "{said}");
    // A new start tries at once.
    off();
    fs::rename(&away, &bundle).unwrap();
    third.power(true);
    third.until("it has caught up", |third| {
        let served = answer(third.app);
        assert!(served.as_deref() != Some("1.0"), "the old software runs");
        served.as_deref() == Some("1.1") && good(third)
    });
    third.until("it takes part", |node| node.get("/v1/node/state")["state"] == "ACTIVE");
    // Its own look at the disk may be later than that of the cluster.
    third.until("it shows what runs", |node| node.version() == "Demo 1.1");
    assert_eq!(third.boots(), 3, "a swap, and no reboot");
    assert_eq!((node.boots(), lab.node(2).boots()), (1, 1));
    node.until("the next upgrade is admitted", |node| node.get("/v2/upgrade/blocked")["is_blocked"] == false);
}
