//! Disks, partitions and image files past the page cache: the only place of the project that opens them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{Whence, lseek64};

use super::barrier::Barrier;
use super::number::{DeviceNumber, Queue};
use super::transfer::{self, retry};
use super::{AlignedBuf, BUFFER_ALIGNMENT, BlockDevice, check_transfer, write_zeroes_by_writing};
use crate::error::{Error, Result};
use crate::units::{BlockSize, ByteOffset};

/// What a [`Direct`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Read.
    Read,
    /// Read and write, whoever else uses the device.
    Write,
    /// Read and write; a block device is refused (`EBUSY`) while it is mounted, swapped on or claimed by
    /// another layer, and cannot become so while this is open (`O_EXCL` without `O_CREAT`, open(2)).
    Claim,
}

/// A block device or an image file, opened with `O_DIRECT`: a read comes from the medium, a write is on its
/// way to it when the call returns, and no page of the running system is evicted for either.
#[derive(Debug)]
pub struct Direct {
    file: File,
    path: PathBuf,
    number: Option<DeviceNumber>,
    len: u64,
    block: BlockSize,
    physical: u32,
    barrier: Barrier,
    /// Raised by the first refusal of `fallocate`, so that it is asked once and not for each range.
    zero_range_refused: AtomicBool,
}

impl Direct {
    /// Opens `path`. A file has no sector size of its own, `file_block` says which one its partition table
    /// uses; a block device is asked. Refuses (there is no fallback to the page cache) where `O_DIRECT`
    /// does not work, and where it works only in larger units than the sectors of an image.
    pub fn open(path: &Path, mode: Mode, file_block: BlockSize) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        // Asked before the open as well: to open a FIFO blocks until somebody writes to it.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(invalid("neither a regular file nor a block device")));
        }
        let file = open_direct(path, mode, kind.is_block_device())?;
        let found = file.metadata().map_err(failed)?;
        // After the open, of the very file that was opened: a path can change its meaning in between.
        let (number, len, block, physical) = if found.file_type().is_block_device() {
            let number = DeviceNumber::from_raw(found.rdev());
            let queue = Queue::of(Path::new("/sys"), number).map_err(failed)?;
            if mode != Mode::Read && queue.read_only {
                // Linux lets a read-only disk be opened for writing and fails each write (EPERM).
                return Err(Error::ReadOnly { path: path.to_owned() });
            }
            let end = lseek64(&file, 0, Whence::SeekEnd).map_err(|e| failed(e.into()))?;
            (Some(number), u64::try_from(end).unwrap_or(0), queue.logical, queue.physical)
        } else if found.is_file() {
            (None, found.len(), file_block, file_block.bytes())
        } else {
            return Err(failed(invalid("changed its kind while it was being opened")));
        };
        if !len.is_multiple_of(u64::from(block.bytes())) {
            return Err(failed(invalid(&format!(
                "{len} bytes are not a whole number of {}-byte sectors: the image was cut off, or its sectors have another size",
                block.bytes()
            ))));
        }
        let device = Self {
            file,
            path: path.to_owned(),
            number,
            len,
            block,
            physical,
            barrier: Barrier::default(),
            zero_range_refused: AtomicBool::new(false),
        };
        device.probe()?;
        Ok(device)
    }

    /// The number of the block device; `None` for a file.
    pub fn number(&self) -> Option<DeviceNumber> {
        self.number
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether transfers of one block work here. File systems that are themselves on 4096-byte sectors do
    /// direct I/O in such units only, whatever the sectors of the image. To read, change and write back the
    /// larger unit would serve such an image, but then two threads that write neighbouring sectors undo each
    /// other, and the one sector that commits a table takes others with it: refused, with a way out.
    fn probe(&self) -> Result<()> {
        let unit = self.block.bytes() as usize;
        let last = self.len.saturating_sub(unit as u64);
        if self.len == 0 || self.try_read(unit, last.min(unit as u64))? {
            return Ok(());
        }
        let larger = BUFFER_ALIGNMENT as u64;
        if unit < BUFFER_ALIGNMENT && self.len >= larger && self.try_read(BUFFER_ALIGNMENT, 0)? {
            let (path, sector) = (self.path.clone(), self.block.bytes());
            return Err(Error::DirectIoUnit { path, sector, unit: larger });
        }
        Err(Error::NoDirectIo { path: self.path.clone() })
    }

    /// Whether a read of `len` bytes at `at` is accepted; other failures than `EINVAL` are failures.
    fn try_read(&self, len: usize, at: u64) -> Result<bool> {
        let mut buf = AlignedBuf::zeroed(len);
        match retry(|| self.file.read_at(&mut buf, at)) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(source) => Err(Error::Read { what: self.path.display().to_string(), at, len, source }),
        }
    }

    fn check(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        check_transfer(self.block, self.len, at, buf.len() as u64)?;
        // The kernel would ask for less on most devices; one rule for all is found by the first test.
        if buf.as_ptr().align_offset(BUFFER_ALIGNMENT) != 0 {
            return Err(invalid(&format!("the buffer is not aligned to {BUFFER_ALIGNMENT} bytes in memory")));
        }
        Ok(())
    }
}

impl BlockDevice for Direct {
    fn len(&self) -> u64 {
        self.len
    }

    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn physical_block_size(&self) -> u32 {
        self.physical
    }

    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.check(buf, at)?;
        transfer::read_all(buf, at.0, self.block, |part, at| self.file.read_at(part, at))
    }

    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        self.check(buf, at)?;
        self.barrier.check()?;
        transfer::write_all(buf, at.0, self.block, |part, at| self.file.write_at(part, at))
    }

    fn write_zeroes(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        check_transfer(self.block, self.len, at, len)?;
        self.barrier.check()?;
        if len == 0 {
            return Ok(());
        }
        // Both lie within the device, whose length fits an off_t.
        let (Ok(from), Ok(count)) = (at.0.try_into(), len.try_into()) else {
            return Err(invalid("a range beyond 2^63 bytes"));
        };
        if !self.zero_range_refused.load(Ordering::Relaxed) {
            // ZERO_RANGE and not PUNCH_HOLE: the blocks stay allocated, so no later write finds a full file
            // system. On a block device it is WRITE ZEROES, or the kernel's own loop of zero pages.
            let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match retry(|| fallocate(&self.file, flags, from, count).map_err(io::Error::from)) {
                Ok(()) => return Ok(()),
                Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                        self.zero_range_refused.store(true, Ordering::Relaxed);
                    }
                    // Dirty pages of a buffered writer lie in the range: no statement about the device.
                    Some(Errno::EBUSY) => {}
                    _ => return Err(e),
                },
            }
        }
        write_zeroes_by_writing(self, at, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.barrier.sync(|| retry(|| self.file.sync_data()))
    }
}

/// Opens a disk or an image only to lock it, without `O_DIRECT` and without the right to write: a writer's
/// close would make udev probe the disk again.
pub(crate) fn open_for_lock(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).open(path).map_err(|source| Error::Open { path: path.to_owned(), source })
}

fn open_direct(path: &Path, mode: Mode, block_device: bool) -> Result<File> {
    // O_CLOEXEC is what std always sets. O_EXCL means nothing for a file that is not created.
    let claim = if mode == Mode::Claim && block_device { libc::O_EXCL } else { 0 };
    let opened = retry(|| {
        OpenOptions::new()
            .read(true)
            .write(mode != Mode::Read)
            .custom_flags(libc::O_DIRECT | libc::O_NOCTTY | claim)
            .open(path)
    });
    opened.map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EROFS) => Error::ReadOnly { path: path.to_owned() },
        Some(Errno::EINVAL) => Error::NoDirectIo { path: path.to_owned() },
        Some(Errno::EBUSY) if claim != 0 => Error::SlotInUse {
            partition: path.display().to_string(),
            by: "the kernel refuses exclusive access (mounted, perhaps in another mount namespace, swap, or claimed by another layer)".to_owned(),
        },
        _ => Error::Open { path: path.to_owned(), source },
    })
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem.to_owned())
}
