//! Logs and results: full disks, full and closed pipes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Started;
use crate::harness::clock::HANG;
use crate::harness::machine::{self, Bench, Run, is_root};
use crate::harness::server;
use crate::harness::tiny_disk::TinyDisk;

/// A pipe that is full, and that no process reads.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = nix::fcntl::fcntl(writer.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let set = |flags: i32| {
        let flags = nix::fcntl::OFlag::from_bits_truncate(flags);
        nix::fcntl::fcntl(writer.as_fd(), nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap()
    };
    set(flags | nix::libc::O_NONBLOCK);
    let mut filler = writer.try_clone().unwrap();
    while filler.write(&[b'x'; 4096]).is_ok() {}
    while filler.write(b"x").is_ok() {}
    set(flags);
    writer.flush().unwrap();
    (reader, writer)
}

/// Before: it stopped for ever, with the lock of the disk.
#[test]
fn a_pipe_that_nobody_reads_holds_neither_the_work_nor_the_lock() {
    let bench = Bench::installed();
    for json in [true, false] {
        let (reader, writer) = full_pipe();
        let mut command = bench.command(&["prepare", "v2.qimg", "--config", "config.toml"]);
        if json {
            command.arg("--json");
        }
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut prepare = Started::new(&mut command);
        drop(command);
        let begun = Instant::now();
        while bench.state("platform_b", &[]) != "prepared" {
            assert!(begun.elapsed() < HANG, "it does not go on");
            std::thread::sleep(Duration::from_millis(50));
        }
        // It still waits for a reader, and delays no other process meanwhile.
        bench.at(&["cancel"]).good();
        assert_eq!(prepare.code_within(HANG), Some(11), "json: {json}");
        drop(reader);
    }
}

/// Before: exit code 7, "check the disk".
#[test]
fn a_lost_report_has_an_exit_code_of_its_own_and_says_what_is_on_the_disk() {
    let bench = Bench::installed();
    let into = |args: &[&str], target: &str| -> Run {
        let out = File::options().write(true).open(target).unwrap();
        bench.command(args).args(["--config", "config.toml"]).stdout(out).output().unwrap().into()
    };
    let error = into(&["prepare", "v2.qimg", "--json"], "/dev/full").bad("REPORT_LOST");
    assert!(error.contains("2.0 prepared in platform_b"), "{error}");
    assert_eq!(bench.state("platform_b", &[]), "prepared");
    let error = into(&["commit"], "/dev/full").bad("REPORT_LOST");
    assert!(error.contains("slot b boots next"), "{error}");
    assert_eq!(bench.slot("platform_b", &[])["boots_next"], true);
    // What has changed nothing has failed.
    into(&["slots"], "/dev/full").bad("OUTPUT");
    // A reader that went on purpose.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let gone = bench.command(&["slots", "--config", "config.toml"]).stdout(writer).output().unwrap();
    assert_eq!(gone.status.code(), Some(0));
}

/// Standard error on a full disk, a closed pipe, a full pipe; before: exit code 101, or nothing any more.
#[test]
fn a_service_does_not_need_its_log() {
    let bench = server::Bench::new(None);
    for log in ["full disk", "closed pipe", "full pipe"] {
        let (reader, writer) = full_pipe();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--booted", "a", "--config"])
            .arg(bench.path("config"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        match log {
            "full disk" => command.stderr(File::options().write(true).open("/dev/full").unwrap()),
            _ => command.stderr(writer.try_clone().unwrap()),
        };
        drop(writer);
        let mut reader = Some(reader).filter(|_| log != "closed pipe");
        let mut server = Started::new(&mut command);
        drop(command);
        let call = |method: &str, path: &str| {
            let address = bench.path("socket");
            machine::tool(
                "curl",
                &[
                    "-sS",
                    "-m",
                    "30",
                    "--retry",
                    "60",
                    "--retry-delay",
                    "0",
                    "--retry-all-errors",
                    "-X",
                    method,
                    "--unix-socket",
                    address.to_str().unwrap(),
                    "-H",
                    "Content-Length: 0",
                    &format!("http://x{path}"),
                ],
            )
        };
        // More than any buffer takes: each is a line of the log.
        for _ in 0..40 {
            assert!(call("POST", "/v1/qstage/cancel").contains("NOTHING_TO_CANCEL"), "{log}");
        }
        assert!(call("GET", "/v3/upgrade/status").contains("IDLE"), "{log}");
        if log == "full pipe" {
            // A reader that comes late gets what waited.
            let mut text = vec![0; 256 << 10];
            let mut got = Vec::new();
            let begun = Instant::now();
            while !String::from_utf8_lossy(&got).contains("listening") {
                assert!(begun.elapsed() < HANG);
                let len = reader.as_mut().unwrap().read(&mut text).unwrap();
                got.extend_from_slice(&text[..len]);
            }
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(server.code_within(HANG), Some(0), "{log}");
    }
}

/// A disk of logs that fills up while the service runs, and has room again. Before: a service that answered with what was, and
/// refused each change; later, a line that followed half of another one.
#[test]
fn a_log_goes_on_when_its_disk_has_room_again() {
    if !is_root() {
        return;
    }
    let bench = server::Bench::new(None);
    let place = bench.path("logs");
    let disk = TinyDisk::new(&place);
    let log = File::create(place.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--booted", "a", "--config"]).arg(bench.path("config"));
    let mut service = Started::new(command.stdin(Stdio::null()).stderr(log));
    let call = || -> bool {
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(bench.path("socket")) else {
            return false;
        };
        let request =
            "POST /v1/qstage/cancel HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("NOTHING_TO_CANCEL"), "{answer}");
        true
    };
    let begun = Instant::now();
    while !call() {
        assert!(begun.elapsed() < HANG, "it does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    disk.fill(true);
    (0..40).for_each(|_| assert!(call()));
    disk.fill(false);
    let begun = Instant::now();
    let lines = || fs::read_to_string(place.join("log")).unwrap();
    while !lines().contains("lines of the log were lost") {
        assert!(call() && begun.elapsed() < HANG, "{}", lines());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Not one line, but half a line, may be no JSON.
    let bad = lines().lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err()).count();
    assert!(bad <= 1, "{}", lines());
    service.signal(Signal::SIGTERM);
    assert_eq!(service.code_within(HANG), Some(0));
}
