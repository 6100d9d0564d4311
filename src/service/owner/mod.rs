//! The one owner of the upgrade: a task that handles orders one after the other, stores the state, and shows it.
//!
//! ```text
//!   handlers ── Order + answer ──▶ owner ── watch<ServiceSnapshot> ──▶ handlers, events, metrics
//!                                   │ ▲
//!            prepare (a process) ◀──┘ └── progress, result
//! ```
//!
//! Handlers read the last snapshot and never wait for a disk, so no number of slow readers can stall an upgrade. Two
//! orders can never cross, since one task decides.
//!
//! | module | contents |
//! |---|---|
//! | [`upgrade`] | the states and their transitions; pure |
//! | `order` | how handlers reach the task |
//! | `store`, `waiting_period` | the state that survives the process; the time in which no new upgrade may begin |
//! | [`worker`], `process`, [`disk`], `blocking` | processes that read bundles; the engine, on threads of its own |
//! | [`hooks`], [`software`] | actions after a commit: a reboot, the swap of the container |
//! | `look`, `after`, `stop` | parts of the task: looks at the disk, long work, the end of a prepare |

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

mod after;
pub(super) mod blocking;
pub mod disk;
pub mod hooks;
mod look;
pub(super) mod order;
pub(super) mod process;
pub mod software;
mod stop;
pub(super) mod store;
pub mod upgrade;
pub(super) mod waiting_period;
pub mod worker;

use crate::container::StartReport;
use crate::engine::CommitMethod;
use crate::error::{Error, Remedy, Result};
use crate::service::Service;
use crate::service::owner::blocking::{SILENCE, blocking, unless_silent};
use crate::service::owner::disk::DiskView;
use crate::service::owner::order::{Handle, Order, OrderResult, WAITING};
use crate::service::owner::store::UpgradeFile;
use crate::service::owner::upgrade::{Failure, Input, LocalUpgrade, Phase, SeenDisk, UpgradeSettings};
use crate::service::owner::worker::{Begun, Overrides, Planned, Preparing, Report};
use crate::service::view::{RebootProgress, ServiceSnapshot};
use crate::state::{SwitchReport, UpgradeState};
use look::waiting_until;

/// Interval of looks at the disk while no upgrade is under way: others may change it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Minimum time for which COMMITTED is shown after a swap.
const HELD: Duration = Duration::from_secs(3);
/// Minimum time for which each of COMMITTING, COMMITTED and REBOOTING is shown: clients poll once a second, and misread the
/// next state if they have seen none of these. The last two together are the 3 s between COMMITTED and a reboot.
const SHOWN: Duration = Duration::from_millis(1500);
/// Longest wait at the start for a prepare of an earlier service.
const ORPHANED: Duration = Duration::from_secs(10);

/// Results of the work that the owner delegates.
#[derive(Debug)]
enum Done {
    /// The end of a switch.
    Switched(Result<()>),
    /// The end of the action after a switch.
    Took(Result<String>),
    /// A look and its number.
    Looked(u64, Box<Result<DiskView>>),
    /// COMMITTED has been shown for its minimum time.
    Shown,
    Rebooted(Result<()>),
    /// The command that powers off has ended.
    Halted(Result<()>),
    /// The time for a reboot is over.
    StillHere,
    /// The software that the flags select was started.
    Converged(Result<StartReport>),
    /// The software was restarted; the sender is that of the waiting caller.
    Restarted(Result<()>, oneshot::Sender<OrderResult>),
}

pub(super) struct Owner {
    service: Arc<Service>,
    store: UpgradeFile,
    upgrade: LocalUpgrade,
    snapshot: ServiceSnapshot,
    show: watch::Sender<Arc<ServiceSnapshot>>,
    orders: mpsc::Receiver<(Order, oneshot::Sender<OrderResult>)>,
    child: Option<Preparing>,
    /// Why the child is being stopped, and the waiting callers; `None`: it is not.
    stopping: Option<(Error, Vec<oneshot::Sender<OrderResult>>)>,
    /// End of their wait.
    stop_by: Option<Instant>,
    /// The delegated work that runs, in words; no other work may begin. `None`: none runs.
    beside: Option<&'static str>,
    /// Time at which COMMITTING was first shown.
    committing: Instant,
    /// End of the minimum time of COMMITTED; `None`: not after a swap.
    held_until: Option<Instant>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    looking: bool,
    /// Number of the last valid look: one that began before a change shows the state before it, and is ignored.
    looks: u64,
}

impl Owner {
    /// Reads the stored state and the disk. A disk that cannot be read is no reason not to start: the service reports it.
    pub(super) async fn new(service: Arc<Service>) -> (Self, Handle) {
        let mut store = UpgradeFile::new(&service.place.state_dir);
        let kept = store.load();
        service.place.started.set(kept.started);
        let mut look = unless_silent(&service, SILENCE, |service| service.place.look()).await;
        // A prepare of a killed service ends with it, but that may take a moment.
        let begun = Instant::now();
        let dying = |look: &DiskView| look.status.state == UpgradeState::UpgradePreparing;
        while kept.phase == Phase::Preparing && look.as_ref().is_ok_and(dying) && begun.elapsed() < ORPHANED {
            tokio::time::sleep(Duration::from_millis(50)).await;
            look = unless_silent(&service, SILENCE, |service| service.place.look()).await;
        }
        let mut snapshot = ServiceSnapshot::default();
        let upgrade = match &look {
            Ok(look) => kept.clone().recover(look.disk.clone()),
            Err(error) => {
                tracing::error!("the disk cannot be read: {}", crate::error::sentence(error));
                // As if the disk were empty; its content is found when it can be read.
                kept.clone().recover(SeenDisk { boot: kept.boot.clone(), ..SeenDisk::default() })
            }
        };
        if kept.phase != upgrade.phase || kept.error != upgrade.error {
            let told = upgrade.error.as_ref().map_or("", |error| error.message.as_str());
            tracing::info!(was = kept.phase.word(), is = upgrade.phase.word(), "found an upgrade: {told}");
            if let Some(error) = upgrade.error.clone().filter(|_| kept.error != upgrade.error) {
                blocking(&service, move |service| {
                    service.place.note("serve", &error);
                    Ok(())
                })
                .await
                .ok();
            }
        }
        snapshot.take(look, upgrade.phase);
        store.keep(&upgrade);
        snapshot.upgrade = upgrade.clone();
        snapshot.waiting_until = waiting_until(&service, &upgrade);
        let (show, shown) = watch::channel(Arc::new(snapshot.clone()));
        let (sender, orders) = mpsc::channel(WAITING);
        let owner = Self {
            service,
            store,
            upgrade,
            snapshot,
            show,
            orders,
            child: None,
            stopping: None,
            stop_by: None,
            beside: None,
            committing: Instant::now(),
            held_until: None,
            reports: mpsc::channel(16),
            done: mpsc::channel(16),
            looking: false,
            looks: 0,
        };
        (owner, Handle { orders: sender, shown })
    }

    /// Handles orders until `end` fires; then stops the running work and waits for its end.
    pub(super) async fn run(mut self, mut end: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.converge();
        loop {
            tokio::select! {
                // In this order: results before new orders.
                biased;
                Some(done) = self.done.1.recv() => self.finish(done).await,
                Some(report) = self.reports.1.recv() => self.report(report).await,
                order = self.orders.recv() => match order {
                    Some((order, answer)) => self.obey(order, answer).await,
                    None => break,
                },
                _ = &mut end => break,
                () = stop::wait_until(self.stop_by) => self.stop_waiting(),
                _ = tick.tick() => self.look(),
            }
        }
        // From now on orders are refused.
        self.orders.close();
        self.finish_all().await;
        self.stop(Error::ServiceEnded { doing: "prepare".to_owned() });
        let deadline = tokio::time::Instant::now() + stop::ENDING;
        while self.child.is_some() {
            match tokio::time::timeout_at(deadline, self.reports.1.recv()).await {
                Ok(Some(report)) => self.report(report).await,
                Ok(None) => break,
                Err(_) => {
                    tracing::warn!("the prepare does not end: {}", self.held_by());
                    break;
                }
            }
        }
    }

    async fn obey(&mut self, order: Order, answer: oneshot::Sender<OrderResult>) {
        let result = match order {
            Order::Prepare { settings, planned, overrides, begun } => {
                self.prepare(settings, &planned, overrides, begun.map(|begun| *begun)).await
            }
            Order::Commit { dry_run } => self.commit(dry_run),
            Order::Cancel if self.child.is_some() => {
                self.stop(Error::Cancelled);
                if let Some((_, waiting)) = &mut self.stopping {
                    waiting.push(answer);
                }
                return;
            }
            Order::Cancel => match self.idle() {
                Ok(()) => self.discard().await,
                Err(error) => Err(error),
            },
            Order::MarkGood(slot) => self.switch(move |service| service.place.mark_good(slot)).await,
            Order::RollBack => self.switch(|service| service.place.roll_back()).await,
            Order::Reboot => self.reboot(),
            Order::Halt => self.halt(),
            Order::RestartContainer => return self.restart(answer),
            Order::SoftwareSwapped => {
                // The first look finds the trial, the second shows that it runs.
                self.settle(None).await;
                self.software_started();
                self.settle(None).await;
                Ok(None)
            }
            Order::Refused { settings, failure } => self.refused(settings, failure).await,
            Order::Alive => Ok(None),
        };
        // The caller may have gone; the result stays.
        let _ = answer.send(result);
    }

    /// Applies an input, stores the new state, and only after that shows it.
    fn apply(&mut self, input: Input) -> Result<()> {
        self.enter(input)?;
        self.publish();
        Ok(())
    }

    fn enter(&mut self, input: Input) -> Result<()> {
        let next = self.upgrade.apply(input)?;
        if next.phase != self.upgrade.phase {
            tracing::info!(from = self.upgrade.phase.word(), to = next.phase.word(), "upgrade");
        }
        self.upgrade = next;
        self.service.place.started.set(self.upgrade.started);
        // A flush may take long on a busy disk: other tasks move to another thread meanwhile.
        tokio::task::block_in_place(|| self.store.keep(&self.upgrade));
        Ok(())
    }

    fn publish(&mut self) {
        self.snapshot.waiting_until = waiting_until(&self.service, &self.upgrade);
        self.snapshot.upgrade = self.upgrade.clone();
        self.show.send_replace(Arc::new(self.snapshot.clone()));
    }

    fn idle(&self) -> Result<()> {
        match self.upgrade.phase {
            _ if self.snapshot.reboot == RebootProgress::InProgress => {
                Err(Error::Blocked { reason: "a reboot is under way".to_owned() })
            }
            Phase::Preparing | Phase::Committing | Phase::Rebooting => {
                Err(Error::UpgradeBusy { doing: self.upgrade.phase.word().to_lowercase() })
            }
            Phase::Idle | Phase::Prepared | Phase::Committed => match self.beside {
                Some(doing) => Err(Error::UpgradeBusy { doing: doing.to_owned() }),
                None => Ok(()),
            },
        }
    }

    async fn prepare(
        &mut self,
        settings: UpgradeSettings,
        planned: &Planned,
        overrides: Overrides,
        begun: Option<Begun>,
    ) -> OrderResult {
        let staged = planned.already_prepared && self.upgrade.phase == Phase::Prepared;
        if let Some(obstacle) = planned.blocked_by.first().filter(|_| self.idle().is_ok()) {
            return Err(Error::remote(&obstacle.code, &obstacle.message));
        }
        if let Some(left) =
            self.snapshot.waiting().filter(|_| self.idle().is_ok() && (!staged || settings.auto_commit))
        {
            return Err(Error::Waiting { left });
        }
        if self.snapshot.foreign().is_some() {
            return Err(Error::UpgradeBusy { doing: "another program prepares".to_owned() });
        }
        if self.stopping.is_some() {
            return Err(Error::UpgradeBusy { doing: "cancelling".to_owned() });
        }
        if self.child.is_none() && self.upgrade.phase != Phase::Committing {
            self.idle()?;
        }
        if self.upgrade.phase == Phase::Prepared && !staged && !overrides.replace {
            let version = self.upgrade.settings.as_ref().map(|settings| settings.target_version.clone());
            return Err(Error::OtherPrepared { version: version.unwrap_or_default() });
        }
        let Some(begun) = begun else {
            return self.upgrade.apply(Input::Begin { settings, staged }).map(|_| None);
        };
        let before = self.upgrade.phase;
        self.apply(Input::Begin { settings, staged })?;
        match self.upgrade.phase {
            Phase::Preparing if self.child.is_none() => {
                self.snapshot.counts.prepares += 1;
                self.child = Some(begun.go(self.reports.0.clone()).await);
            }
            Phase::Committing if before != Phase::Committing => self.start_commit(Ok(())),
            _ => {}
        }
        Ok(None)
    }

    /// Refuses a commit only if no bundle is prepared: after a prepare, a client takes a refused commit for a machine that
    /// already reboots, and reports success. Any other obstacle is reported as a failed commit.
    fn commit(&mut self, dry_run: bool) -> OrderResult {
        let free = self.idle();
        let waiting = self.snapshot.waiting().map_or(Ok(()), |left| Err(Error::Waiting { left }));
        let remedy = self.snapshot.slots.as_ref().map_or(Remedy::Prepare, |slots| slots.remedy);
        if dry_run {
            self.upgrade.apply(Input::Commit(remedy))?;
            return free.and(waiting).map(|()| None);
        }
        self.apply(Input::Commit(remedy))?;
        self.start_commit(free.and(waiting));
        Ok(None)
    }

    async fn finish(&mut self, done: Done) {
        match done {
            Done::Looked(number, look) => {
                self.looking = false;
                if number != self.looks {
                    return;
                }
                if let Ok(look) = look.as_ref() {
                    // Correctly refused while other work is under way.
                    self.observe(look);
                }
                self.snapshot.take(*look, self.upgrade.phase);
                self.publish();
            }
            Done::Switched(Err(error)) => self.fail("commit", &error).await,
            Done::Switched(Ok(())) => self.switched().await,
            Done::Took(result) => match result {
                Ok(message) => {
                    self.snapshot.message = message;
                    self.software_started();
                    let swapped = self.upgrade.phase == Phase::Committing;
                    let proved = swapped && self.method() == CommitMethod::Swap;
                    self.held_until = proved.then(|| Instant::now() + HELD);
                    self.settle(swapped.then_some(Input::Switched)).await;
                }
                Err(error) => self.fail("commit", &error).await,
            },
            Done::Shown => {
                self.beside = None;
                let _ = self.apply(Input::Reboot);
                self.start_reboot(Done::Took);
            }
            Done::Rebooted(result) => {
                self.snapshot.reboot = match result {
                    Ok(()) => RebootProgress::InProgress,
                    Err(error) => RebootProgress::Failed(crate::error::sentence(&error)),
                };
                self.publish();
            }
            Done::Halted(result) => {
                self.beside = None;
                if let Err(error) = result {
                    tracing::error!(code = error.code(), "not powered off: {error}");
                    self.snapshot.reboot = RebootProgress::Failed(crate::error::sentence(&error));
                    self.publish();
                }
            }
            Done::StillHere => self.still_here().await,
            Done::Converged(result) => self.converged(result).await,
            Done::Restarted(result, answer) => {
                self.beside = None;
                if result.is_ok() {
                    self.software_started();
                    self.settle(None).await;
                }
                let _ = answer.send(result.map(|()| None));
            }
        }
    }

    /// Applies a failure, and records it in the history if the engine could not.
    async fn fail(&mut self, verb: &'static str, error: &Error) {
        self.fail_as(verb, Failure::from(error), true).await;
    }

    async fn fail_as(&mut self, verb: &'static str, failure: Failure, note: bool) {
        tracing::warn!(code = failure.code, "{verb} failed: {}", failure.message);
        self.snapshot.counts.failures += 1;
        if note {
            let (service, failure) = (Arc::clone(&self.service), failure.clone());
            tokio::task::spawn_blocking(move || service.place.note(verb, &failure));
        }
        self.settle(Some(Input::Failed(failure))).await;
    }

    async fn report(&mut self, report: Report) {
        match report {
            Report::Stalled { device, seconds } => {
                let since = Instant::now().checked_sub(Duration::from_secs(seconds));
                self.snapshot.stalled = since.map(|since| (device, since));
                self.publish();
            }
            Report::Progress(percent) => {
                self.snapshot.stalled = None;
                if percent > self.upgrade.progress {
                    let _ = self.apply(Input::Progress(percent));
                }
            }
            Report::Done(outcome) => {
                self.child = None;
                self.snapshot.stalled = None;
                let (why, waiting) = self.stopping.take().unzip();
                let _waiting = self.answer_the_waiting(waiting.unwrap_or_default());
                match (outcome, why) {
                    (_, Some(Error::Cancelled)) => self.cancelled().await,
                    (Ok(staged), _) => {
                        let (version, upgrade_type) = (staged.version, staged.upgrade_type);
                        self.settle(Some(Input::Staged { version, upgrade_type })).await;
                        if self.upgrade.phase == Phase::Committing {
                            self.start_commit(Ok(()));
                        }
                    }
                    (Err(_), Some(error)) => self.fail("prepare", &error).await,
                    (Err(failure), None) => {
                        // The engine has recorded its own failures; a process that died could not.
                        let died = failure.code == WORKER_DIED;
                        self.fail_as("prepare", failure, died).await;
                    }
                }
            }
        }
    }

    async fn discard(&mut self) -> OrderResult {
        let report = unless_silent(&self.service, SILENCE, |service| service.place.discard()).await;
        if let Ok(report) = &report {
            let shown = self.snapshot.error().is_some();
            if report.is_none() && self.upgrade.phase == Phase::Idle && !shown {
                self.settle(None).await;
                return Err(Error::NothingToCancel { problem: "nothing is prepared".to_owned() });
            }
            if report.is_none() && shown {
                blocking(&self.service, |service| service.place.clear()).await?;
            }
            self.apply(Input::Discarded)?;
        }
        self.settle(None).await;
        report
    }

    async fn switch(
        &mut self,
        verb: impl FnOnce(&Service) -> Result<SwitchReport> + Send + 'static,
    ) -> OrderResult {
        self.idle()?;
        let report = blocking(&self.service, verb).await;
        self.settle(None).await;
        report.map(Some)
    }
}

/// The code of [`Error::Worker`].
const WORKER_DIED: &str = "UPGRADE_ERROR_WORKER";
