//! `qstage prepare`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{JobsArgs, MachineArgs, TrustArgs};
use super::machine::{self, Host};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::size;
use crate::engine::{Policy, PrepareOptions};
use crate::error::Result;
use crate::state::{PrepareReport, UpgradeType};

/// Write a bundle into the slot that does not run, and verify it
///
/// Checks the signature before anything else and every frame before it is written,
/// flushes, reads the slot back past the page cache, and only then calls it whole. The
/// running slot is not touched, and what boots next does not change: 'qstage commit'
/// does that. If it is interrupted, run it again: it goes on where it stopped.
#[derive(Debug, Args)]
pub(super) struct PrepareArgs {
    /// Bundle to install; '-' is standard input
    bundle: PathBuf,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Write at most this many bytes per second, such as 50M [default: no limit]
    ///
    /// Keeps a disk responsive for what runs meanwhile.
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    max_rate: Option<u64>,

    /// Do not read the slot back when it is written
    ///
    /// Saves the time of reading it, and trusts the disk.
    #[arg(long)]
    no_read_back: bool,

    /// Verify the SHA-256 of the whole images too
    ///
    /// Every frame is verified by BLAKE3 in any case. This proves nothing more, and takes
    /// longer than all the rest on processors without SHA instructions.
    #[arg(long)]
    sha256: bool,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,

    /// Accept a version older than the running one
    #[arg(long, help_heading = "Overrides")]
    allow_downgrade: bool,

    /// Accept an epoch lower than the running one: a release with a known hole
    #[arg(long, help_heading = "Overrides")]
    allow_epoch_rollback: bool,

    /// Accept a bundle for another product
    #[arg(long, help_heading = "Overrides")]
    override_product: bool,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl PrepareArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::lines_if(self.json);
        let settings = self.machine.settings()?;
        let policy = Policy {
            allow_downgrade: self.allow_downgrade,
            allow_epoch_rollback: self.allow_epoch_rollback,
            override_product: self.override_product,
            ..settings.policy()
        };
        let options = PrepareOptions {
            jobs: self.jobs.jobs.or(settings.jobs),
            max_rate: self.max_rate.or(settings.max_rate),
            read_back: !self.no_read_back,
            sha256: self.sha256,
            cancel: machine::cancel_on_signals()?,
            origin: origin(&self.bundle),
        };
        let progress = Reporter::new(format);
        let host = Host::open_to_change(&settings)?;
        let trust = self.trust.open(&settings.trust, &progress)?;
        let bundle = machine::bundle(&self.bundle, &trust, &options.cancel)?;
        let report = host.engine(policy).prepare(bundle, &options, &progress)?;
        drop(progress);
        output::result(format, &report, human)
    }
}

/// What `status` shows as the install path: it is read elsewhere and later, so a relative path would mislead.
fn origin(bundle: &Path) -> String {
    if bundle == Path::new("-") {
        return "-".to_owned();
    }
    std::path::absolute(bundle).unwrap_or_else(|_| bundle.to_owned()).display().to_string()
}

fn human(report: &PrepareReport, palette: Palette) -> String {
    let verified = if report.read_back { "read back and verified" } else { "not read back" };
    let effect = match report.upgrade_type {
        UpgradeType::SoftwareOnly => "software only, no reboot needed",
        UpgradeType::SoftwareAndPlatform => "takes a reboot",
    };
    format!(
        "{} {} in {}, {verified} ({effect}): {} written, {} zeroed, {} in place already, {:.1} s\n\
         'qstage commit' switches to it.\n",
        report.version,
        palette.good("prepared"),
        report.targets.join(" and "),
        size::human(report.written_bytes),
        size::human(report.zeroed_bytes),
        size::human(report.reused_bytes),
        report.seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_is_absolute() {
        assert_eq!(origin(Path::new("-")), "-");
        assert_eq!(origin(Path::new("/x/y.qimg")), "/x/y.qimg");
        assert!(origin(Path::new("y.qimg")).starts_with('/'));
    }

    #[test]
    fn what_was_not_read_back_is_said_to_be_so() {
        let mut report = PrepareReport {
            upgrade_type: UpgradeType::SoftwareAndPlatform,
            version: "1.1".into(),
            targets: vec!["platform_b".into(), "software_b".into()],
            image_bytes: 3 << 20,
            written_bytes: 1 << 20,
            zeroed_bytes: 1 << 20,
            reused_bytes: 1 << 20,
            read_back: true,
            seconds: 1.25,
        };
        assert_eq!(
            human(&report, Palette::PLAIN),
            "1.1 prepared in platform_b and software_b, read back and verified (takes a reboot): 1.0 MiB written, \
             1.0 MiB zeroed, 1.0 MiB in place already, 1.2 s\n'qstage commit' switches to it.\n"
        );
        report.read_back = false;
        assert!(human(&report, Palette::PLAIN).contains(", not read back ("));
    }
}
