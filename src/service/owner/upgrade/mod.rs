//! The upgrade as clients see it: one state, one `match`. Pure: no access to a disk, a clock or a request.
//!
//! ```text
//!          Begin           Staged            Commit            Switched         Reboot
//!   IDLE ─────────▶ PREPARING ─────▶ PREPARED ─────▶ COMMITTING ─────▶ COMMITTED ─────▶ REBOOTING
//!    ▲                │   └──── Staged, auto_commit ────▲  │              │                │
//!    └── Failed ──────┘◀─────── Failed: PREPARED again ────┘    Observed: no trial     next start
//! ```
//!
//! A failure is not a state: it is shown with the state until the next prepare or commit begins, or until it is cleared.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Remedy, Result};
use crate::service::owner::waiting_period::WaitingPeriod;
use crate::state::{SlotState, SlotsReport, UpgradeType};
use crate::units::{Blake3, Group};

/// State of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No upgrade is under way.
    #[default]
    Idle,
    /// A bundle is being staged.
    Preparing,
    /// A bundle is staged; the switch has not been ordered.
    Prepared,
    /// The switch is being written, or the software is being swapped.
    Committing,
    /// The new slots are selected.
    Committed,
    /// The command that reboots has been started.
    Rebooting,
}

impl Phase {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Preparing, Self::Prepared, Self::Committing, Self::Committed, Self::Rebooting];

    /// The name without prefix, as in both status objects.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Idle => "IDLE",
            Self::Preparing => "PREPARING",
            Self::Prepared => "PREPARED",
            Self::Committing => "COMMITTING",
            Self::Committed => "COMMITTED",
            Self::Rebooting => "REBOOTING",
        }
    }
}

/// The ordered upgrade: `settings` of the v3 status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeSettings {
    /// Path or URL of the bundle.
    pub install_path: String,
    /// Version of the bundle.
    pub target_version: String,
    /// Kind of the upgrade.
    pub upgrade_type: UpgradeType,
    /// Whether it is committed as soon as it is prepared.
    pub auto_commit: bool,
    /// Whether the nodes of a cluster reboot one set after the other.
    pub do_rolling_reboot: bool,
    /// Number of nodes per set; `None`: the cluster decides.
    pub num_nodes_to_reboot: Option<u64>,
}

impl UpgradeSettings {
    /// The settings of an upgrade that was not ordered here but found on the disk.
    pub fn found(path: &str, version: String, upgrade_type: UpgradeType) -> Self {
        Self {
            install_path: path.to_owned(),
            target_version: version,
            upgrade_type,
            auto_commit: false,
            do_rolling_reboot: false,
            num_nodes_to_reboot: None,
        }
    }
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// Message, a sentence.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { code: error.code().to_owned(), message: crate::error::sentence(error) }
    }
}

impl Failure {
    /// Whether it is the fallback from a new platform.
    pub fn is_fallback(&self) -> bool {
        self.code == FELL_BACK
    }
}

/// The code of [`Error::FellBack`].
const FELL_BACK: &str = "UPGRADE_ERROR_FELL_BACK";

/// A platform slot that failed its trial, as recorded on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallenBack {
    /// Version of the slot.
    pub version: String,
    /// Path or URL of its bundle.
    pub origin: String,
    /// Which slot failed, which one runs, and why.
    pub failure: Failure,
}

/// Identity of a boot. A change of either field is a reboot, since a disk image has no kernel that would report one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// `/proc/sys/kernel/random/boot_id`.
    pub id: String,
    /// The running platform slot; `None`: unknown.
    pub slot: Option<String>,
}

/// The upgrade of this node. All of it survives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalUpgrade {
    /// Its state.
    pub phase: Phase,
    /// The order; it stays after the end until the next prepare, since clients print it. `None`: there was none.
    pub settings: Option<UpgradeSettings>,
    /// The last failure; `None` since the last success.
    pub error: Option<Failure>,
    /// Progress of the prepare in percent; it never falls.
    pub progress: u8,
    /// The boot in which this was written.
    pub boot: Boot,
    /// For the waiting period. Its key in the file is that of older versions.
    #[serde(default, rename = "calm")]
    pub waiting: WaitingPeriod,
    /// The fallback that was cleared, or that a later prepare ended. The failed slot shows it until it is written again.
    #[serde(default)]
    pub cleared: Option<Failure>,
    /// The release (BLAKE3 of its manifest) whose software was started by a command and is on trial; `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Blake3>,
}

/// State of the slots. It overrides every other source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenDisk {
    /// The staged bundle: origin, version, type.
    pub prepared: Option<(String, String, UpgradeType)>,
    /// Version and type of a release that is selected but not good yet.
    pub trial: Option<(String, UpgradeType)>,
    /// Whether the trial waits for a reboot.
    pub pending: bool,
    /// Version of the running platform; `None`: unknown.
    pub running: Option<String>,
    /// Version of the software that is selected and good; `None`: there is none.
    pub software: Option<String>,
    /// The platform slot that failed its trial; `None`: there is none.
    pub fallen: Option<FallenBack>,
    /// Seconds since the boot of the machine.
    pub uptime: u64,
    /// The boot.
    pub boot: Boot,
}

impl SeenDisk {
    /// Derives it from the report of the slots. `origin` is the path or URL of the prepared bundle.
    pub fn new(report: &SlotsReport, origin: &str, boot_id: &str, uptime: u64) -> Self {
        let slots = || report.slots.iter();
        let kind = |state: SlotState| {
            let platform = slots().any(|s| s.state == state && s.group == Group::Platform);
            if platform { UpgradeType::SoftwareAndPlatform } else { UpgradeType::SoftwareOnly }
        };
        let version = |state: SlotState| {
            slots().find(|s| s.state == state).map(|s| s.version.clone().unwrap_or_default())
        };
        let torn = slots().any(|s| s.state == SlotState::Torn);
        let booted = report.runs.of(Group::Platform).slot();
        Self {
            prepared: version(SlotState::Prepared)
                .filter(|_| !torn)
                .map(|version| (origin.to_owned(), version, kind(SlotState::Prepared))),
            trial: version(SlotState::Trial).map(|version| (version, kind(SlotState::Trial))),
            pending: slots()
                .any(|s| s.state == SlotState::Trial && s.group == Group::Platform && Some(s.slot) != booted),
            running: report.running(Group::Platform).and_then(|s| s.version.clone()),
            software: slots()
                .find(|s| s.group == Group::Software && s.boots_next && s.state == SlotState::Good)
                .and_then(|s| s.version.clone()),
            fallen: None,
            uptime,
            boot: Boot { id: boot_id.to_owned(), slot: booted.map(|slot| slot.to_string()) },
        }
    }
}

/// An event of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A prepare begins.
    Begin {
        /// The order.
        settings: UpgradeSettings,
        /// Whether the slots already hold this bundle.
        staged: bool,
    },
    /// Progress in percent.
    Progress(u8),
    /// The slots hold the bundle.
    Staged {
        /// Its version.
        version: String,
        /// Kind of the upgrade.
        upgrade_type: UpgradeType,
    },
    /// The running work failed.
    Failed(Failure),
    /// A failure outside of the running work: a bundle was refused before anything began, or a start fell back from an
    /// earlier commit. Its settings are shown if there are no others.
    Beside(UpgradeSettings, Failure),
    /// The switch is ordered; with what the slots allow where nothing is prepared.
    Commit(Remedy),
    /// The switch is written, and nothing else is left to do on this machine.
    Switched,
    /// The release on trial whose software was started; `None`: there is none.
    Started(Option<Blake3>),
    /// The reboot command is about to run.
    Reboot,
    /// The prepared or committed bundle was discarded; without one, the error is cleared.
    Discarded,
    /// A look at the disk while no work is under way.
    Observed(SeenDisk),
}

impl LocalUpgrade {
    /// The upgrade after an event.
    ///
    /// # Errors
    /// The refusal, with the work that is under way; the upgrade stays as it was.
    pub fn apply(&self, input: Input) -> Result<Self> {
        use Phase::{Committed, Committing, Idle, Prepared, Preparing, Rebooting};
        let mut next = self.clone();
        match (input, self.phase) {
            // The same order again, from a client whose connection was lost.
            (Input::Begin { settings, .. }, Preparing) if self.same_order(&settings) => {}
            (Input::Begin { settings, staged }, Idle | Prepared | Committed) => {
                next.phase = match (staged, settings.auto_commit) {
                    (false, _) => Preparing,
                    (true, false) => Prepared,
                    (true, true) => Committing,
                };
                next.progress = if staged { 100 } else { 0 };
                next.settings = Some(settings);
                next.started = None;
                next.forgive();
            }
            (Input::Progress(percent), Preparing) => next.progress = self.progress.max(percent.min(99)),
            (Input::Staged { version, upgrade_type }, Preparing) => {
                next.progress = 100;
                let auto = next.settings.as_ref().is_some_and(|settings| settings.auto_commit);
                next.phase = if auto { Committing } else { Prepared };
                if let Some(settings) = &mut next.settings {
                    (settings.target_version, settings.upgrade_type) = (version, upgrade_type);
                }
            }
            (Input::Failed(failure), Preparing) => (next.phase, next.error) = (Idle, Some(failure)),
            (Input::Failed(failure), Committing) => next = next.commit_failed(failure),
            (Input::Failed(failure), Committed | Rebooting) => {
                (next.phase, next.error) = (Committed, Some(failure));
            }
            // The caller got the refusal as its answer; for all others, the failure of the last upgrade is more important.
            (Input::Beside(..), Idle) if self.error.as_ref().is_some_and(Failure::is_fallback) => {}
            (Input::Beside(settings, failure), Idle | Prepared | Committed) => {
                next.error = Some(failure);
                if self.phase == Idle || self.settings.is_none() {
                    next.settings = Some(settings);
                }
            }
            (Input::Commit(_), Prepared) => {
                (next.phase, next.error, next.started) = (Committing, None, None);
            }
            (Input::Started(release), _) => next.started = release,
            (Input::Commit(remedy), Idle | Committed) => {
                let problem = match self.phase {
                    Committed => "it is committed already".to_owned(),
                    _ => "no bundle is prepared".to_owned(),
                };
                return Err(Error::NotPrepared { problem, remedy });
            }
            (Input::Switched, Committing) => {
                next.phase = Committed;
                // Even if that trial is over before the next look.
                next.waiting.on_trial = true;
            }
            (Input::Reboot, Committed) => next.phase = Rebooting,
            (Input::Discarded, Idle | Prepared | Committed) => {
                next.forgive();
                (next.phase, next.progress) = (Idle, 0);
                if self.phase == Idle {
                    next.settings = None;
                } else {
                    // A watching client takes the end of an upgrade without an error for a success, and prints the settings
                    // with an error.
                    next.error = Some(Failure::from(&Error::Cancelled));
                }
            }
            (Input::Observed(disk), Idle | Prepared | Committed) => next = next.observe(disk),
            // The running work is newer than a look that began before it.
            (Input::Observed(_), Preparing | Committing | Rebooting) => {}
            (Input::Reboot, Idle) => {}
            (_, phase) => return Err(Error::UpgradeBusy { doing: doing(phase).to_owned() }),
        }
        Ok(next)
    }

    /// Clears the error; a fallback that it reported is not reported again.
    fn forgive(&mut self) {
        let error = self.error.take();
        self.cleared = error.filter(Failure::is_fallback).or_else(|| self.cleared.take());
    }

    fn same_order(&self, order: &UpgradeSettings) -> bool {
        self.settings.as_ref() == Some(order)
    }

    /// The upgrade after a failed switch: the bundle stays prepared, and the switch is not tried again without an order.
    fn commit_failed(mut self, failure: Failure) -> Self {
        if let Some(settings) = &mut self.settings {
            settings.auto_commit = false;
        }
        Self { phase: Phase::Prepared, error: Some(failure), ..self }
    }

    /// Follows changes of the disk by others: the command line, a fallback by the boot loader, a mark-good unit.
    fn observe(self, disk: SeenDisk) -> Self {
        let mut next = self.looked(&disk);
        let known = next.settings.as_ref().map(|settings| settings.target_version.clone());
        match (next.phase, disk.prepared, disk.trial) {
            (Phase::Committed, _, Some(_)) => {}
            (_, _, Some((version, kind))) if disk.pending || next.phase == Phase::Prepared => {
                if known.as_ref() != Some(&version) {
                    next.settings = Some(UpgradeSettings::found("", version, kind));
                }
                next.phase = Phase::Committed;
            }
            (_, Some((path, version, kind)), _) => {
                let other = known.as_ref() != Some(&version);
                if next.phase != Phase::Prepared || other {
                    // The bundle was found, not ordered: an automatic commit of that order must not follow now.
                    let keep = next.settings.take().filter(|_| !other);
                    let settings = keep.unwrap_or_else(|| UpgradeSettings::found(&path, version, kind));
                    next.settings = Some(UpgradeSettings { auto_commit: false, ..settings });
                    next.progress = 100;
                    // A prepare by others ends the report of a fallback, as one of this service does.
                    if next.error.as_ref().is_some_and(Failure::is_fallback) {
                        next.forgive();
                    }
                }
                next.phase = Phase::Prepared;
            }
            (Phase::Prepared, None, None) => {
                next.settings = next.settings.filter(|_| next.error.is_some());
                next.phase = Phase::Idle;
            }
            (_, None, _) => next.phase = Phase::Idle,
        }
        next.fell_back(disk.fallen)
    }

    /// Shows the fallback of the last upgrade, even if the service did not see it: it may have run in the failed slot, or not
    /// at all.
    fn fell_back(mut self, fallen: Option<FallenBack>) -> Self {
        let Some(fallen) = fallen else { return Self { cleared: None, ..self } };
        let known = self.cleared.as_ref() == Some(&fallen.failure);
        // The slot has more details than the conclusion from the version alone.
        let other = self.error.as_ref().is_some_and(|error| !error.is_fallback());
        if self.phase == Phase::Idle && !known && !other {
            let kept = self.settings.take().filter(|settings| settings.target_version == fallen.version);
            let found = || {
                UpgradeSettings::found(
                    &fallen.origin,
                    fallen.version.clone(),
                    UpgradeType::SoftwareAndPlatform,
                )
            };
            self.settings = Some(kept.unwrap_or_else(found));
            self.error = Some(fallen.failure);
        }
        self
    }

    /// The same upgrade with boot and trials as of this look.
    pub(in crate::service) fn looked(self, disk: &SeenDisk) -> Self {
        let waiting = self.waiting.look(self.boot == disk.boot, disk.trial.is_some(), disk.uptime);
        Self { boot: disk.boot.clone(), waiting, ..self }
    }

    /// Whether the software of the order is selected and good.
    fn took(&self, disk: &SeenDisk) -> bool {
        let software =
            self.settings.as_ref().filter(|settings| settings.upgrade_type == UpgradeType::SoftwareOnly);
        disk.prepared.is_none()
            && software.is_some_and(|settings| disk.software.as_ref() == Some(&settings.target_version))
    }

    /// The upgrade at the start of the service: the stored state, corrected by the disk.
    pub fn recover(self, disk: SeenDisk) -> Self {
        let rebooted = !self.boot.id.is_empty() && self.boot != disk.boot;
        let took = self.took(&disk);
        let ended = |doing: &str| Some(Failure::from(&Error::ServiceEnded { doing: doing.to_owned() }));
        let mut next = self.looked(&disk);
        match next.phase {
            Phase::Preparing => {
                (next.phase, next.error) = (Phase::Idle, ended("prepare"));
            }
            Phase::Committing if disk.trial.is_some() => next.phase = Phase::Committed,
            // Everything was done, including the mark.
            Phase::Committing if took => next.phase = Phase::Committed,
            Phase::Committing => next.error = ended("commit"),
            Phase::Committed | Phase::Rebooting if rebooted => {
                // The reboot overrides any earlier failure.
                next.error = None;
                let target = next.settings.take();
                let platform = |s: &UpgradeSettings| s.upgrade_type == UpgradeType::SoftwareAndPlatform;
                // If the running release is unknown, a failure is not proven.
                let known = disk.boot.slot.is_some();
                let failed = target.filter(|target| {
                    known && platform(target) && disk.running.as_ref() != Some(&target.target_version)
                });
                if let Some(target) = failed {
                    let error = Error::FellBack {
                        target: target.target_version.clone(),
                        why: "'qstage slots' and the logs of the failed boot say more".to_owned(),
                        running: disk.running.clone().unwrap_or_else(|| "what ran before".to_owned()),
                    };
                    next.error = Some(Failure::from(&error));
                    next.settings = Some(target);
                }
                next.phase = Phase::Idle;
            }
            // The service was restarted, the machine was not rebooted.
            Phase::Rebooting => next.phase = Phase::Committed,
            _ => {}
        }
        if next.phase == Phase::Committing {
            next.phase = Phase::Prepared;
        }
        let interrupted = next.error.clone();
        next = next.observe(disk);
        if interrupted.is_some() && next.phase == Phase::Prepared {
            next.error = interrupted;
        }
        if let Some(settings) = next.settings.as_mut().filter(|_| next.phase == Phase::Prepared) {
            settings.auto_commit = false;
        }
        next
    }
}

const fn doing(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "nothing",
        Phase::Preparing => "preparing",
        Phase::Prepared => "a bundle is prepared",
        Phase::Committing => "committing",
        Phase::Committed => "committed",
        Phase::Rebooting => "rebooting",
    }
}

#[cfg(test)]
mod tests;
