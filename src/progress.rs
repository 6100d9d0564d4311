//! Progress of a long step, reported to its caller, and the request to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::error::{Error, Result};

/// A part of a long step, in order. Parts without work are omitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Compressing images into a bundle.
    Pack,
    /// Verifying the frames of a bundle without writing.
    Verify,
    /// Comparing the slot with the bundle, before anything of an image is written.
    Probe,
    /// Zeroing what lies between the images of a slot and its record.
    Zero,
    /// Decompressing, verifying and writing frames to the slot. Its bytes are those of the images; the maximum rate limits them,
    /// but for those that are in place already.
    Write,
    /// Reading the slot back from the medium and verifying it.
    ReadBack,
    /// Reading an installed slot and verifying it against its record.
    Scrub,
}

/// Receives progress, from several threads at once. Every method does nothing by default.
pub trait Progress: Sync {
    /// A phase of `total` bytes begins.
    fn begin(&self, _phase: Phase, _total: u64) {}
    /// `bytes` more bytes of the phase are done.
    fn advance(&self, _bytes: u64) {}
    /// `bytes` more bytes of the phase need not be done: they are in place already.
    fn reuse(&self, _bytes: u64) {}
    /// A message to people although nothing failed: a repaired table, a fallback, a risk of an option.
    fn notice(&self, _message: &str) {}
}

impl<P: Progress + Send + ?Sized> Progress for Arc<P> {
    fn begin(&self, phase: Phase, total: u64) {
        (**self).begin(phase, total);
    }

    fn advance(&self, bytes: u64) {
        (**self).advance(bytes);
    }

    fn reuse(&self, bytes: u64) {
        (**self).reuse(bytes);
    }

    fn notice(&self, message: &str) {
        (**self).notice(message);
    }
}

/// Discards all progress.
pub struct Silent;

impl Progress for Silent {}

/// A request to stop, raised by signal handlers and other threads; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Requests the stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was requested.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if a stop was requested; `doing` names the interrupted step.
    pub fn check(&self, doing: &str) -> Result<()> {
        if self.requested() { Err(Error::Interrupted { doing: doing.to_owned() }) } else { Ok(()) }
    }

    /// The flag itself, for a signal handler to set.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
