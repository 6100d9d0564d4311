//! `commit`, `mark-good`, `roll-back`, `cancel`: each is a [`Transition`], run under the lock of the disk.

use super::Engine;
use super::transition::{self, Change, EFI_METHOD, Printed, Site, Transition};
use super::view::View;
use crate::commit;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::host::DiskLock;
use crate::host::journal::{Event, now};
use crate::state::SwitchReport;
use crate::units::{Group, Slot};

impl Engine<'_> {
    /// What a change would do, as a value.
    ///
    /// # Errors
    /// Those of the verb.
    pub fn transition(&self, change: &Change<'_>) -> Result<Transition> {
        transition::whole(change, &self.view()?)
    }

    /// Selects the prepared slots, on trial. Platform and software become visible in the same instant.
    ///
    /// # Errors
    /// [`Error::NotPrepared`]; class Disk and Io. [`Error::GptVerify`] where the table does not read back.
    pub fn commit(&self, dry_run: bool) -> Result<SwitchReport> {
        if dry_run {
            return self.dry_run(&Change::Commit);
        }
        self.switch("commit", &Change::Commit)
    }

    /// Marks what runs on trial as good: the end of an upgrade. With `slot` the platform slot of that name is made good
    /// and selected whatever its flags say: the repair of a disk on which nothing boots. Where all is good already,
    /// nothing is written: a health unit may call it at every boot.
    ///
    /// # Errors
    /// [`Error::NothingToMark`]; class Disk and Io.
    pub fn mark_good(&self, slot: Option<Slot>) -> Result<SwitchReport> {
        let act = |lock: &DiskLock| {
            let mut view = self.view_for_change()?;
            let mut settled = None;
            if slot.is_none()
                && let Some(fallback) = transition::settle(&view)?
            {
                // What is refused is refused before the fallback is recorded.
                let after = view.after(fallback.acts())?;
                let good = transition::of(&Change::MarkGood(slot), &after)?;
                self.report(&after, &good, Printed::new(&after, &good)?, false)?;
                settled = Some(self.settle(lock, &view, &fallback)?);
                view = self.view()?;
            }
            self.perform(lock, &view, &transition::of(&Change::MarkGood(slot), &view)?, settled)
        };
        let report = self.change("mark-good", act, |report| report.done.clone())?;
        // A health unit calls it at every boot: without a change nothing has succeeded.
        if !report.plan.is_empty()
            && let Ok(key) = self.journal_key()
        {
            self.journal.update(&key, &mut |record| record.last_success = Some(now()));
        }
        Ok(report)
    }

    /// Goes back to the other slot, if that is good. What is left on trial becomes bad; what was good stays a fallback.
    /// Software goes back with the platform that it came with; alone, where it alone is on trial.
    ///
    /// # Errors
    /// [`Error::NoFallback`]; class Disk and Io.
    pub fn roll_back(&self) -> Result<SwitchReport> {
        self.roll_back_because(None)
    }

    /// The same for a failed trial: the reason is recorded in the slot that is left, and its bundle is not tried again
    /// without [`Policy::retry`](super::Policy::retry).
    ///
    /// # Errors
    /// As [`roll_back`](Self::roll_back).
    pub fn roll_back_because(&self, reason: Option<&str>) -> Result<SwitchReport> {
        self.switch("roll-back", &Change::RollBack(reason))
    }

    /// Undoes a prepare, or a commit whose slot has not been started: what was prepared is discarded. A roll-back to a good
    /// slot that waits for its reboot is undone as well; both slots stay good.
    ///
    /// # Errors
    /// [`Error::NothingToCancel`]; class Disk and Io.
    pub fn cancel(&self) -> Result<SwitchReport> {
        self.switch("cancel", &Change::Cancel)
    }

    /// [`cancel`](Self::cancel) without its line in the history, which [`record_cancel`](Self::record_cancel) adds: the disk
    /// of the journal may be slow, and the answer to a cancel does not wait for it.
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub fn cancel_unrecorded(&self) -> Result<SwitchReport> {
        let lock = self.machine.lock()?;
        self.cancel.check("cancel waited; nothing was changed")?;
        self.switch_locked(&lock, &Change::Cancel)
    }

    /// Records the outcome of [`cancel_unrecorded`](Self::cancel_unrecorded) in the journal.
    pub fn record_cancel(&self, outcome: Result<SwitchReport>) {
        // As for all verbs: the holder of the lock records its own outcome.
        if !matches!(outcome, Err(Error::Busy { .. })) {
            let _ = self.keep("cancel", "", outcome, |report| report.done.clone());
        }
    }

    /// Runs a change under the lock and records its outcome under the name of `verb`.
    pub(super) fn switch(&self, verb: &str, change: &Change<'_>) -> Result<SwitchReport> {
        let act = |lock: &DiskLock| self.switch_locked(lock, change);
        self.change(verb, act, |report| report.done.clone())
    }

    /// The same for a caller that has the lock.
    pub(super) fn switch_locked(&self, lock: &DiskLock, change: &Change<'_>) -> Result<SwitchReport> {
        let view = self.view_for_change()?;
        self.perform(lock, &view, &transition::of(change, &view)?, None)
    }

    /// Runs a transition of this view, and reports it together with what was `settled` before.
    pub(super) fn perform(
        &self,
        lock: &DiskLock,
        view: &View,
        transition: &Transition,
        settled: Option<Printed>,
    ) -> Result<SwitchReport> {
        let printed = Printed::new(view, transition)?;
        let printed = match settled {
            Some(settled) => printed.behind(settled),
            None => printed,
        };
        // First: it refuses where nothing would boot afterwards.
        let report = self.report(view, transition, printed, false)?;
        self.run(lock, view, transition, &[])?;
        Ok(report)
    }

    /// Runs the acts of a transition of this view, after a repair of the table where one is due. `opened` are slots that
    /// the caller has open.
    pub(super) fn run(
        &self,
        lock: &DiskLock,
        view: &View,
        transition: &Transition,
        opened: &[(Group, Slot, &dyn BlockDevice)],
    ) -> Result<()> {
        let site = Site { machine: self.machine, loaded: &view.loaded, slots: &view.slots, opened };
        site.run(lock, transition)
    }

    /// What is on the disk, for a verb that will write. A table that cannot be written to is refused here, before
    /// anything else is looked at.
    ///
    /// # Errors
    /// As [`commit::repair_plan`]; class Disk and Io.
    pub(super) fn view_for_change(&self) -> Result<View> {
        let view = self.view()?;
        commit::repair_plan(&view.loaded)?;
        Ok(view)
    }

    /// Records a fallback that happened by itself on the disk and in the history; see
    /// [`settle`](transition::settle).
    ///
    /// # Errors
    /// Class Disk and Io.
    pub(super) fn settle(&self, lock: &DiskLock, view: &View, settled: &Transition) -> Result<Printed> {
        let printed = Printed::new(view, settled)?;
        self.run(lock, view, settled, &[])?;
        if let (Some(error), Ok(key)) = (view.fell_back(), self.journal_key()) {
            let (code, message) = (error.code().to_owned(), error.to_string());
            self.journal.append(&key, &Event::new("fall-back", &code, message));
        }
        Ok(printed)
    }

    pub(super) fn report(
        &self,
        view: &View,
        transition: &Transition,
        printed: Printed,
        dry_run: bool,
    ) -> Result<SwitchReport> {
        let after = view.after(transition.acts())?;
        // Where no entry is ours yet, the firmware has found what runs by itself, and will again.
        let found = || view.efi.as_ref().and_then(|_| view.in_service(Group::Platform));
        let next = after.next(Group::Platform).or_else(found);
        Ok(SwitchReport {
            done: transition.done.clone(),
            boots_next: next.ok_or_else(|| Error::NothingBoots { disk: self.machine.name().to_owned() })?,
            next_step: transition.effect.word().to_owned(),
            switch_method: printed.method(),
            plan: printed.lines,
            dry_run,
        })
    }

    /// How the next switch will be written, found by planning one that changes a flag.
    pub(super) fn switch_method(&self, view: &View) -> Result<String> {
        let partition = view.slots.require(Group::Platform, Slot::A)?;
        let attributes = view.table.attributes(partition.number);
        let changed = attributes.with_priority(attributes.priority() ^ 1);
        let table = view.table.with_attributes(partition.number, changed);
        // A table that cannot be changed can still be looked at.
        let plan = commit::plan(&view.loaded, &table);
        let method = plan.map_or_else(|error| error.to_string(), |plan| plan.method.to_string());
        Ok(if view.efi.is_some() { format!("{EFI_METHOD}; software: {method}") } else { method })
    }
}
