//! A failed flush is final.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Remembers whether a flush has failed. Linux reports lost writes to one flush only and marks their pages clean,
/// so the next flush succeeds although the data is gone ("fsyncgate"; Rebello et al., USENIX ATC 2020). A second
/// try would report lost data as durable.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    failed: AtomicBool,
}

impl Barrier {
    /// Fails if a flush has failed before; called before every write.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush of this device failed, its content is unknown"));
        }
        Ok(())
    }

    /// Runs `flush` unless one has failed before, and remembers its failure.
    pub(crate) fn sync(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.check()?;
        flush().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_works_after_a_failed_flush() {
        let barrier = Barrier::default();
        barrier.sync(|| Ok(())).unwrap();
        barrier.check().unwrap();
        let lost = barrier.sync(|| Err(io::Error::from_raw_os_error(nix::libc::EIO))).unwrap_err();
        assert_eq!(lost.raw_os_error(), Some(nix::libc::EIO));
        barrier.check().unwrap_err();
        let mut asked = false;
        barrier
            .sync(|| {
                asked = true;
                Ok(())
            })
            .unwrap_err();
        assert!(!asked, "the kernel must not be asked again: it would say yes");
    }
}
