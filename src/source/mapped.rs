//! Images that `pack` reads: mapped into memory, with their holes.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use nix::errno::Errno;
use nix::libc::off_t;
use nix::unistd::{Whence, lseek};

use crate::bundle::writer::Image;
use crate::device::watch;
use crate::error::{Error, Result};

/// A regular file, mapped for reading: workers compress directly from the page cache, without copies.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    file: File,
    /// Its name in reports.
    name: PathBuf,
    data: Vec<Range<u64>>,
}

/// Smallest size of a page in bytes: a read of one byte per page loads it.
const PAGE: usize = 4096;

impl MappedFile {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("no regular file; give a file with the image")));
        }
        let mut mapped = Self::of(file).map_err(failed)?;
        path.clone_into(&mut mapped.name);
        // Advice only.
        let _ = mapped.map.advise(Advice::Sequential);
        Ok(mapped)
    }

    /// Maps an open regular file, to be read in any order.
    pub(crate) fn of(file: File) -> std::io::Result<Self> {
        let mut mapped = Self { map: map(&file)?, file, name: PathBuf::new(), data: Vec::new() };
        mapped.data = mapped.find_data();
        Ok(mapped)
    }

    /// The ranges that hold data; between them are holes, which read as zeroes (lseek(2), `SEEK_DATA`). If the file system does
    /// not report holes, one range: the whole file.
    pub fn data_extents(&self) -> &[Range<u64>] {
        &self.data
    }

    fn find_data(&self) -> Vec<Range<u64>> {
        let len = self.map.len() as u64;
        let mut extents = Vec::new();
        let mut at = 0;
        while at < len {
            let data = match self.seek(at, Whence::SeekData) {
                Ok(data) => data,
                // A hole from here to the end.
                Err(Errno::ENXIO) => break,
                Err(_) => at,
            };
            // Not beyond the map: the file may have grown in the meantime.
            let end = self.seek(data, Whence::SeekHole).unwrap_or(len).min(len);
            if data >= end {
                break;
            }
            extents.push(data..end);
            at = end;
        }
        extents
    }

    fn seek(&self, at: u64, whence: Whence) -> nix::Result<u64> {
        let at = off_t::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        u64::try_from(lseek(&self.file, at, whence)?).map_err(|_| Errno::EOVERFLOW)
    }
}

impl Image for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn is_hole(&self, at: u64, len: u64) -> bool {
        let next = self.data.partition_point(|extent| extent.end <= at);
        self.data.get(next).is_none_or(|extent| extent.start >= at + len)
    }

    fn load(&self, at: u64, len: u64) {
        let _entry = watch::begin(&self.name, "read");
        let range = within(at, len, self.map.len()).map_or(0..0, |(at, len)| at..at + len);
        for byte in self.map[range].iter().step_by(PAGE) {
            std::hint::black_box(*byte);
        }
    }

    /// Releases the pages from this process, not from the page cache: its memory does not grow with the image.
    #[allow(unsafe_code)]
    fn release(&self, at: u64, len: u64) {
        let Some((at, len)) = within(at, len, self.map.len()) else { return };
        // SAFETY: MADV_DONTNEED discards data that was written to a private map, under references that still exist. Nothing
        // is written to this one: it is read-only, and a page that is accessed again comes from the file with the same bytes
        // (madvise(2): "repopulating the memory contents from the up-to-date contents of the underlying mapped file"), under
        // the condition on the file that `map` states. The range lies within the map, see `within`.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, len) };
    }
}

/// The part of a range that lies in a map of `size` bytes, as offset and length; `None` if there is none. memmap2 lets ranges
/// pass that begin in a map and end after it, and the kernel then discards whatever memory comes next.
fn within(at: u64, len: u64, size: usize) -> Option<(usize, usize)> {
    let at = usize::try_from(at).ok().filter(|at| *at < size)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(size - at);
    Some((at, len))
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only, so nothing here writes through it. It requires that no other process changes the file
    // while the map exists, which cannot be enforced (Linux has no mandatory locks since 5.15). If another process writes to
    // the image, bytes can change between the hash of a frame and its compression: every reader refuses such a frame, so the
    // worst case is a bundle that does not install. If one truncates the image, `pack` ends by SIGBUS, which leaves only an
    // unfinished output file. Both are accepted on a build host at pack time; nothing that runs on an appliance maps a file.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_found_and_lie_about_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mib = 1u64 << 20;
        file.as_file().set_len(10 * mib + 77).unwrap();
        for at in [2 * mib, 5 * mib, 10 * mib + 70] {
            file.as_file().write_all_at(b"data", at).unwrap();
        }
        let mapped = MappedFile::open(file.path()).unwrap();
        let extents = mapped.data_extents();
        assert!(extents.is_sorted_by(|a, b| a.end < b.start), "{extents:?}");
        let mut at = 0;
        for extent in extents.iter().chain([&(mapped.len() as u64..0)]) {
            assert!(mapped[at as usize..extent.start as usize].iter().all(|&b| b == 0), "{extents:?}");
            at = extent.end;
        }
        let held: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
        // The kernel may round to folios, but a 10 MiB file with 12 bytes of data has holes.
        assert!(held >= 12 && held < mib, "{extents:?}");
    }

    /// `qstage delta` from an image of whole frames to a larger one released the frame after the end of the map. Where other
    /// memory of the process lay there, it ended by "free(): invalid pointer".
    #[test]
    fn nothing_outside_the_map_is_released() {
        let mib = 1 << 20;
        assert_eq!(within(0, 5 * mib, 3 << 20), Some((0, 3 << 20)));
        assert_eq!(within(2 * mib, 5 * mib, 3 << 20), Some((2 << 20, 1 << 20)));
        assert_eq!(within(mib, u64::MAX, 3 << 20), Some((1 << 20, 2 << 20)));
        for at in [3 * mib, 3 * mib + 1, u64::MAX] {
            assert_eq!(within(at, 1, 3 << 20), None);
        }
    }

    #[test]
    fn all_data_all_hole_and_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(MappedFile::open(file.path()).unwrap().data_extents().is_empty());
        file.as_file().set_len(1 << 20).unwrap();
        assert!(MappedFile::open(file.path()).unwrap().data_extents().is_empty());
        file.as_file().write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert_eq!(
            MappedFile::open(file.path()).unwrap().data_extents(),
            vec![Range { start: 0, end: 1 << 20 }]
        );
        MappedFile::open(Path::new("/dev/null")).unwrap_err();
    }
}
