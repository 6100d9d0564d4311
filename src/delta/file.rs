//! The old image as a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::bundle::ReadAt;
use crate::error::{Error, Result};

/// A regular file with an image, read at any place. It stays in the page cache: all of it is read more than once.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    /// Name in errors.
    path: PathBuf,
    len: u64,
}

impl ImageFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a regular file, so it cannot be read at any place")));
        }
        Self::of(file, path.to_owned())
    }

    /// The image in an open file.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub(super) fn of(file: File, path: PathBuf) -> Result<Self> {
        match file.metadata() {
            Ok(metadata) => Ok(Self { file, path, len: metadata.len() }),
            Err(source) => Err(Error::Open { path, source }),
        }
    }
}

impl ReadAt for ImageFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let named = |problem: io::Error| {
            let source = io::Error::new(problem.kind(), format!("reading at byte {at}: {problem}"));
            io::Error::other(Error::Open { path: self.path.clone(), source })
        };
        self.file.read_exact_at(buf, at).map_err(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::delta::BaseRef;

    #[test]
    fn an_image_that_another_process_truncates_is_an_error_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 20).unwrap();
        let image = ImageFile::open(file.path()).unwrap();
        BaseRef::of(&image).unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        let problem = BaseRef::of(&image).unwrap_err();
        assert_eq!(problem.code(), "UPGRADE_ERROR_OPEN");
        let says = crate::error::sentence(&problem);
        assert!(says.contains(&file.path().display().to_string()) && says.contains("byte 2097152"), "{says}");
        ImageFile::open(Path::new("/dev/null")).unwrap_err();
    }
}
