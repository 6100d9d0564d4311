//! A verb as a value: the acts that it consists of, in their order.
//!
//! The order of the writes is the core of the product. So it is built by pure functions of the view and the policy (the
//! other files of this folder), and run by one interpreter (`run`); nothing else in the engine writes marks, tables,
//! variables or records. A value can be printed (`--dry-run`, SAFETY.md), cut after each act and mutated (tests/power/orders.rs,
//! tests/power/mutants.rs).
//!
//! The rules that all orders follow:
//!
//! - **A mark that rules a slot out comes before its flags go**: whole, without flags and without a mark it would look prepared.
//! - **A record goes last**: a slot that flags or UEFI let boot must have a valid record.
//! - **Variables before the table**, but for `commit`: a software slot whose platform does not run is not started.
//! - **A mark that makes a slot good comes before the flags**, which say nothing of it before they select it; but where
//!   nothing selects it (a trial by kexec or BootNext) it comes after them, or it would look as if it had been left on purpose.

mod back;
mod commit;
mod good;
mod install;
mod print;
mod run;
mod withdraw;

pub(super) use back::{cancellation, settle};
pub(super) use commit::{by_kexec, commit, kexec_allowed, not_started};
pub(crate) use install::{forget, install, vacate};
pub(super) use print::{EFI_METHOD, Printed};
pub(crate) use run::Site;

pub use super::act::Act;
use super::view::{SlotView, View};
use crate::boot::{BootFlag, Flags};
use crate::efi::VariablePlan;
use crate::error::{Error, Result};
use crate::slot::{Mark, Verdict};
use crate::units::{Group, Slot};

/// A verb that changes what boots or the state of a slot, with its arguments.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Selects what is prepared, on trial.
    Commit,
    /// The same by marks alone: kexec starts it.
    CommitByKexec,
    /// Marks what runs on trial as good, or that platform slot.
    MarkGood(Option<Slot>),
    /// Goes back to the other slot, for that reason.
    RollBack(Option<&'a str>),
    /// Undoes a prepare, or a commit before its reboot.
    Cancel,
    /// Records the reason why the trial of the running slot fails; `None`: the trial is over.
    TrialFailed(Option<&'a str>),
    /// Counts one start of a software slot.
    SoftwareTry(Slot),
    /// The container of that software slot is healthy.
    SoftwareGood(Slot),
    /// It is not, for that reason.
    SoftwareBack(Slot, &'a str),
    /// Makes these slots unbootable before a prepare writes them.
    Withdraw(&'a [(Group, Slot)]),
    /// Makes the platform slot that does not run void, for measurements.
    Lend,
}

/// What has to happen for a change to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Reboot,
    Kexec,
    RestartSoftware,
}

impl Effect {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reboot => "reboot",
            Self::Kexec => "kexec",
            Self::RestartSoftware => "restart-software",
        }
    }
}

/// What a verb does, in which order. Acts that would change nothing are not among them.
#[derive(Debug, Clone)]
pub struct Transition {
    pub(super) acts: Vec<Act>,
    pub(super) effect: Effect,
    /// What was done, for people.
    pub(super) done: String,
}

impl Transition {
    /// One without an act.
    pub(super) const fn nothing(effect: Effect, done: String) -> Self {
        Self { acts: Vec::new(), effect, done }
    }

    /// The acts.
    pub fn acts(&self) -> &[Act] {
        &self.acts
    }

    fn then(mut self, act: impl IntoIterator<Item = Act>) -> Self {
        self.acts.extend(act);
        self
    }
}

/// The transition of `change`, with the record of a fallback before it if one is due.
pub(super) fn whole(change: &Change<'_>, view: &View) -> Result<Transition> {
    let settled = if matches!(change, Change::MarkGood(None)) { settle(view)? } else { None };
    let Some(settled) = settled else { return of(change, view) };
    let then = of(change, &view.after(&settled.acts)?)?;
    Ok(Transition { acts: [settled.acts, then.acts].concat(), ..then })
}

/// The transition of `change` from the state in `view`: the one place that decides it.
pub(super) fn of(change: &Change<'_>, view: &View) -> Result<Transition> {
    match *change {
        Change::Commit => commit(view),
        Change::CommitByKexec => Ok(by_kexec(view)?.1),
        Change::MarkGood(slot) => good::mark_good(view, slot),
        Change::RollBack(reason) => back::roll_back(view, reason, back::Requester::ByOperator),
        Change::Cancel => back::cancel(view),
        Change::TrialFailed(reason) => back::trial_failed(view, reason),
        Change::SoftwareTry(slot) => good::software_try(view, slot),
        Change::SoftwareGood(slot) => good::software_good(view, slot),
        Change::SoftwareBack(slot, reason) => back::software_back(view, slot, reason),
        Change::Withdraw(targets) => withdraw::withdraw(view, targets),
        Change::Lend => withdraw::lend(view),
    }
}

/// The verdict on a slot, with the epoch that its mark remembers. A slot without a record of ours has no mark, and one that
/// says so already keeps its reason.
fn mark(held: &SlotView, verdict: Verdict, reason: &str) -> Option<Act> {
    mark_at(held, verdict, reason, 0)
}

/// The same, with an epoch that has been good on this machine.
fn mark_at(held: &SlotView, verdict: Verdict, reason: &str, epoch: u64) -> Option<Act> {
    held.record()?;
    let epoch = epoch.max(held.content.epoch());
    let said = held.mark().is_some_and(|old| old.verdict == verdict && old.epoch == epoch);
    let mark = Mark { epoch, ..Mark::new(verdict, reason) };
    (!said).then_some(Act::Mark(held.group, held.slot, Some(mark)))
}

impl View {
    /// The boot flags as they are.
    pub(super) fn flags(&self) -> Flags<'_> {
        Flags::new(self.table.clone(), &self.slots, self.policy.boot_flag)
    }

    /// The transaction that brings these flags onto the disk, if they are others.
    fn table_act(&self, flags: Flags<'_>) -> Option<Act> {
        (*flags.table() != self.table).then(|| Act::Table(flags.into_table()))
    }
}

/// A turn as an act, where there is something to be set.
fn variables(turn: Option<VariablePlan>) -> Option<Act> {
    turn.filter(|turn| !turn.steps.is_empty()).map(Act::Variables)
}

/// The software slot, or why there is none.
pub(super) fn software(view: &View, slot: Slot) -> Result<&SlotView> {
    view.held(Group::Software, slot).ok_or_else(|| no_image(view, slot))
}

pub(super) fn no_image(view: &View, slot: Slot) -> Error {
    let name = Group::Software.partition_name(slot);
    let problem = match view.held(Group::Software, slot) {
        Some(held) => format!("{name} is {}", held.state.word()),
        None => format!("the disk has no {name}"),
    };
    Error::NoSoftware { problem }
}

/// Whether the flags of the platform count tries, so that a trial ends by itself.
fn counts(view: &View) -> bool {
    view.policy.boot_flag == BootFlag::Priority
}
