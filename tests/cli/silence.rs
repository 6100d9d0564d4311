//! Pipes that fall silent: each read of a bundle has a limit of its own, and a signal ends it before.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::clock::{Clock, HANG, at_once};
use crate::harness::load::until_it_catches;
use crate::harness::machine::{Bench, Run, Running};

/// Number of bytes of `v2.qimg` that come before the silence: none, a part of the head, a part of the frames.
const COME: [usize; 3] = [0, 700, 1 << 20];

/// Starts a verb that reads standard input, which gives that many bytes and then nothing; it stays open.
fn silent(bench: &Bench, args: &[&str], come: usize) -> Running {
    let mut running = bench.start(args, Stdio::piped());
    let bundle = fs::read(bench.path("v2.qimg")).unwrap();
    let stdin = running.child().stdin.as_mut().unwrap();
    stdin.write_all(&bundle[..come.min(bundle.len() / 2)]).unwrap();
    running
}

/// The result of a verb that ends by itself.
fn ended(mut running: Running) -> Run {
    let begun = Instant::now();
    while running.child().try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < HANG, "it waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.end()
}

#[test]
fn a_silent_standard_input_ends_each_verb_that_reads_it() {
    let bench = Bench::installed();
    let mut all = Vec::new();
    for come in COME {
        for verb in ["prepare", "plan", "verify", "inspect"] {
            // Of a whole head the rest is not read by these.
            if come > 700 && ["plan", "inspect"].contains(&verb) {
                continue;
            }
            // Each on a disk of its own: they wait at the same time.
            let (disk, state) = (format!("{verb}{come}.img"), format!("{verb}{come}.state"));
            fs::copy(bench.disk(), bench.path(&disk)).unwrap();
            let machine: &[&str] =
                if verb == "inspect" { &[] } else { &["--disk", &disk, "--state-dir", &state] };
            let args = [&[verb, "-", "--input-timeout", "1"], machine].concat();
            all.push((format!("{verb} after {come}"), disk.clone(), silent(&bench, &args, come)));
        }
    }
    for (what, disk, running) in all {
        let message = ended(running).bad("INPUT_STALLED");
        assert!(message.contains("standard input: no data for 1 s at byte "), "{what}: {message}");
        let slots = bench.at(&["slots", "--json", "--disk", &disk]).json();
        let runs = slots["slots"].as_array().unwrap().iter().find(|slot| slot["slot"] == "a").unwrap();
        assert_eq!((&runs["state"], &runs["boots_next"]), (&json!("good"), &json!(true)), "{what}: {slots}");
    }
    // What was written stays, and the next run goes on.
    let disk = format!("prepare{}.img", COME[2]);
    let whole = fs::read(bench.path("v2.qimg")).unwrap();
    bench.piped(&["prepare", "-", "--disk", &disk], &whole).good();
}

/// The key of the configuration; and a FIFO without a writer.
#[test]
fn a_fifo_without_a_writer_ends_by_the_limit_of_the_configuration() {
    let bench = Bench::installed();
    bench.config("input_timeout = 1\n");
    nix::unistd::mkfifo(&bench.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let message = ended(bench.start(&["prepare", "fifo"], Stdio::null())).bad("INPUT_STALLED");
    assert!(message.contains("fifo: no data for 1 s at byte 0; "), "{message}");
    let status = bench.at(&["status"]).json();
    assert_eq!(status["error_state"], "UPGRADE_ERROR_INPUT_STALLED");
}

/// Without a limit it is waited for, until a signal comes.
#[test]
fn a_signal_ends_the_wait_at_once() {
    let bench = Bench::installed();
    let all: Vec<_> = COME
        .into_iter()
        .map(|come| {
            let (disk, state) = (format!("{come}.img"), format!("{come}.state"));
            fs::copy(bench.disk(), bench.path(&disk)).unwrap();
            let args = ["prepare", "-", "--input-timeout", "0", "--disk", &disk, "--state-dir", &state];
            (come, silent(&bench, &args, come))
        })
        .collect();
    let plan = silent(&bench, &["plan", "-"], 0);
    std::thread::sleep(Duration::from_millis(1500));
    for (come, mut running) in all {
        until_it_catches(running.id(), Signal::SIGTERM);
        assert!(running.child().try_wait().unwrap().is_none(), "{come}: it is waited for");
        let begun = Clock::start();
        running.signal(Signal::SIGTERM);
        let run = ended(running);
        at_once(begun, &format!("after {come} bytes"));
        run.bad("INTERRUPTED");
    }
    // A verb that changes nothing is ended as any program is.
    let begun = Clock::start();
    plan.signal(Signal::SIGTERM);
    assert_eq!(ended(plan).code, None);
    at_once(begun, "plan");
}

/// What a bundle could exploit has no rights any more when its first byte comes: no capability, no system calls but its own, and
/// no file but those that it has open or writes.
#[test]
fn rights_are_given_up_before_the_first_byte() {
    let bench = Bench::installed();
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.qimg", deaf.local_addr().unwrap());
    for from in ["-", &url] {
        for verb in ["prepare", "plan", "verify", "inspect"] {
            let mut running = bench.start(&[verb, from], Stdio::piped());
            let tasks = format!("/proc/{}/task", running.id());
            let begun = Instant::now();
            let confined = |status: &str| {
                let is = |name: &str, value: &str| {
                    status
                        .lines()
                        .any(|line| line.split_once(":\t").is_some_and(|found| found == (name, value)))
                };
                let none = "0000000000000000";
                is("Seccomp", "2") && is("NoNewPrivs", "1") && is("CapEff", none) && is("CapPrm", none)
            };
            // It waits: each of its threads.
            loop {
                let all: Vec<String> = fs::read_dir(&tasks)
                    .unwrap()
                    .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
                    .collect();
                if all.iter().all(|status| confined(status)) {
                    break;
                }
                assert!(begun.elapsed() < HANG, "{verb} {from}: {all:#?}");
                assert!(running.child().try_wait().unwrap().is_none(), "{verb} {from} has ended");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
