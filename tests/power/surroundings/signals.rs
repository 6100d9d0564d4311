//! Signals are alike in every verb, and a service that is killed takes its worker along.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Started;
use crate::harness::clock::{Clock, HANG};
use crate::harness::machine::Bench;
use crate::harness::server;

/// The command, for a test that was started with signals ignored, as by nohup: a program that inherits that respects it.
fn hearing(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=HUP,INT,QUIT,TERM").arg(command.get_program()).args(command.get_args());
    command.get_current_dir().map(|dir| env.current_dir(dir));
    env.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    env
}

const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

#[test]
fn signals_are_alike_in_every_verb() {
    let bench = Bench::installed();
    for signal in ENDING {
        // Half a minute, without a signal.
        let command = bench.command(&["prepare", "v2.qimg", "--max-rate", "100K", "--config", "config.toml"]);
        let mut prepare = Started::new(&mut hearing(&command));
        let begun = Instant::now();
        while bench.at(&["status"]).json()["state"] != "UPGRADE_PREPARING" {
            assert!(begun.elapsed() < HANG);
        }
        prepare.signal(signal);
        assert_eq!(prepare.code_within(HANG), Some(8), "{signal}");
        let history = bench.at(&["history", "--json"]).json();
        let last = history.as_array().unwrap().last().unwrap().clone();
        let newest = [last, history[0].clone()];
        assert!(newest.iter().any(|event| event["code"] == "UPGRADE_ERROR_INTERRUPTED"), "{history}");
        bench.blank("platform_b");
    }
    // A process that is stopped before the first write ends there, with the exit code for that.
    bench.at(&["prepare", "v2.qimg"]).good();
    let before = bench.hash();
    for signal in ENDING {
        let lock = File::open(bench.disk()).unwrap();
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
        let mut commit = Started::new(&mut hearing(&bench.command(&["commit", "--config", "config.toml"])));
        // It waits for the lock, for 3 s: long after it has its handlers.
        std::thread::sleep(Duration::from_millis(700));
        (0..3).for_each(|_| commit.signal(signal));
        std::thread::sleep(Duration::from_millis(100));
        drop(lock);
        assert_eq!(commit.code_within(HANG), Some(8), "{signal}");
        assert_eq!(bench.hash(), before, "{signal}");
    }
    // `nohup` counts.
    let mut command = Command::new("sh");
    let line = "trap '' HUP; exec \"$0\" prepare v2.qimg --max-rate 100K --config config.toml";
    command.args(["-c", line, env!("CARGO_BIN_EXE_qstage")]).current_dir(bench.path("."));
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");
    let mut prepare = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let begun = Instant::now();
    while bench.at(&["status"]).json()["state"] != "UPGRADE_PREPARING" {
        assert!(begun.elapsed() < HANG);
    }
    prepare.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert!(prepare.0.try_wait().unwrap().is_none(), "nohup");
}

#[test]
fn a_service_that_is_killed_takes_its_worker_with_it() {
    // A minute, if nothing ends it.
    let bench = server::Bench::new(Some("100K"));
    for round in 0..8 {
        let mut server = bench.serve();
        server.prepare(&bench.text("v2.qimg"), false);
        let mut workers = Vec::new();
        server.until("a worker", |server| {
            workers = server.children();
            !workers.is_empty()
        });
        std::thread::sleep(Duration::from_millis(round * 23));
        server.kill();
        let begun = Clock::start();
        // A zombie of init counts as ended.
        let runs = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        while workers.iter().any(runs) {
            assert!(begun.elapsed() < Duration::from_secs(5), "round {round}: {workers:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("round {round}: {:?}", begun.elapsed());
    }
}
