//! The two standard streams, and the only writers to them. No work waits for their readers.
//!
//! Progress, notes and logs are *offered*: a thread writes them, and a bounded number waits for it. Further lines are dropped
//! and counted, as are lines that cannot be written (a full disk, a pipe without a reader). Results are *delivered*, last, when
//! no lock is held any more.
//!
//! `poll` alone was rejected: between poll and write another process may fill the pipe, a file on a hung disk is always
//! reported as writable, and so is a terminal with room for one byte. It is used only if no thread can be started, and for
//! results of verbs that change nothing, which wait for their reader without a limit.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

use crate::workers::{self, lock};

/// Number of bytes that may wait for a stream.
const WAITING: usize = 256 << 10;
/// Number of bytes of drawings that may wait; not zero, since the last drawing removes the bar.
const DRAWINGS: usize = 4 << 10;
/// Number of bytes that a writable pipe accepts without waiting (pipe(7), PIPE_BUF).
const PART: usize = 4096;
/// Longest wait for unread notes at the end of the process.
const FINISH_LIMIT: Duration = Duration::from_millis(500);
/// Longest time for which the reader of a result may read nothing after a change; then the exit code reports the loss.
pub(super) const READER_LIMIT: Duration = Duration::from_secs(10);

/// A stream of this process.
pub(super) struct Outlet {
    shared: Arc<Shared>,
}

struct Shared {
    stream: Stream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Out,
    Err,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of parts of results that were written.
    parts: u64,
    /// How the write of the last result ended; `None` before that.
    delivered: Option<nix::Result<()>>,
    /// Whether the thread is in a write.
    busy: bool,
    /// Number of lines that were dropped since the last report.
    dropped: u64,
    /// Whether the last line was written in part, such as when the disk became full.
    torn: bool,
    /// Formats the number of dropped lines as a line; `None`: dropped lines are not reported.
    loss_line: Option<fn(u64) -> String>,
    /// Whether the thread could be started; `None` before the first line.
    thread: Option<bool>,
}

/// What the thread writes next.
enum Line {
    /// Progress, a note, a line of the log.
    Offered(Vec<u8>),
    /// A result, for which the verb waits.
    Result(Vec<u8>),
}

/// Standard output.
pub(super) fn out() -> &'static Outlet {
    static STDOUT: OnceLock<Outlet> = OnceLock::new();
    STDOUT.get_or_init(|| Outlet::new(Stream::Out, None))
}

/// Standard error.
pub(super) fn err() -> &'static Outlet {
    static STDERR: OnceLock<Outlet> = OnceLock::new();
    STDERR.get_or_init(|| {
        Outlet::new(Stream::Err, Some(|lines| format!("qstage: note: {lines} lines were lost\n")))
    })
}

/// Waits a moment until offered lines are written. To be called last.
pub fn finish() {
    out().drain(FINISH_LIMIT);
    err().drain(FINISH_LIMIT);
}

impl Outlet {
    fn new(stream: Stream, loss_line: Option<fn(u64) -> String>) -> Self {
        let state = Mutex::new(State { loss_line, ..State::default() });
        Self { shared: Arc::new(Shared { stream, state, changed: Condvar::new() }) }
    }

    /// Sets the format in which dropped lines are reported.
    pub(super) fn report_loss(&self, loss_line: fn(u64) -> String) {
        lock(&self.shared.state).loss_line = Some(loss_line);
    }

    /// Queues a line for the thread, or drops it. Never waits.
    pub(super) fn offer(&self, line: &[u8]) {
        let mut state = lock(&self.shared.state);
        if !self.has_thread(&mut state) {
            let written = writable(self.shared.stream.fd(), Duration::ZERO).unwrap_or(false)
                && self.shared.stream.write_all(line).is_ok();
            state.dropped += u64::from(!written);
        } else if state.bytes.saturating_add(line.len()) > WAITING {
            state.dropped += 1;
        } else {
            state.bytes += line.len();
            state.lines.push_back(Line::Offered(line.to_vec()));
            self.shared.changed.notify_all();
        }
    }

    /// Whether a thread writes, which is started if it has not been yet.
    fn has_thread(&self, state: &mut State) -> bool {
        *state.thread.get_or_insert_with(|| {
            let shared = Arc::clone(&self.shared);
            workers::spawn("output", move || shared.run()).is_ok()
        })
    }

    /// The same for a drawing that the next one replaces: it is dropped without being counted if others already wait.
    pub(super) fn offer_drawing(&self, drawing: &[u8]) {
        if lock(&self.shared.state).bytes < DRAWINGS {
            self.offer(drawing);
        }
    }

    /// Width of the terminal in columns; `None` if it is no terminal, or reports none.
    pub(super) fn columns(&self) -> Option<u16> {
        let size = rustix::termios::tcgetwinsize(self.shared.stream.fd()).ok()?;
        Some(size.ws_col).filter(|columns| *columns > 0)
    }

    /// Waits until all offered lines are written; returns whether they are.
    fn drain(&self, limit: Duration) -> bool {
        let state = lock(&self.shared.state);
        if state.thread != Some(true) {
            return true;
        }
        let waits = |state: &mut State| state.busy || !state.lines.is_empty();
        let waited = self.shared.changed.wait_timeout_while(state, limit, waits);
        let (_state, waited) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Writes a result after all offered lines. `limit` is the longest time for which the reader may read nothing; `None`:
    /// no limit.
    ///
    /// # Errors
    /// Those of write(2); `TimedOut`.
    pub(super) fn deliver(&self, text: &[u8], limit: Option<Duration>) -> io::Result<()> {
        const LONG: Duration = Duration::from_secs(1);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no process reads it");
        while !self.drain(limit.unwrap_or(LONG)) {
            if limit.is_some() {
                return Err(late());
            }
        }
        if let Some(limit) = limit
            && let Some(delivered) = self.deliver_by_thread(text, limit)
        {
            return delivered.unwrap_or_else(|| Err(late()));
        }
        let mut rest = text;
        while !rest.is_empty() {
            if !writable(self.shared.stream.fd(), limit.unwrap_or(LONG))? {
                if limit.is_some() {
                    return Err(late());
                }
                continue;
            }
            let (part, _) = rest.split_at(rest.len().min(PART));
            match write(self.shared.stream.fd(), part) {
                Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Outlet {
    /// Writes a result by the thread: a terminal that has room for a part of a write waits for its reader with the rest,
    /// whatever poll(2) said. `None`: there is no thread; `Some(None)`: nothing was read for as long as `limit`.
    fn deliver_by_thread(&self, text: &[u8], limit: Duration) -> Option<Option<io::Result<()>>> {
        let mut state = lock(&self.shared.state);
        if !self.has_thread(&mut state) {
            return None;
        }
        state.delivered = None;
        state.lines.push_back(Line::Result(text.to_vec()));
        self.shared.changed.notify_all();
        loop {
            let parts = state.parts;
            let waits = |state: &mut State| state.delivered.is_none() && state.parts == parts;
            let waited = self.shared.changed.wait_timeout_while(state, limit, waits);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            match state.delivered {
                Some(delivered) => return Some(Some(delivered.map_err(io::Error::from))),
                None if state.parts == parts => return Some(None),
                None => {}
            }
        }
    }
}

/// Lines of a log or of progress, each one write: an outlet never fails.
impl Write for &Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.offer(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes lines, in an endless loop.
    fn run(&self) {
        let mut state = lock(&self.state);
        loop {
            let Some(line) = state.lines.pop_front() else {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            state.busy = true;
            state = match line {
                Line::Offered(line) => self.write_offered(state, &line),
                Line::Result(text) => self.write_result(state, &text),
            };
            state.busy = false;
            self.changed.notify_all();
        }
    }

    /// Writes a line, after the number of those that were lost.
    fn write_offered<'a>(&'a self, mut state: MutexGuard<'a, State>, line: &[u8]) -> MutexGuard<'a, State> {
        state.bytes = state.bytes.saturating_sub(line.len());
        let lost = std::mem::take(&mut state.dropped);
        let (loss_line, mut torn) = (state.loss_line.filter(|_| lost > 0), state.torn);
        drop(state);
        let mut write = |line: &[u8]| {
            if torn && self.stream.write_all(b"\n").is_err() {
                return false;
            }
            let mut rest = line;
            let written = self.stream.write_on(&mut rest).is_ok();
            torn = !written && rest.len() < line.len();
            written
        };
        let said = loss_line.is_none_or(|loss_line| write(loss_line(lost).as_bytes()));
        let written = said && write(line);
        state = lock(&self.state);
        state.torn = torn;
        state.dropped += if said { 0 } else { lost } + u64::from(!written);
        state
    }

    /// Writes a result, in parts, so that a slow reader is distinguished from none.
    fn write_result<'a>(&'a self, mut state: MutexGuard<'a, State>, text: &[u8]) -> MutexGuard<'a, State> {
        drop(state);
        let written = text.chunks(PART).try_for_each(|part| {
            let written = self.stream.write_all(part);
            lock(&self.state).parts += 1;
            self.changed.notify_all();
            written
        });
        state = lock(&self.state);
        state.delivered = Some(written);
        state
    }
}

impl Stream {
    fn fd(self) -> BorrowedFd<'static> {
        // Statics: their descriptors live as long as the process. Not through their locks, which a waiting writer holds.
        static OUT: OnceLock<io::Stdout> = OnceLock::new();
        static ERR: OnceLock<io::Stderr> = OnceLock::new();
        match self {
            Self::Out => OUT.get_or_init(io::stdout).as_fd(),
            Self::Err => ERR.get_or_init(io::stderr).as_fd(),
        }
    }

    fn write_all(self, mut bytes: &[u8]) -> nix::Result<()> {
        self.write_on(&mut bytes)
    }

    /// Writes bytes and removes from them what is written, also if a write fails.
    fn write_on(self, bytes: &mut &[u8]) -> nix::Result<()> {
        while !bytes.is_empty() {
            match write(self.fd(), bytes) {
                Ok(len) => *bytes = bytes.get(len..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                // Another process that shares the open file may have made it non-blocking.
                Err(Errno::EAGAIN) => {
                    writable(self.fd(), Duration::from_secs(1)).map_err(|_| Errno::EIO)?;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// Whether a write would not wait, after at most `limit`. An error counts as yes: the write will report it.
fn writable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
