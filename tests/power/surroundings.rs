//! Failures beside the data: threads, memory, logs, pipes, signals. A verb continues, or ends with a correct report, and
//! leaves no lock behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;
use crate::harness::server;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::nbd::Nbd;
use machine::{Bench, MIB, Run, is_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Nobody in particular, who may start no second thread.
const NOBODY: &str = "65123";

/// A run as somebody else within limits of prlimit(1).
fn limited(bench: &Bench, limits: &[&str], args: &[&str]) -> Run {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "prlimit"]).args(limits);
    command.arg(env!("CARGO_BIN_EXE_qstage")).args(args).args(["--config", "config.toml"]);
    command.current_dir(bench.path(".")).stdin(Stdio::null()).output().unwrap().into()
}

/// Lets everybody read what is in the directory, and that somebody write the disk.
fn open_to_all(bench: &Bench) {
    fs::create_dir_all(bench.path("state")).unwrap();
    machine::tool("chmod", &["-R", "a+rX", bench.path(".").to_str().unwrap()]);
    machine::tool(
        "chown",
        &["-R", NOBODY, bench.disk().to_str().unwrap(), bench.path("state").to_str().unwrap()],
    );
}

/// Before: prepare panicked for want of a thread, after it had torn the slot.
#[test]
fn one_thread_is_enough_for_every_verb() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    open_to_all(&bench);
    let alone = |args: &[&str]| limited(&bench, &["--nproc=1"], args);
    alone(&["prepare", "v2.qimg"]).good();
    assert!(bench.holds("platform_b", "v2.img"));
    alone(&["verify", "v2.qimg"]).good();
    alone(&["verify", "--slot", "b"]).good();
    alone(&["cancel"]).good();
    // What cannot do without says so before the first write.
    let before = bench.hash();
    let error = alone(&["prepare", "--while-stdin-open", "v2.qimg"]).bad("NO_THREAD");
    assert!(error.contains("pids.max"), "{error}");
    assert_eq!(bench.hash(), before);
    let error = alone(&["serve", "--listen", "127.0.0.1:0", "--socket", "none", "--booted", "a"]);
    assert!(error.code == Some(1) && error.err.contains("NO_THREAD"), "{error:?}");
}

/// Before: 64 workers with frames of 8 MiB took 744 MiB, whatever the limit was.
#[test]
fn workers_fit_the_memory_that_there_is() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    bench.image("v1.img", 40 * MIB, 1);
    bench.pack("v1", "1.0", &["--platform", "v1.img", "--frame-size", "8M", "--level", "1"]);
    bench.at(&["init", "disk.img", "--slot-size", "48M", "--bundle", "v1.qimg"]).good();
    bench.image("v2.img", 40 * MIB, 2);
    bench.pack("v2", "2.0", &["--platform", "v2.img", "--frame-size", "8M", "--level", "1"]);
    open_to_all(&bench);
    let run = limited(&bench, &["--as=160000000"], &["prepare", "v2.qimg", "--jobs", "64"]);
    assert!(run.err.contains("instead of 64 workers"), "{run:?}");
    run.good();
    assert!(bench.holds("platform_b", "v2.img"));
}

/// A pipe that is full, and that nobody reads.
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

/// Ends with its value.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    fn code_within(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < limit, "not ended after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not go on");
            std::thread::sleep(Duration::from_millis(50));
        }
        // It still waits for a reader, and does not hold anybody up meanwhile.
        bench.at(&["cancel"]).good();
        assert_eq!(prepare.code_within(Duration::from_secs(60)), Some(11), "json: {json}");
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
                assert!(begun.elapsed() < Duration::from_secs(10));
                let len = reader.as_mut().unwrap().read(&mut text).unwrap();
                got.extend_from_slice(&text[..len]);
            }
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(server.code_within(Duration::from_secs(20)), Some(0), "{log}");
    }
}

/// The same, for a test that was started with signals ignored, as by nohup: a program that inherits that respects it.
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
        // Long: 1 MiB/s.
        let command = bench.command(&["prepare", "v2.qimg", "--max-rate", "1M", "--config", "config.toml"]);
        let mut prepare = Started::new(&mut hearing(&command));
        let begun = Instant::now();
        while bench.at(&["status"]).json()["state"] != "UPGRADE_PREPARING" {
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        prepare.signal(signal);
        assert_eq!(prepare.code_within(Duration::from_secs(20)), Some(8), "{signal}");
        let history = bench.at(&["history", "--json"]).json();
        let last = history.as_array().unwrap().last().unwrap().clone();
        let newest = [last, history[0].clone()];
        assert!(newest.iter().any(|event| event["code"] == "UPGRADE_ERROR_INTERRUPTED"), "{history}");
        bench.blank("platform_b");
    }
    // Whoever is asked before the first write ends there, and its exit code says so.
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
        assert_eq!(commit.code_within(Duration::from_secs(20)), Some(8), "{signal}");
        assert_eq!(bench.hash(), before, "{signal}");
    }
    // `nohup` counts.
    let mut command = Command::new("sh");
    let line = "trap '' HUP; exec \"$0\" prepare v2.qimg --max-rate 1M --config config.toml";
    command.args(["-c", line, env!("CARGO_BIN_EXE_qstage")]).current_dir(bench.path("."));
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");
    let mut prepare = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let begun = Instant::now();
    while bench.at(&["status"]).json()["state"] != "UPGRADE_PREPARING" {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    prepare.signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert!(prepare.0.try_wait().unwrap().is_none(), "nohup");
}

#[test]
fn a_service_that_is_killed_takes_its_worker_with_it() {
    let bench = server::Bench::new(Some("1M"));
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
        let begun = Instant::now();
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

/// Before: status, slots and history hung with the device, and nobody said which.
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
        let begun = Instant::now();
        let run = bench.at(&[args, &["--disk", &disk]].concat());
        (begun.elapsed(), run)
    };
    at(&["slots"]).1.good();
    let mut command = bench.command(&["prepare", "v2.qimg", "--config", "config.toml", "--disk", &disk]);
    command.args(["--booted", "a", "--max-rate", "1M", "--json"]);
    let mut prepare = Started::new(&mut command);
    let _goes_on = hanging.goes_on();
    let begun = Instant::now();
    while at(&["status"]).1.json()["state"] != "UPGRADE_PREPARING" {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    hanging.pause(true);
    std::thread::sleep(Duration::from_millis(500));
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
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(50));
    }
    bench.at(&["prepare", "v2.qimg"]).good();
}
