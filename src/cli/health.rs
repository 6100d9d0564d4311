//! `qstage health`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format};
use super::{table, values};
use crate::config::Settings;
use crate::engine::Change;
use crate::error::{Error, Result};
use crate::host::health;
use crate::state::SwitchReport;

/// Run the health checks of this machine
///
/// Runs the executable files of the directory in the order of their names; each must end
/// with 0 within its time. The first that fails is named, and the exit code is 9. To be
/// run before 'qstage mark-good', which then ends the trial of a new slot. A file that
/// cannot be executed is named and not run, but for README. A directory that is missing
/// is an error.
///
/// If the running slot is on trial, the reason of a failure is written into the slot, so
/// that the slot that boots next can report it.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Directory of the checks
    #[arg(long, value_name = "DIR", default_value = health::DEFAULT_DIR)]
    dir: PathBuf,

    /// Seconds that each check may take
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = values::seconds)]
    timeout: u32,

    /// Run no check: record a failed trial of the running slot; 5 if there is none
    ///
    /// For a unit that then reboots the machine; exit code 5 if no slot is on trial. The
    /// reason that a check of this boot recorded stays. With --boot-flag legacy the slot
    /// is rolled back as well.
    #[arg(long, conflicts_with_all = ["dir", "timeout"])]
    trial_failed: bool,

    /// Print what would be written into the slot, and write nothing
    ///
    /// The checks run all the same.
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON array
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl HealthArgs {
    pub(super) fn run(&self) -> Result<()> {
        if self.trial_failed && self.dry_run {
            let settings = self.machine.settings()?;
            return output::dry_run(Format::object_if(self.json), &failure_dry_run(&settings, None)?);
        }
        if self.trial_failed {
            let told = trial_failed(&self.machine.settings()?, None)?;
            return output::print(&format!("{told}\n"));
        }
        let passed = health::run_checks(&self.dir, Duration::from_secs(self.timeout.into()));
        let health::Checks { passed, left_out } = passed.inspect_err(|error| self.keep(error))?;
        for name in left_out {
            output::note(&format!("{name} cannot be executed and was not asked (chmod +x)"));
        }
        output::result(Format::object_if(self.json), &passed, |passed, palette| {
            if passed.is_empty() {
                return format!("no checks in {}\n", self.dir.display());
            }
            let rows = passed
                .iter()
                .map(|one| vec![one.check.as_str().into(), format!("{:.2} s", one.seconds).into()]);
            table::render(&["CHECK", ">PASSED IN"], rows.collect(), palette)
        })
    }

    /// Records a failure in the slot if it is on trial. A failure to record it does not change the result.
    fn keep(&self, failure: &Error) {
        let reason = failure.to_string();
        let kept = self.machine.settings().and_then(|settings| match settings.disk {
            Some(_) if self.dry_run => failure_dry_run(&settings, Some(&reason)).map(|report| {
                output::note(output::planned(&report.done, &report.plan).trim_end());
                report.done
            }),
            Some(_) => trial_failed(&settings, Some(&reason)),
            None => Err(Error::NoTrial),
        });
        match kept {
            Ok(_) | Err(Error::NoTrial) => {}
            Err(error) => output::note(&format!("the failure is not kept in the slot: {error}")),
        }
    }
}

fn trial_failed(settings: &Settings, reason: Option<&str>) -> Result<String> {
    Host::open_to_change(settings)?.engine(settings.policy()).trial_failed(reason)
}

fn failure_dry_run(settings: &Settings, reason: Option<&str>) -> Result<SwitchReport> {
    Host::open_to_look(settings)?.engine(settings.policy()).dry_run(&Change::TrialFailed(reason))
}
