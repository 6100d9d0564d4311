//! Hundreds of readers during a prepare: what they are shown never goes back, and the prepare does not wait for them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

mod service_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use service_support::{Bench, MIB, Server, noise};

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
    let begun = Instant::now();
    server.prepare(path, false);
    server.reach("PREPARED");
    begun.elapsed()
}

#[test]
fn hundreds_of_readers_see_progress_and_do_not_slow_it() {
    // At 1 MiB/s the processor is not the limit, so what readers cost shows as time lost by waiting, if any is.
    let bench = Bench::new(Some("1M"));
    let server = bench.serve();
    let v2 = bench.text("v2.qimg");
    // Of the same size, but other bytes: what is in place already would not be written again.
    std::fs::write(bench.path("s3"), noise(2 * MIB, 8)).unwrap();
    bench.pack("v4.qimg", "4.0", "p3", "s3");
    let v4 = bench.text("v4.qimg");
    let alone = prepare(&server, &v2);
    let (stop, reads, moved) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // Clients that connect and say nothing, or do not read what they asked for, are there too.
    let silent: Vec<_> = (0..50).map(|_| UnixStream::connect(&server.socket).unwrap()).collect();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.write_all(b"GET /v1/qstage/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        deaf.push(stream);
    }
    let crowded = std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let stream = UnixStream::connect(&server.socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let mut reader = Reader(BufReader::new(stream));
                let mut last = None;
                while !stop.load(Ordering::Relaxed) {
                    let status = reader.status();
                    reads.fetch_add(1, Ordering::Relaxed);
                    let preparing = status["state"] == "UPGRADE_STATE_PREPARING";
                    let now = status["progress"].as_u64().filter(|_| preparing);
                    if let (Some(last), Some(now)) = (last, now) {
                        assert!(now >= last, "progress fell from {last} to {now}");
                        moved.fetch_add(u64::from(now > last), Ordering::Relaxed);
                    }
                    last = now.or(last);
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
        }
        let crowded = prepare(&server, &v4);
        stop.store(true, Ordering::Relaxed);
        crowded
    });
    drop((silent, deaf));
    let (reads, moved) = (reads.into_inner(), moved.into_inner());
    println!(
        "prepare alone {alone:?}, with {READERS} readers {crowded:?}; {reads} reads, progress seen {moved} times"
    );
    assert!(reads > 1000 && moved > 300, "{reads} reads, {moved} moves");
    // A few percent is what is aimed at; the machine that runs the tests does other things as well.
    assert!(crowded < alone.mul_f64(1.25) + Duration::from_millis(300), "{alone:?} became {crowded:?}");
}
