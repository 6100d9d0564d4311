//! Mounts and swap, from the tables in `/proc`. Pure: text in, values out.

use crate::device::DeviceNumber;

/// The fields of a line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `st_dev` of its files. Major 0 if the kernel does not see the file system as on one device: tmpfs, overlay, but btrfs
    /// too.
    pub number: DeviceNumber,
    /// Mount point.
    pub target: String,
    /// Type of the file system.
    pub fs_type: String,
    /// Source: the path of a device, or any word.
    pub source: String,
    /// Options of the file system itself, comma-separated.
    pub options: String,
}

impl Mount {
    /// Lower directories of an overlay, by their paths at the time of the mount. The kernel writes a backslash before a colon
    /// or a comma in a path (Documentation/filesystems/overlayfs.rst).
    pub fn lower_directories(&self) -> Vec<String> {
        let option = |option: &String| {
            let (key, paths) = option.split_once('=')?;
            matches!(key, "lowerdir" | "lowerdir+").then(|| paths.to_owned())
        };
        let lists: Vec<String> = split(&self.options, ',').iter().filter_map(option).collect();
        lists.iter().flat_map(|list| split(list, ':')).filter(|path| !path.is_empty()).collect()
    }
}

/// Splits at `separator`, unless a backslash precedes it; such a backslash is removed.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            if c == separator {
                part.pop();
            }
            part.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

/// The mounts, in the order of the file: of two on one target the later hides the earlier. Malformed lines are left out.
pub fn mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    // The optional fields before the lone dash vary in number.
    let mut fields = line.split(' ');
    let number = fields.nth(2)?.parse().ok()?;
    let target = unescape(fields.nth(1)?);
    fields.by_ref().skip(1).find(|&field| field == "-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    Some(Mount { number, target, fs_type, source, options: fields.next().map(unescape).unwrap_or_default() })
}

/// A writable mount point of the file system on a device: the superblock, not only the mount, is "rw". `None` if there is
/// none.
pub fn writable(text: &str, number: DeviceNumber) -> Option<String> {
    let is_writable = |line: &str| {
        let options = line.split(" - ").nth(1)?.split(' ').nth(2)?;
        options.split(',').any(|option| option == "rw").then_some(())
    };
    text.lines().find_map(|line| {
        let found = mount(line).filter(|found| found.number == number)?;
        is_writable(line).map(|()| found.target)
    })
}

/// The active swap devices and files, from `/proc/swaps` (proc_swaps(5)).
pub fn swaps(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).map(unescape).collect()
}

/// Undoes the kernel's `mangle()`, which writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if let (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) = (byte, tail) {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = &tail[3..];
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_every_shape() {
        let text = "\
21 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/l
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
40 21 259:3 / /a\\040b\\134c rw - ext4 /dev/nvme0n1p3 rw
41 21 0:33 / /x rw unbindable - fuse.odd - rw
short line
42 21 zz / /y rw - ext4 /dev/sda1 rw
43 21 8:1 / /y rw ext4 /dev/sda1 rw
";
        let found: Vec<_> =
            mounts(text).into_iter().map(|m| (m.number.to_string(), m.target, m.fs_type, m.source)).collect();
        let expected = [
            ("0:20", "/", "overlay", "overlay"),
            ("98:0", "/mnt2", "ext3", "/dev/root"),
            ("259:3", "/a b\\c", "ext4", "/dev/nvme0n1p3"),
            ("0:33", "/x", "fuse.odd", "-"),
        ]
        .map(|(n, t, f, s)| (n.to_owned(), t.to_owned(), f.to_owned(), s.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn lower_directories_of_every_spelling() {
        let of = |options: &str| {
            let line = format!("21 1 0:20 / / rw - overlay o rw,{options}\n");
            mounts(&line).remove(0).lower_directories()
        };
        assert_eq!(of("lowerdir=/a:/b,upperdir=/u,workdir=/w"), ["/a", "/b"]);
        assert_eq!(of("lowerdir+=/a,lowerdir+=/b\\040c,datadir+=/d"), ["/a", "/b c"]);
        assert_eq!(of("lowerdir=/a\\134:x:/b\\134,y::/data"), ["/a:x", "/b,y", "/data"]);
        assert!(of("upperdir=/u").is_empty() && of("lowerdir").is_empty() && of("").is_empty());
    }

    #[test]
    fn swaps_have_a_header() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda3      partition\t1\t0\t-2\n/var/swap\\040file file\t1\t0\t-3\n";
        assert_eq!(swaps(text), ["/dev/sda3", "/var/swap file"]);
        assert!(swaps("").is_empty());
    }

    proptest! {
        /// Whatever the kernel escapes comes back.
        #[test]
        fn unescape_undoes_mangle(text in "[ -~\t\n]*") {
            let mangled: String = text
                .chars()
                .map(|c| if " \t\n\\".contains(c) { format!("\\{:03o}", c as u32) } else { c.to_string() })
                .collect();
            prop_assert_eq!(unescape(&mangled), text);
        }

        #[test]
        fn any_text_is_survived(text in "\\PC*") {
            mounts(&text);
            swaps(&text);
        }
    }
}
