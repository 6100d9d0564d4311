//! `qstage delta`.

use std::path::PathBuf;

use clap::Args;

use super::args::JobsArgs;
use super::destination::BundleOutput;
use super::machine;
use super::output::{Format, Palette};
use super::progress::Reporter;
use crate::delta::{self, DeltaReport, DeltaSpec};
use crate::error::Result;
use crate::units::size;

/// Make a delta: a small file that replaces a bundle where OLD runs
///
/// On a machine that runs OLD, 'qstage prepare' accepts it like the bundle NEW, whose
/// signed manifest and index it contains. It needs no key and no trust: every
/// frame is verified against the signed index before it is written. The same input
/// gives the same bytes.
#[derive(Debug, Args)]
pub(super) struct DeltaArgs {
    /// Old release: its bundle, or the image of its platform
    old: PathBuf,

    /// Bundle of the new release
    new: PathBuf,

    /// Delta to write; '-' is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// zstd level: 1 is fastest, 19 smallest (default: see --help)
    ///
    /// By default 19 if at most 64 MiB of an image are not in place in OLD, which takes
    /// half a minute on two cores, else 9.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    level: Option<i32>,

    /// Leave out frames that OLD does not make smaller
    ///
    /// The delta is smaller, but 'qstage prepare' needs the bundle as well (its option
    /// --bundle).
    #[arg(long)]
    lean: bool,

    /// Write the delta also if it saves less than a fifth of the bundle
    ///
    /// Also replaces the file if it exists.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,
}

impl DeltaArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::lines_if(self.json);
        let spec = DeltaSpec {
            old: self.old.clone(),
            new: self.new.clone(),
            level: self.level,
            lean: self.lean,
            force: self.force,
            jobs: self.jobs.jobs,
        };
        let mut to = BundleOutput::new(&self.output, self.force, self.json)?;
        let progress = Reporter::new(format);
        let report = delta::make(&spec, to.destination(), &progress, &machine::cancel_on_signals()?)?;
        drop(progress);
        to.outcome(format, &report, human)
    }
}

fn human(report: &DeltaReport, palette: Palette) -> String {
    let percent = 100.0 * report.delta_bytes as f64 / report.bundle_bytes as f64;
    let frames = &report.frames;
    format!(
        "{}: {} instead of {} ({} %) in {:.1} s\n\
         frames: {} in place, {} copied, {} patched, {} new, {} zero, {} left to the bundle\n",
        report.path.display(),
        palette.good(&size::human(report.delta_bytes)),
        size::human(report.bundle_bytes),
        format_args!("{percent:.1}"),
        report.seconds,
        frames.in_place,
        frames.copied,
        frames.patched,
        frames.plain,
        frames.zero,
        frames.from_bundle,
    )
}
