//! The verbs that change what boots: `commit`, `mark-good`, `roll-back`, `cancel`.

use clap::{Args, ValueEnum};

use super::answers::answers;
use super::args::{EpochArgs, MachineArgs, TrustArgs};
use super::container;
use super::machine::{self, Host};
use super::output::{self, Format, Palette};
use crate::config::Settings;
use crate::engine::{Change, CommitMethod, Engine, Policy, TrialStart};
use crate::error::{Error, Result};
use crate::state::SwitchReport;
use crate::units::Slot;

/// Start of a new slot on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trial {
    /// At the next reboot
    Reboot,
    /// Now, by kexec
    Kexec,
}

/// Select the prepared slot for the next boot, on trial
///
/// One write of one sector switches all groups at once; a power cut leaves the old or
/// the new state, never a mixture. The new slot then has a few tries to boot and to be
/// marked good; if it is not, the old one boots again by itself.
///
/// If a container is configured and only the software changed, the container is swapped
/// at once, and swapped back if the new one is not healthy.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    /// Print the writes and barriers of the switch, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Try a slot again that has failed its trial, as it is
    #[arg(long)]
    retry: bool,

    /// How the new slot starts on trial
    ///
    /// kexec is for boot loaders with a single flag and no counter (--boot-flag legacy):
    /// the flag stays on the running slot, the kernel of the new slot is started without
    /// the loader, and 'qstage mark-good' there moves the flag. Until then every reset
    /// boots the old slot. See the table kexec of the configuration.
    #[arg(long, value_name = "HOW", default_value = "reboot")]
    trial: Trial,

    /// Do not swap the container: only select the slot
    #[arg(long)]
    no_restart: bool,

    #[command(flatten)]
    epoch: EpochArgs,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl CommitArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let cancel = machine::defer_signals()?;
        // A dry run has no right to write.
        let open = if self.dry_run { Host::open_to_look } else { Host::open_to_change };
        let host = open(&settings)?;
        let engine = host.engine(self.policy(&settings)).cancelled_by(&cancel);
        let container = settings.container.as_ref().filter(|_| !self.no_restart);
        let start = match self.trial {
            Trial::Reboot => TrialStart::Reboot,
            Trial::Kexec => TrialStart::Kexec,
        };
        // An obstacle is reported and recorded by the method.
        let prepared = container.and_then(|_| engine.prepared_type().ok());
        let method = CommitMethod::new(start, container.is_some(), prepared);
        let report = match (method, container) {
            (CommitMethod::Swap, Some(config)) if self.dry_run => container::swap_dry_run(&engine, config)?,
            _ if self.dry_run => engine.dry_run(&method.change())?,
            (CommitMethod::Swap, Some(config)) => return container::swap(&engine, config, self.json),
            (CommitMethod::Kexec, _) => engine.commit_by_kexec(&settings.kexec)?,
            (CommitMethod::Plain | CommitMethod::Swap, _) => engine.commit(false)?,
        };
        drop(host);
        output::outcome(Format::object_if(self.json), &report, human)
    }

    fn policy(&self, settings: &Settings) -> Policy {
        Policy {
            retry: self.retry,
            allow_epoch_rollback: self.epoch.allow_epoch_rollback,
            ..self.trust.policy(settings)
        }
    }
}

/// Mark the running slot good: the trial has passed
///
/// To be run by the health check of the new system. Until then the old slot is the
/// fallback and cannot be overwritten. Software that was never started stays on trial.
#[derive(Debug, Args)]
pub(super) struct MarkGoodArgs {
    /// Slot to mark: a or b [default: the one that runs]
    #[arg(long, value_name = "SLOT")]
    slot: Option<Slot>,

    /// Print the writes and barriers of the switch, and write nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    epoch: EpochArgs,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl MarkGoodArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        if settings.awaits_verdict() && !self.dry_run {
            return Err(Error::ClusterVerdict);
        }
        let dry = self.dry_run.then_some(Change::MarkGood(self.slot));
        switch(&settings, self.epoch.policy(&settings), self.json, dry, |engine| engine.mark_good(self.slot))
    }
}

/// Go back to the other slot, if it is still good
///
/// Selects the slot that ran before; the slot that is left is not selected again. A
/// platform needs a reboot. A release whose epoch is lower than the highest that was ever
/// good on this machine is refused.
#[derive(Debug, Args)]
pub(super) struct RollBackArgs {
    /// Reason, recorded in the slot that is left: its bundle is not retried by itself
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Print the writes and barriers of the switch, and write nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    epoch: EpochArgs,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl RollBackArgs {
    pub(super) fn run(&self) -> Result<()> {
        let (settings, reason) = (self.machine.settings()?, self.reason.as_deref());
        let dry = self.dry_run.then_some(Change::RollBack(reason));
        switch(&settings, self.epoch.policy(&settings), self.json, dry, |engine| {
            engine.roll_back_because(reason)
        })
    }
}

/// Discard a prepared slot, or undo a commit before its reboot
///
/// The running slot stays selected. The prepared slot is invalidated; it has to be
/// prepared again. A roll-back from a good slot is undone too, before its reboot.
#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Print the writes and barriers of the switch, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl CancelArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        answers(&settings)?;
        let dry = self.dry_run.then_some(Change::Cancel);
        switch(&settings, settings.policy(), self.json, dry, |engine| engine.cancel())
    }
}

impl EpochArgs {
    fn policy(&self, settings: &Settings) -> Policy {
        Policy { allow_epoch_rollback: self.allow_epoch_rollback, ..settings.policy() }
    }
}

/// Runs a verb. A `dry` run opens the disk read-only, so it cannot write, whatever the engine does.
fn switch(
    settings: &Settings,
    policy: Policy,
    json: bool,
    dry: Option<Change<'_>>,
    verb: impl FnOnce(&Engine<'_>) -> Result<SwitchReport>,
) -> Result<()> {
    let open = if dry.is_some() { Host::open_to_look } else { Host::open_to_change };
    let host = open(settings)?;
    let cancel = machine::defer_signals()?;
    let engine = host.engine(policy).cancelled_by(&cancel);
    let report = match dry {
        Some(change) => engine.dry_run(&change)?,
        None => verb(&engine)?,
    };
    // Released before the report, since its reader may be slow.
    drop(host);
    output::outcome(Format::object_if(json), &report, human)
}

fn human(report: &SwitchReport, palette: Palette) -> String {
    if report.dry_run {
        return output::planned(&format!("{} ({})", report.done, report.switch_method), &report.plan);
    }
    let next = match report.next_step.as_str() {
        "nothing" => String::new(),
        step => format!("; next step: {}", palette.warn(step)),
    };
    format!("{}; slot {} boots next{next} ({})\n", report.done, report.boots_next, report.switch_method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_does_not_claim_to_have_done_anything() {
        let mut report = SwitchReport {
            done: "slot b selected on trial".into(),
            boots_next: Slot::B,
            next_step: "reboot".into(),
            switch_method: "second array".into(),
            plan: vec!["write array at LBA 64".into(), "barrier".into()],
            dry_run: false,
        };
        assert_eq!(
            human(&report, Palette::PLAIN),
            "slot b selected on trial; slot b boots next; next step: reboot (second array)\n"
        );
        report.dry_run = true;
        assert_eq!(
            human(&report, Palette::PLAIN),
            "slot b selected on trial (second array); the plan, nothing was written:\n  \
             write array at LBA 64\n  barrier\n"
        );
    }
}
