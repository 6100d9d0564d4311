//! Threads that each run frames to completion, and the ordering that some work needs among them.
//!
//! Starting a thread may fail at any time: `pids.max` and `RLIMIT_NPROC` refuse them. The caller of [`run`] is a
//! worker itself, so work goes on with as many threads as there are, and no work in progress can fail for lack of
//! them. All other threads are started by [`spawn`], whose failure is an error like any other.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};

mod memory;

/// Notifies the workers of one run that another one failed or that a signal arrived.
#[derive(Debug)]
pub struct Abort<'a> {
    failed: AtomicBool,
    cancel: &'a Cancel,
    doing: &'a str,
}

impl<'a> Abort<'a> {
    /// For a run that `cancel` can end; `doing` names it in the error.
    pub fn new(cancel: &'a Cancel, doing: &'a str) -> Self {
        Self { failed: AtomicBool::new(false), cancel, doing }
    }

    /// An error once another worker failed or a stop was requested. [`run`] decides which error is reported.
    pub fn check(&self) -> Result<()> {
        self.cancel.check(self.doing)?;
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { doing: self.doing.to_owned() });
        }
        Ok(())
    }
}

/// Runs `work` on up to `jobs` threads, one of which is the caller's, and waits for all. The first failure ends the
/// others at their next [`Abort::check`] and is returned.
pub fn run<T: Send>(
    jobs: NonZeroUsize,
    abort: &Abort<'_>,
    work: impl Fn() -> Result<T> + Sync,
) -> Result<Vec<T>> {
    run_with((0..jobs.get()).map(|_| ()), abort, |()| work())
}

/// Runs `work` on one thread for each of `tools`, with exclusive use of it. If the system refuses threads, the
/// remaining tools stay unused.
///
/// # Errors
/// The first one.
pub fn run_with<W: Send, T: Send>(
    tools: impl IntoIterator<Item = W>,
    abort: &Abort<'_>,
    work: impl Fn(W) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    /// A panicking worker must not leave others waiting for their turn for ever either.
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

/// Runs `work` on a thread of its own and waits for it: for changes of a thread that cannot be undone.
///
/// # Errors
/// [`Error::NoThread`].
pub fn on_own_thread<T: Send>(what: &'static str, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let started = Builder::new().name(what.to_owned()).spawn_scoped(scope, work);
        let thread = started.map_err(|source| Error::NoThread { what: what.to_owned(), source })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Lets the workers take turns: turn `n` runs after turn `n - 1`, on whichever thread has it. For inherently
/// sequential work (SHA-256 of buffers that are to be reused) without a thread or a queue of its own.
#[derive(Debug)]
pub struct Sequencer<S> {
    state: Mutex<(u64, S)>,
    changed: Condvar,
}

impl<S> Sequencer<S> {
    /// A sequencer at turn 0.
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

/// Tools of which there are fewer than workers, since they take much memory. For a part of the work that waits for no
/// other worker.
#[derive(Debug)]
pub struct Pool<T> {
    free: Mutex<Vec<T>>,
    returned: Condvar,
}

impl<T> Pool<T> {
    /// A pool of these tools, at least one.
    pub fn new(tools: impl IntoIterator<Item = T>) -> Self {
        Self { free: Mutex::new(tools.into_iter().collect()), returned: Condvar::new() }
    }

    /// Runs `work` with one of the tools, once one is free.
    ///
    /// # Errors
    /// Those of `work`; those of [`Abort::check`] while waiting.
    pub fn with<R>(&self, abort: &Abort<'_>, work: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut free = lock(&self.free);
        let mut tool = loop {
            if let Some(tool) = free.pop() {
                break tool;
            }
            abort.check()?;
            // The timeout is for aborts only: a return is announced.
            let waited = self.returned.wait_timeout(free, Duration::from_millis(50));
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(free);
        let result = work(&mut tool);
        lock(&self.free).push(tool);
        self.returned.notify_one();
        result
    }
}

/// A queue for work in order: the thread that adds the next piece works off all waiting pieces, and the others
/// return to their own work. For work that may be done later than its turn in [`Sequencer`], where every thread
/// waits.
#[derive(Debug)]
pub struct Queue<S, T> {
    ahead: u64,
    line: Mutex<QueueState<T>>,
    changed: Condvar,
    /// Locked only by the thread that set `QueueState::busy`, so never contended.
    state: Mutex<S>,
}

#[derive(Debug)]
struct QueueState<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
    busy: bool,
}

impl<S, T> Queue<S, T> {
    /// A queue at piece 0. A thread with a piece that is `ahead` (at least 1) or more beyond the next one waits,
    /// which bounds the memory.
    pub fn new(state: S, ahead: u64) -> Self {
        let line = QueueState { next: 0, waiting: BTreeMap::new(), busy: false };
        Self {
            ahead: ahead.max(1),
            line: Mutex::new(line),
            changed: Condvar::new(),
            state: Mutex::new(state),
        }
    }

    /// Adds piece `number`; `work` is called with pieces in order, maybe later and on another thread.
    ///
    /// # Errors
    /// Those of `work`, which is then not called again; those of [`Abort::check`] while waiting.
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
        // Stays set after a failure: nothing may follow a missing piece.
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

/// Locks; a panic elsewhere has already decided the outcome, so poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of processor cores that this process may use.
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Default number of workers for work that sometimes waits for a file: with one per core, a waiting worker would
/// idle a core.
pub fn default_jobs() -> NonZeroUsize {
    cores().saturating_add(2)
}

/// Memory of a worker in bytes for frames of that size: one frame, its compressed form, a decoder.
pub const fn worker_memory(frame: u64) -> u64 {
    frame.saturating_mul(2).saturating_add(512 << 10)
}

/// Number of workers to run: `wanted`, or `otherwise` if that is `None`, but no more than fit into the memory that
/// this process may still use (its cgroup, its limits, the machine). Each needs `bytes`. At least one runs in any
/// case. Sends a notice if the number is lower than wanted or takes much memory.
pub fn limit_jobs(
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
    } else if wanted.is_some() && bytes.saturating_mul(jobs.get() as u64) > memory::NOTICE_BYTES {
        progress.notice(&format!(
            "{jobs} workers use up to {} MiB",
            mib(bytes.saturating_mul(jobs.get() as u64))
        ));
    }
    fit
}

/// `jobs` as a number of workers, at least one.
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
    fn a_pool_lends_each_tool_to_one_worker_at_a_time() {
        let cancel = Cancel::default();
        let abort = Abort::new(&cancel, "testing");
        let (next, lent, pool) = (AtomicU64::new(0), AtomicU64::new(0), Pool::new([0, 0]));
        run(at_least_one(6), &abort, || {
            while next.fetch_add(1, Ordering::Relaxed) < 60 {
                pool.with(&abort, |uses| {
                    assert!(lent.fetch_add(1, Ordering::Relaxed) < 2);
                    std::thread::sleep(Duration::from_millis(1));
                    *uses += 1;
                    lent.fetch_sub(1, Ordering::Relaxed);
                    Ok(())
                })?;
            }
            Ok(())
        })
        .unwrap();
        // A failure returns the tool, too.
        for _ in 0..3 {
            pool.with(&abort, |_| Err::<(), _>(Error::Unsigned)).unwrap_err();
        }
        assert_eq!(lock(&pool.free).iter().sum::<i32>(), 60);
        cancel.request();
        let empty: Pool<()> = Pool::new([]);
        assert!(matches!(empty.with(&abort, |()| Ok(())), Err(Error::Interrupted { .. })));
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
    fn the_first_failure_wakes_waiting_workers() {
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
