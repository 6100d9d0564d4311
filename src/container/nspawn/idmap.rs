//! Whether the kernel can mount the files of a container with mapped owners (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
//!
//! A table decides, not an attempt: a failed attempt of systemd-nspawn takes as long as a start, and its message changes
//! between versions.

use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use crate::container::{Config, Users};

/// File systems by their magic number (statfs(2)), and the first Linux version that maps owners on them: `FS_ALLOW_IDMAP` in
/// the sources of the kernel.
const SINCE: [(i64, &str, (u32, u32)); 9] = [
    (0xef53, "ext4", (5, 12)),
    (0x4d44, "vfat", (5, 12)),
    (0x5846_5342, "xfs", (5, 12)),
    (0x9123_683e, "btrfs", (5, 15)),
    (0xf2f5_2010, "f2fs", (5, 18)),
    (0xe0f5_e1e2, "erofs", (5, 19)),
    (0x7371_7368, "squashfs", (6, 2)),
    (0x0102_1994, "tmpfs", (6, 3)),
    (0x00c3_6400, "ceph", (6, 7)),
];

/// The host's path in a bind of systemd-nspawn(1): `HOST:INSIDE`.
pub(super) fn host_of(bind: &str) -> PathBuf {
    let (host, _) = split(bind);
    host.trim_start_matches('+').replace("\\:", ":").into()
}

/// The bind with mapped owners, unless it has its own options.
pub(super) fn mapped(bind: &str) -> String {
    match split(bind) {
        (host, None) => format!("{host}:{host}:idmap"),
        (_, Some(rest)) if split(rest).1.is_some() => bind.to_owned(),
        _ => format!("{bind}:idmap"),
    }
}

/// Splits at the first colon that is not escaped.
fn split(text: &str) -> (&str, Option<&str>) {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            ':' if !escaped => return (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
            _ => escaped = letter == '\\' && !escaped,
        }
    }
    (text, None)
}

/// The reason why the container cannot have private users; `None` if it can. `root` is the mount point of its image, or
/// `None` if it is not mounted.
#[allow(clippy::useless_conversion, reason = "on 32-bit machines the number has 32 bits")]
pub(super) fn obstacle(config: &Config, root: Option<&Path>) -> Option<String> {
    if config.users == Users::Host {
        return None;
    }
    if config.overlay {
        return Some("Linux cannot map the owners of an overlay (overlay = true)".to_owned());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = version(&release);
    // Binds with their own options are left as they are.
    let binds = config.state.iter().chain(&config.bind).chain(&config.bind_ro);
    let plain = binds.filter(|bind| mapped(bind) != **bind).map(|bind| host_of(bind));
    let console = config.console.clone();
    let mut paths = root.map(Path::to_owned).into_iter().chain(plain).chain(console);
    paths.find_map(|path| {
        let found = statfs(&path).ok()?.filesystem_type().0;
        refused(i64::from(found), kernel).map(|why| {
            format!("Linux {}.{} cannot map the owners of {}: {why}", kernel.0, kernel.1, path.display())
        })
    })
}

fn refused(magic: i64, kernel: (u32, u32)) -> Option<String> {
    // 32-bit kernels return the number with a sign.
    let magic = magic & 0xffff_ffff;
    match SINCE.iter().find(|(known, ..)| *known == magic) {
        Some((_, _, since)) if kernel >= *since => None,
        Some((_, name, (major, minor))) => Some(format!("{name} needs {major}.{minor}")),
        None => Some(format!("file system {magic:#x}")),
    }
}

/// Major and minor version; 6 and 1 for `6.1.0-18-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_file_systems() {
        assert_eq!(version("6.1.0-18-amd64\n"), (6, 1));
        assert_eq!(version("5.10.0"), (5, 10));
        assert_eq!(version(""), (0, 0));
        assert_eq!(refused(0xef53, (5, 10)), Some("ext4 needs 5.12".to_owned()));
        assert_eq!(refused(0xef53, (5, 12)), None);
        assert!(refused(0x7371_7368, (6, 1)).is_some() && refused(0x7371_7368, (6, 2)).is_none());
        assert_eq!(refused(i64::from(0xe0f5_e1e2_u32.cast_signed()), (6, 0)), None);
        assert!(refused(0x794c_7630, (6, 18)).is_some(), "overlayfs");
    }

    #[test]
    fn binds_are_mapped_unless_they_say_how() {
        for (bind, host, with) in [
            ("/a:/b", "/a", "/a:/b:idmap"),
            ("/a", "/a", "/a:/a:idmap"),
            ("/a\\:x:/b", "/a:x", "/a\\:x:/b:idmap"),
            ("/a:/b:norbind", "/a", "/a:/b:norbind"),
        ] {
            assert_eq!((host_of(bind), mapped(bind).as_str()), (PathBuf::from(host), with));
        }
    }
}
