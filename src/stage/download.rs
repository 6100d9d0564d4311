//! How much comes over the network, and how much may.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Counts what is read of bundles and deltas.
pub(super) struct Download {
    bytes: AtomicU64,
    most: Option<u64>,
}

impl Download {
    /// `begun` bytes have come; `most`: in all no more may.
    pub(super) fn new(begun: u64, most: Option<u64>) -> Self {
        Self { bytes: AtomicU64::new(begun), most }
    }

    /// Counts bytes that are about to be read.
    ///
    /// # Errors
    /// [`Error::DownloadLimit`].
    pub(super) fn take(&self, len: u64) -> Result<()> {
        let needed = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        match self.most.filter(|limit| needed > *limit) {
            Some(limit) => Err(Error::DownloadLimit { needed, limit }),
            None => Ok(()),
        }
    }

    /// All that came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
