//! Swap of the software, on a thread of its own, which waits for the other nodes at two points: at the gate, while the old
//! software serves, and before the new software is marked good.
//!
//! ```text
//!   begin ─▶ Arranging ─▶ Gated ── go ──▶ Swapping ─▶ Healthy ── keep ──▶ Ended: marked good
//!                │          └ end ──▶ Ended   └──────────┬───┴── back ──▶ Ended: the old one runs again
//!                └─────────────────────────▶ Ended: failed
//! ```
//!
//! It ends with the service: a container at its gate ends too, one that runs continues to run, on trial.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::container::Rendezvous;
use crate::error::{Error, Result};
use crate::service::Service;
use crate::service::owner::upgrade::Failure;
use crate::workers;

/// Progress of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Arranging,
    Gated,
    Swapping,
    Healthy,
    Ended(std::result::Result<(), Failure>),
}

/// Last command to a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Wait,
    Go,
    Keep,
    /// Return to the old software, for this reason.
    Back(String),
}

#[derive(Debug)]
struct Shared {
    state: Mutex<(At, Word)>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (At, Word)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the point `at`, and waits for a command other than those in `before`.
    fn arrive(&self, at: At, before: &[Word]) -> Word {
        let mut state = self.lock();
        state.0 = at;
        self.changed.notify_all();
        let waits = |state: &mut (At, Word)| before.contains(&state.1);
        let told = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        told.1.clone()
    }
}

/// Handle of a swap.
#[derive(Debug, Clone)]
pub(super) struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Begins a swap to the prepared software.
    ///
    /// # Errors
    /// [`Error::NoThread`].
    pub(super) fn begin(service: &Arc<Service>) -> Result<Self> {
        let service = Arc::clone(service);
        Self::run(move |others| service.container.swap_together(&service.place, others).map(|_| ()))
    }

    fn run(swap: impl FnOnce(&dyn Rendezvous) -> Result<()> + Send + 'static) -> Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::new((At::Arranging, Word::Wait)), changed: Condvar::new() });
        let session = Self { shared: Arc::clone(&shared) };
        workers::spawn("swapping with other nodes", move || {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| swap(&Waiter(&shared))));
            let lost = |_| Err(Error::Internal { what: "the swap ended by a panic".to_owned() });
            let ended = ended.unwrap_or_else(lost);
            shared.lock().0 = At::Ended(ended.map_err(|error| Failure::from(&error)));
            shared.changed.notify_all();
        })?;
        Ok(session)
    }

    /// Whether the new software waits at its gate, or is being started up to it.
    pub(super) fn is_gated(&self) -> bool {
        matches!(self.shared.lock().0, At::Arranging | At::Gated)
    }

    /// Waits until the new software is at its gate.
    ///
    /// # Errors
    /// The error of the swap that prevented it.
    pub(super) fn gate(&self) -> Result<()> {
        self.wait(At::Gated)
    }

    /// Swaps, and returns when the new software is healthy.
    ///
    /// # Errors
    /// The error of the swap; the old software runs again.
    pub(super) fn go(&self) -> Result<()> {
        self.tell(Word::Go);
        self.wait(At::Healthy)
    }

    /// Marks the new software good.
    ///
    /// # Errors
    /// The error of the swap that prevented it.
    pub(super) fn keep(&self) -> Result<()> {
        self.tell(Word::Keep);
        self.end()
    }

    /// Abandons the new software in any state. Returns when the old software runs.
    ///
    /// # Errors
    /// The error for which the old software does not run.
    pub(super) fn back(&self, why: String) -> Result<()> {
        self.tell(Word::Back(why));
        match self.end() {
            Err(error) if is_undone(&error) => Ok(()),
            ended => ended,
        }
    }

    fn tell(&self, word: Word) {
        self.shared.lock().1 = word;
        self.shared.changed.notify_all();
    }

    fn end(&self) -> Result<()> {
        self.wait_for(|_| false)
    }

    fn wait(&self, at: At) -> Result<()> {
        self.wait_for(move |now| *now == at)
    }

    fn wait_for(&self, reached: impl Fn(&At) -> bool) -> Result<()> {
        let waits = |state: &mut (At, Word)| !reached(&state.0) && !matches!(state.0, At::Ended(_));
        let waited = self.shared.changed.wait_while(self.shared.lock(), waits);
        match &waited.unwrap_or_else(PoisonError::into_inner).0 {
            At::Ended(Err(failure)) => Err(Error::remote(&failure.code, &failure.message)),
            _ => Ok(()),
        }
    }
}

/// Whether the old software runs after this error: nothing was changed yet, or the return succeeded.
fn is_undone(error: &Error) -> bool {
    [Error::Cancelled.code(), "UPGRADE_ERROR_SWAPPED_BACK"].contains(&error.code())
}

struct Waiter<'a>(&'a Shared);

impl Rendezvous for Waiter<'_> {
    fn ready(&self) -> Result<()> {
        match self.0.arrive(At::Gated, &[Word::Wait]) {
            Word::Go | Word::Keep => {
                self.0.lock().0 = At::Swapping;
                Ok(())
            }
            Word::Wait | Word::Back(_) => Err(Error::Cancelled),
        }
    }

    fn healthy(&self) -> std::result::Result<(), String> {
        match self.0.arrive(At::Healthy, &[Word::Wait, Word::Go]) {
            Word::Wait | Word::Go | Word::Keep => Ok(()),
            Word::Back(why) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Downtime;

    fn swap(others: &dyn Rendezvous) -> Result<()> {
        others.ready()?;
        others.healthy().map_err(|problem| Error::SwappedBack {
            version: "2".into(),
            problem,
            running: "1".into(),
            downtime: Downtime(None),
        })
    }

    #[test]
    fn each_point_waits_for_its_word() {
        let session = Session::run(swap).unwrap();
        session.gate().unwrap();
        assert!(session.is_gated());
        session.go().unwrap();
        assert!(!session.is_gated());
        session.keep().unwrap();
        let session = Session::run(swap).unwrap();
        session.gate().unwrap();
        session.back("nobody wants it".into()).unwrap();
        assert!(!session.is_gated(), "it is over");
        let session = Session::run(swap).unwrap();
        session.go().unwrap();
        session.back("node 3 is not well".into()).unwrap();
    }

    #[test]
    fn a_swap_that_fails_is_told_at_each_point() {
        let fails = |_: &dyn Rendezvous| Err(Error::NeedsReboot);
        let session = Session::run(fails).unwrap();
        assert_eq!(session.gate().unwrap_err().code(), Error::NeedsReboot.code());
        assert_eq!(session.go().unwrap_err().code(), Error::NeedsReboot.code());
        assert!(session.back(String::new()).is_err());
    }
}
