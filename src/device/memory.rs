//! A device in memory: for laying out a table before it is written, and for tests.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::{BlockDevice, check_transfer};
use crate::units::{BlockSize, ByteOffset};

/// A block device in a vector of bytes. `sync` does nothing: everything is as durable as the process.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
    block: BlockSize,
}

impl MemoryDevice {
    /// A device with these bytes, padded with zeroes to whole blocks.
    pub fn new(mut bytes: Vec<u8>, block: BlockSize) -> Self {
        bytes.resize(bytes.len().next_multiple_of(block.bytes() as usize), 0);
        Self { bytes: RwLock::new(bytes), block }
    }

    /// A copy of the current content.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl BlockDevice for MemoryDevice {
    fn len(&self) -> u64 {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        check_transfer(self.block, bytes.len() as u64, at, buf.len() as u64)?;
        let at = at.0 as usize;
        buf.copy_from_slice(&bytes[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        check_transfer(self.block, bytes.len() as u64, at, buf.len() as u64)?;
        let at = at.0 as usize;
        bytes[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
