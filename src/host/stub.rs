#![allow(missing_docs, clippy::needless_pass_by_value)]
use std::path::Path;
use std::sync::Arc;

use super::{Access, DiskLock, Machine};
use crate::bundle::Source;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::gpt::Partition;
use crate::progress::Cancel;
use crate::units::BlockSize;

pub trait Journal: Send + Sync {}
pub struct FileJournal;
impl FileJournal {
    pub fn new(_dir: &Path) -> Self {
        Self
    }
}
impl Journal for FileJournal {}
pub struct LocalDisk(Arc<dyn BlockDevice>);
impl LocalDisk {
    pub fn open(path: &Path, _sector_size: Option<BlockSize>) -> Result<Self> {
        std::fs::metadata(path).map_err(|source| Error::Open { path: path.into(), source })?;
        Err(Error::Internal { what: "host stub".into() })
    }
}
impl Machine for LocalDisk {
    fn name(&self) -> &str {
        ""
    }
    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.0)
    }
    fn lock(&self) -> Result<DiskLock> {
        Ok(DiskLock::new(()))
    }
    fn is_locked(&self) -> Result<bool> {
        Ok(false)
    }
    fn open_partition(&self, _: &Partition, _: Access) -> Result<Box<dyn BlockDevice>> {
        Err(Error::Internal { what: "host stub".into() })
    }
    fn in_use(&self, _: &Partition) -> Result<Option<String>> {
        Ok(None)
    }
    fn booted_from(&self, _: &[Partition]) -> Result<Option<usize>> {
        Ok(None)
    }
}
pub fn open_source(path: &Path) -> Result<Source> {
    std::fs::metadata(path).map_err(|source| Error::Open { path: path.into(), source })?;
    Ok(Source)
}
pub fn cancel_on_signals() -> Result<Cancel> {
    Ok(Cancel::default())
}
