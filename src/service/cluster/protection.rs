//! Protection of data, as the hook of that name reports it. The hook runs periodically on a thread of its own, so that a hook
//! that hangs delays nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::state::{Protection, RebootState};
use crate::error::{Result, sentence};
use crate::service::cluster::cache::Cache;
use crate::service::cluster::hooks::{Hooks, Occasion};

/// Time between two runs of the hook while no reboot is in progress.
const IDLE: Duration = Duration::from_secs(10);
/// Time between two runs of the hook during a reboot.
const BUSY: Duration = Duration::from_secs(1);
/// Time between two checks whether the next run is due.
const LOOK: Duration = Duration::from_millis(200);

/// Knowledge of the protection of data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// No hook is configured: only the quorum of the store has to be protected.
    Quorum,
    /// Protection that the hook reported.
    Is(Protection),
    /// The hook does not report it; with the reason.
    Unknown(String),
    /// The hook has failed for longer than permitted; with the reason.
    Failed(String),
}

#[derive(Debug)]
struct ProtectionState {
    known: Known,
    /// Time since which the protection is unknown; `None`: it is known.
    since: Option<Instant>,
    /// Counter of the events after which the answer of a hook that still runs no longer counts.
    epoch: u64,
}

/// Protection of data, shared between the thread that runs the hook and the driver.
#[derive(Debug, Clone)]
pub(super) struct Protected {
    state: Arc<Mutex<ProtectionState>>,
    timeout: Duration,
}

impl Protected {
    pub(super) fn new(hooks: &Hooks) -> Self {
        let known = if hooks.protection.is_empty() { Known::Quorum } else { not_asked() };
        let since = (known != Known::Quorum).then(Instant::now);
        Self {
            state: Arc::new(Mutex::new(ProtectionState { known, since, epoch: 0 })),
            timeout: hooks.timeout,
        }
    }

    fn lock(&self) -> MutexGuard<'_, ProtectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Known {
        self.lock().known.clone()
    }

    /// Discards the last answer: the node is in service again, and counts only by an answer that is requested from now on.
    pub(super) fn ask_anew(&self) {
        let mut state = self.lock();
        if state.known != Known::Quorum {
            *state =
                ProtectionState { known: not_asked(), since: Some(Instant::now()), epoch: state.epoch + 1 };
        }
    }

    fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    fn take(&self, epoch: u64, answer: Result<Protection>) {
        let mut state = self.lock();
        if state.epoch != epoch {
            return;
        }
        match answer {
            Ok(protection) => (state.known, state.since) = (Known::Is(protection), None),
            Err(error) => {
                let since = *state.since.get_or_insert_with(Instant::now);
                let told = sentence(&error);
                if !matches!(&state.known, Known::Unknown(before) | Known::Failed(before) if *before == told)
                {
                    tracing::warn!(code = error.code(), "{told}");
                }
                let failed = since.elapsed() >= self.timeout;
                state.known = if failed { Known::Failed(told) } else { Known::Unknown(told) };
            }
        }
    }
}

fn not_asked() -> Known {
    Known::Unknown("the hook 'protection' has not answered yet".to_owned())
}

/// Runs the hook periodically until `end`.
pub(super) fn ask(protected: &Protected, hooks: &Hooks, cache: &Cache, node: u32, end: &AtomicBool) {
    let mut asked: Option<(Instant, u64)> = None;
    while !end.load(Ordering::Relaxed) {
        let seen = cache.get();
        let view = seen.view();
        let every = if view.reboot.state == RebootState::Idle { IDLE } else { BUSY };
        let epoch = protected.epoch();
        if asked.is_none_or(|(at, of)| at.elapsed() >= every || of != epoch) {
            let occasion = Occasion {
                node,
                nodes: view.members.iter().map(|node| node.0).collect(),
                group: view.reboot.current.iter().map(|(node, _)| node.0).collect(),
                ..Occasion::default()
            };
            protected.take(epoch, hooks.protection(&occasion));
            asked = Some((Instant::now(), epoch));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_not_known_is_a_failure_after_a_while_and_old_answers_do_not_count() {
        let no = || Err(Error::Hook { hook: "protection".into(), problem: "said no".into() });
        let whole = Protection { remaining: 1, maximum: 1, rebuilding: false };
        let timeout = Duration::from_secs(20);
        let hooks = Hooks { protection: vec!["x".into()], timeout, ..Hooks::default() };
        assert_eq!(Protected::new(&Hooks::default()).get(), Known::Quorum);
        let protected = Protected::new(&hooks);
        assert!(matches!(protected.get(), Known::Unknown(_)));
        protected.take(0, Ok(whole));
        assert_eq!(protected.get(), Known::Is(whole));
        protected.take(0, no());
        assert!(matches!(protected.get(), Known::Unknown(why) if why.contains("said no")));
        protected.lock().since = Instant::now().checked_sub(timeout);
        protected.take(0, no());
        assert!(matches!(protected.get(), Known::Failed(_)));
        protected.take(0, Ok(whole));
        assert_eq!(protected.get(), Known::Is(whole));
        protected.ask_anew();
        protected.take(0, Ok(whole));
        assert!(matches!(protected.get(), Known::Unknown(_)), "it was asked before");
        protected.take(1, Ok(whole));
        assert_eq!(protected.get(), Known::Is(whole));
    }
}
