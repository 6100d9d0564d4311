//! Devices that hang, are slow, or whose file system has died.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Started;
use crate::harness::clock::{Clock, HANG};
use crate::harness::machine::{Bench, is_root};
use crate::harness::nbd::{Nbd, is_held};

/// Earlier, status, slots and history hung with the device, without naming it.
#[test]
fn a_device_that_hangs_is_named_and_holds_nobody_who_asks() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");
    let hanging = Nbd::new(&bench.disk(), &bench.path("."));
    let disk = hanging.device.to_str().unwrap().to_owned();
    let at = |args: &[&str]| {
        let begun = Clock::start();
        let run = bench.at(&[args, &["--disk", &disk]].concat());
        (begun.elapsed(), run)
    };
    at(&["slots"]).1.good();
    let mut command = bench.command(&["prepare", "v2.qimg", "--config", "config.toml", "--disk", &disk]);
    command.args(["--booted", "a", "--max-rate", "256K", "--json"]);
    let mut prepare = Started::new(&mut command);
    let _goes_on = hanging.goes_on();
    let begun = Instant::now();
    while at(&["status"]).1.json()["state"] != "UPGRADE_PREPARING" {
        assert!(begun.elapsed() < HANG);
    }
    hanging.pause(true);
    // Until a write waits for good, the kernel answers some reads from its cache: a verb that gets past its test of the disk by
    // one of them waits as well, and cannot be ended.
    let (begun, mut held) = (Instant::now(), 0);
    while held < 20 {
        assert!(begun.elapsed() < HANG, "no write waits");
        held = if is_held(prepare.0.id()) { held + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(50));
    }
    for verb in ["status", "slots", "cancel"] {
        let (took, run) = at(&[verb]);
        let error = run.bad("NO_ANSWER");
        assert!(error.contains(&disk) && error.contains("discarded"), "what is known: {error}");
        assert!(took < Duration::from_secs(4), "{verb}: {took:?}");
    }
    let (took, plan) = at(&["plan", "v2.qimg"]);
    plan.bad("NO_ANSWER");
    assert!(took < Duration::from_secs(4), "plan: {took:?}");
    let (took, history) = at(&["history", "--json"]);
    assert!(history.good().contains("prepare") && took < Duration::from_secs(4), "{took:?}");
    // The prepare itself says what it waits for, and for how long.
    let mut out = std::io::BufReader::new(prepare.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"event\":\"stalled\"") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "it ended");
    }
    assert!(line.contains(&disk) && line.contains("\"seconds\":"), "{line}");
    prepare.signal(Signal::SIGTERM);
    hanging.pause(false);
    drop(out);
    assert_eq!(prepare.code_within(Duration::from_secs(30)), Some(8));
    at(&["slots"]).1.good();
}

/// A bundle on a file system that hangs.
#[test]
fn a_file_that_hangs_is_named() {
    names_what_hangs("v2.qimg", &["prepare", "mounted", "--config", "config.toml", "--json"]);
}

/// An image that `pack` reads by a map: the page faults wait, and no read(2) does.
#[test]
fn an_image_that_hangs_is_named() {
    names_what_hangs(
        "v2.img",
        &["pack", "--product", "demo", "--version", "9", "--platform", "mounted", "-o", "x.qimg", "--json"],
    );
}

/// The verb reads `file` as `mounted`, on a file system that hangs: it names it, and succeeds when the file system goes on.
fn names_what_hangs(file: &str, words: &[&str]) {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let hanging = Nbd::new(&bench.path(file), &bench.path("."));
    let mut command = bench.command(words);
    hanging.pause(true);
    let mut verb = Started::new(&mut command);
    let goes_on = hanging.goes_on();
    let mut out = std::io::BufReader::new(verb.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"event\":\"stalled\"") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "it ended");
    }
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["device"], &event["operation"]), (&"mounted".into(), &"read".into()));
    drop(goes_on);
    assert_eq!(std::io::read_to_string(out).unwrap().matches("\"event\":\"result\"").count(), 1);
    assert_eq!(verb.code_within(Duration::from_secs(60)), Some(0));
}

/// A device that answers each request, but after a second: a look takes many. Before: 14 s.
#[test]
fn a_slow_device_holds_nobody_who_asks() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["cancel"]).good();
    for verb in [&["status"][..], &["history", "--json"]] {
        // A new one for each: the kernel caches what was read.
        let (slow, place) = (bench.path(verb[0]), bench.path(&format!("{}.d", verb[0])));
        fs::create_dir(&place).unwrap();
        fs::copy(bench.disk(), &slow).unwrap();
        let slow = Nbd::delayed(&slow, &place, 1);
        let disk = slow.device.to_str().unwrap();
        let begun = Clock::start();
        let run = bench.at(&[verb, &["--disk", disk]].concat());
        // A loaded machine takes a moment on top.
        assert!(begun.elapsed() < Duration::from_secs(5), "{verb:?}: {:?}", begun.elapsed());
        if verb[0] == "history" {
            assert!(run.good().contains("discarded"), "what is known");
        } else {
            let error = run.bad("NO_ANSWER");
            assert!(error.contains(disk) && error.contains("discarded"), "what is known: {error}");
        }
    }
}

/// Before: a loop device over a FUSE file system whose server had crashed forbade every prepare of a disk of the same size.
#[test]
fn a_server_of_a_file_system_that_died_forbids_nothing() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    // As large as the disk: only its size could have ruled the device out.
    let other = bench.path("other");
    fs::copy(bench.disk(), &other).unwrap();
    let mut neighbour = Nbd::new(&other, &bench.path("."));
    neighbour.crash();
    // The kernel answers from its cache for a second.
    let begun = Instant::now();
    while fs::metadata(bench.path("mounted")).is_ok() {
        assert!(begun.elapsed() < HANG);
        std::thread::sleep(Duration::from_millis(50));
    }
    bench.at(&["prepare", "v2.qimg"]).good();
}
