//! `commit`, `mark-good`, `roll-back`, `cancel`: each is one new table, written in one transaction.

use super::Engine;
use super::checks::needed;
use super::view::{Held, View};
use crate::boot::{self, Leave};
use crate::commit;
use crate::efi::Turn;
use crate::error::{Error, Result};
use crate::gpt::Table;
use crate::host::{Access, DiskLock};
use crate::progress::Silent;
use crate::slot::{self, Mark, Verdict};
use crate::state::{SlotState, SwitchReport};
use crate::units::{Group, Slot};

/// What has to happen for a switch to take effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Reboot,
    RestartSoftware,
}

impl Effect {
    const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reboot => "reboot",
            Self::RestartSoftware => "restart-software",
        }
    }
}

impl Engine<'_> {
    /// Selects the prepared slots, on trial. Platform and software become visible in the same instant.
    ///
    /// # Errors
    /// [`Error::NotPrepared`]; class Disk and Io. [`Error::GptVerify`] where the table does not read back.
    pub fn commit(&self, dry_run: bool) -> Result<SwitchReport> {
        if dry_run {
            let view = self.view()?;
            let (table, effect, done) = self.commit_table(&view)?;
            let turn = try_once(&view, effect)?;
            let plan = commit::plan(&view.loaded, &table)?;
            return self.report(&view, &plan, &table, turn.as_ref(), effect, done, true);
        }
        self.change(
            "commit",
            |lock| {
                self.repair(lock, &Silent)?;
                let view = self.view()?;
                let (table, effect, done) = self.commit_table(&view)?;
                let turn = try_once(&view, effect)?;
                let plan = commit::switch(&*self.machine.disk(), lock, &view.loaded, &table)?;
                self.commit_turn(lock, &view, turn.as_ref())?;
                self.report(&view, &plan, &table, turn.as_ref(), effect, done, false)
            },
            |report| report.done.clone(),
        )
    }

    /// BootNext, then the mark that tells a trial that failed from one that never was. The other way round, a cut between
    /// them would call a release failed that nobody has tried; so it leaves one that is tried without being
    /// marked, and should that fail, it looks prepared, which it is.
    fn commit_turn(&self, lock: &DiskLock, view: &View, turn: Option<&Turn>) -> Result<()> {
        self.turn(lock, turn)?;
        match turn.and_then(|turn| view.held(Group::Platform, turn.after.pending()?)) {
            Some(held) => self.set_mark(held, Verdict::Trying, "selected for one boot"),
            None => Ok(()),
        }
    }

    /// What commit would write. Checks again all that prepare promised: the records of all slots that the bundle
    /// needs are whole and of one manifest, and what they were compared with still runs.
    pub(super) fn commit_table(&self, view: &View) -> Result<(Table, Effect, String)> {
        let not = |problem: String| Err(Error::NotPrepared { problem });
        let booted = view.booted()?;
        let (mut prepared, mut half) = (Vec::new(), Vec::new());
        for group in Group::BOTH {
            let Ok(slot) = view.target(group) else { continue };
            match view.held(group, slot) {
                Some(held) if held.state == SlotState::Prepared => {
                    prepared.extend(held.record().map(|r| (held, r)))
                }
                // A commit by EFI variables that was cut behind its first half.
                Some(held)
                    if view.efi.is_some() && held.state == SlotState::Trial && view.awaits_reboot(held) =>
                {
                    half.extend(held.record().map(|r| (held, r)));
                }
                Some(held) if held.state == SlotState::Torn => {
                    return not(format!("{} was not prepared to the end", held.partition.name));
                }
                _ => {}
            }
        }
        let Some((_, first)) = prepared.first() else {
            let slot = view.target(Group::Platform)?;
            return not(match view.on_trial().next() {
                Some(held) => format!("{} is already committed, on trial", held.partition.name),
                None => format!("slot {slot} holds nothing that was prepared"),
            });
        };
        let manifest = &first.manifest;
        half.retain(|(held, record)| {
            held.group == Group::Software && record.manifest.bytes() == manifest.bytes()
        });
        prepared.extend(half);
        if prepared.iter().any(|(_, record)| record.manifest.bytes() != manifest.bytes()) {
            return not("platform and software were prepared from different bundles".to_owned());
        }
        let needed = needed(view, manifest);
        if needed.is_empty() {
            return not(format!("{} runs already", manifest.version));
        }
        for group in &needed {
            if !prepared.iter().any(|(held, _)| held.group == *group) {
                return not(format!("{} needs its {group}, which is not prepared", manifest.version));
            }
        }
        let mut table = view.table.clone();
        let mut names = Vec::new();
        for (held, _) in prepared.iter().filter(|(held, _)| needed.contains(&held.group)) {
            let tries = self.policy.tries;
            let flag = self.policy.boot_flag;
            table = boot::select_trial(&table, &view.slots, held.group, held.slot, tries, flag)?;
            names.push(held.partition.name.clone());
        }
        let platform = needed.contains(&Group::Platform);
        let effect = if platform { Effect::Reboot } else { Effect::RestartSoftware };
        let from = if platform { format!(", slot {booted} is the fallback") } else { String::new() };
        Ok((
            table,
            effect,
            format!("{} is selected on trial in {}{from}", manifest.version, names.join(" and ")),
        ))
    }

    /// Marks what runs on trial as good: the end of an upgrade. With `slot` the platform slot of that name is made good
    /// and selected whatever its flags say: the repair of a disk on which nothing boots. Where all is good already,
    /// nothing is written: a health unit may call it at every boot.
    ///
    /// # Errors
    /// [`Error::NothingToMark`]; class Disk and Io.
    pub fn mark_good(&self, slot: Option<Slot>) -> Result<SwitchReport> {
        self.change("mark-good", |lock| self.mark_good_locked(lock, slot), |report| report.done.clone())
    }

    fn mark_good_locked(&self, lock: &DiskLock, slot: Option<Slot>) -> Result<SwitchReport> {
        self.repair(lock, &Silent)?;
        let view = self.view()?;
        let candidates: Vec<&Held> = match slot {
            Some(slot) => view.held(Group::Platform, slot).into_iter().collect(),
            None => {
                view.booted()?;
                let runs = |held: &&Held| view.running(held.group) == Some(held.slot);
                view.on_trial().filter(runs).filter(|held| !view.awaits_reboot(held)).collect()
            }
        };
        let mut table = view.table.clone();
        let (mut names, mut turn) = (Vec::new(), None);
        for held in candidates {
            if held.state == SlotState::Torn || held.state == SlotState::Empty {
                let problem = format!("{} holds nothing whole", held.partition.name);
                return Err(Error::NothingToMark { problem });
            }
            table = boot::mark_good(&table, &view.slots, held.group, held.slot, self.policy.boot_flag)?;
            if held.group == Group::Platform {
                // BootOrder before the mark: a slot that is good and not in it would be left at the next boot.
                turn = view.turn(|choice| choice.keep(held.slot));
                self.turn(lock, turn.as_ref())?;
            }
            // The mark first: under legacy it is the only sign, and it says nothing before the slot is selected.
            self.set_mark(held, Verdict::Good, "marked good")?;
            names.push(held.partition.name.clone());
        }
        if names.is_empty() && slot.is_none() {
            turn = view.unlisted().and_then(|slot| view.turn(|choice| choice.keep(slot)));
            self.turn(lock, turn.as_ref())?;
        }
        let done = match (names.is_empty(), slot) {
            (true, None) if turn.is_some() => "the slot that runs is good, and now in BootOrder".to_owned(),
            (true, _) => match view.on_trial().next() {
                Some(held) => format!("nothing to do: {} has not been started yet", held.partition.name),
                None => "nothing to do: what runs is good already".to_owned(),
            },
            (false, Some(_)) => format!("{} is good and selected", names.join(" and ")),
            (false, None) => format!("{} proved good", names.join(" and ")),
        };
        self.switch_after(lock, &view, turn.as_ref(), &table, Effect::Nothing, done)
    }

    /// Goes back to the other slot, if that is good. What is left on trial becomes bad; what was good stays a fallback.
    /// Software goes back with the platform that it came with; alone, where it alone is on trial.
    ///
    /// # Errors
    /// [`Error::NoFallback`]; class Disk and Io.
    pub fn roll_back(&self) -> Result<SwitchReport> {
        self.change("roll-back", |lock| self.roll_back_locked(lock), |report| report.done.clone())
    }

    fn roll_back_locked(&self, lock: &DiskLock) -> Result<SwitchReport> {
        self.repair(lock, &Silent)?;
        let view = self.view()?;
        let trial = |group: Group| view.on_trial().any(|held| held.group == group);
        let groups = if trial(Group::Software) && !trial(Group::Platform) {
            vec![Group::Software]
        } else if self.software_follows(&view) {
            vec![Group::Platform, Group::Software]
        } else {
            vec![Group::Platform]
        };
        let effect = if groups.contains(&Group::Platform) { Effect::Reboot } else { Effect::RestartSoftware };
        let mut table = view.table.clone();
        let (mut names, mut left, mut turn) = (Vec::new(), Vec::new(), None);
        for group in groups {
            let (from, to) = self.way_back(&view, group)?;
            let leave = match from.state {
                SlotState::Good => Leave::Fallback,
                _ => Leave::Bad,
            };
            table = boot::roll_back(&table, &view.slots, group, to.slot, leave, self.policy.boot_flag)?;
            names.push(to.partition.name.clone());
            if group == Group::Platform {
                turn = view.turn(|choice| choice.back(to.slot, leave));
            }
            left.extend((leave == Leave::Bad).then_some(from));
        }
        // The marks first: without its flags and unmarked a failed slot looks like a prepared one, and a power cut in
        // between would have it committed again.
        for held in left {
            self.set_mark(held, Verdict::Bad, "rolled back while on trial")?;
        }
        self.turn(lock, turn.as_ref())?;
        let done = format!("rolled back to {}", names.join(" and "));
        self.switch_after(lock, &view, turn.as_ref(), &table, effect, done)
    }

    /// The slot that is selected in a group and the good one to return to.
    fn way_back<'v>(&self, view: &'v View, group: Group) -> Result<(&'v Held, &'v Held)> {
        let none = |problem: String| Error::NoFallback { problem };
        // A slot on its last try runs and is selected no more. Where nothing is selected, what runs is what is left.
        let trial = view.on_trial().find(|held| held.group == group).map(|held| held.slot);
        let from = trial.or_else(|| view.next(group)).or_else(|| view.running(group));
        let from = from.ok_or_else(|| none(format!("no {group} slot is selected")))?;
        let pair = view.held(group, from).zip(view.held(group, !from));
        let (from, to) = pair.ok_or_else(|| none(format!("the disk has no {group} slots")))?;
        if to.state != SlotState::Good {
            let state = to.state.word();
            return Err(none(format!("{} is {state}, not known to be good", to.partition.name)));
        }
        Ok((from, to))
    }

    /// Whether the other software slot is good and belongs to the platform that a roll-back returns to.
    fn software_follows(&self, view: &View) -> bool {
        let (Ok((_, platform)), Ok((from, to))) =
            (self.way_back(view, Group::Platform), self.way_back(view, Group::Software))
        else {
            return false;
        };
        match (platform.record(), from.record(), to.record()) {
            (Some(platform), Some(from), Some(to)) => {
                to.manifest.same_platform(&platform.manifest)
                    && !from.manifest.same_platform(&platform.manifest)
            }
            _ => false,
        }
    }

    /// Undoes a prepare, or a commit whose slot has not been started: what was prepared is discarded.
    ///
    /// # Errors
    /// [`Error::NothingToCancel`]; class Disk and Io.
    pub fn cancel(&self) -> Result<SwitchReport> {
        self.change("cancel", |lock| self.cancel_locked(lock), |report| report.done.clone())
    }

    fn cancel_locked(&self, lock: &DiskLock) -> Result<SwitchReport> {
        self.repair(lock, &Silent)?;
        let view = self.view()?;
        view.booted()?;
        let mut table = view.table.clone();
        let (mut discard, mut names, mut turn) = (Vec::new(), Vec::new(), None);
        for held in view.all() {
            let selected = held.state == SlotState::Trial
                && (view.running(held.group) != Some(held.slot) || view.awaits_reboot(held));
            if selected {
                let (_, to) = self.way_back(&view, held.group)?;
                if held.group == Group::Platform {
                    turn = view.turn(|choice| choice.back(to.slot, Leave::Bad));
                }
                table = boot::roll_back(
                    &table,
                    &view.slots,
                    held.group,
                    to.slot,
                    Leave::Bad,
                    self.policy.boot_flag,
                )?;
            }
            if selected || matches!(held.state, SlotState::Prepared | SlotState::Torn) {
                discard.push(held);
                names.push(held.partition.name.clone());
            }
        }
        if discard.is_empty() {
            let problem = match view.on_trial().next() {
                Some(held) => format!("{} runs on trial; use 'qstage roll-back'", held.partition.name),
                None => "nothing is prepared".to_owned(),
            };
            return Err(Error::NothingToCancel { problem });
        }
        // The flags first: a slot that is still selected must not lose its record.
        let done = format!("discarded what was prepared in {}", names.join(" and "));
        self.turn(lock, turn.as_ref())?;
        let report = self.switch_after(lock, &view, turn.as_ref(), &table, Effect::Nothing, done)?;
        for held in discard {
            let device = self.machine.open_partition(&held.partition, Access::Exclusive)?;
            slot::discard(&*device, &held.partition.name)?;
        }
        Ok(report)
    }

    /// Writes the verdict on a slot into its mark. A slot without a record of ours has none.
    pub(super) fn set_mark(&self, held: &Held, verdict: Verdict, reason: &str) -> Result<()> {
        let Some(record) = held.record() else { return Ok(()) };
        let mark = Mark { verdict, reason: reason.to_owned() };
        if held.mark().is_some_and(|old| old.verdict == verdict) {
            return Ok(());
        }
        let device = self.machine.open_partition(&held.partition, Access::Record)?;
        record.write_mark(&*device, Some(&mark), &held.partition.name)
    }

    pub(super) fn switch(
        &self,
        lock: &DiskLock,
        view: &View,
        table: &Table,
        effect: Effect,
        done: String,
    ) -> Result<SwitchReport> {
        self.switch_after(lock, view, None, table, effect, done)
    }

    /// The table's part of a switch whose turn, if it has one, has been made.
    fn switch_after(
        &self,
        lock: &DiskLock,
        view: &View,
        turn: Option<&Turn>,
        table: &Table,
        effect: Effect,
        done: String,
    ) -> Result<SwitchReport> {
        let plan = commit::switch(&*self.machine.disk(), lock, &view.loaded, table)?;
        self.report(view, &plan, table, turn, effect, done, false)
    }

    #[allow(clippy::too_many_arguments, reason = "two callers, in this file")]
    fn report(
        &self,
        view: &View,
        plan: &crate::gpt::Plan,
        table: &Table,
        turn: Option<&Turn>,
        effect: Effect,
        done: String,
        dry_run: bool,
    ) -> Result<SwitchReport> {
        let next = match turn.map(|turn| &turn.after).or(view.efi.as_ref()) {
            // Where no entry is ours yet, the firmware has found what runs by itself, and will again.
            Some(choice) => choice.next().or_else(|| view.running(Group::Platform)),
            None => boot::next_boot(table, &view.slots, Group::Platform, self.policy.boot_flag),
        };
        let steps = turn.map(|turn| turn.steps.as_slice()).unwrap_or_default();
        let method = match (plan.is_empty(), steps.is_empty()) {
            (true, true) => "nothing to write".to_owned(),
            (false, true) => plan.method.to_string(),
            (true, false) => EFI_METHOD.to_owned(),
            (false, false) => format!("{EFI_METHOD}; {}", plan.method),
        };
        Ok(SwitchReport {
            done,
            boots_next: next.ok_or_else(|| Error::NothingBoots { disk: self.machine.name().to_owned() })?,
            next_step: effect.word().to_owned(),
            switch_method: method,
            plan: plan.describe().into_iter().chain(steps.iter().map(ToString::to_string)).collect(),
            dry_run,
        })
    }

    /// How the next switch will be written, found by planning one that changes a flag.
    pub(super) fn switch_method(&self, view: &View) -> Result<String> {
        let partition = view.slots.require(Group::Platform, Slot::A)?;
        let attributes = view.table.attributes(partition.number);
        let changed = attributes.with_priority(attributes.priority() ^ 1);
        let table = view.table.with_attributes(partition.number, changed);
        let method = commit::plan(&view.loaded, &table)?.method.to_string();
        Ok(if view.efi.is_some() { format!("{EFI_METHOD}; software: {method}") } else { method })
    }
}

/// How the platform is switched where EFI variables rule.
const EFI_METHOD: &str = "EFI variables BootNext and BootOrder";

/// The turn of a commit: none where no platform is committed, or variables do not rule.
fn try_once(view: &View, effect: Effect) -> Result<Option<Turn>> {
    if effect != Effect::Reboot {
        return Ok(None);
    }
    let slot = view.target(Group::Platform)?;
    Ok(view.turn(|choice| choice.try_once(slot)))
}
