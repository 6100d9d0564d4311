//! Frames that are written and not yet proved: they wait for a flush, then to be read back.
//!
//! ```text
//!   written ──(a batch is full: one worker flushes, the others go on)──▶ durable ──▶ read back, verified
//! ```
//!
//! Reading back while later frames are still being decompressed lets device and processors work at the same time.
//! Reading everything after everything was written leaves first one and then the other idle. A frame is read only
//! after a flush that began when its write had ended, so what is read has been on the medium.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::workers::lock;

/// What a worker should do before it writes another frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep<T> {
    /// Flush the targets, then call [`Ledger::flushed`] with these frames.
    Flush(Vec<T>),
    /// Read this frame back, then call [`Ledger::read`].
    Read(T),
}

/// Frames on their way from written to proved, see the module; `T` is a frame.
#[derive(Debug)]
pub(super) struct Ledger<T> {
    batch: u64,
    readers: usize,
    state: Mutex<LedgerState<T>>,
}

#[derive(Debug)]
struct LedgerState<T> {
    written: Vec<T>,
    bytes: u64,
    flushing: bool,
    durable: VecDeque<T>,
    reading: usize,
}

impl<T> Ledger<T> {
    /// A ledger that demands a flush after every `batch` bytes. At most `readers` workers read back at the same
    /// time, so that the others keep the processors busy.
    pub(super) fn new(batch: u64, readers: usize) -> Self {
        let state = LedgerState {
            written: Vec::new(),
            bytes: 0,
            flushing: false,
            durable: VecDeque::new(),
            reading: 0,
        };
        Self { batch, readers: readers.max(1), state: Mutex::new(state) }
    }

    /// Records that `frames` were written, `bytes` of them as data.
    pub(super) fn wrote(&self, frames: impl IntoIterator<Item = T>, bytes: u64) {
        let mut state = lock(&self.state);
        state.written.extend(frames);
        state.bytes += bytes;
    }

    /// What to do first; `None`: write on.
    pub(super) fn next_step(&self) -> Option<NextStep<T>> {
        let mut state = lock(&self.state);
        if state.bytes >= self.batch && !state.flushing {
            state.flushing = true;
            state.bytes = 0;
            return Some(NextStep::Flush(std::mem::take(&mut state.written)));
        }
        if state.reading >= self.readers {
            return None;
        }
        let frame = state.durable.pop_front()?;
        state.reading += 1;
        Some(NextStep::Read(frame))
    }

    /// Records that a [`NextStep::Flush`] succeeded.
    pub(super) fn flushed(&self, frames: Vec<T>) {
        let mut state = lock(&self.state);
        state.flushing = false;
        state.durable.extend(frames);
    }

    /// Records that a [`NextStep::Read`] succeeded.
    pub(super) fn read(&self) {
        lock(&self.state).reading -= 1;
    }

    /// All frames that were written and not read back, in the order of writing. Call it when no worker runs any
    /// more.
    pub(super) fn into_rest(self) -> Vec<T> {
        let state = self.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.durable.into_iter().chain(state.written).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_only_after_a_flush_that_began_later() {
        let ledger = Ledger::new(100, 1);
        ledger.wrote([0], 60);
        assert_eq!(ledger.next_step(), None, "the batch is not full");
        ledger.wrote([1], 60);
        let Some(NextStep::Flush(first)) = ledger.next_step() else { panic!("no flush follows") };
        assert_eq!(first, [0, 1]);
        ledger.wrote([2], 200);
        assert_eq!(ledger.next_step(), None, "one flush at a time, and nothing is durable before it ends");
        ledger.flushed(first);
        // The next batch is full already. Frame 2 was written during the first flush: it waits for the second.
        let Some(NextStep::Flush(second)) = ledger.next_step() else { panic!("no second flush follows") };
        assert_eq!(second, [2]);
        assert_eq!(ledger.next_step(), Some(NextStep::Read(0)));
        assert_eq!(ledger.next_step(), None, "one reader at a time");
        ledger.read();
        assert_eq!(ledger.next_step(), Some(NextStep::Read(1)));
        ledger.flushed(second);
        ledger.wrote([3], 1);
        assert_eq!(ledger.into_rest(), [2, 3]);
    }
}
