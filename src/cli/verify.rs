//! `qstage verify`: a bundle before its use, or an installed slot.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::{InputArgs, JobsArgs, MachineArgs, TrustArgs};
use super::machine::{self, Host, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use crate::bundle::verify::verify;
use crate::delta::{self, CheckReport};
use crate::error::Result;
use crate::pack::temporary_directory;
use crate::sandbox::Kept;
use crate::units::size;
use crate::units::{Group, Slot};

/// Check every byte of a bundle, or of an installed slot
///
/// With BUNDLE: checks the signature, decompresses every frame and compares it with the
/// manifest; nothing is written. With --slot: reads an installed slot past the page
/// cache and compares it with its own signed record ("scrub"), whose signature is judged
/// by the keys that are trusted now; nothing is repaired. The journal stores the time and
/// the outcome, which the service shows as metrics. Of a delta, --base names the old
/// release: every frame that the delta makes of it is compared with the index.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Bundle to check: a file or http(s) URL; '-' is standard input
    #[arg(required_unless_present = "slot", conflicts_with_all = ["slot", "group"])]
    bundle: Option<PathBuf>,

    /// Old release that a delta starts from: its bundle, or the image of its platform
    #[arg(long, value_name = "FILE", requires = "bundle")]
    base: Option<PathBuf>,

    /// Installed slot to check instead: a or b
    #[arg(long, value_name = "SLOT")]
    slot: Option<Slot>,

    /// Check only this group of the slot: platform or software [default: both]
    #[arg(long, value_name = "GROUP", requires = "slot")]
    group: Option<Group>,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl VerifyArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::lines_if(self.json);
        let settings = self.machine.settings()?;
        let web = self.input.web(&settings);
        let jobs = self.jobs.jobs.or(settings.jobs);
        let cancel = machine::cancel_on_signals()?;
        let progress = Arc::new(Reporter::new(format));
        if let Some(slot) = self.slot {
            let host = Host::open_to_look(&settings)?;
            let report = host
                .engine(self.trust.policy(&settings))
                .scrub(slot, self.group, jobs, &cancel, &progress)?;
            drop(progress);
            return output::result(format, &report, |report, palette| {
                let sound = palette.good("sound");
                let (size, seconds) = (size::human(report.bytes), report.seconds);
                let signature = match (&report.signed_by, report.unsigned) {
                    (Some(signer), _) => palette.good(&format!("signed by {signer}")),
                    (None, true) => palette.warn("unsigned"),
                    (None, false) => palette.warn("signature not checked"),
                };
                format!(
                    "slot {} ({}) is {sound}, {signature}: {size} read in {seconds:.1} s\n",
                    report.slot, report.version
                )
            });
        }
        // clap ensures that one of the two is given.
        let from = self.bundle.clone().unwrap_or_default();
        // What was named is judged before what the machine has: a mistyped name is no matter of keys.
        let input = OpenedInput::open(&from, self.input.timeout(&settings), &cancel)?;
        let trust = self.trust.open(&settings.trust, &progress)?;
        // A base that is a bundle is unpacked to a file without a name.
        let kept = self.base.as_ref().map_or_else(Kept::default, |base| Kept {
            read: vec![base.clone()],
            write: vec![temporary_directory()],
            ..Kept::default()
        });
        let input = input.confine(kept, &web, &progress)?;
        let bundle = input.bundle(&trust, &web, &cancel, &machine::notices(&progress))?;
        if let Some(base) = &self.base {
            let report = delta::check(&bundle, base, jobs, &cancel, &progress)?;
            drop(progress);
            return output::result(format, &report, delta_report);
        }
        let bundle = bundle.whole()?;
        let report = verify(&bundle, jobs, &cancel, &progress)?;
        drop(progress);
        output::result(format, &report, |report, palette| {
            let signature = signature(report.signed_by.as_deref(), palette);
            let (size, seconds) = (size::human(report.image_bytes), report.seconds);
            format!("{} {}: {signature}, {size} sound in {seconds:.1} s\n", report.product, report.version)
        })
    }
}

fn signature(signed_by: Option<&str>, palette: Palette) -> String {
    signed_by.map_or_else(
        || palette.warn("signature not checked"),
        |signer| palette.good(&format!("signed by {signer}")),
    )
}

fn delta_report(report: &CheckReport, palette: Palette) -> String {
    let left = match report.from_bundle_bytes {
        0 => String::new(),
        left => format!(", {} left to the bundle", size::human(left)),
    };
    let (signature, size) =
        (signature(report.signed_by.as_deref(), palette), size::human(report.image_bytes));
    format!(
        "{} {}: {signature}, {size} made and sound{left} in {:.1} s\n",
        report.product, report.version, report.seconds
    )
}
