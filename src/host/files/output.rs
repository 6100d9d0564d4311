//! Output files. Each is written under a new temporary name, and renamed when it is complete: a link in its place is
//! replaced, never followed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::OFlag;

/// Number of output files that this process has created; makes their temporary names unique.
static CREATED: AtomicU32 = AtomicU32::new(0);

/// A file that is being written. If it is dropped before [`publish`](Self::publish), the drop removes it.
#[derive(Debug)]
pub(crate) struct OutputFile {
    file: File,
    part: PathBuf,
    path: PathBuf,
}

impl OutputFile {
    /// Creates the temporary file beside `path`, with `mode` less the umask.
    ///
    /// # Errors
    /// Those of open(2). A directory, a device or a pipe at `path` is refused: the rename would put a file in place of
    /// `/dev/null`.
    pub(crate) fn create(path: &Path, mode: u32) -> io::Result<Self> {
        let special = |found: fs::Metadata| !found.is_file() && !found.is_symlink();
        if fs::symlink_metadata(path).is_ok_and(special) {
            return Err(io::Error::other("it exists and is no regular file"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}-{}.part", std::process::id(), CREATED.fetch_add(1, Ordering::Relaxed)));
        Self::begin(PathBuf::from(part), path, mode)
    }

    fn begin(part: PathBuf, path: &Path, mode: u32) -> io::Result<Self> {
        // create_new is O_EXCL: nothing that exists, not even a dangling link, is opened.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode).custom_flags(OFlag::O_NOFOLLOW.bits());
        let file = options.open(&part)?;
        Ok(Self { file, part, path: path.to_owned() })
    }

    /// Makes the file durable, and renames it: the old or the new file is there at any time, also after a power cut.
    ///
    /// # Errors
    /// Those of fsync(2) and rename(2); then the file is removed.
    pub(crate) fn publish(self) -> io::Result<()> {
        self.named(|part, path| fs::rename(part, path))
    }

    /// The same, but never replaces a file, not even one created since [`create`](Self::create).
    ///
    /// # Errors
    /// As [`publish`](Self::publish); `AlreadyExists`.
    pub(crate) fn publish_new(self) -> io::Result<()> {
        // A second name, since link(2) replaces nothing; the drop removes the first. If the file system has no hard links,
        // a check of the name has to do.
        self.named(|part, path| match fs::hard_link(part, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            Err(_) if fs::symlink_metadata(path).is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(part, path),
            Ok(()) => Ok(()),
        })
    }

    fn named(self, name: impl FnOnce(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
        self.file.sync_all()?;
        name(&self.part, &self.path)?;
        // The rename is durable only when its directory is.
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // Missing if the file has been published.
        let _ = fs::remove_file(&self.part);
    }
}

/// Replaces a file atomically, in a directory that only we write to. `mode` as for [`OutputFile::create`].
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A fixed temporary name: the caller holds the lock, and a leftover of a power cut is overwritten.
    let part = dir.join(format!("{name}.new"));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OutputFile::begin(part, &dir.join(name), mode)?;
    file.write_all(bytes)?;
    file.publish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, out) = (dir.path().join("victim"), dir.path().join("out"));
        fs::write(&victim, "root's").unwrap();
        symlink(&victim, &out).unwrap();
        symlink(&victim, dir.path().join("out.new")).unwrap();
        let mut file = OutputFile::create(&out, 0o600).unwrap();
        file.write_all(b"new").unwrap();
        file.publish().unwrap();
        assert_eq!(
            (fs::read(&out).unwrap(), fs::read(&victim).unwrap()),
            (b"new".to_vec(), b"root's".to_vec())
        );
        replace(dir.path(), "out", b"newer", 0o600).unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"newer");
        assert_eq!(fs::read(&victim).unwrap(), b"root's");
        let about = fs::symlink_metadata(&out).unwrap();
        assert!(about.is_file() && about.permissions().mode() & 0o777 == 0o600);
        drop(OutputFile::create(&out, 0o600).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a part is left");
    }

    /// The name was free at creation and is taken at publication.
    #[test]
    fn a_new_name_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut file = OutputFile::create(&out, 0o600).unwrap();
        file.write_all(b"ours").unwrap();
        fs::write(&out, "another's").unwrap();
        assert_eq!(file.publish_new().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&out).unwrap(), b"another's");
        fs::remove_file(&out).unwrap();
        OutputFile::create(&out, 0o600).unwrap().publish_new().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "its first name is left");
    }

    /// As root the rename would put a file in place of a device.
    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OutputFile::create(dir.path(), 0o600).is_err());
        assert!(OutputFile::create(Path::new("/dev/null"), 0o600).is_err());
    }
}
