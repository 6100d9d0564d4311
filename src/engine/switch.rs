//! `commit`, `mark-good`, `roll-back`, `cancel`: each is one new table, written in one transaction; where EFI variables
//! rule, with a turn of them beside it (see `firmware`).

use super::checks::needed;
use super::marks::NO_LATE_FALLBACK;
use super::view::{Held, View};
use super::{Engine, epoch};
use crate::boot::{self, BootFlag, Leave};
use crate::commit;
use crate::efi::Turn;
use crate::error::{Error, Result};
use crate::gpt::Table;
use crate::host::{Access, DiskLock};
use crate::progress::Silent;
use crate::slot::{self, Verdict};
use crate::state::{SlotState, SwitchReport};
use crate::units::{Group, Slot};

/// What has to happen for a switch to take effect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Reboot,
    Kexec,
    RestartSoftware,
}

impl Effect {
    const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reboot => "reboot",
            Self::Kexec => "kexec",
            Self::RestartSoftware => "restart-software",
        }
    }
}

/// What a verb changes: the table, and the variables where they rule.
pub(super) struct Switch {
    pub(super) table: Table,
    pub(super) turn: Option<Turn>,
    pub(super) effect: Effect,
    /// What was done, for people.
    pub(super) done: String,
}

impl Switch {
    /// A switch of the table alone.
    pub(super) const fn of(table: Table, effect: Effect, done: String) -> Self {
        Self { table, turn: None, effect, done }
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
            let switch = self.commit_switch(&view)?;
            let plan = commit::plan(&view.loaded, &switch.table)?;
            return self.report(&view, &plan, &switch, true);
        }
        self.change("commit", |lock| self.commit_locked(lock), |report| report.done.clone())
    }

    fn commit_locked(&self, lock: &DiskLock) -> Result<SwitchReport> {
        self.repair(lock, &Silent)?;
        let view = self.view()?;
        let switch = self.commit_switch(&view)?;
        let once = switch.turn.as_ref().and(view.held(Group::Platform, !view.booted()?));
        let once = |held: &Held| once.is_some_and(|once| (once.group, once.slot) == (held.group, held.slot));
        // A slot that is tried again must not keep the reason of the last time; until it is selected it is bad.
        for held in view.all().iter().filter(|held| self.again(held)) {
            let (verdict, reason) =
                if once(held) { (Verdict::Trying, ONCE) } else { (Verdict::Bad, "tried again") };
            self.set_mark(held, verdict, reason)?;
        }
        let report = self.switch(lock, &view, &switch)?;
        // BootNext, then the mark that tells a trial that failed from one that never was. The other way round, a cut between
        // them would call a release failed that nobody has tried; so it leaves one that is tried without being
        // marked, and should that fail, it looks prepared, which it is.
        self.turn(lock, switch.turn.as_ref())?;
        for held in view.all().iter().filter(|held| once(held) && !self.again(held)) {
            self.set_mark(held, Verdict::Trying, ONCE)?;
        }
        Ok(report)
    }

    /// What commit would write. Checks again all that prepare promised: the records of all slots that the bundle
    /// needs are whole and of one manifest, and what they were compared with still runs.
    pub(super) fn commit_switch(&self, view: &View) -> Result<Switch> {
        let not = |problem: String| Err(Error::NotPrepared { problem });
        let booted = view.booted()?;
        let (mut prepared, mut half) = (Vec::new(), Vec::new());
        for group in Group::BOTH {
            let Ok(slot) = view.target(group) else { continue };
            match view.held(group, slot) {
                Some(held) if held.state == SlotState::Prepared || self.again(held) => {
                    prepared.extend(held.record().map(|r| (held, r)))
                }
                // A commit by EFI variables that was cut behind its first half, the table.
                Some(held)
                    if group == Group::Software
                        && view.efi.is_some()
                        && held.state == SlotState::Trial
                        && view.awaits_reboot(held) =>
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
            let failed = view.all().iter().find_map(|held| Some((held, view.failure(held)?)));
            return not(match (view.on_trial().next(), failed) {
                (Some(held), _) => format!("{} is already committed, on trial", held.partition.name),
                (None, Some((held, why))) => {
                    format!("{} has failed its trial ({why}), --retry tries it again", held.partition.name)
                }
                (None, None) => format!("slot {slot} holds nothing that was prepared"),
            });
        };
        let manifest = &first.manifest;
        half.retain(|(_, record)| record.manifest.bytes() == manifest.bytes());
        prepared.extend(half);
        if prepared.iter().any(|(_, record)| record.manifest.bytes() != manifest.bytes()) {
            return not("platform and software were prepared from different bundles".to_owned());
        }
        view.above_floor(manifest, &self.policy)?;
        if let Some(obstacle) = view.running_unknown(&self.policy) {
            return Err(obstacle);
        }
        let voucher = self.voucher(&prepared.iter().map(|(_, record)| *record).collect::<Vec<_>>())?;
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
        let tries = match self.policy.tries {
            _ if self.policy.boot_flag != BootFlag::Priority => String::new(),
            1 => " with one try".to_owned(),
            tries => format!(" with {tries} tries"),
        };
        let from = if platform { format!("{tries}, slot {booted} is the fallback") } else { String::new() };
        let turn = match platform {
            true => view.turn(|choice| choice.try_once(!booted)),
            false => None,
        };
        let names = names.join(" and ");
        let done = format!("{}{voucher} is selected on trial in {names}{from}", manifest.version);
        Ok(Switch { table, turn, effect, done })
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
        let mut view = self.view()?;
        if slot.is_none() && self.settle(lock, &view)? {
            view = self.view()?;
        }
        let candidates: Vec<&Held> = match slot {
            Some(slot) => view.held(Group::Platform, slot).into_iter().collect(),
            None => {
                view.booted()?;
                view.on_trial().filter(|held| !view.awaits_reboot(held)).collect()
            }
        };
        let mut table = view.table.clone();
        let (mut names, mut turn) = (Vec::new(), None);
        for held in &candidates {
            if held.state == SlotState::Torn || held.state == SlotState::Empty {
                let problem = format!("{} holds nothing whole", held.partition.name);
                return Err(Error::NothingToMark { problem });
            }
            if slot.is_some() {
                view.slot_above_floor(held, &self.policy)?;
            }
            table = boot::mark_good(&table, &view.slots, held.group, held.slot, self.policy.boot_flag)?;
            if held.group == Group::Platform {
                turn = view.turn(|choice| choice.keep(held.slot));
            }
            names.push(held.partition.name.clone());
        }
        if names.is_empty() && slot.is_none() {
            turn = view.unlisted().and_then(|slot| view.turn(|choice| choice.keep(slot)));
        }
        let floor = epoch::with(&view, &candidates);
        let late = self.late_fallback(&view, &candidates);
        if let Some(late) = late {
            let flag = self.policy.boot_flag;
            table = boot::make_unbootable(&table, &view.slots, late.group, late.slot, flag)?;
            turn = view.turn(|choice| choice.back(!late.slot, Leave::Bad));
        }
        turn = turn.map(|turn| turn.remember(floor));
        // BootOrder before all: a slot that is good and not in it would be left at the next boot.
        self.turn(lock, turn.as_ref())?;
        // The marks first: under legacy they are the only sign, and they say nothing before the slot is selected. In a trial
        // by kexec or BootNext nothing selects it: marked good before the flags it would look as if it had been left on purpose.
        let unselected = candidates.iter().any(|held| !view.is_selected(held));
        let mark = || {
            for held in &candidates {
                self.set_mark_at(held, Verdict::Good, "marked good", floor)?;
            }
            let marked: Vec<&Held> = candidates.iter().copied().chain(late).collect();
            self.raise_floor(lock, &view, floor, &marked)
        };
        if !unselected {
            mark()?;
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
        if let Some(late) = late {
            // Before its flags go: without them and unmarked it looks like a prepared slot.
            self.set_mark_at(late, Verdict::Bad, NO_LATE_FALLBACK, floor)?;
        }
        let report = self.switch(lock, &view, &Switch { table, turn, effect: Effect::Nothing, done })?;
        if unselected {
            mark()?;
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

    /// The same for whoever found that the trial fails: the reason is kept in the slot that is left, and its bundle is not
    /// tried again without [`Policy::retry`](super::Policy::retry).
    ///
    /// # Errors
    /// As [`roll_back`](Self::roll_back).
    pub fn roll_back_because(&self, reason: Option<&str>) -> Result<SwitchReport> {
        let act = |lock: &DiskLock| self.roll_back_locked(lock, reason, Asked::ByOperator);
        self.change("roll-back", act, |report| report.done.clone())
    }

    pub(super) fn roll_back_locked(
        &self,
        lock: &DiskLock,
        reason: Option<&str>,
        asked: Asked,
    ) -> Result<SwitchReport> {
        self.repair(lock, &Silent)?;
        let view = self.view()?;
        view.check_known()?;
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
            if asked == Asked::ByOperator {
                view.slot_above_floor(to, &self.policy)?;
            }
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
            match reason {
                Some(reason) => self.set_mark(held, Verdict::Failed, reason)?,
                None => self.set_mark(held, Verdict::Bad, "rolled back while on trial")?,
            }
        }
        let because = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let done = format!("rolled back to {}{because}", names.join(" and "));
        self.turn(lock, turn.as_ref())?;
        self.switch(lock, &view, &Switch { table, turn, effect, done })
    }

    /// The slot that is selected in a group and the good one to return to.
    fn way_back<'v>(&self, view: &'v View, group: Group) -> Result<(&'v Held, &'v Held)> {
        let none = |problem: String| Error::NoFallback { problem };
        let from = view.current(group).ok_or_else(|| none(format!("no {group} slot is selected")))?;
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

    /// Undoes a prepare, or a commit whose slot has not been started: what was prepared is discarded. A roll-back to a good
    /// slot that waits for its reboot is undone as well; both slots stay good.
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
        let flag = self.policy.boot_flag;
        let mut table = view.table.clone();
        let (mut discard, mut names, mut turn) = (Vec::new(), Vec::new(), None);
        for held in view.all() {
            let selected = held.state == SlotState::Trial && view.awaits_reboot(held);
            if selected {
                let (_, to) = self.way_back(&view, held.group)?;
                if held.group == Group::Platform {
                    turn = view.turn(|choice| choice.back(to.slot, Leave::Bad));
                }
                table = boot::roll_back(&table, &view.slots, held.group, to.slot, Leave::Bad, flag)?;
            }
            if selected || matches!(held.state, SlotState::Prepared | SlotState::Torn) {
                discard.push(held);
                names.push(held.partition.name.clone());
            }
        }
        let mut stay = Vec::new();
        for group in Group::BOTH {
            let good = |slot: &Slot| view.held(group, *slot).filter(|held| held.state == SlotState::Good);
            let pair = view.next(group).zip(view.running(group)).filter(|(next, running)| next != running);
            if let Some((_, running)) = pair.filter(|(next, _)| good(next).is_some())
                && let Some(held) = good(&running)
            {
                if group == Group::Platform {
                    turn = view.turn(|choice| choice.back(running, Leave::Fallback));
                }
                table = boot::roll_back(&table, &view.slots, group, running, Leave::Fallback, flag)?;
                stay.push(held.partition.name.clone());
            }
        }
        if discard.is_empty() && !stay.is_empty() {
            let done = format!("{} stays selected", stay.join(" and "));
            self.turn(lock, turn.as_ref())?;
            return self.switch(lock, &view, &Switch { table, turn, effect: Effect::Nothing, done });
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
        let report = self.switch(lock, &view, &Switch { table, turn, effect: Effect::Nothing, done })?;
        for held in discard {
            let device = self.machine.open_partition(&held.partition, Access::Exclusive)?;
            slot::discard(&*device, &held.partition.name)?;
        }
        Ok(report)
    }

    /// Writes the table of a switch, and tells of all of it. Its turn is made by the verb, which knows when.
    pub(super) fn switch(&self, lock: &DiskLock, view: &View, switch: &Switch) -> Result<SwitchReport> {
        let plan = commit::switch(&*self.machine.disk(), lock, &view.loaded, &switch.table)?;
        self.report(view, &plan, switch, false)
    }

    fn report(
        &self,
        view: &View,
        plan: &crate::gpt::Plan,
        switch: &Switch,
        dry_run: bool,
    ) -> Result<SwitchReport> {
        let turn = switch.turn.as_ref();
        let next = match turn.map(|turn| &turn.after).or(view.efi.as_ref()) {
            // Where no entry is ours yet, the firmware has found what runs by itself, and will again.
            Some(choice) => choice.next().or_else(|| view.running(Group::Platform)),
            None => boot::next_boot(&switch.table, &view.slots, Group::Platform, self.policy.boot_flag),
        };
        let steps = turn.map(|turn| turn.steps.as_slice()).unwrap_or_default();
        let method = match (plan.is_empty(), steps.is_empty()) {
            (true, true) => "nothing to write".to_owned(),
            (false, true) => plan.method.to_string(),
            (true, false) => EFI_METHOD.to_owned(),
            (false, false) => format!("{EFI_METHOD}; {}", plan.method),
        };
        Ok(SwitchReport {
            done: switch.done.clone(),
            boots_next: next.ok_or_else(|| Error::NothingBoots { disk: self.machine.name().to_owned() })?,
            next_step: switch.effect.word().to_owned(),
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
        // A table that cannot be changed can still be looked at.
        let plan = commit::plan(&view.loaded, &table);
        let method = plan.map_or_else(|error| error.to_string(), |plan| plan.method.to_string());
        Ok(if view.efi.is_some() { format!("{EFI_METHOD}; software: {method}") } else { method })
    }
}

/// How the platform is switched where EFI variables rule.
const EFI_METHOD: &str = "EFI variables BootNext and BootOrder";

/// Who asks for a roll-back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Somebody who wants the other release.
    ByOperator,
    /// A trial that fails: back to what ran before, as the boot loader would do by itself.
    ByTrial,
}

/// What is told of a slot that firmware booted once and that did not come back.
const ONCE: &str = "its one boot is over and it was not marked good: it crashed, hung, or was reset";
