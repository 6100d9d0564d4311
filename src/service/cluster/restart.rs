//! Restart of the software of another node. The order is a key in etcd, on the lease of the requesting node; the other node
//! deletes it when that is done. So no node needs the certificate or a token of another one.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::etcd::Etcd;
use crate::cluster::state::{NodeId, Restart};
use crate::cluster::store::{Compare, Entry, Key, LeaseId, Revision, Store, Txn, Value, Write};
use crate::cluster::view::View;
use crate::error::{Error, Result, sentence};
use crate::service::cluster::Cluster;
use crate::service::cluster::acts::Actor;
use crate::service::cluster::cache::Seen;
use crate::service::owner::order::Order;
use crate::workers;

/// Time limit for a restart of another node.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// Restart of the software of another node that this node has ordered. Its key remains until the result was read.
pub(in crate::service) struct OrderedRestart {
    node: NodeId,
    /// Lease of this node, on which the order is.
    lease: LeaseId,
    /// Revision of the order.
    created: Revision,
    begun: Instant,
}

impl Cluster {
    /// Orders another node to restart its software, and waits for the result.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`]; [`Error::Blocked`]: the node is away; [`Error::UpgradeBusy`]: another order is pending;
    /// [`Error::ClusterUpgrade`]: it failed on that node, or there was no answer; [`Error::ClusterStore`].
    pub(in crate::service) fn restart(&self, node: NodeId) -> Result<()> {
        self.end_restart(&self.order_restart(&View::new(&self.etcd.snapshot()?), node)?)
    }

    fn order_restart(&self, view: &View, node: NodeId) -> Result<OrderedRestart> {
        if !view.members.contains(&node) {
            return Err(Error::NoSuchNode { node: node.0.to_string() });
        }
        if !view.alive.contains_key(&node) {
            return Err(Error::Blocked { reason: format!("{node} is away") });
        }
        // Without a lease the order would outlast this node, and the next one would wait for it.
        let Some(lease) = self.cache.get().lease else {
            let reason = format!("{} has no lease of etcd at this moment; try again", self.node());
            return Err(Error::Blocked { reason });
        };
        let (mut etcd, key) = (self.etcd.clone(), Key::Restart(node));
        let order = Value::Restart(Restart { by: self.node(), failed: None });
        let compare = vec![Compare::Created(key, 0)];
        if !etcd.transact(&Txn { compare, writes: vec![Write::Put(key, order, Some(lease))] })? {
            return Err(Error::UpgradeBusy { doing: format!("{node} restarts its software") });
        }
        Ok(OrderedRestart { node, lease, created: etcd.written(), begun: Instant::now() })
    }

    /// Waits for the result of an order.
    fn end_restart(&self, ordered: &OrderedRestart) -> Result<()> {
        let OrderedRestart { node, lease, created, begun } = *ordered;
        let key = Key::Restart(node);
        let mut seen = self.cache.get();
        loop {
            let problem = match seen.entry(key).filter(|entry| entry.created == created) {
                None if seen.revision >= created => return self.taken(node, lease),
                Some(Entry { value: Value::Restart(Restart { failed: Some(why), .. }), .. }) => {
                    Some(format!("{node}: {why}"))
                }
                _ => None,
            };
            let late = (begun.elapsed() > ANSWER_LIMIT).then(|| format!("{node}: no answer from it"));
            if let Some(problem) = problem.or(late) {
                if let Err(error) = withdraw(&mut self.etcd.clone(), key, created, begun) {
                    tracing::warn!(code = error.code(), "the order for {node} remains: {}", sentence(&error));
                }
                return Err(Error::ClusterUpgrade { problem });
            }
            seen = self.cache.wait(seen, Duration::from_millis(200));
        }
    }

    /// Judges an order that is gone: the other node has deleted it when it was done, or etcd did when its lease ended.
    fn taken(&self, node: NodeId, lease: LeaseId) -> Result<()> {
        if self.etcd.keep_alive(lease)? {
            return Ok(());
        }
        let problem = format!(
            "{node}: whether its software has restarted is not known, since {} was away for a while",
            self.node()
        );
        Err(Error::ClusterUpgrade { problem })
    }
}

/// Deletes an order, so that another one can follow. etcd may be away: as long as this node lives, its lease would keep the order.
fn withdraw(etcd: &mut Etcd, key: Key, created: Revision, begun: Instant) -> Result<()> {
    let txn = Txn { compare: vec![Compare::Created(key, created)], writes: vec![Write::Delete(key)] };
    loop {
        match etcd.transact(&txn) {
            Err(Error::ClusterStore { .. }) if begun.elapsed() < ANSWER_LIMIT => {
                std::thread::sleep(Duration::from_secs(1));
            }
            done => return done.map(|_| ()),
        }
    }
}

/// Restarts of the software of all other nodes, which run at the same time; an error is that of the order.
pub(in crate::service) type OtherRestarts = Vec<(NodeId, Result<OrderedRestart>)>;

impl Cluster {
    /// Orders every other member to restart its software.
    ///
    /// # Errors
    /// [`Error::Blocked`]: a member is away, and none has restarted; [`Error::ClusterStore`].
    pub(in crate::service) fn restart_others(&self) -> Result<OtherRestarts> {
        let view = View::new(&self.etcd.snapshot()?);
        if let Some(away) = view.members.iter().find(|node| !view.alive.contains_key(node)) {
            return Err(Error::Blocked { reason: format!("{away} is away") });
        }
        let others = view.members.iter().copied().filter(|node| *node != self.node());
        Ok(others.map(|node| (node, self.order_restart(&view, node))).collect())
    }

    /// Waits for the other members.
    ///
    /// # Errors
    /// [`Error::ClusterUpgrade`] with every node whose software did not restart.
    pub(in crate::service) fn restarted(&self, own: Result<()>, others: OtherRestarts) -> Result<()> {
        let named = |node: NodeId, error: &Error| format!("{node}: {}", sentence(error));
        let own = own.map_err(|error| named(self.node(), &error));
        let others = others.into_iter().map(|(node, ordered)| match ordered {
            // The error of a restart names its node.
            Ok(ordered) => self.end_restart(&ordered).map_err(|error| sentence(&error)),
            Err(error) => Err(named(node, &error)),
        });
        let failed: Vec<String> = std::iter::once(own).chain(others).filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(Error::ClusterUpgrade { problem: failed.join("; ") }) }
    }
}

/// Restarts of this node that other nodes order.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    work: Option<(Revision, JoinHandle<Result<()>>)>,
    /// Result of one that has ended, and the order, until etcd has it; on failure its message.
    due: Option<(Revision, std::result::Result<(), String>)>,
    /// The last order that was begun: it may be in the view of etcd for some time after its end.
    begun: Option<Revision>,
}

impl Restarts {
    /// Begins an ordered restart, or reports the result of one that has ended.
    pub(super) fn serve(&mut self, node: NodeId, seen: &Seen, actor: &Actor, etcd: &mut Etcd) -> Result<()> {
        let key = Key::Restart(node);
        if let Some((created, work)) = self.work.take_if(|(_, work)| work.is_finished()) {
            let lost = |_| Err(Error::Internal { what: "a restart ended by a panic".to_owned() });
            self.due = Some((created, work.join().unwrap_or_else(lost).map_err(|error| sentence(&error))));
        }
        if let Some((created, result)) = &self.due {
            let write = match result {
                Ok(()) => Write::Delete(key),
                Err(why) => {
                    let failed = Restart { by: node, failed: Some(why.clone()) };
                    // On the lease of the order: a failure without a request that waits for it must not outlast it.
                    let lease = seen.entry(key).and_then(|entry| entry.lease);
                    Write::Put(key, Value::Restart(failed), lease)
                }
            };
            let compare = vec![Compare::Created(key, *created)];
            etcd.transact(&Txn { compare, writes: vec![write] })?;
            self.due = None;
            return Ok(());
        }
        let Some(Entry { value: Value::Restart(Restart { by, failed: None }), created, .. }) =
            seen.entry(key)
        else {
            return Ok(());
        };
        if self.work.is_none() && self.begun != Some(*created) {
            tracing::info!("{by} asks for a restart of the software");
            self.begun = Some(*created);
            let actor = actor.clone();
            let work = workers::spawn("a restart of the software", move || {
                actor.runtime.block_on(actor.owner.order(Order::RestartContainer)).map(|_| ())
            });
            // The requester learns of a thread that the system refuses, too.
            match work {
                Ok(work) => self.work = Some((*created, work)),
                Err(error) => self.due = Some((*created, Err(sentence(&error)))),
            }
        }
        Ok(())
    }
}
