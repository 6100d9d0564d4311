//! The start of the software of a member that missed an upgrade: it waits until the member has caught up, since two releases of
//! one service must not run in a cluster.

use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::cluster::etcd::{Etcd, EtcdConfig};
use crate::cluster::state::{Member, NodeId, Ordered};
use crate::cluster::store::{Entry, Key, Snapshot, Store, Value};
use crate::cluster::view::View;
use crate::error::{Error, Result, sentence};
use crate::service::cluster::acts::Actor;
use crate::service::cluster::last_seen::LastSeen;
use crate::service::cluster::local::machine;
use crate::state::SlotsReport;
use crate::units::{Blake3, Group};
use crate::workers;

/// Time for which the start of the software of a member waits for etcd. After it the software starts: that etcd is down must
/// stop no service.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two requests.
const AGAIN: Duration = Duration::from_millis(250);
/// Time between two attempts to start software that was held.
const RETRY: Duration = Duration::from_secs(30);

/// A node whose software runs only if it is that of its cluster.
#[derive(Debug, Clone)]
pub struct SoftwareStart {
    /// Access to etcd.
    pub(crate) access: EtcdConfig,
    /// Number of this node.
    pub(crate) node: NodeId,
    /// State directory of the service.
    pub(crate) state_dir: PathBuf,
}

impl SoftwareStart {
    /// Checks that this machine did not miss the last upgrade of its cluster, by its slots. A machine that is no member passes,
    /// and so does one that cannot find out.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub(crate) fn check(&self, slots: &SlotsReport) -> Result<()> {
        let Some(snapshot) = self.snapshot() else { return Ok(()) };
        match missed(&snapshot, self.node, slots) {
            None => Ok(()),
            Some(release) => {
                let version = release.target_version;
                Err(Error::Blocked {
                    reason: format!(
                        "{} missed the upgrade of its cluster to {version}: its software starts when it has caught up; see 'qstage cluster status'",
                        self.node
                    ),
                })
            }
        }
    }

    /// The state of the cluster; `None`: there is no answer that could be used.
    fn snapshot(&self) -> Option<Snapshot> {
        let patience = if was_member(&self.state_dir, self.node) { PATIENCE } else { Duration::ZERO };
        let begun = Instant::now();
        let answer = Etcd::new(&self.access).and_then(|etcd| {
            loop {
                match etcd.snapshot() {
                    Err(Error::ClusterStore { .. }) if begun.elapsed() < patience => sleep(AGAIN),
                    answer => return answer,
                }
            }
        });
        answer
            .inspect_err(|error| {
                tracing::warn!(
                    code = error.code(),
                    "whether the software is that of the cluster is not known: {}",
                    sentence(error)
                );
            })
            .ok()
    }
}

fn was_member(state_dir: &Path, node: NodeId) -> bool {
    LastSeen::new(state_dir).load().is_some_and(|snapshot| snapshot.contains_key(&Key::Member(node)))
}

/// Start of software that was held, when the cluster no longer differs from this node.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Time of the last start, and its thread; `None`: none was necessary.
    last: Option<(Instant, JoinHandle<()>)>,
}

impl Held {
    /// Begins the start, if it is due. `missed`: this node has not caught up.
    ///
    /// # Errors
    /// [`Error::NoThread`].
    pub(super) fn release(&mut self, actor: &Actor, missed: bool) -> Result<()> {
        let ended = self.last.as_ref().is_none_or(|(at, work)| work.is_finished() && at.elapsed() >= RETRY);
        if missed || !ended || !actor.service.container.is_held() {
            return Ok(());
        }
        let actor = actor.clone();
        let work = workers::spawn("the start of held software", move || {
            let started = actor.service.container.start().and_then(|_| actor.swapped());
            if let Err(error) = started {
                tracing::warn!(code = error.code(), "the software: {}", sentence(&error));
            }
        })?;
        self.last = Some((Instant::now(), work));
        Ok(())
    }
}

/// The release of the cluster, if this machine is a member and neither its platform nor its software belongs to it.
fn missed(snapshot: &Snapshot, node: NodeId, slots: &SlotsReport) -> Option<Ordered> {
    match snapshot.get(&Key::Member(node)) {
        Some(Entry { value: Value::Member(Member { uuid, .. }), .. }) if *uuid == machine(slots) => {}
        _ => return None,
    }
    let view = View::new(snapshot);
    let release = view.release()?;
    // The software does not run yet: the one that would is selected.
    let software = slots.slots.iter().filter(|slot| slot.group == Group::Software && slot.boots_next);
    let mut own = software.chain(slots.running(Group::Platform)).filter_map(|slot| slot.manifest);
    let other = own.all(|manifest| manifest != release.digest);
    (other && view.missed(node, Blake3([0; 32]))).then(|| release.clone())
}
