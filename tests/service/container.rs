//! Service and container together: an upgrade of software alone, requested from the service, swaps a real container.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(dead_code, reason = "the helpers are shared")]

use crate::harness::containers;

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use containers::{Disk, Machine, Poller, can_run, said};
use serde_json::Value;

/// A service that is gone with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waiting for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The service on a machine.
struct Host<'m> {
    machine: &'m Machine,
    server: Server,
    socket: String,
}

impl<'m> Host<'m> {
    fn new(machine: &'m Machine) -> Self {
        let socket = machine.dir.path().join("socket").to_str().unwrap().to_owned();
        let mut serve = machine.command(&["serve", "--listen", "127.0.0.1:0", "--socket", &socket]);
        let server = Server(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let host = Self { machine, server, socket };
        until("the socket", || machine.run(&["status", "--service", &host.address()]).status.success());
        host
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket)
    }

    fn curl(&self, method: &str, path: &str) -> String {
        let curl = Command::new("curl")
            .args(["--silent", "--fail", "--request", method, "--unix-socket", &self.socket])
            .arg(format!("http://localhost{path}"))
            .output()
            .unwrap();
        assert!(curl.status.success(), "{method} {path}: {}", said(&curl));
        String::from_utf8(curl.stdout).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.curl("GET", path)).unwrap()
    }

    fn upgrade(&self, version: &str, mode: &str, more: &[&str]) -> Output {
        let bundle = self.machine.bundle(version, mode);
        let address = self.address();
        let words = ["upgrade", bundle.to_str().unwrap(), "--service", &address];
        let mut output = self.machine.run(&[&words[..], more].concat());
        // It has just been started, and looks after the software first.
        while said(&output).contains("starting the software") {
            std::thread::sleep(Duration::from_millis(100));
            output = self.machine.run(&[&words[..], more].concat());
        }
        output
    }

    /// Orders the commit of what is prepared, and returns when the flags are flipped: the old one is being stopped.
    fn flip(&self, slot: &str) {
        self.curl("POST", "/v2/upgrade/commit");
        until("the flip", || self.machine.software().2 == slot);
    }

    fn end(&mut self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.server.0.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
        self.server.0.wait().unwrap();
    }

    fn idle(&self) -> Value {
        until("it is idle", || self.get("/v3/upgrade/status")["state"] == "UPGRADE_STATE_IDLE");
        self.get("/v1/qstage/status")
    }
}

/// The service is killed between the flip of the flags and the start of the new container: the old one still runs, from a
/// slot that is not selected, and nothing can be prepared. The next start of the service brings it to its end.
#[test]
fn a_service_killed_between_flip_and_start_converges_when_it_starts() {
    if !can_run() {
        return;
    }
    // Deaf: four seconds pass between the flip and the end of the old one.
    let machine = Machine::new(Disk::File, "deaf", "stop_timeout = 4");
    machine.good(&["container", "start"]);
    let mut host = Host::new(&machine);
    assert!(host.upgrade("1.1", "deaf", &[]).status.success());
    host.flip("b");
    host.end(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(machine.answer().as_deref(), Some("1.0"), "the old one serves on");
    assert_eq!(machine.software(), ("good".into(), "trial".into(), "b".into()));
    let next = machine.bundle("1.2", "good");
    let output = machine.run(&["prepare", next.to_str().unwrap()]);
    assert!(!output.status.success(), "the slot of the old one is in use");

    let mut host = Host::new(&machine);
    until("the new one serves", || machine.answer().as_deref() == Some("1.1"));
    until("it is marked good", || machine.software() == ("good".into(), "good".into(), "b".into()));
    let status = host.idle();
    assert_eq!(status["error_state"], "UPGRADE_ERROR_NO_ERROR", "{status}");
    assert_eq!(status["is_blocked"], false, "{status}");

    // The same with a release that is not healthy: it is swapped back, and that is reported.
    assert!(host.upgrade("1.2", "sick", &[]).status.success());
    host.flip("a");
    host.end(nix::sys::signal::Signal::SIGKILL);
    let mut host = Host::new(&machine);
    until("the old one serves again", || machine.software() == ("bad".into(), "good".into(), "b".into()));
    until("it answers", || machine.answer().as_deref() == Some("1.1"));
    until("it is told", || host.get("/v3/upgrade/status")["error_info"].is_string());
    let status = host.idle();
    assert_eq!(status["error_state"], "UPGRADE_ERROR_SWAPPED_BACK", "{status}");
    let direct: Value = serde_json::from_str(&machine.good(&["status"])).unwrap();
    assert_eq!(direct["error_state"], "UPGRADE_ERROR_SWAPPED_BACK", "{direct}");

    // An orderly end waits for the swap.
    assert!(host.upgrade("1.3", "good", &[]).status.success());
    host.flip("a");
    host.end(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(machine.answer().as_deref(), Some("1.3"));
    assert_eq!(machine.software(), ("good".into(), "good".into(), "a".into()));
    let host = Host::new(&machine);
    assert_eq!(host.idle()["error_state"], "UPGRADE_ERROR_NO_ERROR");
    assert_eq!(machine.answer().as_deref(), Some("1.3"));
}

/// A service that starts on a machine where nothing runs starts the software, as a boot does.
#[test]
fn a_service_starts_the_software() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "");
    let _host = Host::new(&machine);
    until("it serves", || machine.answer().as_deref() == Some("1.0"));
    assert_eq!(machine.starts(), ["1.0"]);
}

#[test]
fn an_upgrade_over_the_service_swaps_the_container() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "");
    machine.good(&["container", "start"]);
    let host = Host::new(&machine);
    assert_eq!(host.get("/v1/qstage/status")["last_swap"], Value::Null);
    let poller = Poller::new(machine.port);
    let output = host.upgrade("1.1", "good", &["--commit"]);
    let (gap, _) = poller.done();
    println!("gap for a client {gap:?}: {}", said(&output));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("1.1 committed, downtime "), "{}", said(&output));
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software(), ("good".into(), "good".into(), "b".into()));
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    // The downtime is in the status, the history, the metrics and the table.
    let swap = host.get("/v1/qstage/status")["last_swap"].clone();
    let downtime = swap["downtime_ms"].as_f64().unwrap();
    assert!(swap["message"].as_str().unwrap().contains(&format!("downtime {downtime:.0} ms")), "{swap}");
    let history = host.get("/v1/qstage/history");
    assert!(history.as_array().unwrap().contains(&swap), "{history}");
    assert!(host.curl("GET", "/v1/qstage/metrics").contains("\nqstage_swap_downtime_seconds "));
    let table = machine.good(&["status", "--human", "--service", &host.address()]);
    assert!(table.contains(&format!("downtime   {downtime:.0} ms")), "{table}");
    // COMMITTED is seen by those who poll, and then it is over by itself.
    until("it is over", || host.get("/v3/upgrade/status")["state"] == "UPGRADE_STATE_IDLE");

    // A sick one: the old runs again, the service says so, and ours exits with another code than 0.
    let output = host.upgrade("1.2", "sick", &["--commit"]);
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("UPGRADE_ERROR_SWAPPED_BACK"), "{}", said(&output));
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software().2, "b");
    let swap = host.get("/v1/qstage/status")["last_swap"].clone();
    assert_eq!(swap["code"], "UPGRADE_ERROR_SWAPPED_BACK");
    assert!(swap["downtime_ms"].as_f64().unwrap() > 4000.0, "the deadline of five seconds: {swap}");

    let starts = machine.starts().len();
    host.curl("POST", "/v1/shutdown/node/container-restart");
    until("the restart", || machine.starts().len() > starts && machine.answer().as_deref() == Some("1.1"));
}
