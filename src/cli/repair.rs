//! `qstage repair`.

use clap::{Args, ValueEnum};

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Palette};
use crate::engine::RepairReport;
use crate::error::Result;
use crate::gpt::Copy;

/// Which copy is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// The one at the start of the disk
    Primary,
    /// The one at the end of the disk
    Backup,
}

/// Make both copies of the partition table sound
///
/// Without --from only what is beyond doubt is repaired, as every verb that changes the
/// disk does by itself: a torn backup from a valid primary, a torn primary from a backup
/// that is shown to be this disk's. With --from the other copy is made from the one that
/// is named, whatever the other was, a stranger's included.
///
/// Only blocks that belong to the table are written. What else lies there, a boot loader
/// for example, makes the verb refuse.
#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    /// The copy to believe
    #[arg(long, value_name = "COPY")]
    from: Option<From>,

    /// Print the writes and barriers, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl RepairArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let host =
            if self.dry_run { Host::open_to_look(&settings)? } else { Host::open_to_change(&settings)? };
        let from = self.from.map(|from| match from {
            From::Primary => Copy::Primary,
            From::Backup => Copy::Backup,
        });
        let report = host.engine(settings.policy()).repair_table(from, self.dry_run)?;
        output::result(Format::object_if(self.json), &report, human)
    }
}

fn human(report: &RepairReport, _: Palette) -> String {
    if report.dry_run && !report.plan.is_empty() {
        return output::planned(&format!("found: {}", report.found), &report.plan);
    }
    format!("{}\n", report.done)
}
