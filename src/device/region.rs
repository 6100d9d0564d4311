//! A window onto a device: a partition for which the kernel has no device node.

use std::io;
use std::sync::Arc;

use super::{BlockDevice, check_transfer};
use crate::units::{BlockSize, ByteOffset, Extent};

/// The part of a device that an [`Extent`] names, as a device of its own. Nothing outside of it is accessible.
pub struct Region {
    device: Arc<dyn BlockDevice>,
    extent: Extent,
}

impl Region {
    /// The window; `None` if `extent` is not inside the device or not aligned to its blocks.
    pub fn new(device: Arc<dyn BlockDevice>, extent: Extent) -> Option<Self> {
        check_transfer(device.block_size(), device.len(), extent.at, extent.len).ok()?;
        Some(Self { device, extent })
    }

    fn shift(&self, at: ByteOffset, len: u64) -> io::Result<ByteOffset> {
        check_transfer(self.block_size(), self.extent.len, at, len)?;
        Ok(ByteOffset(self.extent.at.0 + at.0))
    }
}

impl BlockDevice for Region {
    fn len(&self) -> u64 {
        self.extent.len
    }

    fn block_size(&self) -> BlockSize {
        self.device.block_size()
    }

    fn physical_block_size(&self) -> u32 {
        self.device.physical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        let at = self.shift(at, buf.len() as u64)?;
        self.device.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        let at = self.shift(at, buf.len() as u64)?;
        self.device.write_at(buf, at)
    }

    fn write_zeroes(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        let at = self.shift(at, len)?;
        self.device.write_zeroes(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.device.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AlignedBuf, MemoryDevice};
    use super::*;

    #[test]
    fn a_region_has_access_to_its_own_bytes_only() {
        let disk: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(vec![0; 8192], BlockSize::B512));
        let extent = Extent { at: ByteOffset(1024), len: 2048 };
        let region = Region::new(disk.clone(), extent).unwrap();
        let mut ones = AlignedBuf::zeroed(512);
        ones.fill(1);
        region.write_at(&ones, ByteOffset(1536)).unwrap();
        assert_eq!(
            region.write_at(&ones, ByteOffset(2048)).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            region.write_at(&ones, ByteOffset(u64::MAX - 511)).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(region.write_at(&ones, ByteOffset(1)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let mut all = vec![0; 8192];
        disk.read_at(&mut all, ByteOffset(0)).unwrap();
        let touched: Vec<usize> = all.iter().enumerate().filter(|(_, b)| **b == 1).map(|(i, _)| i).collect();
        assert_eq!((touched.first(), touched.len()), (Some(&2560), 512));
        assert!(Region::new(disk.clone(), Extent { at: ByteOffset(8192), len: 512 }).is_none());
        assert!(Region::new(disk, Extent { at: ByteOffset(1), len: 512 }).is_none());
    }
}
