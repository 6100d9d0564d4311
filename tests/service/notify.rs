//! Notifications to a service manager, through a socket such as systemd's (sd_notify(3)).
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::clock::{Clock, HANG};
use crate::harness::server;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use server::Bench;

/// What the manager allows between two signs of life. The service gives one in half of this time.
const WATCHDOG: Duration = Duration::from_secs(3);

/// The end of the manager.
struct Manager(UnixDatagram);

impl Manager {
    /// The next message, which must come before the manager's limit: of the time that the machine runs.
    fn is_told(&self, message: &str) {
        let clock = Clock::start();
        assert_eq!(self.hears(HANG).as_deref(), Some(message));
        assert!(clock.elapsed() < WATCHDOG, "{message} after {:?}", clock.elapsed());
    }

    /// The next message, if one comes.
    fn hears(&self, within: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 256];
        let len = loop {
            match self.0.recv(&mut bytes) {
                // A process that was stopped: a receive with a limit is not restarted (signal(7)).
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                received => break received.ok()?,
            }
        };
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    fn waits_for(&self, message: &str) {
        let begun = Instant::now();
        while self.hears(WATCHDOG).as_deref() != Some(message) {
            assert!(begun.elapsed() < HANG, "no {message}");
        }
    }
}

#[test]
fn a_manager_hears_of_start_life_and_end() {
    let bench = Bench::new(None);
    let manager = Manager(UnixDatagram::bind(bench.path("notify")).unwrap());
    let (socket, usec) = (bench.text("notify"), WATCHDOG.as_micros().to_string());
    let mut server =
        bench.serve_in(&["--booted", "a"], &[("NOTIFY_SOCKET", &socket), ("WATCHDOG_USEC", &usec)]);
    // Before anything else.
    manager.is_told("READY=1");
    // As often as the manager wants, and much earlier, since that is half of its limit.
    for _ in 0..4 {
        manager.is_told("WATCHDOG=1");
    }

    // The owner gets stuck: another process holds its journal, for which it waits 3 s. Requests are answered, and yet it is
    // not alive.
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200, "makes the journal");
    let entries = std::fs::read_dir(bench.path("state")).unwrap().flatten();
    let lock = entries.map(|entry| entry.path().join("lock")).find(|path| path.exists()).unwrap();
    let lock = Flock::lock(File::open(lock).unwrap(), FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let marking = scope.spawn(|| server.post("/v1/qstage/mark-good", &json!({})));
        std::thread::sleep(Duration::from_millis(300));
        while manager.hears(Duration::from_millis(1)).is_some() {}
        // Longer than between two signs of life.
        let silence = WATCHDOG / 2 + Duration::from_millis(300);
        let heard = manager.hears(silence);
        // On a machine that stalls the 3 s may be over before: it is alive again then.
        let given_up = begun.elapsed() > Duration::from_millis(2900);
        assert!(heard.is_none() || given_up, "a stuck owner passes for alive");
        assert_eq!(server.get("/v1/version")["flavor"], "release", "all the same");
        drop(lock);
        manager.waits_for("WATCHDOG=1");
        assert!(marking.join().unwrap().0 == 200 || given_up);
    });
    server.end();
    manager.waits_for("STOPPING=1");
    assert_eq!(manager.hears(Duration::from_millis(200)), None, "nothing after the end");
}
