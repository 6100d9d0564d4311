//! Participation of the service in a cluster: a thread that drives, one that watches etcd, one that renews the lease.
//! [`crate::cluster`] decides the next step; the owner and the engine execute it as on a single node.
//!
//! ```text
//!   etcd ── watch ──▶ cache ──▶ handlers: every answer, with or without etcd
//!    ▲                  └─────▶ driver ── next_action ──▶ etcd          (where this node leads)
//!    └──── lease, alive, results ──┴──── step ──▶ acts ──▶ owner, disk, reboot command
//! ```
//!
//! | module | content |
//! |---|---|
//! | `cache` | all keys as this node saw them last, and the time of the last change of the stage |
//! | `last_seen` | the part of it that is saved for the next start |
//! | `driver` | the loop: publishes, acts, leads |
//! | `leading` | decisions of the leader as people see them |
//! | `number` | the check that no other machine has the number of this one |
//! | `local` | state of this node, read from its disk and its kernel |
//! | `acts` | execution of the steps of a node |
//! | `held` | the start of the software of a node that missed an upgrade |
//! | [`hooks`], `protection` | configured commands around a turn |
//! | `restart` | a restart of the software of another node |
//! | `session` | a swap of the software that waits for the other nodes |
//! | `orders` | orders of operators |
//! | `shown` | answers of the API |
//! | `stream` | the bundle, from one node to the others |

mod acts;
mod cache;
mod driver;
mod held;
pub mod hooks;
mod last_seen;
mod leading;
mod local;
mod number;
mod orders;
mod protection;
mod restart;
mod session;
mod shown;
mod stream;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::etcd::{Etcd, EtcdConfig};
use crate::cluster::state::NodeId;
use crate::error::Result;
use crate::service::Service;
use crate::service::owner::order::Handle;
use crate::workers;
use cache::Cache;
pub use held::SoftwareStart;
pub(crate) use last_seen::awaits_verdict;
pub(super) use shown::{ClusterNode, ClusterStatus};
pub(super) use stream::PATH;

/// Configuration of a node that can be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Access to etcd.
    pub access: EtcdConfig,
    /// Number of this node.
    pub node: NodeId,
    /// Address of its service, for the other nodes and for people.
    pub address: String,
    /// Certificate of its service, by which the other nodes know it.
    pub certificate: PathBuf,
    /// Time limit for the return of a node from a reboot.
    pub reboot_timeout: Duration,
    /// Time for which a commit waits for etcd.
    pub commit_timeout: Duration,
    /// Directory of the health checks that end a trial.
    pub health: PathBuf,
    /// Time limit of each health check.
    pub health_timeout: Duration,
    /// Commands around the turn of this node.
    pub hooks: hooks::Hooks,
}

impl Membership {
    /// Text of its certificate; empty: it cannot be read.
    fn own_certificate(&self) -> String {
        std::fs::read_to_string(&self.certificate).unwrap_or_default()
    }

    /// Authorities whose certificates identify the nodes; `None`: none are configured, and no bundle is passed on.
    pub(in crate::service) fn authorities(&self) -> Option<&std::path::Path> {
        self.access.ca.as_deref().filter(|_| self.access.identity.is_some())
    }
}

/// The cluster, as the handlers of the API use it.
pub(super) struct Cluster {
    membership: Membership,
    etcd: Etcd,
    cache: Arc<Cache>,
    /// State of a commit that was accepted and has not reached etcd yet.
    commit: Mutex<orders::LastCommit>,
    ended: Arc<AtomicBool>,
}

impl Cluster {
    /// Starts the threads. etcd need not be available yet.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), [`Error::Argument`](crate::Error::Argument): the configuration can never
    /// work. [`Error::NoThread`](crate::Error::NoThread).
    pub(super) fn start(
        service: &Arc<Service>,
        owner: &Handle,
        membership: &Membership,
    ) -> Result<Arc<Self>> {
        let etcd = Etcd::new(&membership.access)?;
        let mut kept = last_seen::LastSeen::new(&service.place.state_dir);
        let cache = Arc::new(Cache::new(kept.load()));
        let ended = Arc::new(AtomicBool::new(false));
        let cluster = Arc::new(Self {
            membership: membership.clone(),
            etcd: etcd.clone(),
            cache: Arc::clone(&cache),
            commit: Mutex::default(),
            ended: Arc::clone(&ended),
        });
        let (watching, store, end) = (Arc::clone(&cache), etcd.clone(), Arc::clone(&ended));
        workers::spawn("watching the cluster", move || cache::follow(&watching, &store, &mut kept, &end))?;
        let (keeping, store, end) = (Arc::clone(&cache), etcd.clone(), Arc::clone(&ended));
        workers::spawn("keeping the lease", move || cache::keep_lease(&keeping, store, &end))?;
        let protected = protection::Protected::new(&membership.hooks);
        if !membership.hooks.protection.is_empty() {
            let (asking, hooks, end) = (protected.clone(), membership.hooks.clone(), Arc::clone(&ended));
            let (seen, node) = (Arc::clone(&cache), membership.node.0);
            workers::spawn("asking for protection", move || {
                protection::ask(&asking, &hooks, &seen, node, &end)
            })?;
        }
        let runtime = tokio::runtime::Handle::current();
        let actor = acts::Actor {
            service: Arc::clone(service),
            owner: owner.clone(),
            runtime,
            membership: membership.clone(),
            session: Arc::default(),
            drained_file: hooks::DrainedFile::new(&service.place.state_dir),
            peers: Vec::new(),
        };
        let driver = driver::Driver::new(actor, protected, etcd, cache);
        workers::spawn("driving the cluster", move || driver.run(&ended))?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.ended.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
