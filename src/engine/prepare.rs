//! `plan` and `prepare`.

use std::num::NonZeroU64;
use std::time::Instant;

use super::checks::{CheckedUpgrade, is_prepared};
use super::delta::{check_download, exceeded};
use super::transition::{self, Change, Effect, Transition};
use super::view::View;
use super::{Engine, Policy, PrepareOptions};
use crate::boot::BootFlag;
use crate::bundle::Bundle;
use crate::bundle::manifest::largest_frame;
use crate::bundle::pick::Whole;
use crate::commit;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::host::load::rate_limit::RateLimit;
use crate::host::load::throttle::Throttle;
use crate::host::{Access, DiskLock};
use crate::progress::{Cancel, Phase, Progress, Silent};
use crate::stage::{self, StageOutcome, expected_bytes};
use crate::state::{AppliedDelta, PlanReport, PlannedPayload, PrepareReport, UpgradeObstacle, UpgradeType};
use crate::units::{Group, Slot, size};
use crate::workers;

/// What a prepare is about to do, with nothing left that would refuse it.
pub(super) struct Intent {
    /// The record of a fallback that happened by itself, to be written first; `None`: there was none.
    pub(super) fallback: Option<Transition>,
    /// What is on the disk after that.
    pub(super) view: View,
    pub(super) upgrade: CheckedUpgrade,
}

impl Engine<'_> {
    /// What an upgrade to this bundle would be and do, and what forbids it. Changes nothing.
    ///
    /// # Errors
    /// Class Disk and Io; obstacles are not errors here but part of the report.
    pub fn plan(&self, bundle: &Bundle, whole: Option<&Whole>) -> Result<PlanReport> {
        let view = self.view()?;
        let manifest = bundle.manifest();
        let body_len = bundle.release().record_len();
        let mut obstacles = self.obstacles(&view, bundle)?;
        let upgrade = CheckedUpgrade::new(&view, manifest, body_len)?;
        let sources = self.sources(&view, &upgrade, bundle, whole);
        let sources = sources.unwrap_or_else(|error| {
            obstacles.push(error);
            None
        });
        let groups = upgrade.groups();
        let counted = bundle.delta().is_some() || bundle.is_remote();
        let allowed =
            self.check_limit(&view, &upgrade, bundle, sources.as_ref(), &Cancel::default(), &Silent);
        match allowed {
            Err(error @ Error::DownloadLimit { .. }) => obstacles.push(error),
            other => other?,
        }
        let payloads = manifest.payloads.iter().map(|payload| {
            let target = upgrade.targets.iter().find(|(group, ..)| *group == payload.kind.group());
            PlannedPayload {
                name: payload.to_string(),
                version: payload.version.clone(),
                size: payload.size,
                target: target.map(|(group, slot, _)| group.partition_name(*slot).to_owned()),
            }
        });
        Ok(PlanReport {
            disk: self.machine.name().to_owned(),
            product: manifest.product.clone(),
            running_version: view.running_version(Group::Platform).map(str::to_owned),
            target_version: manifest.version.clone(),
            upgrade_type: upgrade.kind,
            booted: upgrade.booted,
            is_running: view.runs().is_running(Group::Platform, upgrade.booted),
            needs_platform: manifest.needs_platform.as_ref().map(ToString::to_string),
            payloads: payloads.collect(),
            transfer_bytes: counted.then(|| expected_bytes(bundle, &groups, sources.as_ref())),
            switch_method: self.switch_method(&view)?,
            trial: (upgrade.kind == UpgradeType::SoftwareAndPlatform).then(|| trial(&self.policy)),
            manifest: manifest.digest(),
            already_prepared: is_prepared(&view, &upgrade, manifest.bytes()),
            blocked_by: obstacles
                .iter()
                .map(|error| UpgradeObstacle { code: error.code().to_owned(), message: error.to_string() })
                .collect(),
            container_open: None,
        })
    }

    /// Stages a bundle into the slots that do not run. On success they hold it: written, flushed, read back.
    /// Doing it again with the same bundle reads and writes nothing but the slot.
    ///
    /// # Errors
    /// Refusals (class Refused, and [`Error::SlotTooSmall`]) come before the first write; later failures leave the
    /// target torn and unbootable, and the running system as it was.
    pub fn prepare(
        &self,
        bundle: Bundle,
        options: &PrepareOptions,
        progress: &dyn Progress,
    ) -> Result<PrepareReport> {
        let act = |lock: &DiskLock| match self.prepare_locked(lock, &bundle, options, progress) {
            Err(problem) if bundle.delta().is_some() => {
                let Some(whole) = self.instead_of(&bundle, &problem, options)? else { return Err(problem) };
                let code = problem.code();
                progress.notice(&format!(
                    "the delta cannot be applied ({code}); all of the bundle is read instead"
                ));
                self.prepare_locked(lock, &whole, options, progress)
            }
            result => result,
        };
        self.change_from("prepare", &options.origin, act, prepared)
    }

    /// The whole bundle that is prepared instead of a delta that ended with `problem`; `None`: there is none, or more would come
    /// over the network than may.
    fn instead_of(
        &self,
        delta: &Bundle,
        problem: &Error,
        options: &PrepareOptions,
    ) -> Result<Option<Bundle>> {
        let Some(whole) = &options.whole else { return Ok(None) };
        let Some(bundle) = whole.instead(delta.manifest(), problem)? else { return Ok(None) };
        let both = delta.size()?.saturating_add(bundle.size()?);
        let permitted = self.policy.max_download.is_none_or(|limit| both <= limit);
        Ok(permitted.then_some(bundle))
    }

    fn prepare_locked(
        &self,
        lock: &DiskLock,
        bundle: &Bundle,
        options: &PrepareOptions,
        progress: &dyn Progress,
    ) -> Result<PrepareReport> {
        let start = Instant::now();
        let found = self.view_for_change()?;
        let manifest = bundle.manifest();
        let Intent { fallback, view, upgrade } = self.intent(&found, bundle)?;
        let report = |outcome: StageOutcome, read_back: bool| PrepareReport {
            upgrade_type: upgrade.kind,
            version: manifest.version.clone(),
            targets: upgrade
                .targets
                .iter()
                .map(|(group, slot, _)| group.partition_name(*slot).to_owned())
                .collect(),
            image_bytes: outcome.written + outcome.zeroed + outcome.reused,
            written_bytes: outcome.written,
            zeroed_bytes: outcome.zeroed,
            reused_bytes: outcome.reused,
            downloaded_bytes: bundle.is_remote().then_some(outcome.downloaded),
            copied_bytes: (bundle.is_remote() && bundle.delta().is_none()).then_some(outcome.copied),
            delta: outcome.made.map(|made| AppliedDelta::new(made, outcome.downloaded)),
            read_back,
            seconds: start.elapsed().as_secs_f64(),
        };
        if is_prepared(&view, &upgrade, manifest.bytes()) {
            if let Some(reused) = self.still_whole(&view, &upgrade, options, progress)? {
                self.settled(lock, found, fallback.as_ref(), progress)?;
                let downloaded = bundle.payloads_at();
                return Ok(report(StageOutcome { reused, downloaded, ..StageOutcome::default() }, true));
            }
            progress.notice("the prepared slot is damaged; it is written again");
        }

        let sources = self.sources(&view, &upgrade, bundle, options.whole.as_deref())?;
        let targets = self.targets(&view, &upgrade, bundle, &options.origin, Access::Exclusive)?;
        let limit = exceeded(bundle, &upgrade, sources.as_ref());
        if let Some(limit) = limit {
            check_download(limit, bundle, &targets, sources.as_ref(), &options.cancel, progress)?;
        }
        let slots: Vec<(Group, Slot)> =
            upgrade.targets.iter().map(|(group, slot, _)| (*group, *slot)).collect();
        let opened: Vec<(Group, Slot, &dyn BlockDevice)> = slots
            .iter()
            .zip(&targets)
            .map(|((group, slot), target)| (*group, *slot, &*target.device))
            .collect();
        let view = self.settled(lock, found, fallback.as_ref(), progress)?;
        self.run(lock, &view, &transition::of(&Change::Withdraw(&slots), &view)?, &opened)?;
        let look = limit.is_some();
        let limit = options.max_rate.and_then(NonZeroU64::new).map(RateLimit::new);
        let throttle = options.background.then(|| Throttle::new(options.min_rate.unwrap_or(0))).flatten();
        let pace = |bytes: u64| {
            if let Some(throttle) = &throttle {
                throttle.give_way(bytes, &options.cancel)?;
                throttle.report().into_iter().for_each(|report| progress.notice(&report));
            }
            // Reading is not limited.
            let limit = limit.as_ref().filter(|_| bytes > 0);
            limit.map_or(Ok(()), |limit| limit.take(bytes, &options.cancel))
        };
        let staging = stage::StageOptions {
            jobs: workers::limit_jobs(
                options.jobs,
                stage::default_jobs(&manifest.payloads, bundle.is_remote()),
                workers::worker_memory(largest_frame(&manifest.payloads) as u64),
                progress,
            ),
            read_back: options.read_back,
            sha256: options.sha256,
            cancel: &options.cancel,
            sources: sources.as_ref(),
            look,
            pace: &pace,
        };
        let outcome = stage::stage(bundle, &targets, &staging, progress)?;
        Ok(report(outcome, options.read_back))
    }

    /// What a prepare of this bundle is about to do. Nothing is written before all that may be refused was looked at: a
    /// fallback that is not recorded yet is taken for recorded.
    ///
    /// # Errors
    /// What forbids it, the gravest first; class Disk and Io.
    pub(super) fn intent(&self, found: &View, bundle: &Bundle) -> Result<Intent> {
        let fallback = transition::settle(found)?;
        let view = match &fallback {
            Some(fallback) => found.after(fallback.acts())?,
            None => found.clone(),
        };
        if let Some(obstacle) = self.obstacles(&view, bundle)?.into_iter().next() {
            return Err(obstacle);
        }
        let upgrade = CheckedUpgrade::new(&view, bundle.manifest(), bundle.release().record_len())?;
        Ok(Intent { fallback, view, upgrade })
    }

    /// Repairs the table and writes a fallback down, where these are due, and returns what is on the disk then.
    fn settled(
        &self,
        lock: &DiskLock,
        found: View,
        fallback: Option<&Transition>,
        progress: &dyn Progress,
    ) -> Result<View> {
        let state = found.loaded.state();
        let repair = commit::repair_plan(&found.loaded)?.is_some();
        match fallback {
            Some(fallback) => drop(self.settle(lock, &found, fallback)?),
            None if repair => {
                self.run(lock, &found, &Transition::nothing(Effect::Nothing, String::new()), &[])?;
            }
            None => return Ok(found),
        }
        if repair {
            progress.notice(&format!(
                "{}: the copies of the partition table were not both sound ({state}); repaired",
                self.machine.name()
            ));
        }
        self.view()
    }

    /// Whether the prepared slots still hold what their records say; the bytes that were read if so.
    pub(super) fn still_whole(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        options: &PrepareOptions,
        progress: &dyn Progress,
    ) -> Result<Option<u64>> {
        let mut bytes = 0;
        for (group, slot, layout) in &upgrade.targets {
            let Some(record) = view.held(*group, *slot).and_then(super::view::SlotView::record) else {
                return Ok(None);
            };
            let device = self.machine.open_partition(view.slots.require(*group, *slot)?, Access::Read)?;
            let job = stage::ReadBack {
                device: &*device,
                record,
                jobs: workers::limit_jobs(
                    options.jobs,
                    workers::default_jobs(),
                    workers::worker_memory(largest_frame(&record.manifest.payloads) as u64),
                    progress,
                ),
                sha256: options.sha256,
                cancel: &options.cancel,
                doing: "checking the prepared slot",
            };
            let len: u64 = layout.places.iter().map(|place| place.len).sum();
            progress.begin(Phase::Scrub, len);
            match stage::read_back(&job, progress) {
                Ok(None) => bytes += len,
                // A sector that cannot be read is damage too: writing it is the cure.
                Ok(Some(_)) | Err(Error::Read { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(bytes))
    }
}

/// The trial that a new platform gets.
fn trial(policy: &Policy) -> String {
    match policy.boot_flag {
        BootFlag::Priority => format!("{} boots; then the old slot boots again", policy.tries),
        BootFlag::Efi => "one boot; then the old slot boots again".to_owned(),
        BootFlag::Legacy => {
            "none by the boot loader; 'qstage commit --trial kexec' on the machine itself makes one"
                .to_owned()
        }
    }
}

/// What the history keeps of a prepare.
fn prepared(report: &PrepareReport) -> String {
    let mut text = format!("{} is prepared", report.version);
    let mut parts = Vec::new();
    let mut part = |bytes: Option<u64>, what: &str| {
        parts.extend(bytes.map(|bytes| format!("{} {what}", size::human(bytes))));
    };
    let delta = report.delta;
    part(report.downloaded_bytes.or(delta.map(|delta| delta.downloaded_bytes)), "downloaded");
    part(report.copied_bytes.or(delta.map(|delta| delta.copied_bytes)), "copied");
    part(delta.map(|delta| delta.patched_bytes), "patched");
    part(delta.map(|delta| delta.fallen_back_bytes), "fallen back");
    if !parts.is_empty() {
        text += &format!(": {}", parts.join(", "));
    }
    text
}
