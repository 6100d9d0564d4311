//! Transfers that devices and inputs have not answered yet.
//!
//! A device that hangs holds its caller in the kernel, where no flag and no signal reaches it. Other threads can
//! still report it: each transfer is listed here while it lasts. One table for the process, because a reader of it
//! (a display, a service) does not know which devices are open.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A transfer in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTransfer {
    /// Path of the device, image or file; `standard input`.
    pub device: String,
    /// `read`, `write`, `zero` or `flush`; `receive`: a pipe or another stream is waited for.
    pub operation: &'static str,
    /// Time since it began.
    pub age: Duration,
}

impl std::fmt::Display for PendingTransfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (device, seconds) = (&self.device, self.age.as_secs());
        match self.operation {
            RECEIVE => write!(f, "no data from {device} for {seconds} s"),
            operation => write!(f, "no answer from {device} for {seconds} s ({operation})"),
        }
    }
}

/// The operation of a wait for a stream, which no device holds: a request to stop ends it.
pub(crate) const RECEIVE: &str = "receive";

struct Transfers {
    next: u64,
    /// Oldest first: entries are numbered in order.
    open: BTreeMap<u64, (Instant, String, &'static str)>,
}

static TRANSFERS: Mutex<Transfers> = Mutex::new(Transfers::new());

/// Removes its entry from the table when dropped.
pub(crate) struct TransferGuard(u64);

impl Transfers {
    const fn new() -> Self {
        Self { next: 0, open: BTreeMap::new() }
    }

    fn begin(&mut self, device: &Path, operation: &'static str) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.insert(number, (Instant::now(), device.display().to_string(), operation));
        number
    }

    fn silent(&self, limit: Duration) -> Option<PendingTransfer> {
        let (begun, device, operation) = self.open.values().next()?;
        let age = begun.elapsed();
        (age >= limit).then(|| PendingTransfer { device: device.clone(), operation, age })
    }
}

fn transfers() -> MutexGuard<'static, Transfers> {
    TRANSFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lists a transfer until the returned entry is dropped.
pub(crate) fn begin(device: &Path, operation: &'static str) -> TransferGuard {
    TransferGuard(transfers().begin(device, operation))
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        transfers().open.remove(&self.0);
    }
}

/// The longest transfer in progress, if it has lasted at least `limit`.
pub fn silent(limit: Duration) -> Option<PendingTransfer> {
    transfers().silent(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_transfer_is_reported() {
        let mut table = Transfers::new();
        let first = table.begin(Path::new("/dev/first"), "write");
        table.begin(Path::new("/dev/second"), "read");
        std::thread::sleep(Duration::from_millis(30));
        let limit = Duration::from_millis(20);
        assert_eq!(table.silent(limit).unwrap().device, "/dev/first");
        table.open.remove(&first);
        assert_eq!(table.silent(limit).unwrap().device, "/dev/second");
        assert_eq!(table.silent(Duration::from_secs(60)), None);
        table.open.clear();
        assert_eq!(table.silent(limit), None);
        let waiting = PendingTransfer {
            device: "/dev/x".into(),
            operation: "flush",
            age: Duration::from_millis(12_900),
        };
        assert_eq!(waiting.to_string(), "no answer from /dev/x for 12 s (flush)");
        let waiting = PendingTransfer { device: "standard input".into(), operation: RECEIVE, ..waiting };
        assert_eq!(waiting.to_string(), "no data from standard input for 12 s");
    }
}
