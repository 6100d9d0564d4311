//! `qstage init`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::{ConfigArgs, TrustArgs};
use super::machine;
use super::output::{self, Format};
use super::progress::Reporter;
use crate::error::Result;
use crate::init::{self, InitSpec};
use crate::units::BlockSize;
use crate::units::size;

/// Lay out a disk or an image file with two slots
///
/// Writes a GUID partition table with platform_a and platform_b, and software_a and
/// software_b if asked for, aligned to 1 MiB, with room for the second entry array that
/// makes a switch a single write. A disk that holds anything is refused without --force.
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
    /// Allwinner needs 2 MiB, i.MX 4 MiB, Rockchip 16 MiB; see the README. At least the
    /// partition table and a spare place for it lie there too.
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size::parse_size)]
    reserve: u64,

    /// Logical block size of an image file: 512 or 4096 [default: 512]
    ///
    /// In bytes. A block device says its own.
    #[arg(long, value_name = "BYTES", value_parser = size::parse_sector_size)]
    sector_size: Option<BlockSize>,

    /// Install this bundle into slot a and mark it good: a factory install
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// Destroy what the disk holds
    #[arg(long)]
    force: bool,

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
        // The bundle is opened first: a disk must not be wiped for one that cannot be installed.
        let bundle = match &self.bundle {
            Some(from) => Some(machine::bundle_unconfined(
                from,
                &self.trust.open(&settings.trust, &progress)?,
                &settings.web,
                &cancel,
                &machine::notices(&progress),
            )?),
            None => None,
        };
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
        };
        let report = init::init(spec, &progress, &cancel)?;
        drop(progress);
        output::outcome(format, &report, |report, _| {
            let installed = report.installed.as_ref().map_or_else(
                || "empty; install with 'qstage init --bundle' or 'qstage prepare'".to_owned(),
                |version| format!("slot a holds {version} and boots"),
            );
            format!("{}: {}; {installed}\n", report.disk, report.partitions.join(" "))
        })
    }
}
