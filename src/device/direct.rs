//! Disks, partitions and image files past the page cache: the only place of the project that opens them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{Whence, lseek64};

use super::barrier::Barrier;
use super::number::{DeviceNumber, QueueLimits};
use super::transfer::{self, retry};
use super::{AlignedBuf, BUFFER_ALIGNMENT, BlockDevice, check_transfer, watch, write_zeroes_by_writing};
use crate::error::{Error, Result};
use crate::units::{BlockSize, ByteOffset};

/// What a [`Direct`] may do, and what it excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Read.
    Read,
    /// Read and write, even while others use the device.
    Write,
    /// Read and write; a block device is refused (`EBUSY`) while it is mounted, swapped on or claimed by
    /// another layer, and cannot become so while this is open (`O_EXCL` without `O_CREAT`, open(2)).
    Claim,
}

/// A block device or an image file, opened with `O_DIRECT`: a read comes from the medium, a write is on its way to
/// it when the call returns, and neither evicts a page of the running system.
#[derive(Debug)]
pub struct Direct {
    file: File,
    path: PathBuf,
    number: Option<DeviceNumber>,
    len: u64,
    block: BlockSize,
    physical: u32,
    barrier: Barrier,
    /// Set by the first refusal of `fallocate`, so that it is called once and not for each range.
    zero_range_refused: AtomicBool,
}

impl Direct {
    /// Opens `path`. `file_block` is the block size of the partition table in a file, which has no sector size of
    /// its own; that of a block device is read from the kernel. There is no fallback to the page cache: refuses if
    /// `O_DIRECT` does not work, or works only in larger units than the sectors of an image.
    pub fn open(path: &Path, mode: Mode, file_block: BlockSize) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        // Checked before the open as well: opening a FIFO blocks until another process writes to it.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(invalid("neither a regular file nor a block device")));
        }
        let file = open_direct(path, mode, kind.is_block_device())?;
        let found = file.metadata().map_err(failed)?;
        // Checked after the open, on the very file that was opened: a path can change its meaning in between.
        let (number, len, block, physical) = if found.file_type().is_block_device() {
            let number = DeviceNumber::from_raw(found.rdev());
            let queue = QueueLimits::of(Path::new("/sys"), number).map_err(failed)?;
            if mode != Mode::Read && queue.read_only {
                // Linux allows opening a read-only disk for writing and fails each write (EPERM).
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
        if number.is_none() {
            device.check_file_system(DeviceNumber::from_raw(found.dev()))?;
        }
        device.probe()?;
        Ok(device)
    }

    /// Number of the block device; `None` for a file.
    pub fn number(&self) -> Option<DeviceNumber> {
        self.number
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File systems on 4096-byte sectors do direct I/O in such units only, whatever the sectors of the image. To
    /// read, change and write back the larger unit would work. But two threads that write neighbouring sectors
    /// would undo each other, and the one sector that commits a table would take others with it: refused, with a
    /// remedy. The queue of the device below is read because a blank image is one hole, and a read of a hole
    /// succeeds in any unit.
    fn check_file_system(&self, below: DeviceNumber) -> Result<()> {
        match QueueLimits::of(Path::new("/sys"), below) {
            Ok(queue) if queue.logical.bytes() > self.block.bytes() => {
                Err(self.too_small(queue.logical.bytes()))
            }
            // No device of its own (tmpfs, btrfs, network): the probe decides.
            _ => Ok(()),
        }
    }

    fn too_small(&self, unit: u32) -> Error {
        Error::DirectIoUnit { path: self.path.clone(), sector: self.block.bytes(), unit }
    }

    /// Reads the second block, where a disk has the header of its table (UEFI 2.10, 5.3.2): some file systems
    /// refuse `O_DIRECT` only at the first transfer.
    fn probe(&self) -> Result<()> {
        let unit = self.block.bytes() as usize;
        let last = self.len.saturating_sub(unit as u64);
        if self.len == 0 || self.try_read(unit, last.min(unit as u64))? {
            return Ok(());
        }
        let larger = BlockSize::B4096.bytes();
        if self.block.bytes() < larger
            && self.len >= u64::from(larger)
            && self.try_read(larger as usize, 0)?
        {
            return Err(self.too_small(larger));
        }
        Err(Error::NoDirectIo { path: self.path.clone() })
    }

    /// Whether a read of `len` bytes at `at` is accepted: `false` for `EINVAL`, an error for other failures.
    fn try_read(&self, len: usize, at: u64) -> Result<bool> {
        let mut buf = AlignedBuf::zeroed(len);
        let _entry = watch::begin(&self.path, "read");
        match retry(|| self.file.read_at(&mut buf, at)) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(source) => Err(Error::Read { what: self.path.display().to_string(), at, len, source }),
        }
    }

    fn check(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        check_transfer(self.block, self.len, at, buf.len() as u64)?;
        // The kernel demands less on most devices; one rule for all is checked by the first test.
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
        let _entry = watch::begin(&self.path, "read");
        transfer::read_all(buf, at.0, self.block, |part, at| self.file.read_at(part, at))
    }

    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        self.check(buf, at)?;
        self.barrier.check()?;
        let _entry = watch::begin(&self.path, "write");
        transfer::write_all(buf, at.0, self.block, |part, at| self.file.write_at(part, at))
    }

    fn write_zeroes(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        check_transfer(self.block, self.len, at, len)?;
        self.barrier.check()?;
        if len == 0 {
            return Ok(());
        }
        if self.number.is_none() {
            // Only the data of a sparse file has to be zeroed: an image of zeroes must not fill the disk below.
            if let Some((from, to)) = data_within(&self.file, at.0, at.0.saturating_add(len))? {
                let unit = u64::from(self.block.bytes());
                let (from, to) =
                    (from - from % unit, to.next_multiple_of(unit).min(at.0.saturating_add(len)));
                return self.zero_range(ByteOffset(from.max(at.0)), to - from.max(at.0));
            }
            return Ok(());
        }
        self.zero_range(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        let _entry = watch::begin(&self.path, "flush");
        self.barrier.sync(|| retry(|| self.file.sync_data()))
    }
}

impl Direct {
    /// Zeroes by means of the file system or the device, else by writing.
    fn zero_range(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        // Both lie within the device, whose length fits an off_t.
        let (Ok(from), Ok(count)) = (at.0.try_into(), len.try_into()) else {
            return Err(invalid("a range beyond 2^63 bytes"));
        };
        if !self.zero_range_refused.load(Ordering::Relaxed) {
            // ZERO_RANGE and not PUNCH_HOLE: the blocks stay allocated, so no later write meets a full file system.
            // On a block device it is WRITE ZEROES, or the kernel's own loop of zero pages.
            let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _entry = watch::begin(&self.path, "zero");
            match retry(|| fallocate(&self.file, flags, from, count).map_err(io::Error::from)) {
                Ok(()) => return Ok(()),
                Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                        self.zero_range_refused.store(true, Ordering::Relaxed);
                    }
                    // Dirty pages of a buffered writer lie in the range: not a property of the device.
                    Some(Errno::EBUSY) => {}
                    _ => return Err(e),
                },
            }
        }
        write_zeroes_by_writing(self, at, len)
    }
}

/// A range within `from..to` that holds all data of a file, by its file system (lseek(2), `SEEK_DATA`); `None` if it is one
/// hole. It is the smallest one if `from..to` is longer than [`ONE_SEEK`], else it may end with a hole. A file system
/// without that call reports everything as data.
fn data_within(file: &File, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| match lseek64(file, i64::try_from(at).unwrap_or(i64::MAX), whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let Some(first) = seek(from, Whence::SeekData)?.filter(|first| *first < to) else { return Ok(None) };
    if to - from <= ONE_SEEK {
        return Ok(Some((first, to)));
    }
    let (mut last, mut at) = (first, first);
    while let Some(data) = seek(at, Whence::SeekData)?.filter(|data| *data < to) {
        last = seek(data, Whence::SeekHole)?.unwrap_or(to).min(to);
        at = last.max(data.saturating_add(1));
    }
    Ok(Some((first, last)))
}

/// Longest range in which the end of the data is not searched for. `SEEK_HOLE` reads on until the next hole of the whole
/// file, on tmpfs page by page and under the lock of the inode: once per frame of zeroes it took two thirds of the time of
/// a prepare. A frame fits; the few longer ranges of a prepare (the end of a slot) can be many GiB of holes.
const ONE_SEEK: u64 = 16 << 20;

/// Opens a disk or an image only to lock it, without `O_DIRECT` and read-only: closing a file that is open for
/// writing makes udev probe the disk again.
pub(crate) fn open_for_lock(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).open(path).map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// Whether a block device is held exclusively: by a mount in any namespace (also one unmounted lazily), by swap,
/// device mapper, md, or another program. Tested by an exclusive open, which the kernel refuses then. That makes
/// this process a holder for an instant as well, so a refusal counts only if it lasts.
pub(crate) fn is_claimed(path: &Path) -> io::Result<bool> {
    for left in (0..CLAIM_TRIES).rev() {
        let opened = retry(|| OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path));
        match opened {
            Ok(_) => return Ok(false),
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) => return Err(e),
            Err(_) if left == 0 => {}
            Err(_) => std::thread::sleep(CLAIM_PAUSE),
        }
    }
    Ok(true)
}

/// Number of tries of [`is_claimed`], and the time between them: others that test this way need microseconds.
const CLAIM_TRIES: u32 = 5;
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

fn open_direct(path: &Path, mode: Mode, block_device: bool) -> Result<File> {
    // O_CLOEXEC is what std always sets. O_EXCL has no effect on a file that is not created.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: Option<&str>, len: u64) -> tempfile::NamedTempFile {
        let file = dir.map_or_else(tempfile::NamedTempFile::new, tempfile::NamedTempFile::new_in).unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    #[test]
    fn after_a_failed_flush_only_reads_work() {
        let file = image(None, 8192);
        let device = Direct::open(file.path(), Mode::Write, BlockSize::B4096).unwrap();
        let mut buf = AlignedBuf::zeroed(4096);
        device.write_at(&buf, ByteOffset(0)).unwrap();
        device.write_zeroes(ByteOffset(0), 4096).unwrap();
        device.sync().unwrap();
        device.barrier.sync(|| Err(io::ErrorKind::Other.into())).unwrap_err();
        device.write_at(&buf, ByteOffset(0)).unwrap_err();
        device.write_zeroes(ByteOffset(0), 4096).unwrap_err();
        device.sync().unwrap_err();
        device.read_at(&mut buf, ByteOffset(0)).unwrap();
    }

    /// Regression: `init` of a tiny image with slots of 30 GiB allocated 60 GiB.
    #[test]
    fn holes_stay_holes_and_data_becomes_zero() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let device = Direct::open(&path, Mode::Write, BlockSize::B512).unwrap();
        let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
        device.write_zeroes(ByteOffset(0), 64 << 20).unwrap();
        assert_eq!(allocated(), 0);
        let mut ones = AlignedBuf::zeroed(4096);
        ones.fill(1);
        for at in [8 << 20, (9 << 20) + 512, 32 << 20] {
            device.write_at(&ones, ByteOffset(at)).unwrap();
        }
        device.write_zeroes(ByteOffset((8 << 20) + 512), 24 << 20).unwrap();
        device.sync().unwrap();
        let mut all = AlignedBuf::zeroed(64 << 20);
        device.read_at(&mut all, ByteOffset(0)).unwrap();
        let left = |at: usize| {
            (8 << 20..(8 << 20) + 512).contains(&at) || ((32 << 20) + 512..(32 << 20) + 4096).contains(&at)
        };
        assert!(all.iter().enumerate().all(|(at, byte)| (*byte == 1) == left(at)));
        assert!(allocated() < 40 << 20, "{}", allocated());
    }

    /// Regression: on tmpfs, zeroing a frame of an image searched the rest of the image for its next hole, so that prepare
    /// took three times the time.
    #[test]
    fn the_time_to_zero_a_frame_does_not_depend_on_the_length_of_the_file() {
        let fastest = |len: usize| {
            let file = image(Some("/dev/shm"), len as u64);
            std::io::Write::write_all(&mut file.as_file(), &vec![1; len]).unwrap();
            let device = Direct::open(file.path(), Mode::Write, BlockSize::B4096).unwrap();
            let time = |at: u64| {
                let start = std::time::Instant::now();
                device.write_zeroes(ByteOffset(at), 4096).unwrap();
                start.elapsed()
            };
            (0..16).map(|frame| time(frame * 8192)).min().unwrap()
        };
        let (short, long) = (fastest(1 << 20), fastest(96 << 20));
        assert!(long < 8 * short, "{long:?} in 96 MiB, {short:?} in 1 MiB");
    }

    /// tmpfs refuses `ZERO_RANGE` (EOPNOTSUPP).
    #[test]
    fn zero_range_is_tried_once_and_replaced_by_writing() {
        let file = image(Some("/dev/shm"), 3 << 20);
        let device = Direct::open(file.path(), Mode::Write, BlockSize::B512).unwrap();
        let mut ones = AlignedBuf::zeroed(3 << 20);
        ones.fill(1);
        device.write_at(&ones, ByteOffset(0)).unwrap();
        assert!(!device.zero_range_refused.load(Ordering::Relaxed));
        device.write_zeroes(ByteOffset(512), (2 << 20) + 512).unwrap();
        assert!(device.zero_range_refused.load(Ordering::Relaxed));
        device.read_at(&mut ones, ByteOffset(0)).unwrap();
        let zeroes = 512..(2 << 20) + 1024;
        assert!(ones.iter().enumerate().all(|(i, &byte)| (byte == 0) == zeroes.contains(&i)));
    }

    #[test]
    fn other_files_than_disks_are_refused_without_hanging() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [dir.path(), &fifo, Path::new("/dev/null"), &dir.path().join("none")] {
            let error = Direct::open(path, Mode::Read, BlockSize::B512).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_OPEN");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        // A regular file of a file system without direct I/O.
        let error = Direct::open(Path::new("/proc/version"), Mode::Read, BlockSize::B512).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_NO_DIRECT_IO");
        let cut = image(None, 4096 + 512);
        let error = Direct::open(cut.path(), Mode::Read, BlockSize::B4096).unwrap_err();
        assert!(error.to_string().contains("4608 bytes are not a whole number of 4096-byte"), "{error}");
        Direct::open(cut.path(), Mode::Read, BlockSize::B512).unwrap();
    }
}
