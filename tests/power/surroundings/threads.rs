//! Few threads and little memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Started;
use crate::harness::clock::HANG;
use crate::harness::machine::{self, Bench, MIB, Run, is_root};
use crate::harness::server;

/// An unprivileged user of one test alone: RLIMIT_NPROC counts all threads of a user, those of other tests too
/// (setrlimit(2)).
struct User(String);

impl User {
    fn new() -> Self {
        static TAKEN: AtomicU32 = AtomicU32::new(65_123);
        Self(TAKEN.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// `prlimit` as this user.
    fn prlimit(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.0, "--regid", &self.0, "--clear-groups", "prlimit"]);
        command
    }

    fn owns(&self, paths: &[&str]) {
        machine::tool("chown", &[&["-R", self.0.as_str()], paths].concat());
    }
}

/// Another user cannot see what the loop device of another test is attached to, so it might be this disk.
const UNUSED: &str = "--assume-unused";

/// A run as another user within limits of prlimit(1).
fn limited(user: &User, bench: &Bench, limits: &[&str], args: &[&str]) -> Run {
    let mut command = user.prlimit();
    command.args(limits);
    command.arg(env!("CARGO_BIN_EXE_qstage")).args(args).args(["--config", "config.toml"]);
    command.current_dir(bench.path(".")).stdin(Stdio::null()).output().unwrap().into()
}

/// Lets every user read the directory, and the returned one write the disk.
fn open_to_all(bench: &Bench) -> User {
    fs::create_dir_all(bench.path("state")).unwrap();
    machine::tool("chmod", &["-R", "a+rX", bench.path(".").to_str().unwrap()]);
    let user = User::new();
    user.owns(&[bench.disk().to_str().unwrap(), bench.path("state").to_str().unwrap()]);
    user
}

/// Earlier, prepare panicked for lack of a thread, after it had torn the slot.
#[test]
fn one_thread_is_enough_for_every_verb() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let user = open_to_all(&bench);
    let alone = |args: &[&str]| limited(&user, &bench, &["--nproc=1"], args);
    alone(&["prepare", "v2.qimg", UNUSED]).good();
    assert!(bench.holds("platform_b", "v2.img"));
    alone(&["verify", "v2.qimg"]).good();
    alone(&["verify", "--slot", "b"]).good();
    alone(&["cancel", UNUSED]).good();
    // What cannot do without says so before the first write.
    let before = bench.hash();
    let error = alone(&["prepare", "--while-stdin-open", "v2.qimg", UNUSED]).bad("NO_THREAD");
    assert!(error.contains("pids.max"), "{error}");
    assert_eq!(bench.hash(), before);
    let error = alone(&["serve", "--listen", "127.0.0.1:0", "--socket", "none", "--booted", "a"]);
    assert!(error.code == Some(1) && error.err.contains("NO_THREAD"), "{error:?}");
}

/// Before: a service that got some of its threads panicked, and then waited for them for ever.
#[test]
fn a_service_with_few_threads_runs_or_ends() {
    if !is_root() {
        return;
    }
    let bench = server::Bench::new(None);
    let user = User::new();
    user.owns(&[bench.dir.path().to_str().unwrap()]);
    let mut ran = 0;
    for threads in 1..=8 {
        let mut command = user.prlimit();
        command.arg(format!("--nproc={threads}")).args([env!("CARGO_BIN_EXE_qstage"), "serve", "--listen"]);
        command.args(["127.0.0.1:0", "--booted", "a", "--config"]).arg(bench.path("config"));
        let mut service = Started::new(command.stdin(Stdio::null()).stderr(Stdio::piped()));
        let begun = Instant::now();
        let answers = || std::os::unix::net::UnixStream::connect(bench.path("socket")).is_ok();
        while service.0.try_wait().unwrap().is_none() && !answers() {
            assert!(begun.elapsed() < HANG, "with {threads} threads it neither runs nor ends");
            std::thread::sleep(Duration::from_millis(10));
        }
        ran += usize::from(answers());
        if service.0.try_wait().unwrap().is_none() {
            service.signal(Signal::SIGTERM);
        }
        let code = service.code_within(HANG);
        let mut said = String::new();
        service.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("panicked"), "{threads} threads: {said}");
        assert!(code == Some(0) || said.contains("NO_THREAD"), "{threads} threads: {code:?} {said}");
    }
    assert!(ran > 0, "it never ran: this test shows nothing");
}

/// Earlier, a reader waited for ever if no thread was available to resolve the name of the host.
#[test]
fn a_bundle_from_the_web_with_few_threads_is_read_or_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let user = open_to_all(&bench);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://localhost:{}/v2.qimg", listener.local_addr().unwrap().port());
    let bytes = fs::read(bench.path("v2.qimg")).unwrap();
    // Ends with the process: it waits for connections.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    bytes.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
            });
        }
    });
    let mut read = 0;
    for threads in 1..=7 {
        let mut command = user.prlimit();
        command.arg(format!("--nproc={threads}")).args([env!("CARGO_BIN_EXE_qstage"), "verify", &url]);
        command.args(["--config", "config.toml"]).current_dir(bench.path("."));
        let mut verify =
            Started::new(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
        let code = verify.code_within(HANG);
        let mut said = String::new();
        verify.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(code == Some(0) || said.contains("no thread for"), "{threads} threads: {code:?} {said}");
        assert!(!said.contains("panicked"), "{threads} threads: {said}");
        read += usize::from(code == Some(0));
    }
    assert!(read > 0, "it was never read: this test shows nothing");
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
    let user = open_to_all(&bench);
    let run = limited(&user, &bench, &["--as=160000000"], &["prepare", "v2.qimg", "--jobs", "64", UNUSED]);
    assert!(run.err.contains("instead of 64 workers"), "{run:?}");
    run.good();
    assert!(bench.holds("platform_b", "v2.img"));
}
