//! Threads that each run frames to completion, and the one order that some work needs among them.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::progress::Cancel;

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

/// Runs `work` on `jobs` threads and waits for all. The first failure ends the others at their next
/// [`Abort::check`] and is the one that is returned.
pub fn run<T: Send>(
    jobs: NonZeroUsize,
    abort: &Abort<'_>,
    work: impl Fn() -> Result<T> + Sync,
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
    let worker = || {
        let _guard = Guard(abort);
        work()
            .map_err(|error| {
                let mut first = lock(&first_error);
                abort.failed.store(true, Ordering::Relaxed);
                first.get_or_insert(error);
            })
            .ok()
    };
    let results: Vec<Option<T>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.get()).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(results.into_iter().flatten().collect()),
    }
}

/// Lets the workers take turns: turn `n` runs after turn `n - 1`, whoever has it. This is where the work
/// that is sequential by nature happens (SHA-256, appending to a file) without a thread or a queue of its own.
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

/// Locks; a panic elsewhere has already decided the outcome, so poison adds nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many workers to use where nobody says: measured with 1 MiB frames on two cores, cores + 2 equals a
/// four-stage pipeline; with cores only, a worker that waits for the disk idles one.
pub fn default_jobs() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).saturating_add(2)
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
