//! Failed trials: the reason that is recorded in the slot itself, and the view of a disk after a fallback.
//!
//! ```text
//!   commit ──▶ slot b boots on trial ──▶ mark-good
//!                │  a health check fails: trial_failed() writes why into the mark of b; reboot
//!                │  it panics, it hangs: nothing can be written; reset
//!                ▼  its tries are used up
//!              slot a boots: status concludes it from flags and mark; mark-good or prepare records it
//! ```

use super::Engine;
use super::transition::{self, Change};
use super::view::{SlotView, View};
use crate::error::{Error, Result};
use crate::host::kexec::SlotKernel;
use crate::host::{DiskLock, MountSource};
use crate::slot::Verdict;
use crate::state::{SlotState, SwitchReport};
use crate::units::{Group, Slot};

/// Reason shown when a failed trial left none of its own.
const SILENT: &str = "its tries are used up, and it never said why: it crashed, hung, or was reset";
/// Reason shown for software that fell back with its platform.
const WITH_PLATFORM: &str = "its platform fell back";

impl View {
    /// The reason why a slot failed its trial; `None`: it did not, or it was rolled back without a reason.
    pub(super) fn failure(&self, held: &SlotView) -> Option<String> {
        if held.state != SlotState::Bad {
            return None;
        }
        let told = held.mark().filter(|mark| matches!(mark.verdict, Verdict::Failed | Verdict::Trying));
        match told {
            Some(mark) => Some(mark.reason.clone()),
            None if held.fell => Some(WITH_PLATFORM.to_owned()),
            None if self.spent(held) => Some(SILENT.to_owned()),
            None => None,
        }
    }

    /// The platform slot that failed its trial while another one runs: the machine fell back.
    pub(super) fn fell_back(&self) -> Option<Error> {
        let held =
            self.all().iter().find(|held| held.group == Group::Platform && held.state == SlotState::Bad)?;
        let why = self.failure(held)?;
        let name = |slot: Slot| match self.held(Group::Platform, slot) {
            Some(held) => match held.record() {
                Some(record) => format!("{} in {}", record.manifest.version, held.partition.name),
                None => held.partition.name.clone(),
            },
            None => format!("slot {slot}"),
        };
        Some(Error::FellBack { target: name(held.slot), running: name(!held.slot), why })
    }
}

/// A platform slot that failed its trial while another one runs.
#[derive(Debug)]
pub struct FailedTrial {
    /// Version of what it holds.
    pub version: String,
    /// Where its bundle came from.
    pub origin: String,
    /// [`Error::FellBack`].
    pub error: Error,
}

impl Engine<'_> {
    /// The trial that failed last, by the disk alone: it is known after the loss of /var, and until its slot is written anew.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn failed_trial(&self) -> Result<Option<FailedTrial>> {
        let view = self.view()?;
        let failed = |held: &&SlotView| held.group == Group::Platform && held.state == SlotState::Bad;
        let record = view.all().iter().find(failed).and_then(SlotView::record);
        let known = view.fell_back().zip(record);
        Ok(known.map(|(error, record)| FailedTrial {
            version: record.manifest.version.clone(),
            origin: record.origin.clone(),
            error,
        }))
    }

    /// The commit of a machine whose loader knows one flag and counts nothing: the flag stays on the slot that runs, and the
    /// kernel of the prepared slot is started by kexec. `mark-good` there moves the flag; whatever else happens, the
    /// next reset boots the old slot. Nothing is written before the kernel is loaded, and then a mark for each slot.
    ///
    /// # Errors
    /// [`Error::NotPrepared`], [`Error::KexecTrial`], [`Error::Kexec`]; class Disk and Io.
    pub fn commit_by_kexec(&self, kernel: &dyn SlotKernel) -> Result<SwitchReport> {
        let act = |lock: &DiskLock| {
            transition::kexec_allowed(self.policy.boot_flag)?;
            let view = self.view_for_change()?;
            let (held, marks) = transition::by_kexec(&view)?;
            let MountSource::Node(node) = self.machine.mount_source(&held.partition)? else {
                let problem = format!("the kernel shows no node of {}", held.partition.name);
                return Err(Error::Kexec { problem });
            };
            kernel.load(held.slot, &node, &held.partition.guid.to_string())?;
            self.perform(lock, &view, &marks, None)
        };
        let report = self.change("commit", act, |report| report.done.clone())?;
        kernel.start().inspect_err(|error| self.not_started(error))?;
        Ok(report)
    }

    /// Voids the marks of a trial that did not begin.
    fn not_started(&self, error: &Error) {
        let undo = || -> Result<()> {
            let lock = self.machine.lock()?;
            let view = self.view()?;
            self.run(&lock, &view, &transition::not_started(&view), &[])
        };
        let failed = undo().err().map(|undo| format!("; its marks stay: {undo}")).unwrap_or_default();
        self.remark("commit", format!("{error}{failed}"));
    }

    /// Records the reason why the trial of the running slot fails, on the slot itself, before the machine reboots: `/var` may
    /// be lost, and another system may boot next. `None`: the trial is over, and the caller is about to reboot; the reason
    /// that this boot recorded stays, and if the slot is selected and no loader counts tries (`legacy`; `efi` with
    /// BootOrder changed already), it is rolled back too. Returns what was recorded, as a sentence.
    ///
    /// # Errors
    /// [`Error::NoTrial`]; class Disk and Io.
    pub fn trial_failed(&self, reason: Option<&str>) -> Result<String> {
        let act = |lock: &DiskLock| {
            let view = self.view_for_change()?;
            let failed = transition::of(&Change::TrialFailed(reason), &view)?;
            self.run(lock, &view, &failed, &[])?;
            Ok(failed.done)
        };
        let lock = self.machine.lock()?;
        match act(&lock) {
            // At every boot of a good slot whose health check fails: not worth a line in the history.
            Err(Error::NoTrial) => Err(Error::NoTrial),
            result => self.keep("trial", "", result, String::clone),
        }
    }
}
