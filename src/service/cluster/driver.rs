//! The loop of a node: it publishes its state, executes its step, and acts as the leader if it is elected. It keeps no state
//! that matters: after a crash the next run decides the same from the same keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::etcd::Etcd;
use crate::cluster::next::{Action, next_action};
use crate::cluster::state::{Alive, BootId, Member, NodeId, Outcome, RebootState, Stage, Staging, Standing};
use crate::cluster::store::{Compare, Entry, Key, Revision, Store, Txn, Value, Write};
use crate::cluster::turn::{self, Local, Step};
use crate::cluster::view::View;
use crate::error::{Error, Result, sentence};
use crate::service::cluster::Membership;
use crate::service::cluster::acts::{Actor, Selects, Task};
use crate::service::cluster::cache::{Cache, Seen};
use crate::service::cluster::held::Held;
use crate::service::cluster::hooks::Occasion;
use crate::service::cluster::leading::{Times, is_early, log};
use crate::service::cluster::local::{alive, identity, local};
use crate::service::cluster::number;
use crate::service::cluster::protection::Protected;
use crate::service::cluster::restart::Restarts;
use crate::service::cluster::stream;
use crate::service::owner::disk::DiskView;
use crate::service::owner::order::Order;
use crate::service::owner::upgrade::Phase;
use crate::workers;

/// Time between two runs of the loop while nothing changes.
const TICK: Duration = Duration::from_millis(500);
/// Maximum age of a view of the disk.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time for which a write is expected to arrive by the watch.
const LAG_LIMIT: Duration = Duration::from_secs(2);
/// Progress between two writes of a node, in percent.
const STEP: u8 = 10;
/// Time after which a failed hook is run again: the cause of the failure may be gone.
const HOOK_AGAIN: Duration = Duration::from_secs(30);

/// Step in progress, and the upgrade and reboot for which it began.
struct Job {
    step: Step,
    upgrade: u64,
    /// Attempt of the reboot in which it began.
    attempt: u32,
    work: JoinHandle<Result<()>>,
    /// Set at the end of the work, before the thread itself has ended.
    ended: Arc<AtomicBool>,
}

/// Result of a step, for the stage of the upgrade in which the step ended.
struct Report {
    stage: (u64, Stage),
    outcome: Outcome,
    /// Whether the node gives its turn back, since it does not reboot.
    stays: bool,
}

pub(super) struct Driver {
    actor: Actor,
    membership: Membership,
    /// Certificate of the service of this node, as PEM.
    certificate: String,
    etcd: Etcd,
    cache: Arc<Cache>,
    look: Option<(Instant, DiskView)>,
    job: Option<Job>,
    /// Time at which the reboot command ended; `None`: no reboot is expected.
    gone: Option<Instant>,
    /// Boot in which a health check failed, and its message.
    unhealthy: Option<(BootId, String)>,
    protected: Protected,
    restarts: Restarts,
    held: Held,
    /// Boot in which this node was taken back into service.
    undrained: Option<BootId>,
    /// Time and message of the last failure of the hook `undrain`.
    hook: Option<(Instant, String)>,
    /// Time and message of the last failure to catch up with the cluster.
    missed: Option<(Instant, String)>,
    times: Times,
    /// Attempt of the reboot that this node has seen last; `None`: it has not seen any.
    attempt: Option<u32>,
    refused: Option<String>,
    /// Boot in which this node has published its state, and the revision that its state had before.
    published: Option<(BootId, Revision)>,
    /// Result of a step that is not in etcd yet.
    due: Option<Report>,
    /// Time since which the last write of this node has not arrived by the watch; `None`: it has.
    lags_since: Option<Instant>,
}

impl Driver {
    pub(super) fn new(actor: Actor, protected: Protected, etcd: Etcd, cache: Arc<Cache>) -> Self {
        let times = Times::new(actor.membership.reboot_timeout);
        Self {
            membership: actor.membership.clone(),
            certificate: actor.membership.own_certificate(),
            actor,
            protected,
            restarts: Restarts::default(),
            held: Held::default(),
            undrained: None,
            hook: None,
            etcd,
            cache,
            look: None,
            job: None,
            gone: None,
            unhealthy: None,
            missed: None,
            times,
            attempt: None,
            refused: None,
            published: None,
            due: None,
            lags_since: None,
        }
    }

    /// Runs the loop until `end`.
    pub(super) fn run(mut self, end: &AtomicBool) {
        let mut seen = self.cache.get();
        while !end.load(Ordering::Relaxed) {
            if seen.ever {
                match self.turn(&seen) {
                    Ok(()) => {
                        self.refused = None;
                        self.cache.refuse(None);
                    }
                    // etcd becomes available again; a lasting error is logged once.
                    Err(error) => {
                        let told = sentence(&error);
                        if matches!(error, Error::Membership { .. }) {
                            self.cache.refuse(Some(told.clone()));
                        }
                        if self.refused.as_ref() != Some(&told) {
                            tracing::warn!(code = error.code(), "{told}");
                            self.refused = Some(told);
                        }
                    }
                }
            }
            seen = self.cache.wait(seen, TICK);
        }
    }

    const fn node(&self) -> NodeId {
        self.membership.node
    }

    fn turn(&mut self, seen: &Seen) -> Result<()> {
        let view = seen.view();
        let Some(Entry { value: Value::Member(member), .. }) = seen.entry(Key::Member(self.node())) else {
            return Ok(());
        };
        let look = self.look()?;
        self.cache.is_machine(&identity(&look));
        number::check(seen, self.node(), member, &identity(&look), self.published)?;
        // A state without the last write of this node would make it write the same again, or obey twice an order to restart.
        if self.lags(seen) {
            return Ok(());
        }
        self.introduce(view, member)?;
        self.restarts.serve(self.membership.node, seen, &self.actor, &mut self.etcd)?;
        self.resumed(view);
        self.finish(view);
        let look = self.look()?;
        let unhealthy = self.unhealthy.as_ref().map(|(_, why)| why.as_str());
        let local = local(&look, view, unhealthy, false);
        let drained = self.is_drained(view, local.boot);
        let local = Local { drained, gated: self.actor.is_gated(), ..local };
        if self.unhealthy.as_ref().is_some_and(|(boot, _)| *boot != local.boot) {
            self.unhealthy = None;
        }
        // If the system refuses a thread for it, the node takes part all the same.
        let released =
            self.held.release(&self.actor, self.job.is_some() || view.missed(self.node(), local.runs));
        let Some(lease) = seen.lease else { return released };
        let said = self.publish(seen, &look, &local, lease)?;
        if self.lags(seen) {
            return Ok(());
        }
        let step = self.step(view, &local, &said, lease);
        if matches!(step, Err(Error::ClusterStore { .. })) {
            return step;
        }
        self.lead(seen, lease)?;
        step.and(released)
    }

    /// Updates address and certificate, by which the other nodes know its service.
    fn introduce(&mut self, view: &View, member: &Member) -> Result<()> {
        // It may be installed after the start, or renewed, as for the listener.
        let certificate = self.membership.own_certificate();
        if !certificate.is_empty() {
            self.certificate = certificate;
        }
        let (uuid, address) = (member.uuid.clone(), self.membership.address.clone());
        let now = Member { uuid, address, certificate: self.certificate.clone() };
        if *member == now {
            return Ok(());
        }
        let key = Key::Member(self.node());
        let writes = vec![Write::Put(key, Value::Member(now), None)];
        self.etcd.transact(&Txn { compare: vec![view.unchanged(key)], writes }).map(|_| ())
    }

    /// Whether the last write of this node is not in `seen` yet. After a while that no longer counts: etcd may have been restored.
    fn lags(&mut self, seen: &Seen) -> bool {
        if seen.revision >= self.etcd.written() {
            self.lags_since = None;
            return false;
        }
        self.lags_since.get_or_insert_with(Instant::now).elapsed() < LAG_LIMIT
    }

    /// After a resume, forgets what failed before it, so that it is tried again at once.
    fn resumed(&mut self, view: &View) {
        let attempt = Some(view.reboot.attempt);
        if self.attempt.is_some() && self.attempt != attempt {
            (self.hook, self.unhealthy) = (None, None);
            self.protected.ask_anew();
        }
        self.attempt = attempt;
    }

    /// Whether this node is out of service after its turn, by the file that records it, or, if that is lost, by the turn.
    fn is_drained(&self, view: &View, boot: BootId) -> bool {
        let turn = |(node, before): &(NodeId, BootId)| *node == self.node() && *before != boot;
        let had = || view.reboot.rolling && view.reboot.current.iter().any(turn);
        let undrains = !self.membership.hooks.undrain.is_empty();
        undrains && (self.actor.drained_file.is_set() || (had() && self.undrained != Some(boot)))
    }

    fn look(&mut self) -> Result<DiskView> {
        if let Some((_, look)) = self.look.as_ref().filter(|(at, _)| at.elapsed() < LOOK_EVERY) {
            return Ok(look.clone());
        }
        let look = self.actor.service.place.look()?;
        self.look = Some((Instant::now(), look.clone()));
        Ok(look)
    }

    /// Publishes the state of this node if it has changed, together with the result of a step that has ended; idle nodes write
    /// nothing.
    fn publish(&mut self, seen: &Seen, look: &DiskView, local: &Local, lease: i64) -> Result<Alive> {
        let (view, node) = (seen.view(), self.node());
        let stage = (view.upgrade.id, view.upgrade.stage);
        self.due.take_if(|due| due.stage != stage);
        let before = view.alive.get(&node);
        let stays = self.due.as_ref().is_some_and(|due| due.stays);
        let leaving = !stays && before.is_some_and(|before| before.leaving && before.boot == local.boot);
        let owner = self.actor.owner.snapshot();
        let has_result = self.due.is_some() || view.outcomes.contains_key(&node);
        let progress = match view.upgrade.stage {
            Stage::Preparing if has_result => 0,
            Stage::Preparing if owner.upgrade.phase == Phase::Preparing => {
                owner.upgrade.progress / STEP * STEP
            }
            Stage::Preparing => before.map_or(0, |before| before.progress),
            _ => 0,
        };
        let hook = self.hook.as_ref().map(|(_, why)| why.clone());
        if !view.missed(node, local.runs) {
            self.missed = None;
        }
        let missed = self.missed.as_ref().map(|(_, why)| format!("it cannot catch up: {why}"));
        let said = alive(look, local, view, (progress, leaving), (self.protected.get(), hook));
        let staging = turn::lacks_bundle(view, local).then(|| {
            let percent = if owner.upgrade.phase == Phase::Preparing {
                owner.upgrade.progress / STEP * STEP
            } else {
                0
            };
            Staging { percent, stalled: owner.silence().map(|(device, _)| device) }
        });
        let fails = matches!(said.standing, Standing::Unhealthy(_)) || said.unknown.is_some();
        let failed_in = fails.then_some(view.reboot.attempt);
        let said = Alive { blocked: missed.or(said.blocked), failed_in, staging, ..said };
        let entry = seen.entry(Key::Alive(node));
        let held = entry.and_then(|entry| entry.lease);
        let is_new = before != Some(&said) || held != Some(lease);
        let outcome = self.due.as_ref().map(|due| due.outcome.clone());
        let Some(txn) = turn::publish(view, node, is_new.then_some((&said, lease)), outcome) else {
            return Ok(said);
        };
        if self.etcd.transact(&txn)? {
            if is_new {
                self.published = Some((local.boot, entry.map_or(0, |entry| entry.modified)));
            }
            self.due = None;
        }
        Ok(said)
    }

    fn step(&mut self, view: &View, local: &Local, said: &Alive, lease: i64) -> Result<()> {
        if self.job.is_some() {
            self.call_off(view);
            return Ok(());
        }
        if let Some(since) = self.gone {
            // The machine is shutting down.
            let limit = self.actor.service.limits.reboot;
            if since.elapsed() < limit {
                return Ok(());
            }
            self.gone = None;
            let command = self.actor.service.after_commit.reboot_words();
            let error = Error::NotRebooted { command, seconds: limit.as_secs() };
            self.finished(view, failed(&error), true);
            return Ok(());
        }
        let node = self.node();
        let outcome = view.outcomes.get(&node);
        if self.due.is_some() {
            return Ok(());
        }
        if view.reboot.state == RebootState::PausedDueToError && matches!(outcome, Some(Outcome::Failed(_))) {
            // The failure has been seen; a resume tries again.
            return self.report(view, Outcome::Prepared);
        }
        let step = turn::step(view, node, local);
        let undone = matches!(view.upgrade.stage, Stage::SwapBack | Stage::FlipBack | Stage::Return);
        match step {
            Step::Rest => Ok(()),
            Step::TakeTurn => self.etcd.transact(&turn::take_turn(view, node, said, lease)).map(|_| ()),
            // It failed a moment ago.
            Step::CatchUp if self.missed.as_ref().is_some_and(|(at, _)| at.elapsed() < HOOK_AGAIN) => Ok(()),
            // The hook failed a moment ago.
            Step::Undrain if self.hook.as_ref().is_some_and(|(at, _)| at.elapsed() < HOOK_AGAIN) => Ok(()),
            Step::Report if undone => self.report(view, Outcome::Undone),
            Step::Report => self.report(view, Outcome::Kept),
            Step::ReportFailure => self.report(view, Outcome::Failed(local.standing.reason().to_owned())),
            _ => self.start(view, step),
        }
    }

    fn start(&mut self, view: &View, step: Step) -> Result<()> {
        tracing::info!(upgrade = view.upgrade.id, stage = view.upgrade.stage.word(), "cluster: {step:?}");
        let (mut actor, rolling) = (self.actor.clone(), view.reboot.rolling);
        let order = view.upgrade.order.as_ref();
        actor.peers = stream::peers(self.cache.get().snapshot(), &self.membership, order);
        let task = Task {
            step,
            order: view.upgrade.order.clone(),
            rolling,
            selects: match rolling && view.reboot.upgrade_initiated {
                false => Selects::Nothing,
                true if view.reboot.back => Selects::Before,
                true => Selects::Ordered,
            },
            occasion: Occasion::new(self.node(), view),
        };
        let (cache, ended) = (Arc::clone(&self.cache), Arc::new(AtomicBool::new(false)));
        let ends = Arc::clone(&ended);
        let work = workers::spawn("a step of the cluster", move || {
            let result = actor.act(&task);
            ends.store(true, Ordering::Release);
            // The driver need not wait for its next look: the others wait for the report.
            cache.wake();
            result
        })?;
        let (upgrade, attempt) = (view.upgrade.id, view.reboot.attempt);
        self.job = Some(Job { step, upgrade, attempt, work, ended });
        Ok(())
    }

    /// Stops a prepare whose order is over.
    fn call_off(&self, view: &View) {
        let Some(job) = &self.job else { return };
        let wanted = match job.step {
            Step::Prepare => view.upgrade.stage == Stage::Preparing,
            Step::StageAgain => view.upgrade.stage == Stage::Rebooting && !view.reboot.back,
            _ => return,
        };
        if view.upgrade.id != job.upgrade || !wanted {
            let owner = &self.actor.owner;
            if owner.snapshot().upgrade.phase == Phase::Preparing {
                let _ = self.actor.runtime.block_on(owner.order(Order::Cancel));
            }
        }
    }

    /// Takes the result of a step that has ended.
    fn finish(&mut self, view: &View) {
        let Some(job) = self.job.take_if(|job| job.ended.load(Ordering::Acquire) || job.work.is_finished())
        else {
            return;
        };
        // The view of the disk is outdated now.
        self.look = None;
        let result = job.work.join().unwrap_or_else(|_| {
            Err(Error::Internal { what: format!("the step {:?} of the cluster ended by a panic", job.step) })
        });
        if let Err(error) = &result {
            tracing::warn!(code = error.code(), "cluster: {:?}: {}", job.step, sentence(error));
        }
        if job.step == Step::Undrain {
            // The failure of a hook that was running at a resume is as old as the resume.
            let failure = result.as_ref().err().filter(|_| job.attempt == view.reboot.attempt);
            self.hook = failure.map(|error| (Instant::now(), sentence(error)));
            if result.is_ok() {
                self.undrained = view.alive.get(&self.node()).map(|alive| alive.boot);
                self.protected.ask_anew();
            }
            return;
        }
        if job.step == Step::CatchUp {
            self.missed = result.as_ref().err().map(|error| (Instant::now(), sentence(error)));
            // Else the software was swapped, and nothing is awaited.
            let reboots = self.actor.owner.snapshot().upgrade.phase == Phase::Rebooting;
            self.gone = (result.is_ok() && reboots).then(Instant::now);
            return;
        }
        if job.upgrade != view.upgrade.id && !matches!(job.step, Step::Reboot | Step::RollBack) {
            return;
        }
        let stage = view.upgrade.stage;
        let swaps = matches!(stage, Stage::Swap | Stage::SwapBack);
        let outcome = match (job.step, result) {
            (Step::Reboot | Step::RollBack, Ok(())) => {
                self.gone = Some(Instant::now());
                None
            }
            (Step::MarkGood, Err(_)) if job.attempt != view.reboot.attempt => None,
            (Step::MarkGood, Err(error)) => {
                let boot = view.alive.get(&self.node()).map_or(BootId(0), |alive| alive.boot);
                self.unhealthy = Some((boot, sentence(&error)));
                None
            }
            (Step::StageAgain, Err(error)) if stage == Stage::Rebooting && !view.reboot.back => {
                Some(failed(&error))
            }
            (Step::Prepare, Ok(())) if stage == Stage::Preparing => Some(Outcome::Prepared),
            (Step::Gate, Ok(())) if stage == Stage::Gate => Some(Outcome::Ready),
            (Step::Swap, Ok(())) if swaps => Some(Outcome::Switched),
            (Step::Flip, Ok(())) => Some(Outcome::Switched),
            (Step::SwapBack, Ok(())) if swaps => Some(Outcome::Undone),
            (Step::FlipBack, Ok(())) if stage != Stage::Prepared => Some(Outcome::Undone),
            (Step::MarkGood, Ok(())) if stage == Stage::Keep => Some(Outcome::Kept),
            // A failure in a stage that is over must not affect the next attempt.
            (Step::Prepare, Err(error)) if stage == Stage::Preparing => Some(failed(&error)),
            (Step::Gate, Err(error)) if stage == Stage::Gate => Some(failed(&error)),
            (Step::Swap | Step::SwapBack, Err(error)) if swaps => Some(failed(&error)),
            (Step::Flip | Step::FlipBack | Step::RollBack | Step::Reboot, Err(error)) => Some(failed(&error)),
            _ => None,
        };
        if let Some(outcome) = outcome {
            let stays = job.step == Step::Reboot;
            self.finished(view, outcome, stays);
        }
    }

    /// Keeps a result until etcd has it. `stays`: the node gives its turn back.
    fn finished(&mut self, view: &View, outcome: Outcome, stays: bool) {
        self.due = Some(Report { stage: (view.upgrade.id, view.upgrade.stage), outcome, stays });
    }

    fn report(&mut self, view: &View, outcome: Outcome) -> Result<()> {
        self.etcd.transact(&turn::report(view, self.node(), outcome)).map(|_| ())
    }

    /// Executes the next action of the leader on the leader; without a leader, tries to become it.
    fn lead(&mut self, seen: &Seen, lease: i64) -> Result<()> {
        let view = seen.view();
        self.times.look(view);
        match view.leader {
            Some((leader, created)) if leader == self.node() => match next_action(&self.times.timed(seen)) {
                Action::Rest | Action::Wait(_) => Ok(()),
                Action::Write(_) if is_early(seen, view) => Ok(()),
                Action::Write(txn) => {
                    if self.etcd.transact(&txn)? {
                        for write in &txn.writes {
                            log(write);
                        }
                    }
                    Ok(())
                }
                Action::Resign => {
                    let compare = vec![Compare::Created(Key::Leader, created)];
                    self.etcd.transact(&Txn { compare, writes: vec![Write::Delete(Key::Leader)] }).map(|_| ())
                }
            },
            Some(_) => Ok(()),
            None => match turn::campaign(view, self.node(), lease) {
                Some(txn) => self.etcd.transact(&txn).map(|_| ()),
                None => Ok(()),
            },
        }
    }
}

fn failed(error: &Error) -> Outcome {
    Outcome::Failed(sentence(error))
}
