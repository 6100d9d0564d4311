//! Storage as the engine uses it: positional, block-aligned, with a barrier. No module above this one depends on
//! whether a device is a disk, a partition, a file or memory; tests inject faults by decorators.

mod backing;
mod barrier;
mod buffer;
mod direct;
mod memory;
pub(crate) mod number;
mod region;
mod transfer;
pub mod watch;

use std::io;

pub(crate) use backing::Identity;
pub use buffer::{AlignedBuf, BUFFER_ALIGNMENT};
pub use direct::{Direct, Mode};
pub(crate) use direct::{is_claimed, open_for_lock};
pub use memory::MemoryDevice;
pub use number::DeviceNumber;
pub use region::Region;

use crate::error::{Error, Result};
use crate::units::{BlockSize, ByteOffset};

/// A block device. Offsets and lengths are multiples of [`block_size`](Self::block_size), buffers are aligned to
/// [`BUFFER_ALIGNMENT`]. An implementation refuses others with [`io::ErrorKind::InvalidInput`]; it never rounds.
/// Transfers are complete or an error: a short transfer is an error of kind `UnexpectedEof` or `WriteZero`.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether the device has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Logical block size: the unit of addresses and of transfers.
    fn block_size(&self) -> BlockSize;

    /// Physical block size in bytes: what the medium writes as one. Larger than the logical size on "512e" disks,
    /// where the write of one logical block rewrites its neighbours too.
    fn physical_block_size(&self) -> u32 {
        self.block_size().bytes()
    }

    /// Fills `buf` from offset `at`, from the medium and not from a cache of this machine.
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()>;

    /// Writes `buf` at offset `at`. Durable only after [`sync`](Self::sync).
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()>;

    /// Makes `len` bytes at `at` read as zero, by the cheapest means of the device. Durable only after
    /// [`sync`](Self::sync).
    fn write_zeroes(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        write_zeroes_by_writing(self, at, len)
    }

    /// Barrier: all writes before it are durable before anything after it happens. After a failure the
    /// state of earlier writes is unknown, and every later write and sync of this device fails as well
    /// (Linux reports a lost write once only: Rebello et al., "Can Applications Recover from fsync
    /// Failures?", USENIX ATC 2020).
    fn sync(&self) -> io::Result<()>;
}

/// Zeroes by ordinary writes: the fallback of [`BlockDevice::write_zeroes`].
pub(crate) fn write_zeroes_by_writing(
    device: &(impl BlockDevice + ?Sized),
    at: ByteOffset,
    len: u64,
) -> io::Result<()> {
    let zeroes = AlignedBuf::zeroed(len.min(1 << 20) as usize);
    let mut done = 0;
    while done < len {
        let part = (len - done).min(zeroes.len() as u64);
        device.write_at(&zeroes[..part as usize], ByteOffset(at.0 + done))?;
        done += part;
    }
    Ok(())
}

/// [`BlockDevice::read_at`] with context in its error: what was read, where, how much.
pub fn read(device: &dyn BlockDevice, what: &str, buf: &mut [u8], at: ByteOffset) -> Result<()> {
    let len = buf.len();
    device.read_at(buf, at).map_err(|source| Error::Read { what: what.to_owned(), at: at.0, len, source })
}

/// [`BlockDevice::write_at`] with context in its error.
pub fn write(device: &dyn BlockDevice, what: &str, buf: &[u8], at: ByteOffset) -> Result<()> {
    device.write_at(buf, at).map_err(|source| Error::write(what, at.0, buf.len() as u64, source))
}

/// [`BlockDevice::sync`] with context in its error.
pub fn sync(device: &dyn BlockDevice, what: &str) -> Result<()> {
    device.sync().map_err(|source| Error::Sync { what: what.to_owned(), source })
}

/// Refuses a transfer that is not aligned to `block` or exceeds the device; shared by the implementations.
pub(crate) fn check_transfer(block: BlockSize, device_len: u64, at: ByteOffset, len: u64) -> io::Result<()> {
    let unit = u64::from(block.bytes());
    if !at.0.is_multiple_of(unit) || !len.is_multiple_of(unit) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {at} are not aligned to blocks of {unit} bytes"),
        ));
    }
    if at.0.checked_add(len).is_none_or(|end| end > device_len) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{len} bytes at {at} leave the device, which has {device_len} bytes"),
        ));
    }
    Ok(())
}
