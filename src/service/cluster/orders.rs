//! Orders of operators: each is decided on the present content of etcd, never on the cache alone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::state::{Member, NodeId, Ordered, PROTOCOL, Stage};
use crate::cluster::store::{Entry, Key, Snapshot, Store, Txn, Value, Write};
use crate::cluster::view::View;
use crate::cluster::{codec, membership, orders};
use crate::error::{Error, Result, sentence};
use crate::service::cluster::Cluster;
use crate::service::cluster::local::{identity, platform, runs_alone};
use crate::service::owner::disk::DiskView;

/// Number of attempts of an order whose transactions fail because of concurrent changes.
const TRIES: usize = 8;
/// Minimum time for which COMMITTING is shown.
const SHOWN: Duration = Duration::from_millis(1500);
/// Time limit until the cache shows a change that etcd has accepted.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// State of a commit that was accepted.
#[derive(Debug, Clone, Default)]
pub(in crate::service) enum Pending {
    #[default]
    None,
    /// The commit is being written to etcd.
    Waits,
    /// The commit failed, and the error could not be written to etcd yet.
    Failed(String),
}

/// The last commit that this node accepted.
#[derive(Debug, Default)]
pub(super) struct LastCommit {
    pending: Pending,
    /// Counter of the changes: a later order makes the result of an earlier one void.
    count: u64,
}

/// The transaction of an ordered prepare; an empty one if it is the order that is in progress.
fn prepare(view: &View, order: &Ordered) -> Result<Txn> {
    let known = view.upgrade.order.as_ref().filter(|known| known.digest == order.digest);
    match (view.upgrade.stage, known) {
        (Stage::Prepared, Some(known)) if (known.rolling, known.nodes) != (order.rolling, order.nodes) => {
            orders::reboot_settings(view, order.rolling, order.nodes)
        }
        (Stage::Preparing | Stage::Prepared, Some(_)) => Ok(Txn::default()),
        _ => orders::prepare(view, order.clone()),
    }
}

impl Cluster {
    /// Decides on the present content of etcd, writes the result, and waits until the cache shows it.
    ///
    /// # Errors
    /// The refusal; [`Error::ClusterStore`].
    pub(in crate::service) fn order(&self, decide: impl Fn(&View) -> Result<Txn>) -> Result<()> {
        self.may_order()?;
        let mut etcd = self.etcd.clone();
        for _ in 0..TRIES {
            let snapshot = etcd.snapshot()?;
            let txn = decide(&View::new(&snapshot))?;
            if etcd.transact(&txn)? {
                self.wait_until_shown(&snapshot, &txn.writes);
                return Ok(());
            }
        }
        Err(Error::ServiceBusy { problem: "the cluster changes all the time".to_owned() })
    }

    /// Decides on the present content of etcd, and writes nothing. Returns the changes that the order would write, one line each.
    ///
    /// # Errors
    /// As [`Self::order`].
    pub(in crate::service) fn dry_run(&self, decide: impl Fn(&View) -> Result<Txn>) -> Result<Vec<String>> {
        self.may_order()?;
        let txn = decide(&View::new(&self.etcd.snapshot()?))?;
        txn.writes.iter().map(codec::shown).collect()
    }

    /// Checks that this machine takes part in its cluster, and that etcd is the one that it knows.
    fn may_order(&self) -> Result<()> {
        let (begun, mut seen) = (Instant::now(), self.cache.get());
        // In the first moments it is not known whether this machine is the member with its number.
        while seen.member(self.node()).is_none() && begun.elapsed() < SEEN_WITHIN {
            seen = self.cache.wait(seen, Duration::from_millis(100));
        }
        if let Some(problem) = seen.refused {
            return Err(Error::Membership { problem });
        }
        if let Some(what) = seen.restored {
            return Err(Error::ClusterRestored { what });
        }
        Ok(())
    }

    /// Checks that the cluster accepts an upgrade, before a bundle is read.
    ///
    /// # Errors
    /// The refusal; [`Error::ClusterStore`].
    pub(in crate::service) fn admits(&self, path: &str) -> Result<()> {
        let view = View::new(&self.etcd.snapshot()?);
        let same = view.upgrade.order.as_ref().is_some_and(|order| order.install_path == path);
        match view.upgrade.stage {
            Stage::Idle => orders::admission(&view),
            Stage::Preparing | Stage::Prepared if same => Ok(()),
            Stage::Prepared => Ok(()),
            stage => Err(Error::UpgradeBusy { doing: stage.word().to_lowercase() }),
        }
    }

    /// Orders a prepare. The same order again has no effect; the bundle that is prepared takes the new settings of its reboot.
    ///
    /// # Errors
    /// See [`orders::prepare`].
    pub(in crate::service) fn prepare(&self, order: &Ordered) -> Result<()> {
        self.set_pending(Pending::None);
        self.order(|view| prepare(view, order))
    }

    /// The changes that [`Self::prepare`] would write.
    ///
    /// # Errors
    /// See [`orders::prepare`].
    pub(in crate::service) fn prepare_dry_run(&self, order: &Ordered) -> Result<Vec<String>> {
        self.dry_run(|view| prepare(view, order))
    }

    /// Accepts a commit and decides on it afterwards: an obstacle is shown in the status, as a client expects after a prepare.
    ///
    /// # Errors
    /// See [`orders::not_prepared`].
    pub(in crate::service) fn commit(self: &Arc<Self>) -> Result<()> {
        let (upgrade, stage) = self.cache.get().stage;
        if stage != Stage::Prepared {
            return Err(orders::not_prepared(stage));
        }
        self.set_pending(Pending::Waits);
        let cluster = Arc::clone(self);
        let work = move || match cluster.commit_in_band() {
            None => _ = cluster.set_pending(Pending::None),
            Some(error) => {
                let count = cluster.set_pending(Pending::Failed(error.clone()));
                cluster.report_late(count, upgrade, &error);
            }
        };
        crate::workers::spawn("a commit of the cluster", work)
            .map(|_| ())
            .inspect_err(|_| _ = self.set_pending(Pending::None))
    }

    /// Writes a commit to etcd. Returns an error that could not be written to etcd either.
    fn commit_in_band(&self) -> Option<String> {
        let begun = Instant::now();
        let error = loop {
            match self.order(orders::commit) {
                Ok(()) => {
                    self.wait_until_seen(|stage| stage != Stage::Prepared);
                    return None;
                }
                Err(Error::ClusterStore { .. }) if begun.elapsed() < self.membership.commit_timeout => {
                    std::thread::sleep(Duration::from_secs(1));
                }
                Err(error) => break sentence(&error),
            }
        };
        std::thread::sleep(SHOWN.saturating_sub(begun.elapsed()));
        let told = self.order(|view| Ok(orders::commit_failed(view, error.clone())));
        let has_error = |_| self.cache.get().view().upgrade.error.is_some();
        self.wait_until_seen(has_error);
        told.err().map(|_| error)
    }

    /// Writes the error of a commit when etcd answers again, so that every node shows it. Ends without it when the bundle is no
    /// longer prepared, or when this node has accepted another order.
    fn report_late(&self, count: u64, upgrade: u64, error: &str) {
        let is_last = || self.last_commit().count == count && !self.ended.load(Ordering::Relaxed);
        while is_last() {
            let reported = self.order(|view| {
                if (view.upgrade.id, view.upgrade.stage) == (upgrade, Stage::Prepared) {
                    return Ok(orders::commit_failed(view, error.to_owned()));
                }
                Err(orders::not_prepared(view.upgrade.stage))
            });
            match reported {
                Err(Error::ClusterStore { .. }) => std::thread::sleep(Duration::from_secs(1)),
                _ if is_last() => _ = self.set_pending(Pending::None),
                _ => {}
            }
        }
    }

    /// Waits for the cache: the status must not return to the previous state.
    fn wait_until_seen(&self, holds: impl Fn(Stage) -> bool) {
        let begun = Instant::now();
        let mut seen = self.cache.get();
        while !holds(seen.stage.1) && begun.elapsed() < SEEN_WITHIN {
            seen = self.cache.wait(seen, Duration::from_millis(100));
        }
    }

    /// Waits until the status shows an order. The client that sent it requests the status next, and would take the previous
    /// state, IDLE, for the end of its upgrade.
    fn wait_until_shown(&self, before: &Snapshot, writes: &[Write]) {
        let modified = |snapshot: &Snapshot, key: &Key| snapshot.get(key).map_or(0, |entry| entry.modified);
        let is_shown = |now: &Snapshot, write: &Write| match write {
            Write::Put(key, ..) => modified(now, key) > modified(before, key),
            Write::Delete(key) => !now.contains_key(key),
        };
        let begun = Instant::now();
        let mut seen = self.cache.get();
        while !writes.iter().all(|write| is_shown(seen.snapshot(), write)) && begun.elapsed() < SEEN_WITHIN {
            seen = self.cache.wait(seen, Duration::from_millis(100));
        }
    }

    fn last_commit(&self) -> MutexGuard<'_, LastCommit> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of this change.
    fn set_pending(&self, pending: Pending) -> u64 {
        let mut last = self.last_commit();
        (last.pending, last.count) = (pending, last.count + 1);
        last.count
    }

    pub(super) fn pending(&self) -> Pending {
        self.last_commit().pending.clone()
    }

    /// Makes this node a member.
    ///
    /// # Errors
    /// [`Error::Membership`]: its number is taken, or it runs another release than the cluster.
    pub(in crate::service) fn join(&self, look: &DiskView) -> Result<()> {
        let mut etcd = self.etcd.clone();
        let txn = self.joins(&etcd.snapshot()?, look)?;
        if txn.writes.is_empty() || etcd.transact(&txn)? {
            return Ok(());
        }
        let problem = "the cluster has changed in this moment; see 'qstage cluster status'".to_owned();
        Err(Error::Membership { problem })
    }

    /// The changes that [`Self::join`] would write; none: this node is a member already.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub(in crate::service) fn join_dry_run(&self, look: &DiskView) -> Result<Vec<String>> {
        self.joins(&self.etcd.snapshot()?, look)?.writes.iter().map(codec::shown).collect()
    }

    /// The transaction by which this node becomes a member; an empty one if it is a member already.
    fn joins(&self, snapshot: &Snapshot, look: &DiskView) -> Result<Txn> {
        let refused = |problem: String| Err(Error::Membership { problem });
        let view = View::new(snapshot);
        let (node, uuid) = (self.membership.node, identity(look));
        if let Some(Entry { value: Value::Member(member), .. }) = snapshot.get(&Key::Member(node)) {
            if member.uuid == uuid {
                return Ok(Txn::default());
            }
            return refused(format!(
                "{node} is another machine already, at {}; set another 'node' in [cluster]",
                member.address
            ));
        }
        let (address, certificate) = (self.membership.address.clone(), self.membership.own_certificate());
        let txn = membership::join(&view, node, Member { uuid, address, certificate })?;
        let (runs, version) = runs_alone(look, &view);
        if let Some((other, alive)) = view.alive.iter().find(|(_, alive)| alive.runs != runs) {
            let theirs = format!("{} {}", alive.product, alive.version).trim().to_owned();
            let difference = if version == theirs {
                format!("another build of {version} than {other} of the cluster")
            } else {
                format!("{version}, {other} of the cluster {theirs}")
            };
            return refused(format!(
                "this node runs {difference}; install that on this node first ('qstage prepare', 'qstage commit'), or set another 'prefix' in [cluster] if it belongs to another cluster"
            ));
        }
        let own = platform(look);
        if let Some((other, _)) = view
            .alive
            .iter()
            .find(|(_, alive)| alive.platform.zip(own).is_some_and(|(theirs, own)| theirs != own))
        {
            return refused(format!(
                "this node has another platform than {other} of the cluster below the same software; install a bundle with the platform of the cluster first"
            ));
        }
        if let Some((other, alive)) = view.alive.iter().find(|(_, alive)| alive.protocol != PROTOCOL) {
            let age = if alive.protocol < PROTOCOL { "an older" } else { "a newer" };
            return refused(format!(
                "{other} of the cluster has {age} qstage than this node; install one version of it on all nodes"
            ));
        }
        Ok(txn)
    }

    /// The transaction that ends the membership of a node: of this one, or of one that is lost for good.
    ///
    /// # Errors
    /// [`Error::Membership`], [`Error::UpgradeBusy`], [`Error::NoSuchNode`].
    pub(in crate::service) fn leave(&self, view: &View, node: NodeId) -> Result<Txn> {
        let txn = membership::remove(view, node)?;
        if node != self.membership.node && view.alive.contains_key(&node) {
            let problem = format!("{node} is there; run 'qstage cluster leave' on it");
            return Err(Error::Membership { problem });
        }
        Ok(txn)
    }

    /// Number of this node.
    pub(in crate::service) const fn node(&self) -> NodeId {
        self.membership.node
    }
}
