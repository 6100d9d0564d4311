use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::machine::Bench;
use crate::harness::web::{Full, Server, partial, status};

/// A signal ends a transfer within a second, whatever it is that is waited for.
#[test]
fn a_signal_ends_each_phase_within_a_second() {
    let bench = Bench::installed();
    let file = || std::fs::read(bench.path("v2.qimg")).unwrap();
    let long = Duration::from_secs(60);
    let full = Full::new();
    let connect = format!("{}/x.qimg", full.url);
    // A handshake of TLS without an answer.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = format!("https://{}/x.qimg", deaf.local_addr().unwrap());
    let header = Server::new(file(), move |_, _, _| {
        std::thread::sleep(long);
        Ok(())
    });
    let body = Server::new(file(), move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..100])?;
        std::thread::sleep(long);
        Ok(())
    });
    // In the frames, when the slot is being written.
    let frames = Server::new(file(), move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..file.len() / 2])?;
        std::thread::sleep(long);
        Ok(())
    });
    let back_off = Server::new(file(), |_, _, stream| status("503 Busy", "Retry-After: 60\r\n", stream));
    let redirect = Server::new(file(), |_, _, stream| {
        let mut byte = [0; 1];
        status("302 Found", "Location: http://127.0.0.1:9/x\r\n", stream)?;
        stream.read(&mut byte).map(drop)
    });
    let phases = [
        ("connect", connect),
        ("TLS", tls),
        ("header", header.url),
        ("body", body.url),
        ("frames", frames.url),
        ("back-off", back_off.url),
    ];
    let started: Vec<_> = phases
        .into_iter()
        .map(|(phase, url)| {
            // Each on a disk of its own: they wait at the same time.
            let (disk, state) = (format!("{phase}.img"), format!("{phase}.state"));
            std::fs::copy(bench.disk(), bench.path(&disk)).unwrap();
            let args = ["prepare", &url, "--disk", &disk, "--state-dir", &state];
            (phase, bench.start(&args, Stdio::null()))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1500));
    for (phase, mut running) in started {
        assert!(running.child().try_wait().unwrap().is_none(), "{phase} is waited for");
        let begun = Instant::now();
        running.signal(Signal::SIGTERM);
        let run = running.end();
        assert!(begun.elapsed() < Duration::from_secs(1), "{phase}: {:?}", begun.elapsed());
        run.bad("INTERRUPTED");
    }
    // A refused connection after a redirect is an end, not a wait.
    bench.at(&["prepare", &redirect.url]).bad("NETWORK_CONNECT");
}

/// A wait is reported with its cause, its time, and the number of the try.
#[test]
fn silence_is_said_to_be_silence() {
    let bench = Bench::installed();
    bench.config("[network]\nretries = 3\n");
    let server = Server::new(std::fs::read(bench.path("v2.qimg")).unwrap(), |asked, _, stream| {
        if asked.number < 4 {
            return status("503 Busy", "", stream);
        }
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let running = bench.start(&["prepare", &server.url], Stdio::null());
    std::thread::sleep(Duration::from_millis(13_500));
    running.signal(Signal::SIGTERM);
    let run = running.end();
    let expected = format!("waiting for {}, nothing for 1", server.host());
    let line = run.err.lines().find(|line| line.contains(&expected)).unwrap_or_else(|| panic!("{}", run.err));
    assert!(line.ends_with(" s, retry 3 of 3"), "{line}");
}
