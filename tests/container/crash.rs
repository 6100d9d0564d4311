//! qstage dies in the middle of a swap; afterwards the running container and the selected slot agree again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::clock::Clock;
use crate::harness::containers;

use std::process::Stdio;
use std::time::{Duration, Instant};

use containers::{Disk, Machine, can_run, said};

/// Kills the commit after ever longer times: before, between and after its steps. Whatever the time was, one start
/// later the selected version serves.
#[test]
fn a_killed_commit_converges() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    machine.good(&["container", "start"]);
    let mut version = 0;
    let (mut forward, mut still) = (0, 0);
    let mut running = "1.0".to_owned();
    // How long a whole one takes here and now; its flip lies in the second half.
    machine.prepare("1.0.1", "good");
    let begun = Instant::now();
    machine.good(&["commit"]);
    let whole = begun.elapsed();
    running.replace_range(.., "1.0.1");
    for percent in [20, 50, 60, 70, 80, 85, 90, 95] {
        version += 1;
        let wait = whole * percent / 100;
        let new = format!("1.{version}");
        machine.prepare(&new, "good");
        let mut commit =
            machine.command(&["commit"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(wait);
        commit.kill().unwrap();
        commit.wait().unwrap();
        machine.good(&["container", "start"]);
        let slots = machine.software();
        let now = machine.answer().unwrap();
        assert!(now == new || now == running, "{now}");
        if now == new {
            forward += 1
        } else {
            still += 1
        }
        running = now;
        let status = machine.json(&["container", "status"]);
        assert_eq!(status["running"]["slot"].as_str().unwrap(), slots.2, "{status} {slots:?}");
        assert_eq!((&status["state"], &status["healthy"]), (&"good".into(), &true.into()), "{status}");
        // Nothing of the container that waited at its gate, nor of the one that was stopped, is left.
        assert_eq!(machine.mounts().len(), 2, "{:?}", machine.mounts());
    }
    println!("{forward} went forward, {still} stayed");
}

/// The power fails between flip and start: no container runs, the new slot is selected. A good version is started and
/// marked; a sick one is tried once.
#[test]
fn a_boot_after_the_flip_starts_by_flags() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "");
    machine.good(&["container", "start"]);
    machine.prepare("1.1", "good");
    machine.good(&["commit", "--no-restart"]);
    assert_eq!(machine.answer().as_deref(), Some("1.0"), "--no-restart leaves the container alone");
    machine.good(&["container", "stop"]);
    assert_eq!(machine.software(), ("good".into(), "trial".into(), "b".into()));
    machine.good(&["container", "start"]);
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software(), ("good".into(), "good".into(), "b".into()));

    machine.prepare("1.2", "crash");
    machine.good(&["commit", "--no-restart"]);
    machine.good(&["container", "stop"]);
    let report = machine.json(&["container", "start"]);
    assert!(report["went_back"].as_str().is_some_and(|why| why.contains("ended")), "{report}");
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software(), ("bad".into(), "good".into(), "b".into()));
    assert_eq!(machine.starts(), ["1.0", "1.1", "1.2", "1.1"]);
}

/// The container outlives the process that started it, and a restart replaces it without touching the disk's flags.
#[test]
fn restart_and_stop() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::Nodes, "good", "");
    let output = machine.run(&["container", "restart"]);
    assert!(output.status.success(), "{}", said(&output));
    let first = machine.json(&["container", "status"])["running"]["id"].clone();
    let clock = Clock::start();
    let report = machine.json(&["container", "restart"]);
    println!("restart: {report}");
    assert!(
        report["downtime_ms"].as_f64().unwrap() < 3000.0 + clock.stalled().as_secs_f64() * 1e3,
        "{report}"
    );
    let second = machine.json(&["container", "status"])["running"]["id"].clone();
    assert_ne!(first, second);
    assert_eq!(machine.answer().as_deref(), Some("1.0"));
    // A second one at the same time waits for its turn or is refused; it never runs beside.
    let other =
        machine.command(&["container", "restart"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mine = machine.run(&["container", "restart"]);
    let theirs = other.unwrap().wait().unwrap();
    for code in [mine.status.code(), theirs.code()] {
        assert!(matches!(code, Some(0 | 5)), "{}", said(&mine));
    }
    assert_eq!(machine.answer().as_deref(), Some("1.0"));
    let begun = Clock::start();
    machine.good(&["container", "stop"]);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(machine.answer(), None);
    let status = machine.json(&["container", "status"]);
    assert_eq!(
        (&status["running"], &status["selected"]),
        (&serde_json::Value::Null, &"a".into()),
        "{status}"
    );
}

/// A root that takes writes; a program that is process 1, to which the kernel gives no default action of SIGTERM.
#[test]
fn an_overlay_and_a_program_that_is_process_1() {
    if !can_run() {
        return;
    }
    for (more, killed) in [("overlay = true", false), ("pid1 = true\nstop_signal = \"SIGTERM\"", true)] {
        let machine = Machine::new(Disk::Nodes, "good", more);
        machine.good(&["container", "start"]);
        machine.good(&["container", "restart"]);
        machine.prepare("1.1", "good");
        let report = machine.json(&["commit"]);
        assert_eq!(report["killed"], killed, "{more}: {report}");
        assert_eq!(machine.answer().as_deref(), Some("1.1"));
    }
    let wrong = Machine::new(Disk::File, "good", "stop_signal = \"SIGNONE\"");
    let output = wrong.run(&["container", "start"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
