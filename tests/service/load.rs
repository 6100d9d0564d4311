//! Hundreds of readers during a prepare: the progress that they see never decreases, and the prepare does not wait for them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::clock::Clock;
use crate::harness::load::Load;
use crate::harness::server;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use server::{Bench, MIB, Server, noise};

const READERS: usize = 300;

/// One request after the other on one connection, as a client that polls.
struct Reader(BufReader<UnixStream>);

impl Reader {
    fn status(&mut self) -> Value {
        self.0.get_mut().write_all(b"GET /v3/upgrade/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let (mut len, mut line) = (0, String::new());
        loop {
            line.clear();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "hung up");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

fn prepare(server: &Server, path: &str) -> Duration {
    let begun = Clock::start();
    // The other bundle, which the round before has prepared, goes.
    assert_eq!(server.prepare_with(path, "replace=true").0, 202);
    server.reach("PREPARED");
    begun.elapsed()
}

/// What a crowd has seen.
#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    moved: AtomicU64,
}

/// Runs `act` while hundreds of clients poll, and others connect and send nothing, or do not read their answer.
fn crowded<T>(server: &Server, every: Duration, seen: &Seen, act: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let silent: Vec<_> = (0..50).map(|_| UnixStream::connect(&server.socket).unwrap()).collect();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.write_all(b"GET /v1/qstage/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        deaf.push(stream);
    }
    let done = std::thread::scope(|scope| {
        for number in 0..READERS {
            let stop = &stop;
            scope.spawn(move || {
                let stream = UnixStream::connect(&server.socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut reader = Reader(BufReader::new(stream));
                let mut last = None;
                // Not all at once: clients do not know of each other.
                std::thread::sleep(every * number as u32 / READERS as u32);
                while !stop.load(Ordering::Relaxed) {
                    let status = reader.status();
                    seen.reads.fetch_add(1, Ordering::Relaxed);
                    let preparing = status["state"] == "UPGRADE_STATE_PREPARING";
                    let now = status["progress"].as_u64().filter(|_| preparing);
                    if let (Some(last), Some(now)) = (last, now) {
                        assert!(now >= last, "progress fell from {last} to {now}");
                        seen.moved.fetch_add(u64::from(now > last), Ordering::Relaxed);
                    }
                    last = now;
                    std::thread::sleep(every);
                }
            });
        }
        // A reader that failed must not leave the others waiting for the end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        stop.store(true, Ordering::Relaxed);
        done
    });
    drop((silent, deaf));
    done.unwrap_or_else(|problem| std::panic::resume_unwind(problem))
}

/// A second bundle of the same size with other bytes: what is in place already would not be written again.
fn other(bench: &Bench, size: usize) -> String {
    std::fs::write(bench.path("p4"), noise(size * MIB, 8)).unwrap();
    std::fs::write(bench.path("s3"), noise(2 * MIB, 9)).unwrap();
    bench.pack("v4.qimg", "4.0", "p4", "s3");
    bench.text("v4.qimg")
}

/// The shortest prepare alone and the shortest one with readers that poll at this interval. Both in turns, since the machine does
/// other things as well, at times for longer than three rounds: as many as it takes until the readers cost no more than
/// `factor` and `slack`, at most ten. What readers really cost is in every round.
fn compared(
    server: &Server,
    bundles: [&str; 2],
    every: Duration,
    seen: &Seen,
    (factor, slack): (f64, Duration),
) -> (Duration, Duration) {
    let (mut alone, mut crowd) = (Duration::MAX, Duration::MAX);
    for round in 1..=10 {
        alone = alone.min(prepare(server, bundles[0]));
        crowd = crowd.min(crowded(server, every, seen, || prepare(server, bundles[1])));
        if round >= 3 && crowd < alone.mul_f64(factor) + slack {
            break;
        }
    }
    (alone, crowd)
}

/// Far below what the machine can do, so that what readers cost shows only where something waits for them.
#[test]
fn hundreds_of_readers_see_progress_and_nothing_waits_for_them() {
    let bench = Bench::new(Some("2M"));
    let server = bench.serve();
    let (v2, v4) = (bench.text("v2.qimg"), other(&bench, 4));
    let seen = Seen::default();
    let cost = (1.25, Duration::from_millis(300));
    let (alone, crowd) = compared(&server, [&v2, &v4], Duration::from_millis(200), &seen, cost);
    let (reads, moved) = (seen.reads.into_inner(), seen.moved.into_inner());
    println!(
        "limited to 2 MiB/s: alone {alone:?}, with {READERS} readers {crowd:?}; {reads} reads, {moved} moves"
    );
    assert!(reads > 1000 && moved > 300, "{reads} reads, {moved} moves");
    assert!(crowd < alone.mul_f64(cost.0) + cost.1, "{alone:?} became {crowd:?}");
}

/// As fast as the machine can, with clients that poll each second, as they do: the share of the throughput that they
/// cost, measured as a ratio in one run, each side in turns, since the machine does other things as well. What is aimed at
/// is a few percent of an optimised program; here service and clients are neither, and share two processors with it.
#[test]
fn the_throughput_of_a_prepare_is_not_the_readers() {
    const SIZE: usize = 96;
    let bench = Bench::sized(None, SIZE);
    let server = bench.serve();
    let (v2, v4) = (bench.text("v2.qimg"), other(&bench, SIZE));
    let seen = Seen::default();
    let cost = (1.5, Duration::ZERO);
    let (alone, crowd) = compared(&server, [&v2, &v4], Duration::from_secs(1), &seen, cost);
    let reads = seen.reads.into_inner();
    println!("{SIZE} MiB: alone {alone:?}, with {READERS} readers {crowd:?}; {reads} reads");
    assert!(crowd < alone.mul_f64(cost.0), "{READERS} readers: {alone:?} became {crowd:?}");
}

/// Processor time is short, and the prepare has the lowest priority: the answer to a cancel comes within a second all the
/// same, and nothing writes any more when it does. Most of that second once went into flushes of the history.
#[test]
fn a_cancel_on_a_loaded_machine_takes_less_than_a_second() {
    const SIZE: usize = 64;
    let bench = Bench::sized(None, SIZE);
    let server = bench.serve();
    let bundles = [bench.text("v2.qimg"), other(&bench, SIZE)];
    let cores = std::thread::available_parallelism().unwrap().get();
    let busy = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done";
    let processors = Load::new(2 * cores, busy, |_| bench.path("none"));
    let flush = "dd if=/dev/zero of=$0 bs=1M count=64 conv=fsync status=none";
    let disk = Load::new(1, flush, |_| bench.path("load"));
    let mut took = Vec::new();
    for bundle in bundles.iter().cycle().take(4) {
        server.prepare(bundle, false);
        server.until("it writes", |server| server.status()["progress"].as_u64() > Some(0));
        let children = server.children();
        let begun = Clock::start();
        assert_eq!(server.post("/v1/qstage/cancel", &Value::Null), (200, Value::Null));
        took.push(begun.elapsed());
        assert!(!children.is_empty() && !children.into_iter().any(server::alive), "it still runs");
        assert_eq!(
            (server.state(), server.slot("platform", "b")["state"].as_str()),
            ("IDLE".into(), Some("empty"))
        );
    }
    drop((processors, disk));
    println!("cancelled in {took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
    // What was not waited for.
    let cancelled = |server: &Server| {
        let history = server.get("/v1/qstage/history");
        let of = |event: &&Value| event["verb"] == "prepare" && event["code"] == "UPGRADE_ERROR_CANCELLED";
        history.as_array().unwrap().iter().filter(of).count() == took.len()
    };
    server.until("the history has it", cancelled);
}
