//! Service and container together: an upgrade of software alone, ordered over the service, swaps a real container.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]
#![allow(dead_code, reason = "the helpers are shared")]

mod container_support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use container_support::{Disk, Machine, Poller, can_run, said};

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
        assert!(begun.elapsed() < Duration::from_secs(60), "waiting for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_upgrade_over_the_service_swaps_the_container() {
    if !can_run() {
        return;
    }
    let machine = Machine::new(Disk::File, "good", "");
    machine.good(&["container", "start"]);
    let socket = machine.dir.path().join("socket");
    let address = format!("unix:{}", socket.display());
    let path = socket.to_str().unwrap();
    let mut serve = machine.command(&["serve", "--listen", "127.0.0.1:0", "--socket", path]);
    let _server = Server(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until("the socket", || machine.run(&["status", "--service", &address]).status.success());

    let upgrade = |version: &str, mode: &str| {
        let bundle = machine.bundle(version, mode);
        machine.run(&["upgrade", bundle.to_str().unwrap(), "--commit", "--service", &address])
    };
    let poller = Poller::new(machine.port);
    let output = upgrade("1.1", "good");
    let (gap, _) = poller.done();
    println!("gap for a client {gap:?}: {}", said(&output));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software(), ("good".into(), "good".into(), "b".into()));
    assert!(gap < Duration::from_secs(5), "{gap:?}");

    // A sick one: the old runs again, the service says so, and ours exits with another code than 0.
    let output = upgrade("1.2", "sick");
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("UPGRADE_ERROR_SWAPPED_BACK"), "{}", said(&output));
    assert_eq!(machine.answer().as_deref(), Some("1.1"));
    assert_eq!(machine.software().2, "b");

    let starts = machine.starts().len();
    let curl = Command::new("curl")
        .args(["--silent", "--fail", "--request", "POST", "--unix-socket", path])
        .arg("http://localhost/v1/shutdown/node/container-restart")
        .output()
        .unwrap();
    assert!(curl.status.success(), "{}", said(&curl));
    until("the restart", || machine.starts().len() > starts && machine.answer().as_deref() == Some("1.1"));
}
