//! `qstage init`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::{ConfigArgs, EpochArgs, TrustArgs};
use super::machine::{self, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use crate::error::Result;
use crate::init::{self, InitReport, InitSpec, OntoSpec};
use crate::units::{BlockSize, Slot, size};

/// Lay out a disk or an image file with two slots
///
/// Writes a GUID partition table with platform_a and platform_b, and with software_a
/// and software_b on request, aligned to 1 MiB. It has space for a second entry array,
/// which makes a switch a single write. A disk that holds anything is refused without
/// --force.
///
/// With --keep-table the existing partitions are used, and the bundle goes into the
/// slots among them. No part of the disk may be in use; on the machine that runs from
/// it, use 'qstage prepare'.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Block device or image file; a file is created if it does not exist
    disk: PathBuf,

    /// Size of the image file, such as 4G [default: what the slots need]
    ///
    /// Not for block devices.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_size)]
    size: Option<u64>,

    /// Size of each platform slot
    ///
    /// It holds the image, the firmware and a record of a few MiB.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size::parse_size)]
    slot_size: u64,

    /// Size of each software slot [default: no software slots]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_size)]
    software_size: Option<u64>,

    /// Space before the first slot, for the boot loader of the board
    ///
    /// Allwinner needs 2 MiB, i.MX 4 MiB, Rockchip 16 MiB; see the manual's page about
    /// boot. The partition table and a spare place for it lie there too.
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size::parse_size)]
    reserve: u64,

    /// Logical block size of an image file: 512 or 4096 [default: 512]
    ///
    /// In bytes. For a block device the kernel reports it.
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector_size)]
    sector_size: Option<BlockSize>,

    /// Install this bundle and mark it good: a factory install
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// Slots to install it into
    ///
    /// With 'both' slot a boots, and slot b, which holds the same release, is its
    /// fallback from the first day on. With one slot the other one does not change.
    #[arg(long, value_name = "SLOT", default_value = "a", requires = "bundle")]
    slot: Into,

    /// Install into the slots of the existing partition table
    ///
    /// They are found by their names: platform_a and platform_b, and software_a and
    /// software_b if the bundle has software. Nothing else on the disk is written.
    /// A slot that holds anything is refused without --force, and a bundle of a lower
    /// epoch than one that was good on this disk without --allow-epoch-rollback. A new
    /// table is a new machine, which remembers no epoch.
    #[arg(
        long,
        requires = "bundle",
        conflicts_with_all = ["size", "slot_size", "software_size", "reserve"]
    )]
    keep_table: bool,

    #[command(flatten)]
    epoch: EpochArgs,

    /// Destroy what the disk holds; with --keep-table, what those slots hold
    #[arg(long)]
    force: bool,

    /// Check everything, and show what would be written
    #[arg(long)]
    dry_run: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    trust: TrustArgs,
}

impl InitArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::object_if(self.json);
        let settings = self.config.settings()?;
        let cancel = machine::cancel_on_signals()?;
        let progress = Arc::new(Reporter::new(format));
        // The bundle is opened first: the disk must not be wiped for a bundle that cannot be installed.
        let bundle = match &self.bundle {
            Some(from) => {
                let input = OpenedInput::open(from, settings.input_timeout, &cancel)?;
                let trust = self.trust.open(&settings.trust, &progress)?;
                Some(input.unconfined(&trust, &settings.web, &cancel, &machine::notices(&progress))?)
            }
            None => None,
        };
        let into = self.slot.slots();
        let report = match bundle {
            Some(bundle) if self.keep_table => {
                let spec = OntoSpec {
                    disk: self.disk.clone(),
                    sector_size: self.sector_size.or(settings.sector_size),
                    boot_flag: settings.boot_flag,
                    method: settings.policy().table,
                    bundle,
                    into,
                    force: self.force,
                    allow_epoch_rollback: self.epoch.allow_epoch_rollback,
                    dry_run: self.dry_run,
                };
                init::onto(&spec, &progress, &cancel)?
            }
            bundle => {
                let spec = InitSpec {
                    reserve: self.reserve,
                    disk: self.disk.clone(),
                    size: self.size,
                    slot_size: self.slot_size,
                    software_size: self.software_size,
                    sector_size: self.sector_size.or(settings.sector_size).unwrap_or(BlockSize::B512),
                    boot_flag: settings.boot_flag,
                    force: self.force,
                    bundle,
                    into,
                    dry_run: self.dry_run,
                };
                init::init(spec, &progress, &cancel)?
            }
        };
        drop(progress);
        output::outcome(format, &report, human)
    }
}

/// Which slots get the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Into {
    /// Slot a
    A,
    /// Slot b
    B,
    /// Slot a, which boots, and slot b, its fallback
    Both,
}

impl Into {
    fn slots(self) -> Vec<Slot> {
        match self {
            Self::A => vec![Slot::A],
            Self::B => vec![Slot::B],
            Self::Both => Slot::BOTH.to_vec(),
        }
    }
}

fn human(report: &InitReport, _: Palette) -> String {
    let mut text = String::new();
    if report.dry_run {
        for (name, extent) in report.partitions.iter().zip(&report.extents) {
            let (at, len) = (size::human(extent.at.0), size::human(extent.len));
            text.push_str(&format!("{name}: {len} at {at}\n"));
        }
        report.destroyed.iter().for_each(|found| text.push_str(&format!("would be destroyed: {found}\n")));
    }
    let names: Vec<String> = report.slots.iter().map(ToString::to_string).collect();
    let installed = match (&report.installed, names.first()) {
        (Some(version), Some(first)) if names.len() > 1 => {
            format!("slots {} hold {version}, {first} boots", names.join(" and "))
        }
        (Some(version), Some(first)) => format!("slot {first} holds {version} and boots"),
        _ => "empty; install with 'qstage init --keep-table --bundle' or 'qstage prepare'".to_owned(),
    };
    let kept = if report.table_kept { "its table is kept: " } else { "" };
    let dry = if report.dry_run { "; nothing was written, this is what would be" } else { "" };
    format!("{text}{}: {kept}{}; {installed}{dry}\n", report.disk, report.partitions.join(" "))
}
