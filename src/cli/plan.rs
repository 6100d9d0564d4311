//! `qstage plan`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::answers::answers;
use super::args::{InputArgs, MachineArgs, OverrideArgs, TrustArgs};
use super::conclusion::Conclusion;
use super::download::{DownloadArgs, ForMachine, WholeInput};
use super::for_service::ForServiceArgs;
use super::machine::{self, Host, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::table;
use crate::container::nspawn;
use crate::error::Result;
use crate::progress::Cancel;
use crate::sandbox::Kept;
use crate::source::http::Web;
use crate::state::{PlanReport, UpgradeType};
use crate::units::size;

/// Show the effect of an upgrade, and the obstacles
///
/// Changes nothing. Shows the type of the upgrade (software only, or platform with a
/// reboot), the slots that would be written, and every obstacle with its remedy. If there
/// is an obstacle, the exit code is 5, as that of a refused 'prepare'.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Bundle or delta to upgrade to: a file or http(s) URL; '-' is standard input
    bundle: PathBuf,

    /// Whole bundle, a file or URL, if BUNDLE is a delta that needs it
    #[arg(long = "bundle", value_name = "WHOLE")]
    whole: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    service: ForServiceArgs,

    #[command(flatten)]
    overrides: OverrideArgs,

    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    download: DownloadArgs,

    #[command(flatten)]
    pub(super) trust: TrustArgs,

    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

impl PlanArgs {
    pub(super) fn run(&self) -> Result<Conclusion> {
        let format = Format::object_if(self.json);
        let mut settings = self.machine.settings()?;
        let allowed = self.service.allowed(&mut settings);
        let named = self.service.name(&self.bundle)?;
        answers(&settings)?;
        let web = Web { front_only: true, ..self.download.web(self.input.web(&settings)) };
        let timeout = self.input.timeout(&settings);
        let host = Host::open_to_look(&settings)?;
        let (progress, cancel) = (Arc::new(Reporter::new(format)), Cancel::default());
        let trust = Arc::new(self.trust.open(&settings.trust, &progress)?);
        let input = OpenedInput::open_allowed(&named, allowed.as_ref(), timeout, &cancel)?;
        let whole =
            self.whole.as_deref().map(|whole| WholeInput::open(whole, timeout, &cancel)).transpose()?;
        let network = whole.as_ref().is_some_and(WholeInput::is_web);
        let kept = Kept { network, ..host.kept_to_look(&settings) };
        let input = input.confine(kept, &web, &progress)?;
        let policy = self.download.policy(self.overrides.policy(settings.policy()), &settings);
        let (engine, notice) = (host.engine(policy), machine::notices(&progress));
        let read = ForMachine {
            engine: &engine,
            allowed: allowed.as_ref(),
            trust: &trust,
            web: &web,
            cancel: &cancel,
            notice: &notice,
        };
        let (bundle, whole) = read.read(input, whole, |_| Ok(()))?;
        drop(progress);
        let report = engine.plan(&bundle, whole.as_ref())?;
        let container_open = settings.container.as_ref().map(nspawn::openings);
        let report = PlanReport { container_open, ..report };
        output::result(format, &report, human)?;
        Ok(if report.blocked_by.is_empty() { Conclusion::Done } else { Conclusion::Forbidden })
    }
}

fn human(report: &PlanReport, palette: Palette) -> String {
    let kind = match report.upgrade_type {
        UpgradeType::SoftwareOnly => "software only: restart the software, no reboot".to_owned(),
        UpgradeType::SoftwareAndPlatform => format!("platform: reboot into slot {}", !report.booted),
    };
    let mut text = table::facts(&[
        (
            "disk",
            format!(
                "{}, slot {} {}",
                report.disk,
                report.booted,
                if report.is_running { "runs" } else { "boots next" }
            ),
        ),
        ("product", report.product.clone()),
        ("from", report.running_version.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("to", report.target_version.clone()),
        ("upgrade", kind),
        ("needs", report.needs_platform.clone().unwrap_or_default()),
        ("switch", report.switch_method.clone()),
        ("trial", report.trial.clone().unwrap_or_default()),
    ]);
    for open in report.container_open.iter().flatten() {
        text += &format!("{} {open}\n", palette.warn("Open to the container:"));
    }
    let rows = report.payloads.iter().map(|payload| {
        vec![
            payload.name.as_str().into(),
            payload.version.as_str().into(),
            size::human(payload.size).into(),
            payload.target.as_deref().unwrap_or("installed already").into(),
        ]
    });
    text.push('\n');
    text += &table::render(&["PAYLOAD", "VERSION", ">SIZE", "TARGET"], rows.collect(), palette);
    text.push('\n');
    if let Some(bytes) = report.transfer_bytes {
        text += &format!("{} are read of it at most.\n", size::human(bytes));
    }
    if report.already_prepared {
        text += "This bundle is prepared already; 'qstage commit' switches to it.\n";
    }
    if report.blocked_by.is_empty() {
        text += &format!("{}\n", palette.good("Nothing forbids it."));
    }
    for obstacle in &report.blocked_by {
        text += &format!("{} {} [{}]\n", palette.bad("Forbidden:"), obstacle.message, obstacle.code);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{PlannedPayload, UpgradeObstacle};
    use crate::units::Slot;

    #[test]
    fn obstacles_are_shown_with_their_codes() {
        let mut report = PlanReport {
            disk: "disk.img".into(),
            product: "appliance".into(),
            running_version: Some("1.0".into()),
            target_version: "1.1".into(),
            upgrade_type: UpgradeType::SoftwareAndPlatform,
            booted: Slot::A,
            is_running: true,
            needs_platform: None,
            payloads: vec![
                PlannedPayload {
                    name: "platform".into(),
                    version: "1.1".into(),
                    size: 64 << 20,
                    target: Some("platform_b".into()),
                },
                PlannedPayload { name: "software".into(), version: "7".into(), size: 1, target: None },
            ],
            transfer_bytes: None,
            switch_method: "second array".into(),
            trial: Some("one boot".into()),
            manifest: crate::units::Blake3([0; 32]),
            already_prepared: false,
            blocked_by: Vec::new(),
            container_open: Some(Vec::new()),
        };
        let facts = "disk     disk.img, slot a runs\n\
             product  appliance\n\
             from     1.0\n\
             to       1.1\n\
             upgrade  platform: reboot into slot b\n\
             switch   second array\n\
             trial    one boot\n\
             \n\
             PAYLOAD   VERSION      SIZE  TARGET\n\
             platform  1.1      64.0 MiB  platform_b\n\
             software  7             1 B  installed already\n\
             \n";
        assert_eq!(human(&report, Palette::PLAIN), format!("{facts}Nothing forbids it.\n"));
        report.blocked_by.push(UpgradeObstacle { code: "UPGRADE_ERROR_X".into(), message: "m".into() });
        assert_eq!(human(&report, Palette::PLAIN), format!("{facts}Forbidden: m [UPGRADE_ERROR_X]\n"));
    }
}
