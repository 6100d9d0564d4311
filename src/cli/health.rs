//! `qstage health`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{self, Format};
use super::table;
use crate::error::Result;
use crate::host::health;

/// Run the health checks of this machine
///
/// Each executable file of the directory must end with 0 in its time, in the order of
/// their names; the first that fails is named, and the exit code is 9. To be run
/// before 'qstage mark-good', which then ends the trial of a new slot.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Directory of the checks
    #[arg(long, value_name = "DIR", default_value = "/etc/qstage/health.d")]
    dir: PathBuf,

    /// Seconds that each check may take
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,

    /// Print one JSON array
    #[arg(long)]
    pub(super) json: bool,
}

impl HealthArgs {
    pub(super) fn run(&self) -> Result<()> {
        let passed = health::run_checks(&self.dir, Duration::from_secs(self.timeout.into()))?;
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
}
