//! One writer per disk: `flock(2)` on the disk itself.
//!
//! It is the lock that systemd documents for block devices ("Locking Block Device Access"): udev takes it shared while it
//! probes, so udev neither reads a half-written table nor re-reads one while we change it. The kernel releases the lock
//! with the last descriptor, so a killed process leaves no stale lock, as a lock *file* would; and it needs no writable
//! directory. Limit: it belongs to the inode of the device node, so two containers with separate `/dev` do not see each
//! other's lock.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::device::{DeviceNumber, open_for_lock};
use crate::error::{Error, Result};

/// Longest wait for a holder: enough for udev's probing of a slow disk, not for another upgrade.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(3);

const STEP: Duration = Duration::from_millis(50);

/// Locks `path` exclusively; the lock ends with the returned value.
pub(crate) fn exclusive(path: &Path, proc: &Path, limit: Duration) -> Result<Flock<File>> {
    wait(open_for_lock(path)?, limit, STEP).map_err(|(file, errno)| match errno {
        Some(errno) => failed(path, errno),
        None => Error::Busy { disk: path.display().to_string(), holder: holder(&file, proc) },
    })
}

/// Locks a file exclusively; retries every `step` for as long as `limit`. On failure returns the file with the error; `None`:
/// another process still holds the lock.
pub(super) fn wait(
    mut file: File,
    limit: Duration,
    step: Duration,
) -> Result<Flock<File>, (File, Option<Errno>)> {
    let begun = Instant::now();
    loop {
        // Not the blocking call: it has no time limit without a signal handler.
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, errno)) if !is_held(errno) => return Err((file, Some(errno))),
            Err((file, _)) if begun.elapsed() >= limit => return Err((file, None)),
            Err((back, _)) => file = back,
        }
        std::thread::sleep(step);
    }
}

/// Whether another process holds the lock exclusively now. The test takes the lock shared for an instant, which a waiting
/// [`exclusive`] outlasts. `/proc/locks` was rejected: it hides holders outside the PID namespace.
pub(crate) fn is_held_by_another(path: &Path) -> Result<bool> {
    match Flock::lock(open_for_lock(path)?, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, errno)) if is_held(errno) => Ok(true),
        Err((_, errno)) => Err(failed(path, errno)),
    }
}

/// Whether the lock is held. A call that does not wait returns no `EINTR`, but a retry costs nothing.
fn is_held(errno: Errno) -> bool {
    matches!(errno, Errno::EWOULDBLOCK | Errno::EINTR)
}

fn failed(path: &Path, errno: Errno) -> Error {
    Error::Open { path: path.to_owned(), source: errno.into() }
}

/// The holder of the lock of this file, for the message only.
fn holder(file: &File, proc: &Path) -> String {
    let unknown = || "another process".to_owned();
    let Ok(meta) = file.metadata() else { return unknown() };
    let locks = std::fs::read_to_string(proc.join("locks")).unwrap_or_default();
    let Some(pid) = pid_of(&locks, DeviceNumber::from_raw(meta.dev()), meta.ino()) else { return unknown() };
    match std::fs::read_to_string(proc.join(pid.to_string()).join("comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// The process that holds a `flock` on the inode, by the text of `/proc/locks` (proc_locks(5)): device
/// numbers in hexadecimal; waiters, marked by an arrow, hold nothing.
fn pid_of(locks: &str, on: DeviceNumber, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next()? != "FLOCK" {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok()?;
        let mut place = fields.next()?.split(':');
        let mut hexadecimal = || u64::from_str_radix(place.next()?, 16).ok();
        let number = DeviceNumber { major: hexadecimal()?, minor: hexadecimal()? };
        let found: u64 = place.next()?.parse().ok()?;
        ((number, found) == (on, inode)).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_inode() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 fe:0a:94 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:0b:94 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 fe:0a:94 0 EOF
odd
3: FLOCK  ADVISORY  WRITE 14 fe:0a:940 0 EOF
4: FLOCK  ADVISORY  READ  15 fe:0a:94 0 EOF
";
        let on = DeviceNumber { major: 254, minor: 10 };
        assert_eq!(pid_of(locks, on, 94), Some(15));
        assert_eq!(pid_of(locks, on, 940), Some(14));
        assert_eq!(pid_of(locks, on, 9), None);
    }

    #[test]
    fn a_second_lock_waits_and_then_names_the_first() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let proc = Path::new("/proc");
        let limit = Duration::from_millis(120);
        assert!(!is_held_by_another(file.path()).unwrap());
        let first = exclusive(file.path(), proc, limit).unwrap();
        assert!(is_held_by_another(file.path()).unwrap());
        let begun = Instant::now();
        match exclusive(file.path(), proc, limit) {
            Err(Error::Busy { holder, .. }) => {
                assert!(holder.contains(&std::process::id().to_string()), "{holder}");
            }
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() >= limit);
        drop(first);
        assert!(!is_held_by_another(file.path()).unwrap());
        // A short holder, such as udev, is outlasted.
        let first = exclusive(file.path(), proc, limit).unwrap();
        let ender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        exclusive(file.path(), proc, 10 * LOCK_WAIT).unwrap();
        ender.join().unwrap();
    }
}
