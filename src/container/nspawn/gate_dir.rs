//! The directory of the gate: one tmpfs per start, with copies of qstage and of its libraries, and with the sockets.
//!
//! The container sees it, so it holds no inode of the host: root of a container, whatever its rights, could change its own
//! copy only. Rejected: to bind the files of the host read-only (a process that may mount makes them writable); a memfd (it
//! cannot be bound); one tmpfs for all (one container could change the gate of the next).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::mount;

/// Name of the socket to which the gate connects.
pub(super) const GATE: &str = "gate";
/// Name of the socket at which [`prober`](super::prober) listens.
pub(super) const PROBER: &str = "prober";
/// Space in addition to the files, in bytes.
const SPARE: u64 = 256 << 10;
const INODES: usize = 64;

/// Mounts the tmpfs at `dir` and copies `files` into it, each under its name.
pub(super) fn create(dir: &Path, files: &[(PathBuf, String)]) -> io::Result<()> {
    let mut size = SPARE;
    for (path, _) in files {
        // Files occupy whole pages, of 64 KiB at most.
        size = size.saturating_add(fs::metadata(path)?.len().next_multiple_of(64 << 10));
    }
    let options = format!("mode=0755,size={size},nr_inodes={INODES}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("qstage-gate"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    for (path, name) in files {
        let mut copy = File::create_new(dir.join(name))?;
        io::copy(&mut File::open(path)?, &mut copy)?;
        // Regardless of the umask: the container's users are other users on the host.
        copy.set_permissions(fs::Permissions::from_mode(0o555))?;
    }
    Ok(())
}

/// Lets root of the container connect, which is another user on the host. The directories above are closed to all others.
pub(super) fn permit(socket: &Path) -> io::Result<()> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))
}

/// Frees the memory after the program has been executed. Inside, an empty directory stays; with a prober, also the files
/// that it runs from.
pub(super) fn shrink(dir: &Path, prober: bool) {
    let keep = |name: &str| prober && name != GATE;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !keep(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    if !prober {
        let _ = mount::detach(dir);
    }
}
