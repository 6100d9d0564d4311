//! Lock files. A process that can open a file, even read-only, can take its flock(2) and hold it for ever. So only the owner
//! may open our lock files, and every wait for one has a limit.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, OFlag};
use nix::unistd::geteuid;

use super::super::lock::wait;

/// Time between two attempts to take a lock.
const STEP: Duration = Duration::from_millis(10);

/// Locks the file at `path` exclusively, and creates it if it is missing. The lock ends with the returned value, and with the
/// process. `None`: another process held it for all of `limit`.
///
/// The file gets mode 0600, also a file that an earlier release created. A link in its place is not followed.
///
/// # Errors
/// What open(2) says; a file that another user owns, or that is no regular file.
pub(crate) fn lock_file(path: &Path, limit: Duration) -> io::Result<Option<Flock<File>>> {
    // The standard library adds O_CLOEXEC: a child must not inherit its parent's lock. O_NONBLOCK: a FIFO in place of the
    // file must not block the open.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("not a regular file, so it is no lock of qstage"));
    }
    let own = geteuid();
    if about.uid() != own.as_raw() && !own.is_root() {
        let problem = format!("owned by user {}, not by {own}, who runs qstage", about.uid());
        return Err(io::Error::other(problem));
    }
    if about.mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    match wait(file, limit, STEP) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, None)) => Ok(None),
        Err((_, Some(errno))) => Err(errno.into()),
    }
}

/// Creates a directory with mode 0700, and its missing parents likewise. With `tighten` a directory that exists and is ours
/// gets that mode too.
pub(crate) fn private_directory(path: &Path, tighten: bool) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let about = fs::symlink_metadata(path)?;
    if tighten && about.is_dir() && about.uid() == geteuid().as_raw() && about.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(60);

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn only_the_owner_can_open_it_and_the_wait_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let (state, lock) = (dir.path().join("a/b"), dir.path().join("a/b/lock"));
        private_directory(&state, true).unwrap();
        assert_eq!((mode(&state), mode(&dir.path().join("a"))), (0o700, 0o700));
        let first = lock_file(&lock, LIMIT).unwrap().unwrap();
        assert_eq!(mode(&lock), 0o600);
        let begun = Instant::now();
        assert!(lock_file(&lock, LIMIT).unwrap().is_none());
        assert!(begun.elapsed() >= LIMIT);
        drop(first);
        assert!(lock_file(&lock, LIMIT).unwrap().is_some());
    }

    /// Left by an earlier release: readable, hence lockable, by everybody.
    #[test]
    fn an_old_file_and_an_old_directory_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, lock) = (dir.path().join("state"), dir.path().join("state/lock"));
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&lock, "").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
        private_directory(&state, false).unwrap();
        assert_eq!(mode(&state), 0o755, "a directory that the administrator created stays as it is");
        private_directory(&state, true).unwrap();
        lock_file(&lock, LIMIT).unwrap().unwrap();
        assert_eq!((mode(&state), mode(&lock)), (0o700, 0o600));
    }

    #[test]
    fn a_link_or_a_fifo_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) =
            (dir.path().join("target"), dir.path().join("link"), dir.path().join("fifo"));
        symlink(&target, &link).unwrap();
        lock_file(&link, LIMIT).unwrap_err();
        assert!(!target.exists(), "the link was followed");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        lock_file(&fifo, LIMIT).unwrap_err();
    }
}
