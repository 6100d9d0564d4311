//! Execution of the steps of a node: orders to the owner, verbs of the engine, the reboot command. Each step runs on a thread
//! of its own, while the driver continues to publish.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::cluster::state::{Member, Ordered};
use crate::cluster::turn::Step;
use crate::error::{Error, Result, sentence};
use crate::host::health;
use crate::service::Service;
use crate::service::cluster::Membership;
use crate::service::cluster::hooks::{DrainedFile, Occasion};
use crate::service::cluster::local::selected;
use crate::service::cluster::session::Session;
use crate::service::cluster::stream;
use crate::service::owner::order::{Handle, Order};
use crate::service::owner::upgrade::{Phase, UpgradeSettings};
use crate::service::owner::worker::{self, Begun, Overrides, Planned};
use crate::state::{SlotState, UpgradeType};
use crate::units::{Blake3, Group};

/// Time between the turn of a node and its reboot, so that clients see the status.
const SHOWN: Duration = Duration::from_millis(1500);

/// Executor of the steps of this node.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) service: Arc<Service>,
    pub(super) owner: Handle,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) membership: Membership,
    pub(super) drained_file: DrainedFile,
    /// The other members, from which a bundle can be fetched.
    pub(super) peers: Vec<Member>,
    /// Swap in progress; `None`: there is none.
    pub(super) session: Arc<Mutex<Option<Session>>>,
}

/// Release that a node selects before it reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selects {
    /// Selects none: the running release boots again.
    Nothing,
    /// The ordered release.
    Ordered,
    /// The release before the ordered one.
    Before,
}

/// Step to execute, with its context.
pub(super) struct Task {
    pub(super) step: Step,
    pub(super) order: Option<Ordered>,
    /// Whether the reboot proceeds one group after the other.
    pub(super) rolling: bool,
    /// Release that a reboot selects first.
    pub(super) selects: Selects,
    pub(super) occasion: Occasion,
}

impl Actor {
    /// Executes a step and returns when it has ended.
    pub(super) fn act(&self, task: &Task) -> Result<()> {
        let (place, hooks) = (&self.service.place, &self.membership.hooks);
        let ordered = || {
            let problem = "nothing is ordered".to_owned();
            task.order.as_ref().ok_or(Error::ClusterUpgrade { problem })
        };
        match task.step {
            Step::Prepare => self.stage(ordered()?, false),
            Step::StageAgain => self.stage(ordered()?, true),
            Step::Discard => self.discard(),
            Step::Gate => self.gate(ordered()?),
            Step::Ungate => self.ungate(),
            Step::Swap => self.swap(ordered()?),
            Step::SwapBack => self.swap_back("another node did not swap".to_owned()),
            Step::Flip => self.select(ordered()?),
            Step::FlipBack => place.discard().map(|_| ()),
            Step::Reboot => {
                if task.rolling {
                    // Set before the hook runs: a drain that is interrupted has begun.
                    if !hooks.undrain.is_empty() {
                        self.drained_file.set();
                    }
                    hooks.drain(&task.occasion)?;
                }
                match task.selects {
                    Selects::Nothing => {}
                    Selects::Ordered => self.select(ordered()?)?,
                    Selects::Before => self.return_from(ordered()?)?,
                }
                self.reboot()
            }
            Step::Undrain => {
                hooks.undrain(&task.occasion)?;
                self.drained_file.clear();
                Ok(())
            }
            Step::MarkGood => self.mark_good(),
            Step::RollBack => {
                place.roll_back()?;
                self.reboot()
            }
            Step::CatchUp => self.catch_up(ordered()?),
            // Steps without an effect on the machine.
            Step::Rest | Step::TakeTurn | Step::Report | Step::ReportFailure => Ok(()),
        }
    }

    fn reboot(&self) -> Result<()> {
        std::thread::sleep(SHOWN);
        self.service.after_commit.run(UpgradeType::SoftwareAndPlatform).map(|_| ())
    }

    /// Discards the prepared bundle; also succeeds if there is none.
    fn discard(&self) -> Result<()> {
        match self.runtime.block_on(self.owner.order(Order::Cancel)) {
            Ok(_) | Err(Error::NothingToCancel { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn staged(&self) -> Result<Option<Blake3>> {
        let look = self.service.place.look()?;
        let prepared = look.slots.slots.iter().find(|slot| slot.state == SlotState::Prepared);
        Ok(prepared.filter(|_| look.disk.prepared.is_some()).and_then(|slot| slot.manifest))
    }

    /// Plans the bundle at the ordered path, or, where this node does not have it, at another node. Its manifest must be the
    /// ordered one.
    async fn begin(&self, order: &Ordered, overrides: Overrides) -> Result<(Planned, Begun)> {
        let (path, arguments) = (order.install_path.as_str(), &self.service.arguments);
        let (peers, own, state_dir) = (&self.peers, &self.membership, &self.service.place.state_dir);
        let elsewhere = || stream::fetch(order, peers, own, arguments, state_dir);
        // A process that can write to etcd must not read more files on this node than the callers of its API can.
        let missing = match self.service.allowed.open(path) {
            Ok(_) => {
                let (planned, begun) = worker::begin(arguments, path, overrides).await?;
                if planned.manifest.parse() == Ok(order.digest) {
                    return Ok((planned, begun));
                }
                let version = &order.target_version;
                let problem = format!("the bundle at {path} is not the {version} that was ordered");
                Error::ClusterUpgrade { problem }
            }
            Err(error @ Error::Open { .. }) => error,
            Err(error) => return Err(error),
        };
        match elsewhere()? {
            Some((url, arguments)) => {
                tracing::info!("{}; it is fetched from another node", sentence(&missing));
                worker::begin(&arguments, &url, overrides).await
            }
            None => Err(missing),
        }
    }

    /// Stages the ordered bundle. `again` permits one that has failed.
    fn stage(&self, order: &Ordered, again: bool) -> Result<()> {
        if self.staged()? == Some(order.digest) {
            return Ok(());
        }
        let overrides =
            Overrides { compatibility: order.overridden, retry: order.retry || again, replace: true };
        self.runtime.block_on(async {
            let path = order.install_path.as_str();
            let begin = self.begin(order, overrides);
            let (planned, begun) = self.owner.unless_ended("prepare", begin).await?;
            let settings = UpgradeSettings::found(path, planned.target_version.clone(), planned.upgrade_type);
            let mut shown = self.owner.shown.clone();
            self.owner
                .order(Order::Prepare { settings, planned, overrides, begun: Some(Box::new(begun)) })
                .await?;
            loop {
                let upgrade = shown.borrow_and_update().upgrade.clone();
                match (upgrade.phase, upgrade.error) {
                    (Phase::Preparing, _) => {}
                    (Phase::Prepared, None) => return Ok(()),
                    (_, Some(failure)) => return Err(Error::remote(&failure.code, &failure.message)),
                    (_, None) => return Err(Error::Cancelled),
                }
                let lost = |_| Error::Internal { what: "the owner of the upgrade is gone".to_owned() };
                shown.changed().await.map_err(lost)?;
            }
        })
    }

    /// Selects the ordered release for the next boot. A bundle that was discarded since the turn began is staged again.
    fn select(&self, order: &Ordered) -> Result<()> {
        if selected(&self.service.place.look()?) == Some(order.digest) {
            return Ok(());
        }
        self.stage(order, true)?;
        self.service.place.commit().map(|_| ())
    }

    /// Selects the release before the ordered one, if it is not selected already.
    fn return_from(&self, order: &Ordered) -> Result<()> {
        let look = self.service.place.look()?;
        let next = look.slots.slots.iter().find(|slot| slot.group == Group::Platform && slot.boots_next);
        if next.is_some_and(|slot| slot.manifest != Some(order.digest)) {
            return Ok(());
        }
        self.service.place.roll_back().map(|_| ())
    }

    /// Stages and commits the release of the cluster, as on a single node. Returns when the software was swapped, or when the
    /// machine reboots.
    fn catch_up(&self, order: &Ordered) -> Result<()> {
        if selected(&self.service.place.look()?) == Some(order.digest) {
            return self.reboot();
        }
        self.stage(order, true)?;
        self.runtime.block_on(async {
            let mut shown = self.owner.shown.clone();
            self.owner.order(Order::Commit { dry_run: false }).await?;
            loop {
                let upgrade = shown.borrow_and_update().upgrade.clone();
                match (upgrade.phase, upgrade.error) {
                    (_, Some(failure)) => return Err(Error::remote(&failure.code, &failure.message)),
                    (Phase::Idle | Phase::Rebooting, None) => return Ok(()),
                    (_, None) => {}
                }
                let lost = |_| Error::Internal { what: "the owner of the upgrade is gone".to_owned() };
                shown.changed().await.map_err(lost)?;
            }
        })
    }

    fn session(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_session(&self, session: Option<Session>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// Whether new software waits at its gate.
    pub(super) fn is_gated(&self) -> bool {
        self.session().is_some_and(|session| session.is_gated())
    }

    /// Starts the new software up to its gate. The old one is not stopped yet. A bundle that a return has discarded is staged
    /// again.
    fn gate(&self, order: &Ordered) -> Result<()> {
        self.stage(order, true)?;
        let session = Session::begin(&self.service)?;
        self.set_session(Some(session.clone()));
        session.gate()
    }

    fn ungate(&self) -> Result<()> {
        let Some(session) = self.session() else { return Ok(()) };
        self.set_session(None);
        session.back("the other nodes do not swap".to_owned())
    }

    /// Swaps; returns when the new software is healthy, on trial.
    fn swap(&self, order: &Ordered) -> Result<()> {
        match self.session() {
            Some(session) => session.go()?,
            // The service was killed in the middle, and has started the software that the boot flags select.
            None if self.runs(order)? => self.converge()?,
            None => {
                let problem =
                    "the service was started anew while the software waited to be swapped".to_owned();
                return Err(Error::ClusterUpgrade { problem });
            }
        }
        self.swapped()?;
        self.check_health().or_else(|error| {
            self.swap_back(sentence(&error))?;
            Err(error)
        })
    }

    /// Runs the old software again.
    fn swap_back(&self, why: String) -> Result<()> {
        if let Some(session) = self.session() {
            self.set_session(None);
            session.back(why)?;
        } else {
            self.service.place.roll_back()?;
            self.converge()?;
        }
        self.swapped()
    }

    /// Makes the owner find the software that runs now: for software that a command starts, only the owner keeps that.
    pub(super) fn swapped(&self) -> Result<()> {
        self.runtime.block_on(self.owner.order(Order::SoftwareSwapped)).map(|_| ())
    }

    fn mark_good(&self) -> Result<()> {
        if let Some(session) = self.session() {
            self.set_session(None);
            return session.keep();
        }
        self.check_health()?;
        self.service.place.mark_good(None).map(|_| ())
    }

    fn check_health(&self) -> Result<()> {
        health::run_checks(&self.membership.health, self.membership.health_timeout).map(|_| ())
    }

    /// Whether the boot flags select the ordered software.
    fn runs(&self, order: &Ordered) -> Result<bool> {
        let look = self.service.place.look()?;
        let selected = look.slots.slots.iter().find(|slot| slot.group == Group::Software && slot.boots_next);
        Ok(selected.is_some_and(|slot| slot.manifest == Some(order.digest)))
    }

    /// Starts the software that the boot flags select.
    fn converge(&self) -> Result<()> {
        let container = &self.service.container;
        if container.starts() { container.start().map(|_| ()) } else { container.restart() }
    }
}
