//! Destination of a build-host verb's output: a new file, a file that may be replaced, or a stream.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::files::OutputFile;

/// The output of `pack`, `sign` and `delta`.
pub enum Destination<'a> {
    /// A new file, which appears when it is complete and durable.
    New(&'a Path),
    /// The same, but a regular file of that name is replaced.
    Replaced(&'a Path),
    /// A stream, such as standard output.
    Stream(&'a mut dyn Write),
}

impl Destination<'_> {
    /// Refuses a file that must not be written, before any work is done: an input, under any name; a file that is not
    /// regular; a file that exists and may not be replaced. `inputs` are option names and files.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OutputExists`]; [`Error::Output`] if the path cannot be examined.
    pub fn check(&self, inputs: &[(&str, &Path)]) -> Result<()> {
        let (Self::New(path) | Self::Replaced(path)) = self else { return Ok(()) };
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::Output { path: (*path).to_owned(), source }),
        };
        let refused = |problem: String| Err(Error::Argument { what: "--output".to_owned(), problem });
        // A link is replaced and not followed. A link to an input is refused all the same: it is a mistake.
        let target = fs::metadata(path).ok();
        let same = |input: &Path| {
            let of = fs::metadata(input).ok();
            of.is_some_and(|input| {
                is_same(&found, &input) || target.as_ref().is_some_and(|t| is_same(t, &input))
            })
        };
        if let Some((option, _)) = inputs.iter().find(|(_, input)| same(input)) {
            return refused(format!("{} is what {option} reads; write to another file", path.display()));
        }
        if !found.is_file() && !found.is_symlink() {
            return refused(format!(
                "{} is no regular file; '-' is standard output, and the shell sends that anywhere",
                path.display()
            ));
        }
        match self {
            Self::New(_) => Err(Error::OutputExists { path: (*path).to_owned() }),
            Self::Replaced(_) | Self::Stream(_) => Ok(()),
        }
    }

    /// Its name, for reports; `-` for a stream.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::New(path) | Self::Replaced(path) => (*path).to_owned(),
            Self::Stream(_) => PathBuf::from("-"),
        }
    }

    /// An unlinked temporary file beside the output; for a stream in `TMPDIR`, or in `/var/tmp`, which is not a tmpfs.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn scratch(&self) -> Result<File> {
        let near = match self {
            Self::New(path) | Self::Replaced(path) => (*path).to_owned(),
            Self::Stream(_) => temporary_directory().join("qstage"),
        };
        let mut name = near.into_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(name);
        let failed = |source| Error::Output { path: path.clone(), source };
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        fs::remove_file(&path).map_err(failed)?;
        Ok(file)
    }

    /// Writes the output and returns its size in bytes. On failure a file is as it was before, and no other file
    /// remains; a stream has received a part.
    ///
    /// # Errors
    /// [`Error::Output`], [`Error::OutputExists`], and those of `write`.
    pub(crate) fn publish(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<u64> {
        let path = self.path();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.clone() },
            _ => Error::Output { path: path.clone(), source },
        };
        match self {
            Self::New(name) | Self::Replaced(name) => {
                let mut file = OutputFile::create(name, 0o666).map_err(failed)?;
                let mut counted = Counted { to: &mut file, bytes: 0 };
                write(&mut counted)?;
                let bytes = counted.bytes;
                match self {
                    Self::New(_) => file.publish_new(),
                    _ => file.publish(),
                }
                .map_err(failed)?;
                Ok(bytes)
            }
            Self::Stream(to) => {
                let mut counted = Counted { to, bytes: 0 };
                write(&mut counted)?;
                counted.flush().map_err(failed)?;
                Ok(counted.bytes)
            }
        }
    }
}

/// Directory of temporary files that may be large: `TMPDIR`, or `/var/tmp`, which is not a tmpfs.
pub(crate) fn temporary_directory() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Writer that counts bytes.
struct Counted<'a> {
    to: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
