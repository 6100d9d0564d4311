//! Failures outside of the data. A verb continues, or ends with a correct report, and releases its lock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

/// Devices that hang, are slow, or are gone.
mod devices;
/// Logs and results that cannot be written, or that are not read.
mod readers;
/// Signals, and services that are killed.
mod signals;
/// Few threads, little memory.
mod threads;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends with its value.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
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
