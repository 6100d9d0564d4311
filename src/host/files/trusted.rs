//! Files that decide what is trusted: configuration, trusted keys, tokens, programs that are run. A user that can write such
//! a file, or a directory above it, can decide; so only root and the caller may.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Mode bits that let users other than the owner write.
const WRITABLE: u32 = 0o022;
/// In a directory with this bit only its owner can replace a file (inode(7)): /tmp.
const STICKY: u32 = 0o1000;

/// Why a file is not trusted: the file, or a directory above it, that another user can change.
#[derive(Debug)]
struct Exposed {
    path: PathBuf,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// It belongs to another user.
    Owner { owner: u32, caller: u32 },
    /// Its mode lets others write.
    Mode,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.why {
            Why::Owner { owner, caller } => write!(
                f,
                "{path} belongs to user {owner}, who decides what is trusted then; it must belong to root or to user {caller} (chown)"
            ),
            Why::Mode => write!(
                f,
                "{path} can be written by others than its owner, who decide what is trusted then (chmod go-w)"
            ),
        }
    }
}

impl std::error::Error for Exposed {}

/// The command that makes a file trusted; `None` if the error has another reason than its owner or its mode.
pub(crate) fn trust_remedy(problem: &io::Error) -> Option<String> {
    let exposed = problem.get_ref()?.downcast_ref::<Exposed>()?;
    let path = exposed.path.display();
    Some(match exposed.why {
        Why::Owner { .. } => format!("check its content, then: chown root {path}"),
        Why::Mode => format!("check its content, then: chmod go-w {path}"),
    })
}

/// Reads a file of at most `limit` bytes that only root and the caller can change.
///
/// # Errors
/// Those of open(2) and read(2); a file, or a directory above it, that another user owns or may write to; a longer file.
pub(crate) fn read_trusted(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // A FIFO is not waited for before its owner is known; the read does wait.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOCTTY.bits()).open(path)?;
    check(path, &file)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a text file as [`read_trusted`] does.
///
/// # Errors
/// As [`read_trusted`]; bytes that are not UTF-8.
pub(crate) fn read_trusted_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_trusted(path, limit)?).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// Checks that only root and the caller can change the file at `path`, such as a program.
///
/// # Errors
/// As [`read_trusted`].
pub(crate) fn check_trusted(path: &Path) -> io::Result<()> {
    check(path, &File::open(path)?)
}

fn check(path: &Path, file: &File) -> io::Result<()> {
    let about = file.metadata()?;
    own(path, &about)?;
    // A pipe, `--trust <(...)`, lies in no directory in which it could be exchanged.
    if !about.is_file() && !about.is_dir() {
        return Ok(());
    }
    if about.mode() & WRITABLE != 0 {
        return Err(writable(path));
    }
    let real = fs::canonicalize(path)?;
    // The opened file is the one that these directories lead to: it was not exchanged in between.
    let there = fs::symlink_metadata(&real)?;
    if (there.dev(), there.ino()) != (about.dev(), about.ino()) {
        return Err(io::Error::other("replaced while it was being opened"));
    }
    // The directories of a link count as well as those of its target.
    for dir in directories(&std::path::absolute(path)?).into_iter().chain(directories(&real)) {
        let about = fs::metadata(&dir)?;
        own(&dir, &about)?;
        if about.mode() & WRITABLE != 0 && about.mode() & STICKY == 0 {
            return Err(writable(&dir));
        }
    }
    Ok(())
}

fn directories(path: &Path) -> Vec<PathBuf> {
    path.ancestors().skip(1).map(Path::to_owned).collect()
}

fn own(path: &Path, about: &Metadata) -> io::Result<()> {
    let (owner, caller) = (about.uid(), geteuid().as_raw());
    if owner == 0 || owner == caller {
        return Ok(());
    }
    Err(exposed(path, Why::Owner { owner, caller }))
}

fn writable(path: &Path) -> io::Error {
    exposed(path, Why::Mode)
}

fn exposed(path: &Path, why: Why) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, Exposed { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_writer_of_a_file_or_of_a_directory_above_it_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (up, file) = (dir.path().join("up"), dir.path().join("up/file"));
        fs::create_dir(&up).unwrap();
        fs::write(&file, "text").unwrap();
        set(&up, 0o755);
        set(&file, 0o644);
        assert_eq!(read_trusted(&file, 4).unwrap(), b"text");
        assert!(read_trusted(&file, 3).unwrap_err().to_string().contains("longer than 3"));
        for (path, mode) in [(&file, 0o664), (&file, 0o646), (&up, 0o775), (&up, 0o757)] {
            let before = fs::metadata(path).unwrap().mode();
            set(path, mode);
            let problem = read_trusted(&file, 4).unwrap_err().to_string();
            assert!(problem.starts_with(&format!("{} can be written", path.display())), "{problem}");
            let remedy = trust_remedy(&read_trusted(&file, 4).unwrap_err()).unwrap();
            assert!(remedy.ends_with(&format!("chmod go-w {}", path.display())), "{remedy}");
            set(path, before);
        }
        set(&up, 0o1777);
        read_trusted(&file, 4).unwrap();
        // A link whose target lies below a world-writable directory, and a link that lies there itself.
        set(&up, 0o757);
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        read_trusted(&link, 4).unwrap_err();
        let (safe, link) = (dir.path().join("safe"), dir.path().join("up/link"));
        fs::write(&safe, "text").unwrap();
        symlink(&safe, &link).unwrap();
        read_trusted(&safe, 4).unwrap();
        read_trusted(&link, 4).unwrap_err();
    }

    /// Only root can give a file away.
    #[test]
    fn a_file_of_another_user_is_not_trusted() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        set(&file, 0o600);
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        let problem = read_trusted(&file, 4).unwrap_err();
        assert!(problem.to_string().contains("belongs to user 65534"), "{problem}");
        let remedy = trust_remedy(&problem).unwrap();
        assert!(remedy.ends_with(&format!("chown root {}", file.display())), "{remedy}");
    }
}
