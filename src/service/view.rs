//! The view that clients get: one snapshot, and the objects of the wire contract derived from it.

use std::time::Instant;

use serde::Serialize;

use crate::device::watch::silent;
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::{Event, JournalRecord, date};
use crate::service::owner::blocking::SILENCE;
use crate::service::owner::disk::DiskView;
use crate::service::owner::upgrade::{Failure, LocalUpgrade, Phase, UpgradeSettings};
use crate::service::wording::by_api;
use crate::state::{SlotsReport, Status, UpgradeState, UpgradeType};

/// Counters since the start.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub(super) prepares: u64,
    pub(super) commits: u64,
    pub(super) failures: u64,
}

/// State of a requested reboot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum RebootProgress {
    #[default]
    Idle,
    InProgress,
    Failed(String),
}

/// The part of the view that is common to all members of a cluster.
#[derive(Debug, Clone)]
pub(super) struct ClusterPart {
    pub(super) reboot: RebootStatus,
    /// Whether a member is away, or the data has less than its full protection.
    pub(super) degraded: bool,
    /// Why the cluster takes no upgrade; `None`: it does.
    pub(super) blocked: Option<String>,
}

/// All that can be shown, as of one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceSnapshot {
    pub(super) upgrade: LocalUpgrade,
    /// The engine's status of the disk, as of the last successful look; `None` before it.
    pub(super) status: Option<Status>,
    pub(super) slots: Option<SlotsReport>,
    /// Why the last look failed; `None`: it succeeded.
    pub(super) disk_error: Option<Failure>,
    /// Result of the action after the last commit.
    pub(super) message: String,
    pub(super) reboot: RebootProgress,
    pub(super) counts: Counts,
    /// When the waiting period ends; `None`: it has ended.
    pub(super) waiting_until: Option<Instant>,
    /// What the journal stores of the disk: the last swap of the container, the last success, scrubs.
    pub(super) journal: JournalRecord,
    /// The device that delays the prepare, and since when it has not answered.
    pub(super) stalled: Option<(String, Instant)>,
    /// The cluster's part; `None` on a single node.
    pub(super) cluster: Option<ClusterPart>,
    /// What the reboot waits for; `None`: nothing.
    pub(super) waits: Option<String>,
}

/// `GET /v1/qstage/status`: the v1 status, and the facts for which it has no keys.
#[derive(Debug, Serialize)]
pub(super) struct Detailed {
    #[serde(flatten)]
    v1: StatusV1,
    progress: Option<u8>,
    /// The running release, as in [`Version`].
    version: String,
    last_swap: Option<Event>,
}

/// v1 status: seven keys in this order.
#[derive(Debug, Serialize)]
pub(super) struct StatusV1 {
    install_path: String,
    state: String,
    details: String,
    error_message: String,
    error_state: String,
    is_blocked: bool,
    blocked_reason: String,
}

/// v3 status.
#[derive(Debug, Serialize)]
pub(super) struct StatusV3 {
    pub(super) state: String,
    pub(super) progress: Option<u8>,
    pub(super) settings: Option<UpgradeSettings>,
    pub(super) error_info: Option<String>,
}

impl StatusV3 {
    /// The same for clients that do not know REBOOTING.
    pub(super) fn before_rebooting(mut self) -> Self {
        if self.state == state_v3(Phase::Rebooting) {
            self.state = state_v3(Phase::Committed);
        }
        self
    }
}

fn state_v3(phase: Phase) -> String {
    format!("UPGRADE_STATE_{}", phase.word())
}

/// `GET /v2/upgrade/blocked`.
#[derive(Debug, Serialize)]
pub(super) struct Blocked {
    is_blocked: bool,
    cluster_degraded: bool,
    blocked_reason: String,
}

/// Status of a reboot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RebootStatus {
    pub(super) state: &'static str,
    pub(super) rolling: bool,
    pub(super) upgrade_initiated: bool,
    pub(super) total_node_count: u32,
    pub(super) rebooted_node_count: u32,
    pub(super) error_message: String,
}

/// `GET /v1/version`.
#[derive(Debug, Serialize)]
pub(super) struct Version {
    revision_id: String,
    build_id: String,
    flavor: &'static str,
    build_date: String,
}

impl Version {
    /// The version number alone.
    pub(super) fn number(&self) -> &str {
        self.revision_id.rsplit(' ').next().unwrap_or_default()
    }

    /// The product's name.
    pub(super) fn product(&self) -> &str {
        self.revision_id.rsplit_once(' ').map_or("", |(name, _)| name)
    }
}

/// `GET` and `PUT /v1/upgrade/settings`.
#[derive(Debug, Serialize)]
pub(super) struct SettingsV1 {
    install_path: String,
    target: &'static str,
}

impl ServiceSnapshot {
    /// Stores the result of a look during `phase`; a failed look leaves the previous result. While a switch is under way, the
    /// release that ran before it is shown: the flags already select the new software and its container may be up, but its
    /// health is not known yet. A platform does not change before its reboot.
    pub(super) fn take(&mut self, look: Result<DiskView>, phase: Phase) {
        match look {
            Ok(mut look) => {
                if let (Phase::Committing, Some(before)) = (phase, &self.slots) {
                    look.slots.runs = before.runs.clone();
                }
                (self.status, self.slots, self.disk_error) = (Some(look.status), Some(look.slots), None);
                self.journal = look.journal;
            }
            Err(error) => self.disk_error = Some(Failure::from(&error)),
        }
    }

    /// The same for a caller without a token that may only read. It gets code and class of a failure, since messages name
    /// paths, devices, keys, and untrusted input.
    pub(super) fn for_readers(&self) -> Self {
        let mut shown = self.clone();
        let short = |code: &str| Error::remote(code, "").for_readers();
        for failure in shown.upgrade.error.iter_mut().chain(&mut shown.disk_error) {
            failure.message = short(&failure.code);
        }
        if let Some(status) = &mut shown.status {
            if status.error_state != NO_ERROR {
                status.error_message = short(&status.error_state);
            }
            if status.is_blocked {
                status.blocked_reason = "it is blocked; who has a token sees why".to_owned();
            }
        }
        for slot in shown.slots.iter_mut().flat_map(|report| &mut report.slots) {
            slot.reason = None;
        }
        if let Some(swap) = shown.journal.last_swap.as_mut().filter(|swap| swap.code != NO_ERROR) {
            swap.message = short(&swap.code);
        }
        shown.message.clear();
        if let Some(cluster) = &mut shown.cluster {
            if let Some(reason) = &mut cluster.blocked {
                "it is blocked; who has a token sees why".clone_into(reason);
            }
            if !cluster.reboot.error_message.is_empty() {
                "it failed; who has a token sees why".clone_into(&mut cluster.reboot.error_message);
            }
        }
        if let RebootProgress::Failed(message) = &mut shown.reboot {
            *message = "it failed; who has a token sees why".to_owned();
        }
        shown.waits = shown.waits.map(|_| "it waits; who has a token sees for what".to_owned());
        shown
    }

    /// The device that does not answer the prepare or this service, and the seconds since its last answer.
    pub(super) fn silence(&self) -> Option<(String, u64)> {
        let own = || silent(SILENCE).map(|waiting| (waiting.device, waiting.age.as_secs()));
        let worker = self.stalled.as_ref();
        worker.map(|(device, since)| (device.clone(), since.elapsed().as_secs())).or_else(own)
    }

    /// The status while a prepare runs without this service, on the command line; else `None`.
    pub(super) fn foreign(&self) -> Option<&Status> {
        let idle = self.upgrade.phase == Phase::Idle;
        self.status.as_ref().filter(|status| idle && status.state == UpgradeState::UpgradePreparing)
    }

    /// Seconds that are left of the waiting period, rounded up; `None`: it has ended.
    pub(super) fn waiting(&self) -> Option<u64> {
        let left = self.waiting_until?.checked_duration_since(Instant::now())?;
        Some(left.as_secs().saturating_add(1))
    }

    pub(super) fn blocked(&self) -> Blocked {
        if let Some(cluster) = &self.cluster {
            let reason = cluster.blocked.as_deref().unwrap_or_default();
            return Blocked {
                is_blocked: cluster.blocked.is_some(),
                cluster_degraded: cluster.degraded,
                blocked_reason: by_api(reason),
            };
        }
        let busy = match self.upgrade.phase {
            Phase::Rebooting => Some("a reboot is under way".to_owned()),
            _ if self.reboot == RebootProgress::InProgress => Some("a reboot is under way".to_owned()),
            _ => self.disk_error.as_ref().map(|failure| failure.message.clone()),
        };
        let status = self.status.as_ref().filter(|status| status.is_blocked);
        let waiting = || self.waiting().map(|left| Error::Waiting { left }.to_string());
        let reason = busy.or_else(|| status.map(|status| status.blocked_reason.clone())).or_else(waiting);
        Blocked {
            is_blocked: reason.is_some(),
            cluster_degraded: false,
            blocked_reason: by_api(&reason.unwrap_or_default()),
        }
    }

    /// The error that all answers show: the one of this service; else that of the disk and its journal. The latter is older
    /// than an upgrade that this service has begun, and gone once it was cleared. It is not shown while the command line
    /// prepares.
    pub(super) fn error(&self) -> Option<Failure> {
        let own = || self.upgrade.error.clone();
        let idle = self.upgrade.phase == Phase::Idle && self.upgrade.settings.is_none();
        let of_disk = || {
            let status = self.status.as_ref().filter(|status| idle && status.error_state != NO_ERROR)?;
            let cleared =
                self.upgrade.cleared.as_ref().is_some_and(|cleared| cleared.code == status.error_state);
            let (code, message) = (status.error_state.clone(), status.error_message.clone());
            (!cleared).then_some(Failure { code, message })
        };
        if self.foreign().is_some() { None } else { own().or_else(of_disk) }
    }

    /// The v1 status. `details` stays empty, since clients compare the object; [`detailed`](Self::detailed) has the details.
    pub(super) fn v1(&self) -> StatusV1 {
        StatusV1 { details: String::new(), ..self.in_full() }
    }

    fn in_full(&self) -> StatusV1 {
        let phase = self.upgrade.phase;
        let settings = self.upgrade.settings.as_ref();
        let status = self.status.as_ref();
        let blocked = self.blocked();
        let engine = status.map_or("", |status| status.details.as_str());
        let (state, details) = match phase {
            Phase::Preparing => ("UPGRADE_PREPARING", format!("{} %", self.upgrade.progress)),
            Phase::Idle if self.foreign().is_some() => ("UPGRADE_PREPARING", engine.to_owned()),
            // A swap that has proved good needs no trial.
            Phase::Committed if status.is_some_and(|status| status.state == UpgradeState::UpgradeIdle) => {
                ("UPGRADE_IDLE", self.message.clone())
            }
            // The engine's wording: the command line and the service must use one name for one thing.
            Phase::Committed if self.message.is_empty() => ("UPGRADE_TRIAL", engine.to_owned()),
            Phase::Committed => ("UPGRADE_TRIAL", format!("{engine}; {}", self.message)),
            Phase::Idle if status.is_some_and(|status| status.state == UpgradeState::UpgradeTrial) => {
                ("UPGRADE_TRIAL", engine.to_owned())
            }
            Phase::Idle => ("UPGRADE_IDLE", engine.to_owned()),
            Phase::Prepared => ("UPGRADE_PREPARED", engine.to_owned()),
            Phase::Committing => ("UPGRADE_COMMITTING", String::new()),
            Phase::Rebooting => ("UPGRADE_REBOOTING", self.waits.clone().unwrap_or_default()),
        };
        let details = match self.silence() {
            Some((device, seconds)) => {
                let comma = if details.is_empty() { "" } else { "; " };
                format!("{details}{comma}no answer from {device} for {seconds} s")
            }
            None => details,
        };
        let error = self.error();
        StatusV1 {
            install_path: settings
                .map(|settings| settings.install_path.clone())
                .or_else(|| status.map(|status| status.install_path.clone()))
                .unwrap_or_default(),
            state: state.to_owned(),
            details,
            error_message: error.as_ref().map(|error| by_api(&error.message)).unwrap_or_default(),
            error_state: error.map_or_else(|| NO_ERROR.to_owned(), |error| error.code),
            is_blocked: blocked.is_blocked,
            blocked_reason: blocked.blocked_reason,
        }
    }

    pub(super) fn detailed(&self) -> Detailed {
        let version = self.version().number().to_owned();
        Detailed {
            v1: self.in_full(),
            progress: self.v3().progress,
            version,
            last_swap: self.journal.last_swap.clone(),
        }
    }

    pub(super) fn v3(&self) -> StatusV3 {
        let upgrade = &self.upgrade;
        let found = |status: &Status| {
            UpgradeSettings::found(&status.install_path, String::new(), UpgradeType::SoftwareAndPlatform)
        };
        let (foreign, error) = (self.foreign().map(found), self.error());
        // Clients print the settings with an error.
        let beside = || self.status.as_ref().filter(|_| error.is_some()).map(found);
        let phase = if foreign.is_some() { Phase::Preparing } else { upgrade.phase };
        StatusV3 {
            state: state_v3(phase),
            progress: match phase {
                Phase::Idle => None,
                _ if foreign.is_some() => None,
                Phase::Preparing => Some(upgrade.progress),
                _ => Some(100),
            },
            settings: foreign.or_else(|| upgrade.settings.clone()).or_else(beside),
            error_info: error.map(|error| by_api(&error.message)),
        }
    }

    pub(super) fn settings_v1(&self) -> SettingsV1 {
        let auto = self.upgrade.settings.as_ref().is_some_and(|settings| settings.auto_commit);
        SettingsV1 {
            install_path: self
                .upgrade
                .settings
                .as_ref()
                .map(|settings| settings.install_path.clone())
                .unwrap_or_default(),
            target: match self.upgrade.phase {
                Phase::Idle => "UPGRADE_TARGET_IDLE",
                Phase::Preparing if auto => "UPGRADE_TARGET_ARM",
                Phase::Preparing | Phase::Prepared => "UPGRADE_TARGET_PREPARE",
                Phase::Committing | Phase::Committed | Phase::Rebooting => "UPGRADE_TARGET_ARM",
            },
        }
    }

    pub(super) fn reboot(&self) -> RebootStatus {
        if let Some(cluster) = &self.cluster {
            let error_message = by_api(&cluster.reboot.error_message);
            return RebootStatus { error_message, ..cluster.reboot.clone() };
        }
        let upgrading = self.upgrade.phase == Phase::Rebooting;
        let under_way = upgrading || self.reboot == RebootProgress::InProgress;
        RebootStatus {
            state: if under_way { "REBOOT_IN_PROGRESS" } else { "REBOOT_IDLE" },
            rolling: false,
            upgrade_initiated: upgrading,
            total_node_count: 1,
            rebooted_node_count: 0,
            error_message: match (&self.reboot, self.error()) {
                (RebootProgress::Failed(message), _) => by_api(message),
                _ if under_way => self.waits.clone().unwrap_or_default(),
                (RebootProgress::Idle, Some(error)) if error.is_fallback() => by_api(&error.message),
                _ => String::new(),
            },
        }
    }

    /// The running release: that of the platform, or of the software if that is newer.
    pub(super) fn version(&self) -> Version {
        let slot = self.slots.as_ref().and_then(SlotsReport::newest_running);
        let number = slot.and_then(|slot| slot.version.as_deref()).unwrap_or("unknown");
        let name = slot.and_then(|slot| slot.product.as_deref()).unwrap_or("unknown");
        Version {
            revision_id: format!("{name} {number}"),
            build_id: slot.and_then(|slot| slot.blake3).map(|digest| digest.to_string()).unwrap_or_default(),
            flavor: "release",
            // The date in the manifest of the running release: SOURCE_DATE_EPOCH, or the time of packing. A slot that was
            // not installed from a bundle has no date; an empty one is better than that of another release.
            build_date: slot.and_then(|slot| i64::try_from(slot.created?).ok()).map(date).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{KnownBy, RunningSlot, Runs, SlotReport, SlotState};
    use crate::units::{Group, Slot};

    fn slot(group: Group, slot: Slot, version: &str, state: SlotState) -> SlotReport {
        SlotReport {
            group,
            slot,
            partition: 1,
            partuuid: String::new(),
            size: 0,
            state,
            booted: false,
            boots_next: false,
            reason: None,
            version: Some(version.to_owned()),
            unsigned: false,
            product: Some("Demo".to_owned()),
            created: None,
            blake3: None,
            manifest: None,
            firmware: Vec::new(),
            priority: 0,
            tries: 0,
            successful: false,
            legacy_bootable: false,
            boot_entry: None,
        }
    }

    fn look(trial: SlotState, software: (Slot, KnownBy)) -> DiskView {
        let status = Status::idle();
        let runs = Runs {
            platform: RunningSlot::Known(Slot::A, KnownBy::Kernel),
            software: RunningSlot::Known(software.0, software.1),
        };
        let slots = SlotsReport {
            remedy: crate::error::Remedy::Prepare,
            disk: String::new(),
            boot_flag: crate::boot::BootFlag::Priority,
            table: String::new(),
            switch_method: String::new(),
            boot_before: Vec::new(),
            booted_unknown: None,
            runs,
            slots: vec![
                slot(Group::Platform, Slot::A, "1.0", SlotState::Good),
                slot(Group::Software, Slot::A, "1.0", SlotState::Good),
                slot(Group::Software, Slot::B, "1.1", trial),
            ],
        };
        DiskView {
            status,
            slots,
            disk: crate::service::owner::upgrade::SeenDisk::default(),
            journal: JournalRecord::default(),
        }
    }

    /// A container that comes up in a swap and is not healthy. Scripts that wait for another version must not see it.
    #[test]
    fn a_swap_shows_no_other_version_before_its_end() {
        for (end, version) in [
            ((SlotState::Good, (Slot::B, KnownBy::Selected)), "1.1"),
            ((SlotState::Bad, (Slot::A, KnownBy::Selected)), "1.0"),
        ] {
            let mut shown = ServiceSnapshot::default();
            shown.take(Ok(look(SlotState::Prepared, (Slot::A, KnownBy::Selected))), Phase::Prepared);
            for up in [(Slot::A, KnownBy::Before), (Slot::B, KnownBy::Use)] {
                shown.take(Ok(look(SlotState::Trial, up)), Phase::Committing);
                assert_eq!(shown.version().number(), "1.0", "{up:?}");
            }
            shown.take(Ok(look(end.0, end.1)), Phase::Committed);
            assert_eq!(shown.version().number(), version);
        }
    }
}
