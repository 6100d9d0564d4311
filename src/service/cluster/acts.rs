//! What each step of a node is: orders to the owner, verbs of the engine, the command that reboots. Each runs on a thread of
//! its own; the driver goes on to publish meanwhile.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::state::Ordered;
use crate::cluster::turn::Step;
use crate::error::{Error, Result};
use crate::host::health;
use crate::service::Service;
use crate::service::cluster::Membership;
use crate::service::cluster::hooks::{Mark, Occasion};
use crate::service::cluster::local::selected;
use crate::service::owner::order::{Handle, Order};
use crate::service::owner::upgrade::{Phase, Settings};
use crate::service::owner::worker::{self, Overrides};
use crate::state::{SlotState, UpgradeType};
use crate::units::Blake3;

/// How long a reboot waits after its turn, so that the status has been seen.
const SHOWN: Duration = Duration::from_millis(1500);

/// Who acts.
#[derive(Clone)]
pub(super) struct Actor {
    pub(super) service: Arc<Service>,
    pub(super) owner: Handle,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) membership: Membership,
    pub(super) mark: Mark,
}

/// What a step is done for.
pub(super) struct Task {
    pub(super) step: Step,
    pub(super) order: Option<Ordered>,
    /// A reboot of one group after the other.
    pub(super) rolling: bool,
    /// A reboot selects what was ordered first.
    pub(super) selects: bool,
    pub(super) occasion: Occasion,
}

impl Actor {
    /// Does a step to its end.
    pub(super) fn act(&self, task: &Task) -> Result<()> {
        let (place, hooks) = (&self.service.place, &self.membership.hooks);
        let ordered = || {
            task.order.as_ref().ok_or_else(|| Error::NotPrepared { problem: "nothing is ordered".to_owned() })
        };
        match task.step {
            Step::Prepare => self.stage(ordered()?, false),
            Step::Discard => self.discard(),
            // Nothing is stopped yet; what a way back has discarded is staged anew.
            Step::Gate => self.stage(ordered()?, true),
            Step::Swap => self.swap(),
            Step::SwapBack => self.swap_back(),
            Step::Flip => self.select(ordered()?),
            Step::FlipBack => place.discard().map(|_| ()),
            Step::Reboot => {
                if task.rolling {
                    // Before the first word of it: a drain that is cut off has begun.
                    if !hooks.undrain.is_empty() {
                        self.mark.set();
                    }
                    hooks.drain(&task.occasion)?;
                }
                if task.selects {
                    self.select(ordered()?)?;
                }
                self.reboot()
            }
            Step::Undrain => {
                hooks.undrain(&task.occasion)?;
                self.mark.clear();
                Ok(())
            }
            Step::MarkGood => {
                health::run_checks(&self.membership.health, self.membership.health_timeout)?;
                place.mark_good(None).map(|_| ())
            }
            Step::RollBack => {
                place.roll_back()?;
                self.reboot()
            }
            // No acts of the machine.
            Step::Rest | Step::Ungate | Step::TakeTurn | Step::Report | Step::ReportFailure => Ok(()),
        }
    }

    fn reboot(&self) -> Result<()> {
        std::thread::sleep(SHOWN);
        self.service.after_commit.run(UpgradeType::SoftwareAndPlatform).map(|_| ())
    }

    /// Discards what is prepared; that nothing is, is what was wanted.
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

    /// Stages the ordered bundle, which must be the very one that was ordered.
    fn stage(&self, order: &Ordered, again: bool) -> Result<()> {
        if self.staged()? == Some(order.digest) {
            return Ok(());
        }
        let overrides =
            Overrides { compatibility: order.overridden, retry: order.retry || again, replace: true };
        self.runtime.block_on(async {
            let path = order.install_path.as_str();
            // Whoever writes to etcd has no more read on this node than its callers have.
            self.service.allowed.open(path).map(drop)?;
            let (planned, begun) = worker::begin(&self.service.arguments, path, overrides).await?;
            if planned.manifest.parse() != Ok(order.digest) {
                let version = &order.target_version;
                let problem = format!("the bundle at {path} is not the {version} that was ordered");
                return Err(Error::ClusterUpgrade { problem });
            }
            let settings = Settings::found(path, planned.target_version.clone(), planned.upgrade_type);
            let mut shown = self.owner.shown.clone();
            self.owner.order(Order::Prepare { settings, planned, overrides, begun: Box::new(begun) }).await?;
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

    /// Selects the ordered release for the next boot. What a fallback or a way back has discarded is staged anew.
    fn select(&self, order: &Ordered) -> Result<()> {
        if selected(&self.service.place.look()?) == Some(order.digest) {
            return Ok(());
        }
        self.stage(order, true)?;
        self.service.place.commit().map(|_| ())
    }

    /// Swaps the software, and waits until it has proved healthy; where it does not, the old one runs again.
    fn swap(&self) -> Result<()> {
        let swapped = self.swap_by_owner();
        // A container has marked itself, or gone back; of one that others run its command was the judge.
        let on_trial = self.service.place.look()?.disk.trial.is_some();
        match swapped {
            Ok(()) if on_trial => self.service.place.mark_good(None).map(|_| ()),
            Err(error) if on_trial => self.swap_back().and(Err(error)),
            swapped => swapped,
        }
    }

    fn swap_by_owner(&self) -> Result<()> {
        self.runtime.block_on(async {
            let mut shown = self.owner.shown.clone();
            self.owner.order(Order::Commit).await?;
            loop {
                let upgrade = shown.borrow_and_update().upgrade.clone();
                match (upgrade.phase, upgrade.error) {
                    (Phase::Committing, _) => {}
                    (_, Some(failure)) => return Err(Error::remote(&failure.code, &failure.message)),
                    (Phase::Committed | Phase::Idle, None) => break,
                    (_, None) => return Err(Error::Cancelled),
                }
                let lost = |_| Error::Internal { what: "the owner of the upgrade is gone".to_owned() };
                shown.changed().await.map_err(lost)?;
            }
            Ok(())
        })
    }

    fn swap_back(&self) -> Result<()> {
        self.service.place.roll_back()?;
        match self.service.container.restart() {
            // Others run it, and see the flags.
            Err(Error::NotConfigured { .. }) => Ok(()),
            restarted => restarted,
        }
    }
}
