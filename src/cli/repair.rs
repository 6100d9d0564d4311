//! `qstage repair`.

use clap::{Args, ValueEnum};

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Palette};
use crate::engine::RepairReport;
use crate::error::Result;
use crate::gpt::Copy;

/// The copy that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// The one at the start of the disk
    Primary,
    /// The one at the end of the disk
    Backup,
}

/// Make both copies of the partition table valid
///
/// Without --from only a damage beyond doubt is repaired, as every verb that changes the
/// disk does by itself: a torn backup from a valid primary, a torn primary from a backup
/// that evidently belongs to this disk. With --from the other copy is made from the named
/// one, whatever the other was, even the table of another disk.
///
/// Only blocks that belong to the table are written. If other data lies there, such as a
/// boot loader, the verb refuses.
#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    /// The copy to use
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
