//! What lies below a loop device: identified by device and inode, which no path and no mount namespace hides.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use super::{DeviceNumber, open_for_lock};
use crate::error::Error;

/// Identity of a file or a block device, independent of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Identity {
    /// A file: the device of its file system (`st_dev`) and its inode.
    File(DeviceNumber, u64),
    /// A block device by its number.
    Block(DeviceNumber),
}

impl Identity {
    /// Identity of what a path names; symbolic links are followed.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(if found.file_type().is_block_device() {
            Self::Block(DeviceNumber::from_raw(found.rdev()))
        } else {
            Self::File(DeviceNumber::from_raw(found.dev()), found.ino())
        })
    }

    /// Identity of what the loop device at `node` is attached to. sysfs has only the path at the time of attaching:
    /// it may come from another mount namespace, be renamed or deleted since.
    pub(crate) fn below(node: &Path) -> io::Result<Self> {
        let file = open_for_lock(node).map_err(|error| match error {
            Error::Open { source, .. } => source,
            other => io::Error::other(other),
        })?;
        let status = status(&file)?;
        Ok(match status[RDEVICE] {
            0 => Self::File(DeviceNumber::from_raw(status[DEVICE]), status[INODE]),
            number => Self::Block(DeviceNumber::from_raw(number)),
        })
    }
}

/// `struct loop_info64` of linux/loop.h, 232 bytes: five u64 (device, inode, rdevice, offset, sizelimit), four u32,
/// 160 bytes of names and key, two u64. As an array any content is valid, and its alignment is that of the structure.
type LoopInfo = [u64; 29];
const DEVICE: usize = 0;
const INODE: usize = 1;
const RDEVICE: usize = 2;

mod call {
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopInfo);
}

#[expect(unsafe_code, reason = "no crate has this ioctl as a safe function; see the SAFETY paragraph")]
fn status(file: &fs::File) -> io::Result<LoopInfo> {
    let mut status: LoopInfo = [0; 29];
    // SAFETY: LOOP_GET_STATUS64 writes sizeof(struct loop_info64), 232 bytes since Linux 2.6 on every architecture, to
    // the pointer; `status` has exactly 232 bytes, is exclusively borrowed for the call, and every bit pattern is a
    // valid u64. The descriptor is open for as long as `file` is borrowed. A file that is no loop device has no such
    // ioctl (ENOTTY, EINVAL) and nothing is written; block drivers and file systems use number 0x4C, 5 for nothing else.
    unsafe { call::loop_get_status64(file.as_raw_fd(), &raw mut status) }?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<LoopInfo>(), 5 * 8 + 4 * 4 + 64 + 64 + 32 + 2 * 8);
    }

    #[test]
    fn identity_is_neither_name_nor_content() {
        let dir = tempfile::tempdir().unwrap();
        let [one, hard, soft, other] = ["one", "hard", "soft", "other"].map(|name| dir.path().join(name));
        fs::write(&one, "x").unwrap();
        fs::hard_link(&one, &hard).unwrap();
        std::os::unix::fs::symlink(&one, &soft).unwrap();
        fs::copy(&one, &other).unwrap();
        let of = |path: &Path| Identity::of(path).unwrap();
        assert_eq!((of(&hard), of(&soft)), (of(&one), of(&one)));
        assert_ne!(of(&other), of(&one));
        // Nothing but a loop device has something below it.
        Identity::below(&one).unwrap_err();
        Identity::below(Path::new("/dev/null")).unwrap_err();
        Identity::below(&dir.path().join("none")).unwrap_err();
    }
}
