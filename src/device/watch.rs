//! Transfers that devices have not answered yet.
//!
//! A device that hangs holds its caller in the kernel, where no flag and no signal reaches it. Other threads can
//! still report it: each transfer is listed here while it lasts. One table for the process, because a reader of it
//! (a display, a service) does not know which devices are open.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A transfer in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTransfer {
    /// Path of the device or image.
    pub device: String,
    /// `read`, `write`, `zero` or `flush`.
    pub operation: &'static str,
    /// Time since it began.
    pub age: Duration,
}

impl std::fmt::Display for PendingTransfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer from {} for {} s ({})", self.device, self.age.as_secs(), self.operation)
    }
}

struct Transfers {
    next: u64,
    /// Oldest first: entries are numbered in order.
    open: BTreeMap<u64, (Instant, String, &'static str)>,
}

static TRANSFERS: Mutex<Transfers> = Mutex::new(Transfers { next: 0, open: BTreeMap::new() });

/// Removes its entry from the table when dropped.
pub(super) struct TransferGuard(u64);

/// Lists a transfer until the returned entry is dropped.
pub(super) fn begin(device: &Path, operation: &'static str) -> TransferGuard {
    let mut table = TRANSFERS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = table.next;
    table.next += 1;
    table.open.insert(number, (Instant::now(), device.display().to_string(), operation));
    TransferGuard(number)
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        TRANSFERS.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.0);
    }
}

/// The longest transfer in progress, if it has lasted at least `limit`.
pub fn silent(limit: Duration) -> Option<PendingTransfer> {
    let table = TRANSFERS.lock().unwrap_or_else(PoisonError::into_inner);
    let (begun, device, operation) = table.open.values().next()?;
    let age = begun.elapsed();
    (age >= limit).then(|| PendingTransfer { device: device.clone(), operation, age })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_transfer_is_reported() {
        let first = begin(Path::new("/dev/first"), "write");
        std::thread::sleep(Duration::from_millis(30));
        let second = begin(Path::new("/dev/second"), "read");
        // Other tests of this process use devices as well, for moments.
        let told =
            |name: &str| silent(Duration::from_millis(20)).is_some_and(|waiting| waiting.device == name);
        assert!(told("/dev/first"));
        drop(first);
        std::thread::sleep(Duration::from_millis(30));
        assert!(told("/dev/second"));
        drop(second);
        assert!(!told("/dev/second"));
        let waiting = PendingTransfer {
            device: "/dev/x".into(),
            operation: "flush",
            age: Duration::from_millis(12_900),
        };
        assert_eq!(waiting.to_string(), "no answer from /dev/x for 12 s (flush)");
    }
}
