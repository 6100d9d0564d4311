//! File on a server as its readers see it: at any offset by [`ReadAt`], or from front to back by [`Read`].

use std::io::{self, Read};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::plan::WholeBlock;
use super::shared::{Shared, TransferState};
use crate::bundle::source::{ReadAt, ReadStopped};
use crate::progress::Cancel;

/// Interval at which a waiting reader checks for a request to stop.
const STEP: Duration = Duration::from_millis(100);

/// Transfer as its reader holds it; dropping it ends the transfer.
pub(super) struct Transfer {
    pub(super) shared: Arc<Shared>,
    pub(super) cancel: Cancel,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.shared.closed.notify_one();
    }
}

impl Transfer {
    /// Waits until `look` returns a value, for the bytes of a demand or, with 0, for anything else. Fails on a request to
    /// stop, and when the transfer fails.
    pub(super) fn wait<T>(
        &self,
        demand: u64,
        mut look: impl FnMut(&mut TransferState) -> Option<T>,
    ) -> io::Result<T> {
        let mut state = self.shared.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if self.cancel.requested() {
                return Err(io::Error::other(ReadStopped));
            }
            if let Some(failed) = &state.failed {
                return Err(io::Error::other(failed.error()));
            }
            // Changes wake the reader; the timeout is for requests to stop.
            let waited = self.shared.reader(demand).wait_timeout(state, STEP);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads from `at` and returns the number of bytes: all of `buf`, or, with `some`, the bytes that are here once
    /// there are any. At the end of a file of unknown length there are fewer.
    fn read(&self, buf: &mut [u8], at: u64, some: bool) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let demand = self.begin(at, buf.len());
        let mut copied = 0;
        let result = self.wait(demand, |state| {
            copied += state.plan.take(demand, buf.get_mut(copied..).unwrap_or_default());
            let ended = state.ended.is_some_and(|end| end <= at.saturating_add(copied as u64));
            (copied == buf.len() || some && copied > 0 || ended).then_some(copied)
        });
        self.end(demand);
        result
    }

    /// Reads `len` bytes from `at` into `buf`. A block that has just these bytes is handed over with its memory.
    fn read_into(&self, buf: &mut Vec<u8>, at: u64, len: usize) -> io::Result<()> {
        if len == 0 {
            buf.clear();
            return Ok(());
        }
        let demand = self.begin(at, len);
        let mut copied = None;
        let result = self.wait(demand, |state| {
            let so_far = match copied {
                Some(so_far) => so_far,
                None => match state.plan.take_block(demand, buf) {
                    WholeBlock::Taken => return Some(()),
                    WholeBlock::Coming => return None,
                    WholeBlock::Other => {
                        buf.resize(len, 0);
                        0
                    }
                },
            };
            let so_far = so_far + state.plan.take(demand, buf.get_mut(so_far..).unwrap_or_default());
            copied = Some(so_far);
            (so_far == len).then_some(())
        });
        self.end(demand);
        result
    }

    /// Registers a reader, and wakes the lanes if its bytes are neither here nor on their way.
    fn begin(&self, at: u64, len: usize) -> u64 {
        let range = at..at.saturating_add(len as u64);
        let mut state = self.shared.state();
        let covered = state.plan.covers(&range);
        let demand = state.plan.begin(range);
        drop(state);
        if !covered {
            self.shared.work.notify_waiters();
        }
        demand
    }

    fn end(&self, demand: u64) {
        self.shared.state().plan.end(demand);
        // The bytes that were taken make room for new blocks.
        self.shared.work.notify_waiters();
    }
}

/// File on a server that serves ranges.
pub(super) struct WebFile {
    pub(super) transfer: Transfer,
    pub(super) len: u64,
}

impl ReadAt for WebFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.transfer.read(buf, at, false).map(drop)
    }

    fn read_into(&self, buf: &mut Vec<u8>, at: u64, len: usize) -> io::Result<()> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.transfer.read_into(buf, at, len)
    }

    fn will_begin_at(&self, offsets: Vec<u64>) {
        self.transfer.shared.state().plan.begin_blocks_at(offsets);
    }

    fn will_not_read(&self, at: u64, len: u64) {
        self.transfer.shared.state().plan.pass(&(at..at.saturating_add(len)));
    }

    fn will_read(&self, at: u64, len: u64) {
        self.transfer.shared.state().plan.declare(at..at.saturating_add(len).min(self.len));
        self.transfer.shared.work.notify_waiters();
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn distrust(&self, at: u64, len: u64) -> bool {
        self.transfer.shared.distrust(&(at..at.saturating_add(len)))
    }
}

/// File on a server that does not serve ranges or does not send the length.
pub(super) struct WebStream {
    pub(super) transfer: Transfer,
    pub(super) len: Option<u64>,
    pub(super) at: u64,
}

impl Read for WebStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len.map_or(u64::MAX, |len| len.saturating_sub(self.at));
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.transfer.read(buf.get_mut(..len).unwrap_or_default(), self.at, true)?;
        self.at += read as u64;
        Ok(read)
    }
}
