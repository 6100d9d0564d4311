//! A prepare that is interrupted at any instant, by a stop request or by SIGKILL: the old slot boots, and the next run
//! continues instead of starting over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::clock::{Clock, at_once};
use crate::harness::load::until_it_catches;
use crate::harness::machine;

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::{Bench, MIB, Noise};
use nix::sys::signal::Signal;

/// Bytes of the new image.
const LEN: u64 = 8 * MIB + 777;

/// v1 runs in slot a; v2 has 129 frames of 64 KiB, so that there is much to be interrupted in between.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.image("v1.img", MIB, 1);
    bench.image("v2.img", LEN, 2);
    bench.pack("v1", "1.0", &["--platform", "v1.img"]);
    bench.pack("v2", "2.0", &["--platform", "v2.img", "--frame-size", "64K", "--level", "1"]);
    bench.at(&["init", "disk.img", "--slot-size", "10M", "--bundle", "v1.qimg"]).good();
    bench
}

/// A seed that a failure can be repeated with: QSTAGE_TEST_SEED.
fn seed() -> u64 {
    let given = std::env::var("QSTAGE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed =
        given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("QSTAGE_TEST_SEED={seed}");
    seed
}

/// Kills one run after another at a random instant, without ever helping, until one gets through; then begins anew on a
/// blank slot. Half of the runs are slowed down, since most instants of a fast one are its start.
#[test]
fn sigkill_at_any_instant_is_followed_by_a_run_that_completes() {
    let bench = bench();
    let vital = bench.vital();
    let mut noise = Noise(seed());
    // How long an undisturbed run takes here and now.
    let begun = Instant::now();
    bench.at(&["prepare", "v2.qimg"]).good();
    let whole = begun.elapsed().as_micros() as u64;
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");

    let (mut killed, mut torn, mut completed) = (0, 0, 0);
    while killed < 60 || torn < 10 {
        assert!(killed < 600, "only {torn} of {killed} kills came while it wrote");
        let slow = noise.below(2) == 0;
        // 8 MiB at 16 MiB/s take half a second.
        let more: &[&str] = if slow { &["--max-rate", "16M"] } else { &[] };
        let mut running = bench.start(&[&["prepare", "v2.qimg"], more].concat(), Stdio::null());
        let after = noise.below(if slow { 500_000 } else { whole * 5 / 4 });
        std::thread::sleep(Duration::from_micros(after));
        if running.child().try_wait().unwrap().is_none() {
            running.child().kill().unwrap();
            killed += 1;
        }
        drop(running);
        assert_eq!(bench.vital(), vital, "killed after {after} µs");
        match bench.state("platform_b", &[]).as_str() {
            "empty" => {}
            "torn" => {
                torn += 1;
                let status = bench.at(&["status"]).json();
                assert_eq!(status["error_state"], "UPGRADE_ERROR_INTERRUPTED", "{status}");
                bench.at(&["commit"]).bad("NOT_PREPARED");
                // Now and then it is completed at once, else the next one is killed as well.
                if noise.below(3) == 0 {
                    bench.at(&["prepare", "v2.qimg"]).good();
                }
            }
            "prepared" => {}
            other => panic!("{other} after {after} µs"),
        }
        if bench.state("platform_b", &[]) == "prepared" {
            completed += 1;
            assert!(bench.holds("platform_b", "v2.img"), "killed after {after} µs");
            bench.at(&["verify", "--slot", "b"]).good();
            bench.at(&["cancel"]).good();
            bench.blank("platform_b");
        }
    }
    println!("{killed} killed, {torn} while they wrote, {completed} completed");
    bench.at(&["prepare", "v2.qimg"]).good();
    assert!(bench.holds("platform_b", "v2.img"));
    assert_eq!(bench.vital(), vital);
    bench.at(&["commit"]).good();
}

/// No journal: what lies in the slot is recognised by its content, so each attempt finds more in place.
#[test]
fn what_is_there_is_not_written_again() {
    let bench = bench();
    let bytes = fs::read(bench.path("v2.qimg")).unwrap();
    let mut last = 0;
    for part in [3, 5, 7] {
        // The sender breaks off.
        let cut = bytes.len() * part / 8;
        bench.piped(&["prepare", "-"], &bytes[..cut]).bad("BUNDLE_TRUNCATED");
        let copy = fs::read(bench.disk()).unwrap();
        let report = bench.at(&["prepare", "v2.qimg", "--json"]).json();
        let reused = report["reused_bytes"].as_u64().unwrap();
        let rest = report["written_bytes"].as_u64().unwrap() + report["zeroed_bytes"].as_u64().unwrap();
        assert_eq!(reused + rest, LEN);
        assert!(reused > last && reused < LEN, "{reused} after {part}/8, {last} before");
        last = reused;
        assert!(bench.holds("platform_b", "v2.img"));
        fs::write(bench.disk(), copy).unwrap();
    }
}

/// It needs no more than a frame.
#[test]
fn sigint_and_sigterm_end_it_at_once() {
    let bench = bench();
    let vital = bench.vital();
    let bytes = fs::read(bench.path("v2.qimg")).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // Nothing sent, in the middle of the manifest, in the middle of a frame: blocked on the pipe.
        for sent in [0, 700, bytes.len() / 2] {
            let mut running = bench.start(&["prepare", "-"], Stdio::piped());
            let mut pipe = running.child().stdin.take().unwrap();
            pipe.write_all(&bytes[..sent]).unwrap();
            until_it_catches(running.id(), signal);
            std::thread::sleep(Duration::from_millis(300));
            assert!(running.child().try_wait().unwrap().is_none());
            let begun = Clock::start();
            running.signal(signal);
            let message = running.end().bad("INTERRUPTED");
            at_once(begun, &format!("{signal} after {sent} bytes"));
            assert!(message.contains("run it again"), "{message}");
            drop(pipe);
            assert_eq!(bench.vital(), vital);
        }
        // While it waits for its rate: 1 MiB/s.
        let running = bench.start(&["prepare", "v2.qimg", "--max-rate", "1M", "--json"], Stdio::null());
        std::thread::sleep(Duration::from_millis(500));
        let begun = Clock::start();
        running.signal(signal);
        let run = running.end();
        at_once(begun, &format!("{signal} at its rate"));
        let event: serde_json::Value = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
        assert_eq!((&event["event"], &event["class"]), (&"error".into(), &"interrupted".into()), "{event}");
        run.bad("INTERRUPTED");
        assert_eq!(bench.state("platform_b", &[]), "torn");
        let status = bench.at(&["status"]).json();
        assert_eq!(status["error_state"], "UPGRADE_ERROR_INTERRUPTED");
        // Other long verbs listen as well.
        let mut packing = bench.start(&["verify", "-"], Stdio::piped());
        let pipe = packing.child().stdin.take().unwrap();
        until_it_catches(packing.id(), signal);
        packing.signal(signal);
        packing.end().bad("INTERRUPTED");
        drop(pipe);
    }
    bench.at(&["prepare", "v2.qimg"]).good();
    assert!(bench.holds("platform_b", "v2.img"));
    assert_eq!(bench.vital(), vital);
}

/// The rate holds for what is written; the time of probing and reading back is not part of it.
#[test]
fn the_maximum_rate_is_held() {
    let bench = bench();
    // Noise only: zeroes and what is in place already cost no rate, and no time either.
    let mut noise = Noise(5);
    fs::write(bench.path("noise.img"), noise.bytes(9 << 20)).unwrap();
    bench.pack("noise", "2.0", &["--platform", "noise.img", "--frame-size", "64K", "--level", "1"]);
    let took = |more: &[&str]| {
        bench.blank("platform_b");
        let report =
            bench.at(&[&["prepare", "noise.qimg", "--no-read-back", "--json"], more].concat()).json();
        assert_eq!(report["written_bytes"], 9 * MIB);
        bench.at(&["cancel"]).good();
        report["seconds"].as_f64().unwrap()
    };
    let free = took(&[]);
    let clock = Clock::start();
    let slow = took(&["--max-rate", "3M"]);
    let stalled = clock.stalled().as_secs_f64();
    println!("{free:.2} s without a limit, {slow:.2} s at 3 MiB/s");
    assert!(slow >= 3.0 * 0.95, "{slow} s: more than 3 MiB/s were written");
    assert!(slow <= 3.0 * 1.05 + free + stalled, "{slow} s: less than was allowed");
}
