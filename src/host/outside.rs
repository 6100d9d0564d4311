//! Acts within the mounts of the machine, whatever mount namespace this process has.
//!
//! `qstage.service` runs with a mount namespace of its own: `/usr`, `/etc` and `/sys` are read-only there, `/tmp` is empty. The
//! manager starts containers and the commands of the configuration outside of it, so what these need has to be mounted
//! outside too. A mount that is made there appears in the service's namespace as well, because the manager makes its mounts
//! slaves of the machine's; one that is made inside would stay inside.
//!
//! It protects against mistakes with paths, not against code of an attacker in the service, which may enter the namespace
//! as well. Bundles are parsed by a process without these rights ([`sandbox`](crate::sandbox)).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

/// Mount namespace of the machine: that of the manager.
const MACHINE: &str = "/proc/1/ns/mnt";
const OWN: &str = "/proc/self/ns/mnt";
/// Exists if systemd is the manager; see sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";

/// Runs `act` within the machine's mounts, on a thread of its own unless this process has these mounts anyway. Without
/// systemd the mounts of this process are used: nothing is started outside of them.
///
/// # Errors
/// The namespace cannot be entered.
pub(crate) fn run<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let machine = Path::new(MACHINE);
    if !Path::new(SYSTEMD).is_dir() || is_same(machine, Path::new(OWN)) {
        return Ok(act());
    }
    run_within(machine, act)
}

/// Whether both are the same namespace, or cannot be compared: without the right to see the machine's there is none to enter it.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    id(one).is_none_or(|found| id(other) == Some(found))
}

fn run_within<T: Send>(namespace: &Path, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", namespace.display()));
    let enter = || {
        let file = File::open(namespace).map_err(failed)?;
        // Threads share their root and working directory, and one that shares them cannot enter: setns(2).
        unshare(CloneFlags::CLONE_FS).map_err(|errno| failed(errno.into()))?;
        setns(file, CloneFlags::CLONE_NEWNS).map_err(|errno| failed(errno.into()))?;
        Ok(act())
    };
    crate::workers::on_own_thread("work outside", enter).map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_compared_by_what_they_are() {
        assert!(is_same(Path::new(OWN), Path::new(OWN)));
        assert!(!is_same(Path::new("/proc/self/ns/net"), Path::new(OWN)));
        assert!(is_same(Path::new("/proc/self/ns/none"), Path::new(OWN)));
    }

    #[test]
    fn what_cannot_be_entered_is_named() {
        let error = run_within(Path::new("/proc/self/ns/none"), || ()).unwrap_err();
        assert!(error.to_string().starts_with("/proc/self/ns/none: No such file"), "{error}");
    }
}
