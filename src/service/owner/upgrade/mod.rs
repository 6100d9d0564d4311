//! The upgrade as clients see it: one state, one `match`. Pure; nothing here looks at a disk, a clock or a request.
//!
//! ```text
//!          Begin           Staged            Commit            Switched         Reboot
//!   IDLE ─────────▶ PREPARING ─────▶ PREPARED ─────▶ COMMITTING ─────▶ COMMITTED ─────▶ REBOOTING
//!    ▲                │   └──── Staged, auto_commit ────▲  │              │                │
//!    └── Failed ──────┘◀─────── Failed: PREPARED again ────┘    Observed: no trial     next start
//! ```
//!
//! A failure is not a state: it stands beside the state until the next prepare or commit begins, or somebody clears it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::service::owner::waiting_period::WaitingPeriod;
use crate::state::{SlotState, SlotsReport, UpgradeType};
use crate::units::{Blake3, Group};

/// Where an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing is under way.
    #[default]
    Idle,
    /// A bundle is being staged.
    Preparing,
    /// A bundle is staged, and nobody has asked to switch to it.
    Prepared,
    /// The switch is being written, or the software swapped.
    Committing,
    /// The new slots are selected.
    Committed,
    /// The command that reboots has been started.
    Rebooting,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Preparing, Self::Prepared, Self::Committing, Self::Committed, Self::Rebooting];

    /// The name without any prefix, as both status objects end with.
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

/// What was asked for: `settings` of the v3 status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeSettings {
    /// Path or URL of the bundle.
    pub install_path: String,
    /// Version of the bundle.
    pub target_version: String,
    /// What kind of upgrade it is.
    pub upgrade_type: UpgradeType,
    /// Commit as soon as it is prepared.
    pub auto_commit: bool,
    /// Reboot the nodes of a cluster one set after the other.
    pub do_rolling_reboot: bool,
    /// How many at a time.
    pub num_nodes_to_reboot: Option<u64>,
}

impl UpgradeSettings {
    /// What was not ordered but found on the disk.
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

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable code.
    pub code: String,
    /// Sentence.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { code: error.code().to_owned(), message: crate::error::sentence(error) }
    }
}

impl Failure {
    /// Whether a new platform did not come up.
    pub fn is_fallback(&self) -> bool {
        self.code == FELL_BACK
    }
}

/// The code of [`Error::FellBack`].
const FELL_BACK: &str = "UPGRADE_ERROR_FELL_BACK";

/// A platform slot that failed its trial, by what stands on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallenBack {
    /// Version of the slot.
    pub version: String,
    /// Where its bundle came from.
    pub origin: String,
    /// Which slot failed, which one runs, and why.
    pub failure: Failure,
}

/// Which boot this is. A reboot is told by either, since a disk image has no kernel that would tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// `/proc/sys/kernel/random/boot_id`.
    pub id: String,
    /// The platform slot that runs.
    pub slot: Option<String>,
}

/// The upgrade; what of it survives the process is the whole of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalUpgrade {
    /// Where it is.
    pub phase: Phase,
    /// What was asked for; kept after the end until the next prepare, since clients print it then.
    pub settings: Option<UpgradeSettings>,
    /// The last failure.
    pub error: Option<Failure>,
    /// Percent of the prepare, never less than before.
    pub progress: u8,
    /// The boot in which this was written.
    pub boot: Boot,
    /// For the waiting period. The file of an older version calls it `calm`.
    #[serde(default, rename = "calm")]
    pub waiting: WaitingPeriod,
    /// The fallback that was cleared, or that a later prepare ended. The slot that failed says it until it is written anew.
    #[serde(default)]
    pub cleared: Option<Failure>,
    /// The release (BLAKE3 of its manifest) whose software was started by a command and is on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Blake3>,
}

/// What the slots say; the truth that everything else yields to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenDisk {
    /// What is staged: origin, version, type.
    pub prepared: Option<(String, String, UpgradeType)>,
    /// Version and type of what is selected but not good yet.
    pub trial: Option<(String, UpgradeType)>,
    /// Whether the trial waits for a reboot.
    pub pending: bool,
    /// Version of the platform that runs.
    pub running: Option<String>,
    /// Version of the software that is selected and good.
    pub software: Option<String>,
    /// The platform slot that failed its trial.
    pub fallen: Option<FallenBack>,
    /// Seconds since the start of the machine.
    pub uptime: u64,
    /// The boot.
    pub boot: Boot,
}

impl SeenDisk {
    /// Reads the report of the slots. `origin` is where the prepared bundle came from.
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

/// What happens to an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A prepare begins.
    Begin {
        /// What was asked for.
        settings: UpgradeSettings,
        /// Whether the slots hold this very bundle already.
        staged: bool,
    },
    /// So many percent are done.
    Progress(u8),
    /// The slots hold the bundle.
    Staged {
        /// Its version.
        version: String,
        /// What kind of upgrade it is.
        upgrade_type: UpgradeType,
    },
    /// What was being done failed.
    Failed(Failure),
    /// Something failed beside it: a bundle was refused before anything began, or a start gave up what was committed
    /// earlier. The settings are shown with it where no others are.
    Beside(UpgradeSettings, Failure),
    /// Somebody asks for the switch.
    Commit,
    /// The switch is written; what else has to happen, does not concern this machine or is done.
    Switched,
    /// The release whose software, which is on trial, was started; `None`: none is.
    Started(Option<Blake3>),
    /// The command that reboots is about to run.
    Reboot,
    /// What was prepared or committed was discarded; where nothing was, the error that is shown is cleared.
    Discarded,
    /// Nothing is being done, and this is what the disk says.
    Observed(SeenDisk),
}

impl LocalUpgrade {
    /// What becomes of the upgrade.
    ///
    /// # Errors
    /// The refusal, with what is being done; the upgrade stays as it was.
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
            // Whoever asked for it was told; that the last upgrade failed is the news for all others.
            (Input::Beside(..), Idle) if self.error.as_ref().is_some_and(Failure::is_fallback) => {}
            (Input::Beside(settings, failure), Idle | Prepared | Committed) => {
                next.error = Some(failure);
                if self.phase == Idle || self.settings.is_none() {
                    next.settings = Some(settings);
                }
            }
            (Input::Commit, Prepared) => {
                (next.phase, next.error, next.started) = (Committing, None, None);
            }
            (Input::Started(release), _) => next.started = release,
            (Input::Commit, Idle | Committed) => {
                let problem = match self.phase {
                    Committed => "it is committed already".to_owned(),
                    _ => "no bundle is prepared".to_owned(),
                };
                return Err(Error::NotPrepared { problem });
            }
            (Input::Switched, Committing) => {
                next.phase = Committed;
                // Also where that trial is over before anybody looks.
                next.waiting.on_trial = true;
            }
            (Input::Reboot, Committed) => next.phase = Rebooting,
            (Input::Discarded, Idle | Prepared | Committed) => {
                next.forgive();
                (next.phase, next.progress) = (Idle, 0);
                if self.phase == Idle {
                    next.settings = None;
                } else {
                    // A client that watches takes the end of an upgrade without an error for a success, and prints the
                    // settings beside an error.
                    next.error = Some(Failure::from(&Error::Cancelled));
                }
            }
            (Input::Observed(disk), Idle | Prepared | Committed) => next = next.observe(disk),
            // What is being done knows better than a look that was taken before it began.
            (Input::Observed(_), Preparing | Committing | Rebooting) => {}
            (Input::Reboot, Idle) => {}
            (_, phase) => return Err(Error::UpgradeBusy { doing: doing(phase).to_owned() }),
        }
        Ok(next)
    }

    /// The error is over, and a fallback that it told of is not told again.
    fn forgive(&mut self) {
        let error = self.error.take();
        self.cleared = error.filter(Failure::is_fallback).or_else(|| self.cleared.take());
    }

    fn same_order(&self, order: &UpgradeSettings) -> bool {
        self.settings.as_ref() == Some(order)
    }

    /// A switch that failed left the bundle prepared; nobody has asked to try again.
    fn commit_failed(mut self, failure: Failure) -> Self {
        if let Some(settings) = &mut self.settings {
            settings.auto_commit = false;
        }
        Self { phase: Phase::Prepared, error: Some(failure), ..self }
    }

    /// Follows what others did to the disk: the command line, a roll-back by the boot loader, a mark-good unit.
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
                    // Found, not ordered: whatever was asked for then, nobody waits for a commit now.
                    let keep = next.settings.take().filter(|_| !other);
                    let settings = keep.unwrap_or_else(|| UpgradeSettings::found(&path, version, kind));
                    next.settings = Some(UpgradeSettings { auto_commit: false, ..settings });
                    next.progress = 100;
                    // A prepare that others began ends a fallback as one of ours does.
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

    /// Shows that the last upgrade fell back, whoever was there to see it: the service may have run in the slot that failed,
    /// or not at all.
    fn fell_back(mut self, fallen: Option<FallenBack>) -> Self {
        let Some(fallen) = fallen else { return Self { cleared: None, ..self } };
        let known = self.cleared.as_ref() == Some(&fallen.failure);
        // What the service concluded from the version alone says less than the slot does.
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

    /// The same in the boot of this look, with what it tells of trials.
    pub(in crate::service) fn looked(self, disk: &SeenDisk) -> Self {
        let waiting = self.waiting.look(self.boot == disk.boot, disk.trial.is_some(), disk.uptime);
        Self { boot: disk.boot.clone(), waiting, ..self }
    }

    /// Whether the software that was to be committed is what is selected and good.
    fn took(&self, disk: &SeenDisk) -> bool {
        let software =
            self.settings.as_ref().filter(|settings| settings.upgrade_type == UpgradeType::SoftwareOnly);
        disk.prepared.is_none()
            && software.is_some_and(|settings| disk.software.as_ref() == Some(&settings.target_version))
    }

    /// The upgrade at the start of the service: what was written down, corrected by what the disk says.
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
            // All of it was done, up to the mark.
            Phase::Committing if took => next.phase = Phase::Committed,
            Phase::Committing => next.error = ended("commit"),
            Phase::Committed | Phase::Rebooting if rebooted => {
                // Whatever went wrong before the reboot, the reboot has decided.
                next.error = None;
                let target = next.settings.take();
                let platform = |s: &UpgradeSettings| s.upgrade_type == UpgradeType::SoftwareAndPlatform;
                // Where it is not known what runs, nothing says that it failed.
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
            // The service was started again, the machine was not.
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
