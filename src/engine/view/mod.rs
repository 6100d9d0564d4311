//! What is on the disk, read once at the beginning of a verb.

mod read;

use super::Policy;
use super::act::Act;
use crate::boot::{self, BootFlag, Companion, Slots};
use crate::commit::{self, Loaded};
use crate::efi::EfiBoot;
use crate::error::{Error, Result};
use crate::gpt::{Attributes, Partition, Table};
use crate::slot::{Content, Mark, Record, Verdict};
use crate::state::{KnownBy, SlotFacts, SlotState, slot_state};
use crate::units::{Group, Slot};

/// Table, slots and their records.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) loaded: Loaded,
    pub(super) table: Table,
    pub(super) slots: Slots,
    /// What the firmware chooses, where it rules.
    pub(super) efi: Option<EfiBoot>,
    pub(super) policy: Policy,
    machine: Seen,
    /// The platform slot that runs; of an image file the one that boots next. `None`: none does, or
    /// [`unknown`](Seen::unknown).
    booted: Option<Slot>,
    /// The software slot that runs on its last try, so that its flags do not select it any more.
    last_try: Option<Slot>,
    /// The software slot beside the platform that runs, where that is not the one that the flags select.
    beside: Option<Slot>,
    holds: Vec<SlotView>,
}

/// What the machine knows beside the disk.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    /// The platform slot that the caller, the kernel or the firmware names as the one that runs.
    booted: Option<(Slot, KnownBy)>,
    /// On a live machine: why it is not known which slot runs.
    unknown: Option<String>,
    /// A disk image, or the disk of another machine: what would boot is taken for what runs.
    is_image: bool,
    /// A kernel is loaded for kexec.
    kexec: bool,
    /// The software slot that is used although its tries are spent.
    last_try: Option<Slot>,
    /// The software slot on trial that is in use while the other one is not. `None`: there is none, or it is
    /// unknown.
    used_alone: Option<Slot>,
    /// Whether software slots a and b are in use while one of them is on trial; `None`: unknown.
    software_used: [Option<bool>; 2],
}

/// What one slot holds.
#[derive(Debug, Clone)]
pub(super) struct SlotView {
    pub(super) group: Group,
    pub(super) slot: Slot,
    pub(super) partition: Partition,
    pub(super) content: Content,
    pub(super) attributes: Attributes,
    pub(super) state: SlotState,
    /// Whether its flags still select it beside a platform that has fallen back.
    pub(super) fell: bool,
}

impl SlotView {
    pub(super) fn record(&self) -> Option<&Record> {
        self.content.record()
    }

    pub(super) fn mark(&self) -> Option<&Mark> {
        match &self.content {
            Content::Whole(_, mark) => mark.as_ref(),
            Content::Torn { .. } | Content::Nothing { .. } => None,
        }
    }

    /// Whether it would look prepared, which it is not, if it lost its flags: it is whole, and no mark rules it out.
    pub(super) fn is_unjudged(&self) -> bool {
        let marked = self.mark().is_some_and(|mark| mark.verdict != Verdict::Good);
        self.record().is_some() && self.state != SlotState::Prepared && !marked
    }
}

impl View {
    /// Refuses the flag that rules on a partition that is no slot.
    ///
    /// # Errors
    /// [`Error::ForeignBootFlag`].
    pub(super) fn check_foreign_flags(&self) -> Result<()> {
        self.slots.check_foreign_flags(&self.table, self.policy.boot_flag, &self.machine.name)
    }

    /// What is seen once these acts are done.
    ///
    /// # Errors
    /// As [`commit::plan`].
    pub(super) fn after(&self, acts: &[Act]) -> Result<Self> {
        let mut view = self.clone();
        for act in acts {
            match act {
                Act::Table(table) => {
                    view.loaded = view.loaded.after(&commit::plan(&view.loaded, table)?);
                    view.table = table.clone();
                }
                Act::Variables(turn) => view.efi = Some(turn.after.clone()),
                Act::Mark(group, slot, mark) => {
                    if let Some(Content::Whole(_, old)) = view.content(*group, *slot) {
                        old.clone_from(mark);
                    }
                }
                Act::Void(group, slot) => {
                    if let Some(content) = view.content(*group, *slot) {
                        let (why, epoch) = ("there is no footer".to_owned(), content.epoch());
                        *content = Content::Nothing { why, traces: epoch > 0, epoch };
                    }
                }
            }
        }
        Ok(view.concluded())
    }

    fn content(&mut self, group: Group, slot: Slot) -> Option<&mut Content> {
        let held = self.holds.iter_mut().find(|held| held.group == group && held.slot == slot);
        held.map(|held| &mut held.content)
    }

    /// What follows from table, variables and records: which slots run, and the state of each.
    pub(super) fn concluded(mut self) -> Self {
        self.last_try = self.machine.last_try.filter(|slot| {
            let flags = self.flags().of(Group::Software, *slot);
            flags.is_some_and(is_spent)
        });
        self.beside = None;
        // Disk images, disks of another machine: what would boot.
        let next = if self.machine.is_image { self.next(Group::Platform) } else { None };
        self.booted = self.machine.booted.map(|(slot, _)| slot).or(next);
        let mut holds = std::mem::take(&mut self.holds);
        for held in &mut holds {
            held.attributes = self.table.attributes(held.partition.number);
            held.fell = false;
            held.state = slot_state(&SlotFacts {
                attributes: held.attributes,
                // No loader reads the software group: it goes by priority always.
                flag: if held.group == Group::Platform { self.policy.boot_flag } else { BootFlag::Priority },
                chosen: self.machine.kexec || held.group == Group::Platform && self.is_chosen(held.slot),
                content: &held.content,
                running: self.in_service(held.group) == Some(held.slot),
            });
        }
        self.holds = holds;
        self.follow_platform();
        self
    }

    /// Software goes where its platform goes: what was flipped together with a platform that fell back has fallen back as
    /// well, and what came with a platform whose trial has no flag is on trial with it.
    fn follow_platform(&mut self) {
        let flagged = self.next(Group::Software);
        let platform = |slot: Slot| self.held(Group::Platform, slot);
        let Some(running) = self.booted.and_then(platform) else { return };
        let unflagged = self.is_unflagged_trial(running);
        let beside = self.software_of(running);
        let left = platform(!running.slot).is_some_and(|held| held.state == SlotState::Bad);
        self.beside = beside.filter(|_| beside != flagged);
        let Some(beside) = self.beside else { return };
        for held in self.holds.iter_mut().filter(|held| held.group == Group::Software) {
            if held.slot == beside && unflagged {
                held.state = SlotState::Trial;
            } else if held.slot != beside && held.state == SlotState::Trial && left {
                (held.state, held.fell) = (SlotState::Bad, true);
            }
        }
    }

    /// Whether a platform slot runs on a trial that has no flag, by kexec or BootNext.
    fn is_unflagged_trial(&self, platform: &SlotView) -> bool {
        platform.state == SlotState::Trial && !self.is_selected(platform)
    }

    /// The software slot that belongs beside a platform.
    fn software_of(&self, platform: &SlotView) -> Option<Slot> {
        let unflagged = self.is_unflagged_trial(platform);
        let trying = |held: &SlotView| held.mark().is_some_and(|mark| mark.verdict == Verdict::Trying);
        boot::software_beside(self.next(Group::Software), |slot| {
            let held = self.held(Group::Software, slot);
            Companion {
                fits: held
                    .and_then(SlotView::record)
                    .zip(platform.record())
                    .map(|(s, p)| s.manifest.runs_on(&p.manifest)),
                usable: held.is_some_and(|held| held.state == SlotState::Good || unflagged && trying(held)),
            }
        })
    }

    /// What a slot holds; `None` where the disk has no such slot.
    pub(super) fn held(&self, group: Group, slot: Slot) -> Option<&SlotView> {
        self.holds.iter().find(|held| held.group == group && held.slot == slot)
    }

    /// What each slot holds, to be changed in a test.
    #[cfg(test)]
    pub(super) fn holds_mut(&mut self) -> &mut [SlotView] {
        &mut self.holds
    }

    /// Sets the running platform and the use of the software, in a test.
    #[cfg(test)]
    pub(super) fn imagine(&mut self, booted: Option<Slot>, is_image: bool, used_alone: Option<Slot>) {
        self.machine.booted = booted.map(|slot| (slot, KnownBy::Kernel));
        self.machine.unknown =
            (booted.is_none() && !is_image).then(|| "neither the kernel nor a flag shows it".to_owned());
        (self.machine.is_image, self.machine.used_alone) = (is_image, used_alone);
        self.machine.last_try = used_alone;
    }

    /// All slots: platform a, b, software a, b.
    pub(super) fn all(&self) -> &[SlotView] {
        &self.holds
    }

    /// The slot of a group that boots next by its flags, or by the firmware's choice.
    pub(super) fn next(&self, group: Group) -> Option<Slot> {
        match &self.efi {
            Some(choice) if group == Group::Platform => choice.next(),
            _ => self.flags().next(group),
        }
    }

    /// The slot of a group that the next boot starts: of the software the one that belongs beside the platform that boots
    /// next. Its flags alone would name the one whose platform has fallen back.
    pub(super) fn boots_next(&self, group: Group) -> Option<Slot> {
        let next = self.next(group);
        if group == Group::Platform {
            return next;
        }
        // Where no flag selects a platform, the machine comes up with what it runs.
        let platform = self.next(Group::Platform).or(self.booted);
        match platform.and_then(|slot| self.held(Group::Platform, slot)) {
            Some(platform) if Some(platform.slot) != self.booted => self.software_of(platform),
            _ => self.beside.or(next),
        }
    }

    /// The slot of a group that is in service: what verbs compare with and never write, and what a start starts. Of the
    /// platform the booted one (of a disk image the one that boots next); of the software the one that belongs beside it, or the
    /// one that is on its last try. Whether it runs already is for [`runs`](Self::runs) to say.
    pub(super) fn in_service(&self, group: Group) -> Option<Slot> {
        match group {
            Group::Platform => self.booted,
            Group::Software => self.last_try.or(self.beside).or_else(|| self.next(group)),
        }
    }

    /// The platform slot that runs.
    pub(super) fn booted(&self) -> Result<Slot> {
        self.check_known()?;
        self.booted.ok_or_else(|| Error::NothingBoots { disk: self.machine.name.clone() })
    }

    /// Refuses a live machine whose running slot is unknown: the flags alone could lead to its being overwritten.
    pub(super) fn check_known(&self) -> Result<()> {
        match self.machine.unknown.clone() {
            Some(problem) => Err(Error::BootedUnknown { disk: self.machine.name.clone(), problem }),
            None => Ok(()),
        }
    }

    /// Why it is not known what runs, where this is a live machine.
    pub(super) fn unknown(&self) -> Option<&str> {
        self.machine.unknown.as_deref()
    }

    /// The running platform slot as named by the caller, the kernel or the UEFI, with the evidence.
    pub(super) fn evident(&self) -> Option<(Slot, KnownBy)> {
        self.machine.booted
    }

    /// The software slot that was on trial and in use when the machine was asked, while the other one was not.
    pub(super) fn in_use_alone(&self) -> Option<Slot> {
        self.machine.used_alone
    }

    /// Whether the caller has started the software of that slot.
    pub(super) fn is_started(&self, held: &SlotView) -> bool {
        let release = held.record().map(|record| record.manifest.digest());
        release.is_some() && release == self.policy.software_started
    }

    /// Whether software on trial is known not to have been started: its slot is not in use, although the other one is, or
    /// although software that runs is in use here.
    pub(super) fn is_unstarted(&self, held: &SlotView) -> bool {
        let [a, b] = self.machine.software_used;
        let (own, other) = if held.slot == Slot::A { (a, b) } else { (b, a) };
        let shown = other == Some(true) || self.policy.container;
        held.group == Group::Software && own == Some(false) && shown && !self.is_started(held)
    }

    /// The slot of a group that an upgrade writes: the one that does not run.
    pub(super) fn target(&self, group: Group) -> Result<Slot> {
        match group {
            Group::Platform => Ok(!self.booted()?),
            // Before the first software image is installed none is selected.
            Group::Software => Ok(self.in_service(group).map_or(Slot::A, |slot| !slot)),
        }
    }

    /// The slot of a group that roll-back starts from: what runs on trial, even if nothing selects it any more (on its last
    /// try, by kexec or by BootNext); else what is selected; else what runs.
    pub(super) fn current(&self, group: Group) -> Option<Slot> {
        let running = self.in_service(group);
        let trial = |slot: &Slot| self.held(group, *slot).is_some_and(|held| held.state == SlotState::Trial);
        running.filter(trial).or_else(|| self.next(group)).or(running)
    }

    /// Whether another platform than the running one was selected and waits for its reboot. While a slot runs on trial of
    /// one boot, the next boot is to be that of the other one, and nothing waits.
    pub(super) fn pending(&self) -> bool {
        self.current(Group::Platform) != self.in_service(Group::Platform)
    }

    /// Whether a slot that is selected waits for a reboot: platform that does not run; software beside another platform,
    /// whatever its flags say.
    pub(super) fn awaits_reboot(&self, held: &SlotView) -> bool {
        self.in_service(held.group) != Some(held.slot) || held.group == Group::Software && self.pending()
    }

    /// Whether a slot that has failed its trial may be tried once more.
    pub(super) fn again(&self, held: &SlotView) -> bool {
        self.policy.retry && held.state == SlotState::Bad && held.record().is_some()
    }

    /// Whether the flags of its group, or the firmware, select a slot, or could.
    pub(super) fn is_selected(&self, held: &SlotView) -> bool {
        match (held.group, self.policy.boot_flag) {
            (Group::Platform, BootFlag::Legacy) => held.attributes.legacy_bootable(),
            (Group::Platform, BootFlag::Efi) => self.is_chosen(held.slot),
            _ => held.attributes.priority() > 0,
        }
    }

    /// Whether a slot was selected, used up its tries or its one boot, was not marked good, and that has not been recorded.
    pub(super) fn spent(&self, held: &SlotView) -> bool {
        let counted = held.group == Group::Software || self.policy.boot_flag == BootFlag::Priority;
        let tried = counted && held.attributes.priority() > 0;
        let once = held.mark().is_some_and(|mark| mark.verdict == Verdict::Trying);
        held.state == SlotState::Bad && !held.fell && (tried || once)
    }

    /// The record of what is in service in a group.
    pub(super) fn record_in_service(&self, group: Group) -> Option<&Record> {
        self.held(group, self.in_service(group)?)?.record()
    }

    /// The slots that are selected but not marked good.
    pub(super) fn on_trial(&self) -> impl Iterator<Item = &SlotView> {
        self.holds.iter().filter(|held| held.state == SlotState::Trial)
    }
}

/// Whether the flags of a software slot select it, and its last try is used up.
fn is_spent(flags: Attributes) -> bool {
    flags.priority() > 1 && flags.tries() == 0 && !flags.successful()
}
