//! Cache of all keys, and the two threads that communicate with etcd independently of everything else: one watches, one renews
//! the lease. A flush that takes long must not cost the lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::etcd::{Etcd, KeyChange};
use crate::cluster::replica::Replica;
use crate::cluster::state::{NodeId, RebootState, Stage};
use crate::cluster::store::{Entry, Key, LeaseId, Revision, Snapshot, Store, Value};
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
    replica: Arc<Replica>,
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
    /// Identity of this machine; `None`: its disk has not been read yet.
    pub(super) machine: Option<String>,
    /// Why this node takes no part although its number is that of a member; `None`: it takes part, or is no member.
    pub(super) refused: Option<String>,
    /// Whether this node cannot act on the content of etcd: it cannot read it, or it is older than what it has seen.
    pub(super) unusable: bool,
    /// What is wrong with the present content of etcd compared with the last one; `None`: nothing.
    pub(super) restored: Option<String>,
    /// Highest revision of etcd that this node has seen.
    pub(super) revision: Revision,
    /// Counter of changes.
    count: u64,
}

impl Seen {
    /// All keys.
    pub(super) fn snapshot(&self) -> &Snapshot {
        self.replica.snapshot()
    }

    /// Value of a key, with its history; `None`: it does not exist.
    pub(super) fn entry(&self, key: Key) -> Option<&Entry> {
        self.snapshot().get(&key)
    }

    /// The view of all keys.
    pub(super) fn view(&self) -> &View {
        self.replica.view()
    }

    /// Whether this machine is the member with the number `node`; `None`: that is not known yet.
    pub(super) fn member(&self, node: NodeId) -> Option<bool> {
        match (self.known, self.entry(Key::Member(node)).map(|entry| &entry.value)) {
            (false, _) => None,
            (true, Some(Value::Member(member))) => Some(*self.machine.as_ref()? == member.uuid),
            (true, _) => Some(false),
        }
    }
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
            replica: Arc::new(Replica::new(kept.unwrap_or_default())),
            ever: false,
            problem: Some("etcd has not answered yet".to_owned()),
            stage: (0, Stage::Idle),
            stage_since: Instant::now(),
            stage_begun: false,
            identity: String::new(),
            lease: None,
            machine: None,
            refused: None,
            unusable: false,
            restored: None,
            revision: 0,
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

    /// Waits for a change since `seen`, but at most for `limit`. It drops `seen` first: a change of keys that a thread
    /// still reads costs a copy of all of them.
    pub(super) fn wait(&self, seen: Seen, limit: Duration) -> Seen {
        let known = seen.count;
        drop(seen);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |now| now.count == known);
        waited.map(|(now, _)| now.clone()).unwrap_or_else(|poisoned| poisoned.into_inner().0.clone())
    }

    /// Stores the identity of this machine, as its disk shows it.
    pub(super) fn is_machine(&self, identity: &str) {
        if self.lock().machine.as_deref() != Some(identity) {
            self.change(|seen| seen.machine = Some(identity.to_owned()));
        }
    }

    /// Stores why this machine takes no part; `None`: it does.
    pub(super) fn refuse(&self, why: Option<String>) {
        if self.lock().refused != why {
            self.change(|seen| seen.refused = why);
        }
    }

    /// Wakes the threads that wait for a change: a step of this node has ended.
    pub(super) fn wake(&self) {
        self.lock().count += 1;
        self.changed.notify_all();
    }

    fn change(&self, act: impl FnOnce(&mut Seen)) {
        let mut seen = self.lock();
        act(&mut seen);
        let upgrade = &seen.view().upgrade;
        let stage = (upgrade.id, upgrade.stage);
        if seen.stage != stage {
            // At the first look the stage may have begun earlier.
            seen.stage_begun = seen.count > 1 && seen.ever;
            (seen.stage, seen.stage_since) = (stage, Instant::now());
        }
        seen.count += 1;
        drop(seen);
        self.changed.notify_all();
    }

    fn take(&self, changes: Vec<KeyChange>, revision: Revision) {
        if changes.is_empty() {
            return;
        }
        self.change(|seen| {
            seen.revision = seen.revision.max(revision);
            Arc::make_mut(&mut seen.replica).apply(changes);
        });
    }

    fn trouble(&self, error: &Error) {
        let problem = sentence(error);
        if self.lock().problem.as_ref() != Some(&problem) {
            tracing::warn!(code = error.code(), "{problem}");
            self.change(|seen| {
                seen.problem = Some(problem);
                seen.unusable = matches!(error, Error::ClusterData { .. } | Error::ClusterRestored { .. });
                seen.restored = match error {
                    Error::ClusterRestored { what } => Some(what.clone()),
                    _ => None,
                };
            });
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
    check_history(&cache.get(), &snapshot, revision, &identity)?;
    let mut watch = etcd.watch(revision)?;
    kept.keep(&snapshot);
    let replica = Arc::new(Replica::new(snapshot));
    cache.change(|seen| {
        if seen.problem.take().is_some() {
            tracing::info!(revision, "etcd answers");
        }
        (seen.replica, seen.ever, seen.known, seen.identity) = (replica, true, true, identity);
        (seen.unusable, seen.restored, seen.revision) = (false, None, revision);
    });
    while !end.load(Ordering::Relaxed) {
        let (changes, revision) = watch.wait()?;
        let lasts = changes.iter().any(|(key, _)| LastSeen::lasts(key));
        cache.take(changes, revision);
        if lasts {
            kept.keep(cache.get().snapshot());
        }
    }
    Ok(())
}

/// Checks that etcd has not lost changes that this node has seen. What is in progress must not be repeated, or be forgotten by
/// nodes that have done half of it. When both states are at rest, the one of etcd is taken.
fn check_history(
    seen: &Seen,
    snapshot: &Snapshot,
    revision: Revision,
    identity: &str,
) -> crate::error::Result<()> {
    let at_rest = |view: &View| view.upgrade.stage == Stage::Idle && view.reboot.state == RebootState::Idle;
    let what = if !seen.ever {
        return Ok(());
    } else if seen.identity != identity {
        format!("etcd is the cluster {identity} now, and was {} before", seen.identity)
    } else if revision < seen.revision {
        format!("etcd went back from revision {} to {revision}", seen.revision)
    } else {
        return Ok(());
    };
    if at_rest(seen.view()) && at_rest(&View::new(snapshot)) {
        tracing::warn!("{what}; nothing is in progress, so its state is taken");
        return Ok(());
    }
    Err(Error::ClusterRestored { what })
}

/// Renews the lease until `end`; after the loss of a lease it requests another one.
pub(super) fn keep_lease(cache: &Cache, mut etcd: Etcd, end: &AtomicBool) {
    let mut failed = None;
    while !end.load(Ordering::Relaxed) {
        let (lease, silent) = {
            let seen = cache.lock();
            (seen.lease, seen.unusable || seen.refused.is_some())
        };
        // A node that cannot read the state, or is refused, does not act: with a lease the others would wait for it, or be led
        // by it.
        if silent {
            if let Some(lease) = lease {
                // If that fails, the lease ends by itself.
                let _ = etcd.revoke(lease);
                cache.change(|seen| seen.lease = None);
            }
            std::thread::sleep(AGAIN);
            continue;
        }
        let kept = match lease {
            Some(lease) => etcd.keep_alive(lease).map(|lasts| lasts.then_some(lease)),
            None => etcd.grant(TTL).map(Some),
        };
        match etcd.renewal() {
            None => {}
            Some(Ok(())) => tracing::info!("the certificates for etcd were replaced, and are used now"),
            Some(Err(error)) => {
                let told = sentence(&error);
                tracing::warn!(
                    code = error.code(),
                    "the new certificates for etcd cannot be used, the previous ones are: {told}"
                );
            }
        }
        if kept.is_ok() && failed.is_some() {
            // The watch may last through a loss of the quorum, and does not notice the end of it.
            let failed = failed.take();
            cache.change(|seen| {
                seen.problem.take_if(|problem| Some(&*problem) == failed.as_ref());
            });
        }
        match kept {
            Ok(now) if now != lease => cache.change(|seen| seen.lease = now),
            Ok(_) => std::thread::sleep(BEAT),
            Err(error) => {
                cache.trouble(&error);
                failed = Some(sentence(&error));
                std::thread::sleep(AGAIN);
            }
        }
    }
    // The other nodes see the end of this node at once, and need not wait for the end of its lease.
    if let Some(lease) = cache.lock().lease {
        let _ = etcd.revoke(lease);
    }
}
