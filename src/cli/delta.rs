//! `qstage delta`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::JobsArgs;
use super::destination::BundleOutput;
use super::machine;
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::values;
use crate::delta::{self, DeltaReport, DeltaSpec};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::units::size;

/// Make a delta: a small file that replaces a bundle where OLD runs
///
/// On a machine that runs OLD, 'qstage prepare' accepts it like the bundle NEW, whose
/// signed manifest and index it contains. It needs no key and no trust: every
/// frame is verified against the signed index before it is written. The same input
/// gives the same bytes.
#[derive(Debug, Args)]
pub(super) struct DeltaArgs {
    /// Old releases: of each its bundle, or the image of its platform
    #[arg(required = true)]
    old: Vec<PathBuf>,

    /// Bundle of the new release
    new: PathBuf,

    /// Delta to write, or a directory; '-' is standard output
    ///
    /// In a directory a delta is named as 'qstage prepare URL' looks for it beside the
    /// bundle: NEW, '.from-', 16 hex digits of the BLAKE3 of the old image, '.qdelta'. Of
    /// several old releases each gets one.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// zstd level: 1 is fastest, 19 smallest [default: 19 or 9]
    ///
    /// The default is 19 if OLD lacks at most 64 MiB of the frames of an image, which takes
    /// half a minute on two cores, else 9.
    #[arg(long, value_name = "N", value_parser = values::level)]
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
        let cancel = machine::cancel_on_signals()?;
        let outputs = self.outputs(&cancel)?;
        // All of them are examined before the first is made.
        for (old, path) in self.old.iter().zip(&outputs) {
            BundleOutput::new(path, self.force, self.json)?
                .destination()
                .check(&[("OLD", old), ("NEW", &self.new)])?;
        }
        let mut little = None;
        for (old, path) in self.old.iter().zip(&outputs) {
            match self.make(old, path, &cancel) {
                // The others may save more.
                Err(error @ Error::DeltaGain { .. }) if outputs.len() > 1 => {
                    output::note(&format!("{}: {error}", old.display()));
                    little = Some(error);
                }
                made => made?,
            }
        }
        little.map_or(Ok(()), Err)
    }

    /// What is written for each old release.
    fn outputs(&self, cancel: &Cancel) -> Result<Vec<PathBuf>> {
        let refused = |what: String, problem: String| Err(Error::Argument { what, problem });
        if !self.output.is_dir() {
            return match self.old.len() {
                1 => Ok(vec![self.output.clone()]),
                _ => refused("--output".to_owned(), "several deltas need a directory that exists".to_owned()),
            };
        }
        let mut outputs: Vec<PathBuf> = Vec::new();
        for old in &self.old {
            let path = self.output.join(delta::file_name(old, &self.new, cancel)?);
            if outputs.contains(&path) {
                return refused(
                    old.display().to_string(),
                    "is named twice, or has the image of another".to_owned(),
                );
            }
            outputs.push(path);
        }
        Ok(outputs)
    }

    fn make(&self, old: &Path, path: &Path, cancel: &Cancel) -> Result<()> {
        let format = Format::lines_if(self.json);
        let spec = DeltaSpec {
            old: old.to_owned(),
            new: self.new.clone(),
            level: self.level,
            lean: self.lean,
            force: self.force,
            jobs: self.jobs.jobs,
        };
        let mut to = BundleOutput::new(path, self.force, self.json)?;
        let progress = Reporter::new(format);
        let report = delta::make(&spec, to.destination(), &progress, cancel)?;
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
