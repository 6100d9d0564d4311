//! Long work that the owner delegates: the action after a switch, a reboot, the start and restart of the software. The
//! owner continues to answer; no other work begins meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::container::StartReport;
use crate::engine::{CommitMethod, TrialStart};
use crate::error::{Error, Result, sentence};
use crate::service::owner::order::OrderResult;
use crate::service::owner::upgrade::{Failure, Input, Phase, UpgradeSettings};
use crate::service::owner::{Done, Owner, SHOWN, blocking};
use crate::service::view::RebootProgress;
use crate::state::{SlotState, UpgradeType};
use crate::units::Group;

/// Longest time for which an orderly end waits for a switch or a swap. One that is cut off leaves no software running until
/// the next start.
const ENDING: Duration = Duration::from_secs(30);

/// Waits until COMMITTING has been shown for its minimum time.
async fn show(since: Instant) {
    tokio::time::sleep(SHOWN.saturating_sub(since.elapsed())).await;
}

impl Owner {
    /// Writes the switch, unless something forbids it. The phase is COMMITTING already, so nothing else begins.
    pub(super) fn start_commit(&mut self, allowed: Result<()>) {
        self.snapshot.counts.commits += 1;
        self.committing = Instant::now();
        let (service, done, since) = (Arc::clone(&self.service), self.done.0.clone(), self.committing);
        let software = self.kind() == UpgradeType::SoftwareOnly;
        let method = self.method();
        tokio::spawn(async move {
            // Checked again: the target slot may be in use since the prepare began.
            let switch = blocking(&service, move |service| {
                allowed?;
                let status = service.place.look()?.status;
                if status.is_blocked {
                    return Err(Error::Blocked { reason: status.blocked_reason });
                }
                match method {
                    // The swap selects the slot, as one of its steps.
                    CommitMethod::Swap => Ok(()),
                    CommitMethod::Plain | CommitMethod::Kexec => service.place.commit().map(|_| ()),
                }
            });
            let result = switch.await;
            // The swap begins at once; COMMITTING is shown until the new software is up.
            if result.is_err() || !software {
                show(since).await;
            }
            let _ = done.send(Done::Switched(result)).await;
        });
    }

    pub(super) fn kind(&self) -> UpgradeType {
        self.upgrade.settings.as_ref().map_or(UpgradeType::SoftwareAndPlatform, |s| s.upgrade_type)
    }

    /// The method of the commit.
    pub(super) fn method(&self) -> CommitMethod {
        CommitMethod::new(TrialStart::Reboot, self.service.after_commit.swaps(), Some(self.kind()))
    }

    /// Makes a written switch take effect.
    pub(super) async fn switched(&mut self) {
        let kind = self.kind();
        let took = kind == UpgradeType::SoftwareAndPlatform;
        self.settle(took.then_some(Input::Switched)).await;
        let (service, done, since) = (Arc::clone(&self.service), self.done.0.clone(), self.committing);
        if self.service.after_commit.reboots(kind) {
            self.beside = Some("about to reboot");
            tokio::spawn(async move {
                tokio::time::sleep(SHOWN).await;
                let _ = done.send(Done::Shown).await;
            });
            return;
        }
        tokio::spawn(async move {
            let result = blocking(&service, move |service| service.after_commit.run(kind)).await;
            if !took {
                show(since).await;
            }
            let _ = done.send(Done::Took(result)).await;
        });
    }

    /// Records that a command has started the software on trial: no other source knows that. With a platform on trial, the
    /// state of the platform decides.
    pub(super) fn software_started(&mut self) {
        let trial = |group: Group| {
            let slots = self.snapshot.slots.iter().flat_map(|report| &report.slots);
            slots.filter(move |slot| slot.group == group && slot.state == SlotState::Trial)
        };
        let alone = trial(Group::Platform).next().is_none() && self.service.after_commit.restarts_selected();
        let release = trial(Group::Software).find_map(|slot| slot.manifest).filter(|_| alone);
        if release != self.upgrade.started {
            let _ = self.enter(Input::Started(release));
        }
    }

    /// Handles the order of a reboot.
    pub(super) fn reboot(&mut self) -> OrderResult {
        self.idle()?;
        if !self.service.after_commit.reboots(UpgradeType::SoftwareAndPlatform) {
            let (what, key) = ("reboot the machine".to_owned(), "reboot_command".to_owned());
            return Err(Error::NotConfigured { what, key });
        }
        self.snapshot.reboot = RebootProgress::InProgress;
        self.publish();
        self.start_reboot(|result| Done::Rebooted(result.map(|_| ())));
        Ok(None)
    }

    /// Handles the order to power off. As for a reboot, the answer is sent before the machine goes down.
    pub(super) fn halt(&mut self) -> OrderResult {
        self.idle()?;
        if !self.service.after_commit.halts() {
            let (what, key) = ("power the machine off".to_owned(), "halt_command".to_owned());
            return Err(Error::NotConfigured { what, key });
        }
        self.beside = Some("powering off");
        let (service, done) = (Arc::clone(&self.service), self.done.0.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SHOWN).await;
            let result = blocking(&service, |service| service.after_commit.halt()).await;
            let _ = done.send(Done::Halted(result)).await;
        });
        Ok(None)
    }

    /// Runs the reboot command. If it succeeds without a reboot, or does not end, clients must not wait for ever.
    pub(super) fn start_reboot(&self, ended: impl FnOnce(Result<String>) -> Done + Send + 'static) {
        let (service, done) = (Arc::clone(&self.service), self.done.0.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SHOWN).await;
            let limit = tokio::time::sleep(service.limits.reboot);
            tokio::pin!(limit);
            let run = |service: &crate::service::owner::Service| {
                service.after_commit.run(UpgradeType::SoftwareAndPlatform)
            };
            tokio::select! {
                result = blocking(&service, run) => {
                    let failed = result.is_err();
                    let _ = done.send(ended(result)).await;
                    if failed {
                        return;
                    }
                    limit.await;
                }
                () = &mut limit => {}
            }
            let _ = done.send(Done::StillHere).await;
        });
    }

    /// Handles the end of the time for a reboot: the machine is still up.
    pub(super) async fn still_here(&mut self) {
        let (command, seconds) =
            (self.service.after_commit.reboot_words(), self.service.limits.reboot.as_secs());
        let error = Error::NotRebooted { command, seconds };
        if self.upgrade.phase == Phase::Rebooting {
            self.fail("commit", &error).await;
        }
        if self.snapshot.reboot == RebootProgress::InProgress {
            tracing::warn!(code = error.code(), "{error}");
            self.snapshot.reboot = RebootProgress::Failed(sentence(&error));
            self.publish();
        }
    }

    /// Starts the software that the flags select.
    pub(super) fn converge(&mut self) {
        if !self.service.container.starts() {
            return;
        }
        self.beside = Some("starting the software");
        let (service, done) = (Arc::clone(&self.service), self.done.0.clone());
        tokio::spawn(async move {
            let result = blocking(&service, |service| service.container.start()).await;
            let _ = done.send(Done::Converged(result)).await;
        });
    }

    pub(super) async fn converged(&mut self, result: Result<StartReport>) {
        self.beside = None;
        let gave_up = match &result {
            Ok(report) => {
                tracing::info!("the software: {}", report.done);
                report.failure().map(|error| (error, report.gave_up.clone().unwrap_or_default()))
            }
            // The machine has no software yet, another process is starting it, such as its unit at boot, or the cluster forbids it.
            Err(error @ (Error::NoSoftware { .. } | Error::Busy { .. } | Error::Blocked { .. })) => {
                tracing::info!("the software is left alone: {error}");
                return;
            }
            Err(error) => {
                tracing::error!(code = error.code(), "the software: {}", sentence(error));
                None
            }
        };
        let input = gave_up.map(|(error, target_version)| {
            let settings = UpgradeSettings::found("", target_version, UpgradeType::SoftwareOnly);
            Input::Beside(settings, Failure::from(&error))
        });
        self.settle(input).await;
    }

    /// Restarts the software; `answer` gets the result.
    pub(super) fn restart(&mut self, answer: oneshot::Sender<OrderResult>) {
        if let Err(error) = self.idle() {
            let _ = answer.send(Err(error));
            return;
        }
        self.beside = Some("restarting the software");
        let (service, done) = (Arc::clone(&self.service), self.done.0.clone());
        tokio::spawn(async move {
            let result = blocking(&service, |service| service.container.restart()).await;
            let _ = done.send(Done::Restarted(result, answer)).await;
        });
    }

    /// Handles a bundle that was refused before anything began. An upgrade that runs reports its own result.
    pub(super) async fn refused(&mut self, settings: UpgradeSettings, failure: Failure) -> OrderResult {
        if self.idle().is_ok() {
            tracing::warn!(code = failure.code, "refused: {}", failure.message);
            let (path, told) = (settings.install_path.clone(), failure.clone());
            let noted = blocking(&self.service, move |service| {
                service.place.refused(&path, &told);
                Ok(())
            });
            noted.await?;
            self.settle(Some(Input::Beside(settings, failure))).await;
        }
        Ok(None)
    }

    /// Waits for the work that must not be cut off.
    pub(super) async fn finish_all(&mut self) {
        let limit = tokio::time::sleep(ENDING);
        tokio::pin!(limit);
        while self.beside.is_some() || self.upgrade.phase == Phase::Committing {
            tokio::select! {
                Some(done) = self.done.1.recv() => self.finish(done).await,
                () = &mut limit => {
                    tracing::warn!("ending in the middle of a switch: the next start brings it to its end");
                    return;
                }
            }
        }
    }
}
