//! How much comes over the network, and how much may.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Counts what is read of bundles and deltas.
pub(super) struct Download {
    bytes: AtomicU64,
    most: Option<u64>,
    is_delta: bool,
}

/// The error for a bundle or delta of which more bytes are needed than may come.
pub fn limit_exceeded(needed: u64, limit: u64, is_delta: bool) -> Error {
    let remedy = match is_delta {
        true => "allow more",
        false => "allow more, or put a delta from what runs beside the bundle",
    };
    Error::DownloadLimit { needed, limit, remedy }
}

impl Download {
    /// `begun` bytes of a bundle or delta have come; `most`: in all no more may.
    pub(super) fn new(begun: u64, most: Option<u64>, is_delta: bool) -> Self {
        Self { bytes: AtomicU64::new(begun), most, is_delta }
    }

    /// Counts bytes that are about to be read.
    ///
    /// # Errors
    /// [`Error::DownloadLimit`].
    pub(super) fn take(&self, len: u64) -> Result<()> {
        let needed = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        match self.most.filter(|limit| needed > *limit) {
            Some(limit) => Err(limit_exceeded(needed, limit, self.is_delta)),
            None => Ok(()),
        }
    }

    /// All that came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
