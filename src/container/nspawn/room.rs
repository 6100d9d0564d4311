//! The directory of the gate: a tmpfs for each start, with copies of qstage and of its libraries, and with the sockets.
//!
//! The container sees it, so it holds no inode of the host: what root of a container could change there, whatever it
//! was permitted, is its own copy. Rejected: to bind the files of the host read-only (who may mount makes them
//! writable); a memfd (it cannot be bound); one tmpfs for all (one container could change the gate of the next).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::gate::Tools;
use super::mount;

/// The socket at which the gate of a container asks.
pub(super) const GATE: &str = "gate";
/// The socket at which [`prober`](super::prober) is asked.
pub(super) const PROBER: &str = "prober";
/// Space beside the files, in bytes, and files in all.
const SPARE: u64 = 256 << 10;
const INODES: usize = 64;

/// Makes the tmpfs at `dir` and copies the tools into it.
pub(super) fn furnish(dir: &Path, tools: &Tools) -> io::Result<()> {
    let mut size = SPARE;
    for (path, _) in &tools.files {
        // Each in whole pages, of 64 KiB at most.
        size = size.saturating_add(fs::metadata(path)?.len().next_multiple_of(64 << 10));
    }
    let options = format!("mode=0755,size={size},nr_inodes={INODES}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("qstage-gate"), dir, Some("tmpfs"), flags, Some(options.as_str()))?;
    for (path, name) in &tools.files {
        let mut copy = File::create_new(dir.join(name))?;
        io::copy(&mut File::open(path)?, &mut copy)?;
        // Whatever the umask: the users of the container are others on the host.
        copy.set_permissions(fs::Permissions::from_mode(0o555))?;
    }
    Ok(())
}

/// Lets root of the container connect, who is another user on the host. The directories above are closed to all others.
pub(super) fn let_in(socket: &Path) -> io::Result<()> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))
}

/// Gives the memory back when the program has been executed. Inside stays an empty directory, and where there is a
/// prober what it runs from.
pub(super) fn leave(dir: &Path, prober: bool) {
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
