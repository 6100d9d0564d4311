//! Trials that fail: what is kept of them in the slot itself, and what is made of a disk on which the boot went back by itself.
//!
//! ```text
//!   commit ──▶ slot b boots on trial ──▶ mark-good
//!                │  a health check fails: trial_failed() writes why into the mark of b; reboot
//!                │  it panics, it hangs: nobody can write anything; reset
//!                ▼  its tries are used up
//!              slot a boots: status tells from flags and mark; mark-good or prepare settles it on the disk
//! ```

use super::Engine;
use super::switch::{Asked, Effect, Switch};
use super::view::{Held, View};
use crate::boot::{self, BootFlag, Leave};
use crate::commit;
use crate::error::{Error, Result};
use crate::gpt::Table;
use crate::host::kexec::SlotKernel;
use crate::host::record::Event;
use crate::host::{Access, DiskLock, MountSource};
use crate::progress::Silent;
use crate::slot::{Mark, Verdict};
use crate::state::{SlotState, SwitchReport};
use crate::units::{Group, Slot};

/// What is told of a trial that nobody could tell anything of.
const SILENT: &str = "its tries are used up, and it never said why: it crashed, hung, or was reset";
/// What is told of software that went back with its platform.
const WITH_PLATFORM: &str = "its platform fell back";

impl View {
    /// Why a slot failed its trial; `None` where it did not, or where somebody rolled it back without a reason.
    pub(super) fn failure(&self, held: &Held) -> Option<String> {
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

/// What is told of a kernel that kexec started and that did not come back.
const KEXECED: &str = "it was started by kexec and was not marked good: it crashed, hung, or was reset";

impl Engine<'_> {
    /// The trial that failed last, by the disk alone: it is known after the loss of /var, and until its slot is written anew.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn failed_trial(&self) -> Result<Option<FailedTrial>> {
        let view = self.view()?;
        let failed = |held: &&Held| held.group == Group::Platform && held.state == SlotState::Bad;
        let record = view.all().iter().find(failed).and_then(Held::record);
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
            if self.policy.boot_flag != BootFlag::Legacy {
                let flag = self.policy.boot_flag.word();
                let problem = format!("boot_flag is '{flag}', by which a trial ends by itself");
                return Err(Error::KexecTrial { problem });
            }
            self.repair(lock, &Silent)?;
            let view = self.view()?;
            let Switch { table, effect, .. } = self.commit_switch(&view)?;
            let slot = view.target(Group::Platform)?;
            let held = view.held(Group::Platform, slot).filter(|_| effect == Effect::Reboot);
            let (held, record) = held.and_then(|held| Some((held, held.record()?))).ok_or_else(|| {
                Error::KexecTrial { problem: "the prepared bundle does not change the platform".to_owned() }
            })?;
            let MountSource::Node(node) = self.machine.mount_source(&held.partition)? else {
                let problem = format!("the kernel shows no node of {}", held.partition.name);
                return Err(Error::Kexec { problem });
            };
            kernel.load(slot, &node, &held.partition.guid.to_string())?;
            // The platform last: it is what the others follow.
            let selects = |held: &&Held| table.attributes(held.partition.number) != held.attributes;
            let prepared = |held: &&Held| held.state == SlotState::Prepared || self.again(held);
            for held in view.all().iter().rev().filter(prepared).filter(selects) {
                self.set_mark(held, Verdict::Trying, KEXECED)?;
            }
            let done =
                format!("{} is started by kexec from {}", record.manifest.version, held.partition.name);
            // An empty plan: the flags stay.
            self.switch(lock, &view, &Switch::of(view.table.clone(), Effect::Kexec, done))
        };
        let report = self.change("commit", act, |report| report.done.clone())?;
        kernel.start().inspect_err(|error| self.not_started(error))?;
        Ok(report)
    }

    /// Takes the marks of a trial back that did not begin: the slots are prepared, as they were.
    fn not_started(&self, error: &Error) {
        let undo = || -> Result<()> {
            let _lock = self.machine.lock()?;
            let view = self.view()?;
            let trying = |held: &&Held| held.mark().is_some_and(|mark| mark.verdict == Verdict::Trying);
            for held in view.all().iter().filter(trying) {
                if let Some(record) = held.record() {
                    let device = self.machine.open_partition(&held.partition, Access::Record)?;
                    record.write_mark(&*device, None, &held.partition.name)?;
                }
            }
            Ok(())
        };
        let failed = undo().err().map(|undo| format!("; its marks stay: {undo}")).unwrap_or_default();
        self.remark("commit", format!("{error}{failed}"));
    }

    /// Whether a slot that has failed its trial may be tried once more.
    pub(super) fn again(&self, held: &Held) -> bool {
        self.policy.retry && held.state == SlotState::Bad && held.record().is_some()
    }

    /// Writes down why the trial of the running slot fails, on the slot itself, before the machine reboots: `/var` may
    /// be lost, and the next boot may be that of another system. `None`: all is over, and whoever calls is about to reboot;
    /// what this boot already said is kept then, and where it is selected and nothing counts tries (`legacy`;
    /// `efi` with BootOrder changed already), the slot is rolled back too. Returns what was kept, as a sentence.
    ///
    /// # Errors
    /// [`Error::NoTrial`]; class Disk and Io.
    pub fn trial_failed(&self, reason: Option<&str>) -> Result<String> {
        // A single check may be run by hand; that all is over says only who is about to reboot.
        let ended = reason.is_none();
        let act = |lock: &DiskLock| {
            self.repair(lock, &Silent)?;
            let view = self.view()?;
            let slot = view.booted()?;
            let held = view.held(Group::Platform, slot).filter(|held| held.state == SlotState::Trial);
            let held = held.ok_or(Error::NoTrial)?;
            let tries_left = held.attributes.tries();
            let told =
                held.mark().filter(|mark| mark.verdict == Verdict::Failed && mark.tries_left == tries_left);
            let reason = match (reason, told) {
                (Some(reason), _) => reason.to_owned(),
                (None, Some(mark)) => mark.reason.clone(),
                (None, None) => "it did not become healthy".to_owned(),
            };
            let epoch = held.content.epoch();
            let mark = Mark { verdict: Verdict::Failed, reason, tries_left, epoch };
            if let Some(record) = held.record().filter(|_| held.mark() != Some(&mark)) {
                let device = self.machine.open_partition(&held.partition, Access::Record)?;
                record.write_mark(&*device, Some(&mark), &held.partition.name)?;
            }
            if ended && self.policy.boot_flag != BootFlag::Priority && view.is_selected(held) {
                self.roll_back_locked(lock, Some(&mark.reason), Asked::ByTrial)?;
            }
            Ok(format!("{} fails its trial: {}", held.partition.name, mark.reason))
        };
        let lock = self.machine.lock()?;
        match act(&lock) {
            // At every boot of a good slot whose health check fails: not worth a line in the history.
            Err(Error::NoTrial) => Err(Error::NoTrial),
            result => self.keep("trial", "", result, String::clone),
        }
    }

    /// Makes a fallback that the boot loader or the firmware has made by itself plain on the disk: why into the mark of
    /// each slot that failed, then, in one transaction, no flag on them and the running slots first. Until that is
    /// done the flags of the software still name the slot whose platform fell back. Returns whether anything was to do.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub(super) fn settle(&self, lock: &DiskLock, view: &View) -> Result<bool> {
        let Ok(booted) = view.booted() else { return Ok(false) };
        let good =
            |group, slot| view.held(group, slot).is_some_and(|held: &Held| held.state == SlotState::Good);
        let failed: Vec<&Held> = view
            .all()
            .iter()
            .filter(|held| view.spent(held) || held.fell)
            .filter(|held| good(held.group, !held.slot))
            .filter(|held| held.group == Group::Software || held.slot != booted)
            .collect();
        if failed.is_empty() {
            return Ok(false);
        }
        let fell = view.fell_back();
        let (mut table, mut turn): (Table, _) = (view.table.clone(), None);
        for held in &failed {
            let flag = self.policy.boot_flag;
            if held.group == Group::Platform {
                turn = view.turn(|choice| choice.back(!held.slot, Leave::Bad));
            }
            table = boot::roll_back(&table, &view.slots, held.group, !held.slot, Leave::Bad, flag)?;
        }
        // The marks first: without its flags and unmarked a failed slot looks like a prepared one.
        for held in &failed {
            if let Some(why) = view.failure(held) {
                self.set_mark(held, Verdict::Failed, &why)?;
            }
        }
        self.turn(lock, turn.as_ref())?;
        commit::switch(&*self.machine.disk(), lock, &view.loaded, &table)?;
        if let (Some(error), Ok(key)) = (fell, self.journal_key()) {
            let (code, message) = (error.code().to_owned(), error.to_string());
            self.journal.append(&key, &Event::new("fall-back", &code, message));
        }
        Ok(true)
    }
}
