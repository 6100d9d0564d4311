//! A block device as a stream, for the reader of the `gpt` crate.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::device::{AlignedBuf, BlockDevice};
use crate::units::ByteOffset;

/// A device as `Read + Seek` for the second reader, which reads entry by entry; a window of blocks saves one
/// transfer per entry. Writing is refused.
pub(super) struct Cursor<'a> {
    disk: &'a dyn BlockDevice,
    at: u64,
    window: AlignedBuf,
    window_at: u64,
}

/// Window size in bytes: a multiple of every block size; the usual array fits.
const WINDOW: u64 = 32 << 10;

impl<'a> Cursor<'a> {
    pub(super) fn new(disk: &'a dyn BlockDevice) -> Self {
        Self { disk, at: 0, window: AlignedBuf::zeroed(0), window_at: 0 }
    }

    /// Reads the `unit` bytes around the position, fewer at the end of the disk.
    fn fill(&mut self, unit: u64) -> io::Result<()> {
        let from = self.at / unit * unit;
        let mut window = AlignedBuf::zeroed(unit.min(self.disk.len() - from) as usize);
        self.disk.read_at(&mut window, ByteOffset(from))?;
        (self.window, self.window_at) = (window, from);
        Ok(())
    }
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor at {}", self.at)
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.disk.len() {
            return Ok(0);
        }
        let past = self.window_at.saturating_add(self.window.len() as u64);
        if !(self.window_at..past).contains(&self.at) {
            // A bad block close by may not belong to the table: then read only the block itself.
            let block = u64::from(self.disk.block_size().bytes());
            self.fill(WINDOW).or_else(|_| self.fill(block))?;
        }
        let rest = &self.window[((self.at - self.window_at) as usize).min(self.window.len())..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.disk.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the second reader does not write"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
