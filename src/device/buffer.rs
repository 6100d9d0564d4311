//! Memory that O_DIRECT accepts, without `unsafe`.

use std::ops::{Deref, DerefMut};

/// The alignment of every transfer buffer in bytes: the largest that a Linux block device asks for
/// (open(2), O_DIRECT; `STATX_DIOALIGN`), which is also the page size of the machines this runs on.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// A byte buffer whose first byte lies at a multiple of [`BUFFER_ALIGNMENT`]. The alignment is had by
/// allocating one unit more and starting inside: the allocator's aligned entry points need `unsafe`, and
/// 4 KiB per buffer of a megabyte is nothing.
#[derive(Debug)]
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0u8; len + BUFFER_ALIGNMENT];
        let start = memory.as_ptr().align_offset(BUFFER_ALIGNMENT);
        // align_offset may say "cannot" (usize::MAX) only where a type is larger than the alignment or in
        // const evaluation; for bytes at run time it never does. The min keeps even that from panicking:
        // an unaligned buffer is then refused by the device.
        Self { start: start.min(BUFFER_ALIGNMENT), memory, len }
    }

    /// A copy of `bytes`, padded with zeroes to a multiple of `unit` bytes.
    pub fn padded(bytes: &[u8], unit: usize) -> Self {
        let mut buf = Self::zeroed(bytes.len().next_multiple_of(unit));
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_aligned_and_zero() {
        for len in [0, 1, 511, 4096, 1 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % BUFFER_ALIGNMENT, 0);
            assert!(buf.iter().all(|&b| b == 0));
        }
    }
}
