//! Restart of the software of another node. The order is a key in etcd, on the lease of the requesting node; the other node
//! deletes it when that is done. So no node needs the certificate or a token of another one.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::etcd::Etcd;
use crate::cluster::state::{NodeId, Restart};
use crate::cluster::store::{Compare, Entry, Key, Revision, Store, Txn, Value, Write};
use crate::cluster::view::View;
use crate::error::{Error, Result, sentence};
use crate::service::cluster::Cluster;
use crate::service::cluster::acts::Actor;
use crate::service::cluster::cache::Seen;
use crate::service::owner::order::Order;
use crate::workers;

/// Time limit for a restart of another node.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Orders another node to restart its software, and waits for the result.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`]; [`Error::Blocked`]: the node is away; [`Error::UpgradeBusy`]: another order is pending;
    /// [`Error::ClusterUpgrade`]: it failed on that node, or there was no answer; [`Error::ClusterStore`].
    pub(in crate::service) fn restart(&self, node: NodeId) -> Result<()> {
        let mut etcd = self.etcd.clone();
        let view = View::new(&etcd.snapshot()?);
        if !view.members.contains(&node) {
            return Err(Error::NoSuchNode { node: node.0.to_string() });
        }
        if !view.alive.contains_key(&node) {
            return Err(Error::Blocked { reason: format!("{node} is away") });
        }
        let key = Key::Restart(node);
        let order = Value::Restart(Restart { by: self.node(), failed: None });
        let lease = self.cache.get().lease;
        let compare = vec![Compare::Created(key, 0)];
        if !etcd.transact(&Txn { compare, writes: vec![Write::Put(key, order, lease)] })? {
            return Err(Error::UpgradeBusy { doing: format!("{node} restarts its software") });
        }
        let (begun, mut there) = (Instant::now(), false);
        let mut seen = self.cache.get();
        loop {
            let problem = match seen.entry(key) {
                None if there => return Ok(()),
                Some(Entry { value: Value::Restart(Restart { failed: Some(why), .. }), .. }) => {
                    Some(format!("{node}: {why}"))
                }
                Some(_) => {
                    there = true;
                    None
                }
                None => None,
            };
            let late = (begun.elapsed() > ANSWER_LIMIT).then(|| format!("{node}: no answer from it"));
            if let Some(problem) = problem.or(late) {
                etcd.transact(&Txn { compare: Vec::new(), writes: vec![Write::Delete(key)] })?;
                return Err(Error::ClusterUpgrade { problem });
            }
            seen = self.cache.wait(seen, Duration::from_millis(200));
            // The restart ended between two looks.
            if !there && begun.elapsed() > Duration::from_secs(1) && !etcd.snapshot()?.contains_key(&key) {
                return Ok(());
            }
        }
    }
}

/// Restarts of the software of other nodes that are in progress.
pub(in crate::service) type OtherRestarts = Vec<JoinHandle<Result<()>>>;

impl Cluster {
    /// Orders every other member to restart its software.
    ///
    /// # Errors
    /// [`Error::Blocked`]: a member is away, and none has restarted; [`Error::NoThread`]; [`Error::ClusterStore`].
    pub(in crate::service) fn restart_others(self: Arc<Self>) -> Result<OtherRestarts> {
        let view = View::new(&self.etcd.snapshot()?);
        if let Some(away) = view.members.iter().find(|node| !view.alive.contains_key(node)) {
            return Err(Error::Blocked { reason: format!("{away} is away") });
        }
        let others = view.members.iter().copied().filter(|node| *node != self.node());
        let restart = |node| {
            let cluster = Arc::clone(&self);
            workers::spawn("a restart of the software", move || cluster.restart(node))
        };
        others.map(restart).collect()
    }

    /// Waits for the other members.
    ///
    /// # Errors
    /// [`Error::ClusterUpgrade`] with every node whose software did not restart.
    pub(in crate::service) fn restarted(&self, own: Result<()>, others: OtherRestarts) -> Result<()> {
        let lost = |_| Err(Error::Internal { what: "a restart ended by a panic".to_owned() });
        let own = own.map_err(|error| format!("{}: {}", self.node(), sentence(&error)));
        let others = others.into_iter().map(|work| work.join().unwrap_or_else(lost));
        let others = others.map(|result| result.map_err(|error| sentence(&error)));
        let failed: Vec<String> = std::iter::once(own).chain(others).filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(Error::ClusterUpgrade { problem: failed.join("; ") }) }
    }
}

/// Restarts of this node that other nodes order.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    work: Option<(Revision, JoinHandle<Result<()>>)>,
}

impl Restarts {
    /// Begins an ordered restart, or reports the result of one that has ended.
    pub(super) fn serve(&mut self, node: NodeId, seen: &Seen, actor: &Actor, etcd: &mut Etcd) -> Result<()> {
        let key = Key::Restart(node);
        if let Some((created, work)) = self.work.take_if(|(_, work)| work.is_finished()) {
            let lost = |_| Err(Error::Internal { what: "a restart ended by a panic".to_owned() });
            let write = match work.join().unwrap_or_else(lost) {
                Ok(()) => Write::Delete(key),
                Err(error) => {
                    let failed = Restart { by: node, failed: Some(sentence(&error)) };
                    Write::Put(key, Value::Restart(failed), seen.lease)
                }
            };
            let compare = vec![Compare::Created(key, created)];
            return etcd.transact(&Txn { compare, writes: vec![write] }).map(|_| ());
        }
        let Some(Entry { value: Value::Restart(Restart { by, failed: None }), created, .. }) =
            seen.entry(key)
        else {
            return Ok(());
        };
        if self.work.is_none() {
            tracing::info!("{by} asks for a restart of the software");
            let actor = actor.clone();
            let work = workers::spawn("a restart of the software", move || {
                actor.runtime.block_on(actor.owner.order(Order::RestartContainer)).map(|_| ())
            })?;
            self.work = Some((*created, work));
        }
        Ok(())
    }
}
