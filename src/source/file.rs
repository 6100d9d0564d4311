//! Sources of bundles: a file that many threads read at any offset, or a stream that is read once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{self, off_t};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bundle::source::{ReadAt, ReadStopped, Source};
use crate::device::watch;
use crate::error::{Error, Result};
use crate::progress::Cancel;

/// Longest silence of a stream (pipe, FIFO, socket, terminal) in seconds, after which a read of it fails; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputTimeout(pub u64);

impl Default for InputTimeout {
    /// Five minutes. A program that feeds a pipe may be silent for longer than a server (30 s): it asks for a passphrase, or
    /// waits for a server itself and then tries again. But a prepare holds the lock of the disk all the time, and a
    /// machine without an operator has to end it by itself.
    fn default() -> Self {
        Self(300)
    }
}

/// Opens the bundle at `path`; `-` is standard input. A regular file, also as standard input, is read positionally; anything
/// else is a stream whose reads end within 200 ms of a stop request, and fail after a silence of `timeout`.
pub fn open_source(path: &Path, timeout: InputTimeout, cancel: &Cancel) -> Result<Source> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let file = if path == Path::new("-") {
        File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
    } else {
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        // Disks belong to the device layer; a directory would fail only at the first read, without its name.
        if kind.is_block_device() || kind.is_dir() {
            let what = if kind.is_dir() { "a directory" } else { "a block device" };
            return Err(failed(io::Error::other(format!("is {what}, not a bundle"))));
        }
        // Without O_NONBLOCK the open of a FIFO blocks until it has a writer, and stop requests are not checked.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?
    };
    opened_source(file, path, timeout, cancel)
}

/// The same for an open file; `path` is its name in errors.
pub fn opened_source(file: File, path: &Path, timeout: InputTimeout, cancel: &Cancel) -> Result<Source> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    if file.metadata().map_err(failed)?.is_file() {
        PositionalFile::new(file, path).map(|file| Source::File(Arc::new(file))).map_err(failed)
    } else {
        let name = if path == Path::new("-") { Path::new("standard input") } else { path };
        Ok(Source::Stream(Box::new(Polled::new(file, name, timeout, cancel))))
    }
}

/// Distance in bytes at which the page cache is emptied after the reader: slower threads may still read what lies between.
const LAG: u64 = 1 << 20;

/// Number of bytes that the kernel is asked to read ahead.
const AHEAD: u64 = 4 << 20;

/// Number of bytes by which two emptied ranges overlap: the kernel does not drop a folio (up to 2 MiB) of which a range covers
/// only a part, so the edge of the last range is dropped with the next one.
const OVERLAP: u64 = 4 << 20;

/// Drops the pages of an unmodified file from the page cache, as far as the kernel follows the advice (posix_fadvise(2)); on
/// tmpfs the page cache is the only copy, and stays.
///
/// # Errors
/// Those of open(2).
pub fn drop_from_cache(path: &Path) -> io::Result<()> {
    let _ = posix_fadvise(&File::open(path)?, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(())
}

/// A regular file, read by `pread` and then dropped from the page cache: a bundle of gigabytes must not evict the pages of
/// the running system. mmap was rejected: a truncated file would end the process by SIGBUS, and so would a read error of the
/// device.
struct PositionalFile {
    file: File,
    /// Its name in reports of a stall.
    name: PathBuf,
    /// Offset of the bundle in bytes: a part of standard input may have been read before.
    base: u64,
    len: u64,
    /// End of the furthest range that has been read.
    front: AtomicU64,
    /// End of the last read-ahead.
    asked: AtomicU64,
}

impl PositionalFile {
    fn new(mut file: File, name: &Path) -> io::Result<Self> {
        let base = file.stream_position()?;
        let len = file.metadata()?.len().saturating_sub(base);
        let name = name.to_owned();
        let file = Self { file, name, base, len, front: AtomicU64::new(0), asked: AtomicU64::new(0) };
        // The kernel's own read-ahead is a setting of the disk (8 MiB was observed), doubled by SEQUENTIAL: more than may be
        // cached here. So it is turned off, and a bounded one is requested.
        file.advise(0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        Ok(file)
    }

    /// Requests read-ahead after `end`, unless half of it or more has already been requested.
    fn fetch_ahead(&self, end: u64) {
        let asked = self.asked.load(Ordering::Relaxed);
        if !(asked.saturating_sub(AHEAD)..asked.saturating_sub(AHEAD / 2)).contains(&end) {
            self.asked.store(end.saturating_add(AHEAD), Ordering::Relaxed);
            self.advise(end, AHEAD, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }

    /// Advises the kernel. A file system that ignores the advice affects the speed only.
    fn advise(&self, from: u64, len: u64, advice: PosixFadviseAdvice) {
        if let (Ok(from), Ok(len)) = (off_t::try_from(from), off_t::try_from(len)) {
            let _ = posix_fadvise(&self.file, from, len, advice);
        }
    }
}

impl ReadAt for PositionalFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let at = self.base.checked_add(at).ok_or(io::ErrorKind::UnexpectedEof)?;
        let _entry = watch::begin(&self.name, "read");
        self.fetch_ahead(at.saturating_add(buf.len() as u64));
        self.file.read_exact_at(buf, at)
    }

    fn done_with(&self, at: u64, len: u64) {
        let at = self.base.saturating_add(at);
        let end = at.saturating_add(len);
        let front = self.front.fetch_max(end, Ordering::Relaxed).max(end);
        // A slow thread may end its range long after the front has passed: then the range is dropped at once, since no later
        // call reaches back to it.
        let end = end.min(front.saturating_sub(LAG));
        let from = at.min(end).saturating_sub(OVERLAP);
        if end > from {
            self.advise(from, end - from, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }
}

impl Drop for PositionalFile {
    fn drop(&mut self) {
        // Length 0 means "to the end"; this also drops what the distance has left.
        self.advise(self.base, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// A pipe, terminal or socket that is waited for in steps, since a blocked read checks no flag: signal handlers restart it
/// (`SA_RESTART`), and other threads cannot end it.
struct Polled<F> {
    file: F,
    /// Its name in errors.
    name: PathBuf,
    timeout: InputTimeout,
    cancel: Cancel,
    /// Number of bytes read so far.
    at: u64,
}

/// Duration of one wait in milliseconds.
const STEP_MS: u16 = 100;

impl<F: AsFd + Read> Polled<F> {
    fn new(file: F, name: &Path, timeout: InputTimeout, cancel: &Cancel) -> Self {
        Self { file, name: name.to_owned(), timeout, cancel: cancel.clone(), at: 0 }
    }

    /// Waits until there is something to read, or the end.
    ///
    /// The silence is counted in waits, not by a clock: a process that was stopped (SIGSTOP, or a suspended machine) has not
    /// listened, and neither has one whose slow disk kept it from reading.
    fn wait(&self) -> io::Result<()> {
        let limit = self.timeout.0.saturating_mul(1000);
        let mut silent = 0;
        let _entry = watch::begin(&self.name, watch::RECEIVE);
        while !self.cancel.requested() {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            // A FIFO without a writer so far is not at its end: poll waits, read would return 0.
            match poll(&mut fds, PollTimeout::from(STEP_MS)) {
                Ok(0) => silent += u64::from(STEP_MS),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if limit > 0 && silent >= limit {
                let (path, at, seconds) = (self.name.clone(), self.at, self.timeout.0);
                return Err(io::Error::other(Error::InputStalled { path, at, seconds }));
            }
        }
        Err(io::Error::other(ReadStopped))
    }
}

impl<F: AsFd + Read> Read for Polled<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.file.read(buf) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Ok(len) => {
                    self.at = self.at.saturating_add(len as u64);
                    return Ok(len);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{SeekFrom, Write};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::bundle::source::read_failed;

    #[test]
    fn a_file_is_read_anywhere_and_not_past_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(4)).unwrap();
        let source = PositionalFile::new(file, Path::new("x")).unwrap();
        assert_eq!(source.len(), 6, "what was read before is not part of it");
        let mut buf = [0; 3];
        source.read_exact_at(&mut buf, 3).unwrap();
        assert_eq!(&buf, b"789");
        for at in [4, 1 << 40, u64::MAX] {
            assert_eq!(source.read_exact_at(&mut buf, at).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        source.done_with(u64::MAX, u64::MAX);
    }

    #[test]
    fn a_blocked_read_ends_soon_after_the_request() {
        let (reader, mut writer) = io::pipe().unwrap();
        let cancel = Cancel::default();
        let mut stream = Polled::new(reader, Path::new("x"), InputTimeout(0), &cancel);
        writer.write_all(b"ab").unwrap();
        let mut buf = [0; 2];
        stream.read_exact(&mut buf).unwrap();
        let asked = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            let now = Instant::now();
            cancel.request();
            now
        });
        let error = stream.read_exact(&mut buf).unwrap_err();
        assert!(asked.join().unwrap().elapsed() < Duration::from_secs(20));
        assert_eq!(read_failed("x", 0, error).code(), "UPGRADE_ERROR_INTERRUPTED");
        assert_eq!(
            read_failed("x", 0, io::ErrorKind::UnexpectedEof.into()).code(),
            "UPGRADE_ERROR_BUNDLE_TRUNCATED"
        );
    }

    #[test]
    fn a_stream_that_falls_silent_ends_and_one_that_is_slow_does_not() {
        let mut buf = [0; 6];
        let mut slow = || {
            let (reader, mut writer) = io::pipe().unwrap();
            let mut stream = Polled::new(reader, Path::new("x"), InputTimeout(1), &Cancel::default());
            let sender = std::thread::spawn(move || {
                for _ in 0..3 {
                    writer.write_all(b"ab").unwrap();
                    std::thread::sleep(Duration::from_millis(600));
                }
                writer
            });
            let read = stream.read_exact(&mut buf);
            read.ok().map(|()| (stream, sender.join().unwrap()))
        };
        // On a machine that stands still meanwhile a sender is silent: it gets five attempts.
        let (mut stream, writer) = (0..5).find_map(|_| slow()).unwrap();
        let begun = Instant::now();
        let error = stream.read(&mut buf).unwrap_err();
        assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
        let error = read_failed("manifest.json", 6, error);
        assert_eq!(error.code(), "UPGRADE_ERROR_INPUT_STALLED");
        assert!(error.to_string().starts_with("x: no data for 1 s at byte 6; "), "{error}");
        drop(writer);
        assert_eq!(stream.read(&mut buf).unwrap(), 0, "its end is not silence");
    }

    #[test]
    fn a_fifo_waits_for_its_writer_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let Source::Stream(mut stream) = open_source(&path, InputTimeout(0), &Cancel::default()).unwrap()
        else {
            panic!("a FIFO cannot be read positionally")
        };
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(250));
            std::fs::write(path, vec![7; 300_000]).unwrap();
        });
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, vec![7; 300_000]);
        writer.join().unwrap();
    }

    #[test]
    fn a_file_that_is_no_bundle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (path, word) in [(dir.path().to_owned(), "directory"), (dir.path().join("none"), "none")] {
            let Err(error) = open_source(&path, InputTimeout(0), &Cancel::default()) else {
                panic!("opened {path:?}")
            };
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
