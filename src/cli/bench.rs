//! `qstage bench`.

use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::args::{JobsArgs, MachineArgs};
use super::machine::{self, Host, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::{table, values};
use crate::bench::{self, BenchOptions, BenchReport, ScratchDir, Subject};
use crate::bundle::{Bundle, Trust};
use crate::device::{BlockDevice, Direct, Mode};
use crate::engine::Change;
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::slot::Layout;
use crate::source::InputTimeout;
use crate::source::http::Web;
use crate::units::size;
use crate::units::{BlockSize, Group, MIB};

/// Measure target and processors, and how close prepare comes to them
///
/// In one run, alternating: writes and reads of the target by O_DIRECT, decompression and
/// hashing by one core and by all, and prepare with and without read-back. From these it
/// derives the minimum possible time, how close prepare came to it, the bottleneck, and
/// how busy the processors were. Without --disk it works on a file in the scratch
/// directory, which is removed. With --disk and --yes it overwrites the inactive platform
/// slot.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Bundle to measure with [default: a generated one]
    ///
    /// Its signature is not checked: the slot is never left bootable.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// Directory for the scratch file [default: the current one]
    ///
    /// It determines the target: the disk, or memory on a tmpfs.
    #[arg(long, value_name = "DIR", conflicts_with = "disk")]
    scratch: Option<PathBuf>,

    /// Size of the image of a generated bundle
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse_size)]
    size: u64,

    /// Repetitions of every measurement
    #[arg(long, value_name = "N", default_value = "3", value_parser = values::count)]
    repeat: NonZeroUsize,

    /// Overwrite the inactive slot: its content is lost
    #[arg(long)]
    yes: bool,

    /// Print what makes the inactive slot free for the measurement, and write nothing
    #[arg(long, requires = "disk")]
    dry_run: bool,

    /// Fail if prepare reaches less than this part of the ideal
    ///
    /// A check for regressions that works on any machine, since it compares figures of one
    /// run. The fastest of the repetitions counts.
    #[arg(long, value_name = "RATIO", value_parser = values::ratio)]
    at_least: Option<f64>,

    /// Print the figures as JSON lines
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    jobs: JobsArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl BenchArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::lines_if(self.json);
        if self.dry_run {
            let settings = self.machine.settings()?;
            let host = Host::open_to_look(&settings)?;
            return output::dry_run(format, &host.engine(settings.policy()).dry_run(&Change::Lend)?);
        }
        let cancel = machine::cancel_on_signals()?;
        let progress = Reporter::new(format);
        let options = BenchOptions { repeat: self.repeat, jobs: self.jobs.jobs, cancel: &cancel };
        if self.machine.names_disk() && !self.yes {
            return Err(Error::Argument {
                what: "bench --disk".to_owned(),
                problem: "it overwrites the inactive slot; give --yes if its content is not needed"
                    .to_owned(),
            });
        }
        let scratch = ScratchDir::new(self.scratch.as_deref().unwrap_or(Path::new(".")))?;
        let path = match &self.bundle {
            Some(path) => path.clone(),
            None => bench::synthetic_bundle(&scratch, self.size, &cancel)?,
        };
        let open = || {
            let input = OpenedInput::open(&path, InputTimeout::default(), &cancel)?;
            let trust = Trust::dangerously_unsigned();
            input.unconfined(&trust, &Web::default(), &cancel, &machine::notes())
        };
        // Only a disk that the command line names: the one of the configuration is in production.
        let report = if self.machine.names_disk() {
            let settings = self.machine.settings()?;
            let same_device = on_one_device(&path, settings.disk()?);
            let host = Host::open_to_change(&settings)?;
            host.engine(settings.policy()).lend_target(|name, slot| {
                let subject =
                    Subject { name: name.to_owned(), slot, open: &open, bundle: &path, same_device };
                bench::bench(&subject, &options, &progress)
            })?
        } else {
            let slot = scratch_slot(&scratch, &open()?, &cancel)?;
            let subject = Subject {
                name: "scratch file".to_owned(),
                slot,
                open: &open,
                bundle: &path,
                same_device: on_one_device(&path, &scratch.join("slot.img")),
            };
            let mut report = bench::bench(&subject, &options, &progress)?;
            let (spare, in_place) = bench::time_commit(&scratch, 10)?;
            (report.commit_ms, report.commit_in_place_ms) = (Some(spare), Some(in_place));
            report
        };
        drop(progress);
        output::result(format, &report, human)?;
        self.at_least.map_or(Ok(()), |wanted| report.at_least(wanted))
    }
}

/// Whether two files are on one file system; unknown, hence false, for a block device.
fn on_one_device(one: &Path, other: &Path) -> bool {
    let device =
        |path: &Path| std::fs::metadata(path).ok().filter(|about| about.is_file()).map(|about| about.dev());
    device(one).is_some() && device(one) == device(other)
}

/// A scratch file that is large enough for the bundle, and for meaningful rates of the target.
fn scratch_slot(scratch: &ScratchDir, bundle: &Bundle, cancel: &Cancel) -> Result<Arc<dyn BlockDevice>> {
    let body_len = bundle.release().record_len();
    let needed = match Layout::new(bundle.manifest(), Group::Platform, body_len, 0, "scratch file") {
        Err(Error::SlotTooSmall { needed, .. }) => needed,
        other => other.map(|layout| layout.footer_at)?,
    };
    let path = scratch.join("slot.img");
    let output = |source| Error::Output { path: path.clone(), source };
    let file = std::fs::File::create(&path).map_err(output)?;
    file.set_len(needed.next_multiple_of(MIB).max(256 * MIB)).map_err(output)?;
    let slot = Direct::open(&path, Mode::Write, BlockSize::B512)?;
    // Written once before the measurements: for a file system, allocating blocks costs more than writing them.
    bench::fill(&slot, cancel)?;
    Ok(Arc::new(slot))
}

fn human(report: &BenchReport, palette: Palette) -> String {
    let mut facts = vec![
        ("target", report.target.clone()),
        (
            "bundle",
            format!(
                "{} of images, {} of them data, {} packed",
                size::human(report.image_bytes),
                size::human(report.data_bytes),
                size::human(report.bundle_bytes)
            ),
        ),
        ("machine", format!("{} cores, {} workers", report.cores, report.jobs)),
    ];
    let times = [("commit", &report.commit_ms), ("commit in place", &report.commit_in_place_ms)];
    facts.extend(times.into_iter().filter_map(|(name, times)| {
        let times = times.as_ref()?;
        Some((name, format!("{:.2} ms ({:.2} to {:.2})", times.median, times.min, times.max)))
    }));
    let mut text = table::facts(&facts);
    let processor = &report.processor;
    let mut rates: Vec<(String, f64)> = report
        .ceilings
        .iter()
        .map(|c| {
            let verb = if c.write { "write" } else { "read" };
            (format!("{verb} {} x {}", size::human(c.block as u64), c.depth), c.gb_per_s.median)
        })
        .collect();
    rates.extend([
        ("decompress, 1 core".to_owned(), processor.decompress_one),
        ("decompress, all".to_owned(), processor.decompress_all),
        ("BLAKE3, 1 core".to_owned(), processor.blake3_one),
        ("BLAKE3, all".to_owned(), processor.blake3_all),
        ("SHA-256".to_owned(), processor.sha256_one),
        ("read the packed bundle".to_owned(), report.bundle_gb_per_s.median),
        ("write, all of it".to_owned(), report.write_gb_per_s.median),
        ("read, all of it".to_owned(), report.read_gb_per_s.median),
        ("write and read together".to_owned(), report.mixed_gb_per_s.median),
    ]);
    rates.extend(report.runs.iter().map(|run| (run.name.to_owned(), run.gb_per_s)));
    let top = rates.iter().map(|(_, rate)| *rate).fold(f64::MIN_POSITIVE, f64::max);
    let rows = rates
        .iter()
        .map(|(name, rate)| vec![name.as_str().into(), format!("{rate:.2}").into(), bar(rate / top).into()])
        .collect();
    text.push('\n');
    text += &table::render(&["WHAT", ">GB/S", ""], rows, palette);
    let rows = report
        .runs
        .iter()
        .map(|run| {
            vec![
                run.name.into(),
                format!("{:.2}", run.seconds.median).into(),
                format!("{:.2}-{:.2}", run.seconds.min, run.seconds.max).into(),
                format!("{:.2}", run.cpu_seconds.median).into(),
                format!("{:.0} %", run.busy * 100.0).into(),
                format!("{:.2}", run.ideal_seconds).into(),
                format!("{:.0} %", run.of_ideal * 100.0).into(),
                run.bound_by.into(),
            ]
        })
        .collect();
    text.push('\n');
    text += &table::render(
        &["RUN", ">SECONDS", ">SPREAD", ">CPU", ">BUSY", ">IDEAL", ">REACHED", "BOUND BY"],
        rows,
        palette,
    );
    text
}

/// A bar of at most 30 columns.
fn bar(part: f64) -> String {
    "#".repeat((part.clamp(0.0, 1.0) * 30.0).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_within_their_column() {
        assert_eq!(bar(0.5).len(), 15);
        assert_eq!(bar(7.0).len(), 30);
        assert_eq!(bar(f64::NAN).len(), 0);
    }
}
