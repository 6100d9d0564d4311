//! Cache of all keys, and the two threads that communicate with etcd independently of everything else: one watches, one renews
//! the lease. A flush that takes long must not cost the lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::etcd::{Etcd, KeyChange};
use crate::cluster::state::Stage;
use crate::cluster::store::{LeaseId, Snapshot, Store};
use crate::cluster::view::View;
use crate::error::{Error, sentence};
use crate::service::cluster::last_seen::LastSeen;

/// Duration of a lease in seconds, after which a silent node is away: longer than the longest flush, and enough for several
/// renewals.
const TTL: u32 = 10;
/// Time between two renewals of the lease.
const BEAT: Duration = Duration::from_secs(3);
/// Time between a failure and the next request to etcd.
const AGAIN: Duration = Duration::from_secs(1);

/// State of the cluster as this node saw it last.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) snapshot: Arc<Snapshot>,
    /// Whether etcd has answered since the start of the service; before that nothing is decided.
    pub(super) ever: bool,
    /// Whether a state is known, if only from the file of the last run.
    pub(super) known: bool,
    /// Why the state may be outdated; `None`: it is current.
    pub(super) problem: Option<String>,
    /// Number and stage of the upgrade.
    pub(super) stage: (u64, Stage),
    /// Time at which this node first saw that stage.
    pub(super) stage_since: Instant,
    /// Whether this node saw the stage begin; if not, it may have begun much earlier.
    pub(super) stage_begun: bool,
    /// Identity of the etcd cluster.
    pub(super) identity: String,
    /// Lease of this node; `None`: it has none at present.
    pub(super) lease: Option<LeaseId>,
    /// Counter of changes.
    count: u64,
}

/// Cache of the state, which wakes waiting threads on each change.
#[derive(Debug)]
pub(super) struct Cache {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Cache {
    /// Creates the cache with the state that the last run saved; `None`: there is none.
    pub(super) fn new(kept: Option<Snapshot>) -> Self {
        let seen = Seen {
            known: kept.is_some(),
            snapshot: Arc::new(kept.unwrap_or_default()),
            ever: false,
            problem: Some("etcd has not answered yet".to_owned()),
            stage: (0, Stage::Idle),
            stage_since: Instant::now(),
            stage_begun: false,
            identity: String::new(),
            lease: None,
            count: 0,
        };
        Self { seen: Mutex::new(seen), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Seen {
        self.lock().clone()
    }

    /// Waits for a change since `seen`, but at most for `limit`.
    pub(super) fn wait(&self, seen: &Seen, limit: Duration) -> Seen {
        let known = seen.count;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |now| now.count == known);
        waited.map(|(now, _)| now.clone()).unwrap_or_else(|poisoned| poisoned.into_inner().0.clone())
    }

    fn change(&self, act: impl FnOnce(&mut Seen)) {
        let mut seen = self.lock();
        act(&mut seen);
        let upgrade = View::new(&seen.snapshot).upgrade;
        if seen.stage != (upgrade.id, upgrade.stage) {
            // At the first look the stage may have begun earlier.
            seen.stage_begun = seen.count > 1 && seen.ever;
            (seen.stage, seen.stage_since) = ((upgrade.id, upgrade.stage), Instant::now());
        }
        seen.count += 1;
        drop(seen);
        self.changed.notify_all();
    }

    fn take(&self, changes: Vec<KeyChange>) {
        if changes.is_empty() {
            return;
        }
        self.change(|seen| {
            let snapshot = Arc::make_mut(&mut seen.snapshot);
            for (key, entry) in changes {
                match entry {
                    Some(entry) => snapshot.insert(key, entry),
                    None => snapshot.remove(&key),
                };
            }
        });
    }

    fn trouble(&self, error: &Error) {
        let problem = sentence(error);
        if self.lock().problem.as_ref() != Some(&problem) {
            tracing::warn!(code = error.code(), "{problem}");
            self.change(|seen| seen.problem = Some(problem));
        }
    }
}

/// Follows etcd until `end`.
pub(super) fn follow(cache: &Cache, etcd: &Etcd, kept: &mut LastSeen, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        let Err(error) = follow_once(cache, etcd, kept, end) else { return };
        // A watch is started again twice a minute, which is not worth a message.
        if !matches!(&error, Error::ClusterStore { problem } if problem.starts_with("the watch ended")) {
            cache.trouble(&error);
            std::thread::sleep(AGAIN);
        }
    }
}

fn follow_once(
    cache: &Cache,
    etcd: &Etcd,
    kept: &mut LastSeen,
    end: &AtomicBool,
) -> crate::error::Result<()> {
    let identity = etcd.identity()?;
    let (snapshot, revision) = etcd.read()?;
    let mut watch = etcd.watch(revision)?;
    kept.keep(&snapshot);
    cache.change(|seen| {
        if seen.problem.take().is_some() {
            tracing::info!(revision, "etcd answers");
        }
        (seen.snapshot, seen.ever, seen.known, seen.identity) = (Arc::new(snapshot), true, true, identity);
    });
    while !end.load(Ordering::Relaxed) {
        let changes = watch.wait()?.0;
        cache.take(changes);
        kept.keep(&cache.get().snapshot);
    }
    Ok(())
}

/// Renews the lease until `end`; after the loss of a lease it requests another one.
pub(super) fn keep_lease(cache: &Cache, mut etcd: Etcd, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        let lease = cache.lock().lease;
        let kept = match lease {
            Some(lease) => etcd.keep_alive(lease).map(|lasts| lasts.then_some(lease)),
            None => etcd.grant(TTL).map(Some),
        };
        match kept {
            Ok(now) if now != lease => cache.change(|seen| seen.lease = now),
            Ok(_) => std::thread::sleep(BEAT),
            Err(error) => {
                cache.trouble(&error);
                std::thread::sleep(AGAIN);
            }
        }
    }
    // The other nodes see the end of this node at once, and need not wait for the end of its lease.
    if let Some(lease) = cache.lock().lease {
        let _ = etcd.revoke(lease);
    }
}
