//! Threads that each run frames to completion, and the one order that some work needs among them.
//!
//! No thread is taken for granted: `pids.max` and `RLIMIT_NPROC` refuse them at any time. Whoever calls [`run`] is a worker
//! itself, so work goes on with as many threads as there are, and nothing that was begun can fail for want of them. All
//! other threads come from [`spawn`], whose refusal is an error like any other.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};

mod memory;

/// How the workers of one run learn that another of them failed or that a signal came.
#[derive(Debug)]
pub struct Abort<'a> {
    failed: AtomicBool,
    cancel: &'a Cancel,
    doing: &'a str,
}

impl<'a> Abort<'a> {
    /// For a run that `cancel` can end; `doing` is what it is said to have been doing then.
    pub fn new(cancel: &'a Cancel, doing: &'a str) -> Self {
        Self { failed: AtomicBool::new(false), cancel, doing }
    }

    /// An error once somebody failed or asked to stop. Whose error is reported is decided by [`run`].
    pub fn check(&self) -> Result<()> {
        self.cancel.check(self.doing)?;
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { doing: self.doing.to_owned() });
        }
        Ok(())
    }
}

/// Runs `work` on up to `jobs` threads, one of which is the caller's, and waits for all. The first failure ends the others at their next
/// [`Abort::check`] and is the one that is returned.
pub fn run<T: Send>(
    jobs: NonZeroUsize,
    abort: &Abort<'_>,
    work: impl Fn() -> Result<T> + Sync,
) -> Result<Vec<T>> {
    run_with((0..jobs.get()).map(|_| ()), abort, |()| work())
}

/// The same on one thread for each of `tools`, of which it is the only user. Where the system has fewer threads to give,
/// the tools that are left stay unused.
///
/// # Errors
/// The first one.
pub fn run_with<W: Send, T: Send>(
    tools: impl IntoIterator<Item = W>,
    abort: &Abort<'_>,
    work: impl Fn(W) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    /// Also a panicking worker must not leave others waiting for their turn for ever.
    struct Guard<'a, 'b>(&'a Abort<'b>);
    impl Drop for Guard<'_, '_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.failed.store(true, Ordering::Relaxed);
            }
        }
    }
    let first_error = Mutex::new(None);
    let worker = |tool| {
        let _guard = Guard(abort);
        work(tool)
            .map_err(|error| {
                let mut first = lock(&first_error);
                abort.failed.store(true, Ordering::Relaxed);
                first.get_or_insert(error);
            })
            .ok()
    };
    let results: Vec<Option<T>> = std::thread::scope(|scope| {
        let worker = &worker;
        let mut tools = tools.into_iter();
        let own = tools.next();
        let mut threads = Vec::new();
        for tool in tools {
            match Builder::new().name("worker".to_owned()).spawn_scoped(scope, move || worker(tool)) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        let own = own.map(worker);
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        own.into_iter().chain(joined).collect()
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(results.into_iter().flatten().collect()),
    }
}

/// Starts a thread named `what`, which ends with its work or with the process.
///
/// # Errors
/// [`Error::NoThread`].
pub fn spawn<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let started = Builder::new().name(what.to_owned()).spawn(work);
    started.map_err(|source| Error::NoThread { what: what.to_owned(), source })
}

/// Runs `work` on a thread of its own and waits for it: for what a thread does not come back from.
///
/// # Errors
/// [`Error::NoThread`].
pub fn apart<T: Send>(what: &'static str, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let started = Builder::new().name(what.to_owned()).spawn_scoped(scope, work);
        let thread = started.map_err(|source| Error::NoThread { what: what.to_owned(), source })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Lets the workers take turns: turn `n` runs after turn `n - 1`, whoever has it. This is where the work
/// that is sequential by nature happens (SHA-256 of buffers that are to be used again) without a thread or a queue of its
/// own.
#[derive(Debug)]
pub struct Sequencer<S> {
    state: Mutex<(u64, S)>,
    changed: Condvar,
}

impl<S> Sequencer<S> {
    /// Begins with turn 0.
    pub fn new(state: S) -> Self {
        Self { state: Mutex::new((0, state)), changed: Condvar::new() }
    }

    /// Waits for turn `number`, then runs `work`.
    pub fn turn<T>(
        &self,
        number: u64,
        abort: &Abort<'_>,
        work: impl FnOnce(&mut S) -> Result<T>,
    ) -> Result<T> {
        let mut state = lock(&self.state);
        while state.0 != number {
            abort.check()?;
            // The timeout is for aborts only: a turn is announced.
            let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let result = work(&mut state.1)?;
        state.0 += 1;
        drop(state);
        self.changed.notify_all();
        Ok(result)
    }

    /// The state after the last turn.
    pub fn into_inner(self) -> S {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// A line to one that works in order: whoever brings the piece that is next works off what waits, and the others go back to
/// their own work. For work that may come later than its turn in [`Sequencer`], where everyone waits.
#[derive(Debug)]
pub struct Queue<S, T> {
    ahead: u64,
    line: Mutex<Line<T>>,
    changed: Condvar,
    /// Locked by the one for whom `Line::busy` was raised, so never contended.
    state: Mutex<S>,
}

#[derive(Debug)]
struct Line<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
    busy: bool,
}

impl<S, T> Queue<S, T> {
    /// Begins with piece 0. Who brings a piece `ahead` (at least 1) before the one that is next waits, which bounds the
    /// memory.
    pub fn new(state: S, ahead: u64) -> Self {
        let line = Line { next: 0, waiting: BTreeMap::new(), busy: false };
        Self {
            ahead: ahead.max(1),
            line: Mutex::new(line),
            changed: Condvar::new(),
            state: Mutex::new(state),
        }
    }

    /// Hands over piece `number`; `work` is called with pieces in order, maybe later and by another caller.
    ///
    /// # Errors
    /// Of `work`, which is then not called again; of [`Abort::check`] while waiting.
    pub fn put(
        &self,
        number: u64,
        piece: T,
        abort: &Abort<'_>,
        work: impl Fn(&mut S, T) -> Result<()>,
    ) -> Result<()> {
        let mut line = lock(&self.line);
        while number >= line.next.saturating_add(self.ahead) {
            abort.check()?;
            // The timeout is for aborts only: progress is announced.
            let waited = self.changed.wait_timeout(line, Duration::from_millis(50));
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        line.waiting.insert(number, piece);
        if line.busy {
            return Ok(());
        }
        // Stays raised after a failure: nothing may follow a piece that is missing.
        line.busy = true;
        loop {
            let next = line.next;
            let Some(piece) = line.waiting.remove(&next) else {
                line.busy = false;
                return Ok(());
            };
            drop(line);
            work(&mut lock(&self.state), piece)?;
            line = lock(&self.line);
            line.next += 1;
            self.changed.notify_all();
        }
    }

    /// The state after the last piece, once every [`Queue::put`] has returned without an error.
    pub fn into_inner(self) -> S {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks; a panic elsewhere has already decided the outcome, so poison adds nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processor cores that this process may use.
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// How many workers to use where nobody says, for work that now and then waits for a file: with cores only, a worker that
/// waits idles one.
pub fn default_jobs() -> NonZeroUsize {
    cores().saturating_add(2)
}

/// Bytes that a worker holds with frames of that size: one frame, what it is compressed to, a decoder.
pub const fn for_frames(frame: u64) -> u64 {
    frame.saturating_mul(2).saturating_add(512 << 10)
}

/// How many workers run, and a notice where that is not what was asked for or takes much memory: `wanted`, or
/// `otherwise` where nobody said, but no more than the memory has room for that this process may still use (its cgroup,
/// its limits, the machine). Each needs `bytes`. One runs in any case.
pub fn affordable(
    wanted: Option<NonZeroUsize>,
    otherwise: NonZeroUsize,
    bytes: u64,
    progress: &dyn Progress,
) -> NonZeroUsize {
    let jobs = wanted.unwrap_or(otherwise);
    let room = memory::room();
    let fit = memory::fit(jobs, bytes, room);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if fit < jobs {
        progress.notice(&format!(
            "{fit} instead of {jobs} workers: each needs {} MiB, and {} MiB of memory are left to this process",
            mib(bytes),
            mib(room.unwrap_or_default())
        ));
    } else if wanted.is_some() && bytes.saturating_mul(jobs.get() as u64) > memory::MUCH {
        progress.notice(&format!(
            "{jobs} workers use up to {} MiB",
            mib(bytes.saturating_mul(jobs.get() as u64))
        ));
    }
    fit
}

/// That many workers, or one.
pub fn at_least_one(jobs: usize) -> NonZeroUsize {
    NonZeroUsize::new(jobs).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn turns_come_in_order() {
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "testing");
        let (next, order) = (AtomicU64::new(0), Sequencer::new(Vec::new()));
        run(default_jobs(), &abort, || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= 200 {
                    return Ok(());
                }
                order.turn(number, &abort, |seen| {
                    seen.push(number);
                    Ok(())
                })?;
            }
        })
        .unwrap();
        assert_eq!(order.into_inner(), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_queue_works_in_order_and_never_holds_more_than_it_may() {
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "testing");
        let (next, held, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let queue = Queue::new(Vec::new(), 5);
        run(at_least_one(8), &abort, || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= 500 {
                    return Ok(());
                }
                // Late ones, so that others have to wait.
                if number % 37 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                queue.put(number, number, &abort, |seen: &mut Vec<u64>, piece| {
                    let line = lock(&queue.line);
                    held.store(line.waiting.len() as u64 + 1, Ordering::Relaxed);
                    most.fetch_max(held.load(Ordering::Relaxed), Ordering::Relaxed);
                    assert!(line.waiting.keys().all(|waiting| *waiting < piece + 5));
                    drop(line);
                    seen.push(piece);
                    Ok(())
                })?;
            }
        })
        .unwrap();
        assert_eq!(queue.into_inner(), (0..500).collect::<Vec<_>>());
        assert!((2..=5).contains(&most.into_inner()));
    }

    #[test]
    fn after_a_failure_a_queue_takes_nothing_more() {
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "testing");
        let next = AtomicU64::new(0);
        let queue = Queue::new(Vec::new(), 2);
        let error = run(at_least_one(4), &abort, || {
            loop {
                queue.put(next.fetch_add(1, Ordering::Relaxed), (), &abort, |seen: &mut Vec<()>, ()| {
                    seen.push(());
                    if seen.len() == 3 { Err(Error::Unsigned) } else { Ok(()) }
                })?;
            }
        });
        assert_eq!(error.map(|_: Vec<()>| ()).unwrap_err().code(), Error::Unsigned.code());
        assert_eq!(queue.into_inner().len(), 3);
    }

    #[test]
    fn the_first_failure_frees_who_waits() {
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "testing");
        let (next, order) = (AtomicU64::new(0), Sequencer::new(()));
        let error = run(default_jobs(), &abort, || match next.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::Unsigned),
            number => order.turn(number, &abort, |()| Ok(())),
        })
        .unwrap_err();
        assert_eq!(error.code(), Error::Unsigned.code());
    }
}
