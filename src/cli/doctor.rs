//! `qstage doctor`.

use std::path::PathBuf;

use clap::Args;

use super::answers::answers;
use super::args::{MachineArgs, TrustArgs};
use super::output::{self, Format, Palette};
use crate::doctor::{self, Diagnosis, DiskContent, Finding, Places, Severity};
use crate::error::{Error, Result};
use crate::host::files::OutputFile;
use crate::host::journal::FileJournal;

/// Check whether this machine is set up to upgrade and to fall back
///
/// Checks the configuration, the trusted keys, the disk and its slots, what the boot
/// loader can do, the initramfs, the units, the health checks, the kernel, and how long
/// a failed trial takes. Changes nothing. Each finding names its remedy. Exit code 9 if
/// one of them is a problem, 0 if there are warnings only. Run it as root: other users
/// see less.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Also show what is as required
    #[arg(long, short)]
    all: bool,

    /// Write a support archive: a tar, without secrets
    ///
    /// It holds the findings, slots, history, both ends of the disk up to the first
    /// partition, the log of the units, and what the kernel says; no tokens, keys,
    /// passwords or values of the container's environment. For its owner alone (0600).
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    #[command(flatten)]
    trust: TrustArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl DoctorArgs {
    pub(super) fn run(&self) -> Result<()> {
        let places = Places::default();
        let mut setup = self.machine.setup();
        setup.settings.trust = self.trust.file(&setup.settings.trust);
        let journal = FileJournal::new(&setup.settings.state_dir, output::note);
        let seen = super::machine::find_disk(&mut setup.settings).and_then(|()| {
            answers(&setup.settings)?;
            DiskContent::look(setup.settings.disk()?, &setup.settings, &journal)
        });
        let report = doctor::examine(&places, &setup, &seen);
        if let Some(path) = &self.bundle {
            let failed = |source: std::io::Error| match source.kind() {
                std::io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.clone() },
                _ => Error::Output { path: path.clone(), source },
            };
            let mut file = OutputFile::create(path, 0o600).map_err(failed)?;
            doctor::write_archive(&mut file, &places, &setup, seen.as_ref().ok(), &report).map_err(failed)?;
            file.publish_new().map_err(failed)?;
        }
        output::result(Format::object_if(self.json), &report, |report, palette| {
            human(report, self.all, palette)
        })?;
        report.verdict()
    }
}

fn human(report: &Diagnosis, all: bool, palette: Palette) -> String {
    let mut text = String::new();
    for one in report.findings.iter().filter(|one| all || one.verdict != Severity::Good) {
        text.push_str(&line(one, palette));
    }
    if report.problems + report.warnings == 0 {
        text.push_str(&format!(
            "{} things were looked at, all are as they should be\n",
            report.findings.len()
        ));
    }
    text
}

fn line(one: &Finding, palette: Palette) -> String {
    let verdict = match one.verdict {
        Severity::Good => palette.good("good"),
        Severity::Warning => palette.warn("warning"),
        Severity::Problem => palette.bad("problem"),
    };
    let code = one.code.map(|code| format!(" [{code}]")).unwrap_or_default();
    let remedy = one.remedy.as_ref().map(|remedy| format!("  remedy: {remedy}\n")).unwrap_or_default();
    format!("{verdict}: {}: {}{code}\n{remedy}", one.subject, one.message)
}
