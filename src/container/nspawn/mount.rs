//! The mounts of slots, below one directory whose mounts propagate.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::host::MountSource;
use crate::host::kernel::Kernel;
use crate::host::program::{End, Program};

/// Longest wait for a mount that stays busy after its container has ended.
const UNMOUNT_WAIT: Duration = Duration::from_secs(2);
/// Time limit of mount(8), also on a busy disk.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Largest number of bytes that are read ahead, whatever the configuration names: more would evict pages of others.
const PREREAD_MAX: u64 = 256 << 20;

/// Makes `base` a mount point whose mounts propagate. A container gets a copy of all mounts, also that of the other slot,
/// and would hold that slot for as long as it lives; with propagation an unmount here removes the copies too. With systemd
/// all mounts propagate; without it they are private.
pub(super) fn share(base: &Path) -> io::Result<()> {
    fs::create_dir_all(base)?;
    // The sockets of the gates lie below it.
    fs::set_permissions(base, fs::Permissions::from_mode(0o700))?;
    let base = base.canonicalize()?;
    if !is_mounted(&base)? {
        mount(Some(&base), &base, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    mount(None::<&str>, &base, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
    Ok(())
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(Kernel::default().mounts()?.iter().any(|mount| Path::new(&mount.target) == path))
}

/// Mounts an image read-only. Only file systems of the list: the others are reviewed less for hostile images.
pub(super) fn attach(source: &MountSource, at: &Path, allowed: &[String]) -> io::Result<()> {
    let (path, offset) = match source {
        MountSource::Node(path) => (path, 0),
        MountSource::Window(path, extent) => (path, extent.at.0),
    };
    let kind = file_system(path, offset)?.ok_or_else(|| io::Error::other("it holds no known file system"))?;
    if !allowed.iter().any(|one| one == kind) {
        return Err(io::Error::other(format!("it holds {kind}, allowed are: {}", allowed.join(", "))));
    }
    // Without it a read-only mount of ext4 replays its journal, which writes: the slot would no longer match its record.
    let option = if kind == "ext4" { Some("noload") } else { None };
    match source {
        MountSource::Node(path) => {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
            mount(Some(path), at, Some(kind), flags, option)?;
            Ok(())
        }
        MountSource::Window(path, extent) => {
            let mut options = format!("ro,nodev,loop,offset={},sizelimit={}", extent.at.0, extent.len);
            if let Some(option) = option {
                options.push(',');
                options.push_str(option);
            }
            // mount(8) makes the loop device, which is removed automatically with the mount.
            let outcome = Program::new("mount", MOUNT_LIMIT)
                .args(["-t", kind, "-o", &options, "--"])
                .arg(path)
                .arg(at)
                .run()?;
            match outcome.end {
                end if end.success() => Ok(()),
                End::Exited(_) => Err(io::Error::other(outcome.last_words)),
                End::TimedOut(_) => Err(io::Error::other(format!("mount {}", outcome.end))),
            }
        }
    }
}

/// Unmounts `at`; succeeds if it is no mount. A mount that stays busy is detached lazily.
pub(super) fn detach(at: &Path) -> io::Result<()> {
    let until = Instant::now() + UNMOUNT_WAIT;
    loop {
        match umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            Err(Errno::EBUSY) => {
                return Ok(umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The file system at `offset`, by its magic number; `None` if it is unknown.
fn file_system(path: &Path, offset: u64) -> io::Result<Option<&'static str>> {
    let mut file = File::open(path)?;
    let mut head = [0; 2048];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut head)?;
    Ok(by_magic(&head))
}

fn by_magic(head: &[u8; 2048]) -> Option<&'static str> {
    // Documentation/filesystems: squashfs.rst; erofs_fs.h, super block at 1024; ext4/super.rst, s_magic at 1024 + 0x38.
    if head.starts_with(b"hsqs") {
        Some("squashfs")
    } else if head[1024..1028] == [0xe2, 0xe1, 0xf5, 0xe0] {
        Some("erofs")
    } else if head[1080..1082] == [0x53, 0xef] {
        Some("ext4")
    } else {
        None
    }
}

/// Reads files and directories of an image into memory. Missing ones are skipped: this is an optimisation only.
pub(super) fn preread(root: &Path, paths: &[String]) {
    let mut left = PREREAD_MAX;
    for path in paths {
        let _ = read_below(root, path, &mut left);
    }
}

fn read_below(root: &Path, path: &str, left: &mut u64) -> io::Result<()> {
    let root = File::open(root)?;
    // Absolute links of the image resolve within the image, not on the host.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&root, path.trim_start_matches('/'), how)?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        *left -= io::copy(&mut file.take(*left), &mut io::sink())?;
    } else if kind.is_dir() {
        use std::os::fd::AsRawFd;
        for entry in fs::read_dir(format!("/proc/self/fd/{}", file.as_raw_fd()))?.flatten() {
            if *left > 0 && !entry.file_type()?.is_symlink() {
                let _ = read_below(
                    Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())),
                    &entry.file_name().to_string_lossy(),
                    left,
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_by_their_magic() {
        let mut head = [0; 2048];
        assert_eq!(by_magic(&head), None);
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(by_magic(&head), Some("ext4"));
        head[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        assert_eq!(by_magic(&head), Some("erofs"));
        head[..4].copy_from_slice(b"hsqs");
        assert_eq!(by_magic(&head), Some("squashfs"));
    }

    #[test]
    fn reading_ahead_stays_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/usr/bin")).unwrap();
        fs::write(dir.path().join("outside"), "12345").unwrap();
        fs::write(dir.path().join("root/usr/bin/app"), "123").unwrap();
        std::os::unix::fs::symlink("/usr/bin", dir.path().join("root/bin")).unwrap();
        std::os::unix::fs::symlink("../outside", dir.path().join("root/out")).unwrap();
        let read = |path: &str| {
            let mut left = 1000;
            read_below(&dir.path().join("root"), path, &mut left).map(|()| 1000 - left).ok()
        };
        assert_eq!(read("/usr/bin/app"), Some(3));
        assert_eq!(read("/bin/app"), Some(3), "an absolute link leads into the image");
        assert_eq!(read("/usr"), Some(3), "directories with what lies in them");
        assert_eq!(read("/out"), None);
        assert_eq!(read("/../outside"), None);
        assert_eq!(read("/missing"), None);
    }
}
