//! How much comes over the network, and how much may.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Counts what is read of bundles and deltas.
pub(super) struct Download {
    bytes: AtomicU64,
    most: Option<u64>,
    is_delta: bool,
}

/// Checks that of a bundle or delta no more bytes are needed than may come; `limit`: `None` for any number.
///
/// # Errors
/// [`Error::DownloadLimit`].
pub fn within_limit(needed: u64, limit: Option<u64>, is_delta: bool) -> Result<()> {
    let Some(limit) = limit.filter(|limit| needed > *limit) else { return Ok(()) };
    let remedy = match is_delta {
        true => "allow more",
        false => "allow more, or put a delta from what runs beside the bundle",
    };
    Err(Error::DownloadLimit { needed, limit, remedy })
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
        within_limit(needed, self.most, self.is_delta)
    }

    /// All that came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
