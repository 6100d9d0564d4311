//! `qstage select`, and the whole of the program `qstage-select`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::args::MachineArgs;
use super::output::{self, Format};
use crate::boot::BootFlag;
use crate::device::Mode;
use crate::error::{Error, Result};
use crate::host::LocalDisk;
use crate::selector::{self, Selection};
use crate::state::SwitchReport;
use crate::units::BlockSize;

/// Select the slot that an initramfs starts, and count its try
///
/// For machines whose boot loader always starts the same kernel and initramfs: by
/// priority, tries and successful as ChromeOS, Flatcar and Bottlerocket do it. If no
/// slot may boot by its flags, the best one is named anyway. Without a disk, one with
/// partitions named platform_a and platform_b is used: of several the one that the boot
/// loader came from, then the one whose GUID --disk names, then one that is not
/// removable. The disks that were found are printed.
///
/// If the boot loader itself reads the flags (--boot-flag legacy), there is nothing to
/// select. The program qstage-select does the same and is small.
#[derive(Debug, Args)]
pub(super) struct SelectArgs {
    /// Print one JSON object
    #[arg(long, conflicts_with = "shell")]
    pub(super) json: bool,

    /// Print lines KEY='value' for a shell to evaluate (the default)
    #[arg(long)]
    shell: bool,

    /// Print the writes and barriers that count the try, and write nothing
    #[arg(long, conflicts_with = "shell")]
    dry_run: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl SelectArgs {
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        if settings.boot_flag != BootFlag::Priority {
            return Err(Error::SelectorUnused { flag: settings.boot_flag.word() });
        }
        if self.dry_run {
            return self
                .dry_run(&selector::locate(settings.disk.as_deref(), &output::note)?, settings.sector_size);
        }
        let selection = on(settings.disk.as_deref(), settings.sector_size)?;
        tell(&selection, self.json)
    }

    fn dry_run(&self, disk: &Path, sector_size: Option<BlockSize>) -> Result<()> {
        let machine = LocalDisk::open(disk, Mode::Read, sector_size)?;
        let (selection, plan) = selector::dry_run(&machine, &output::note)?;
        let method = if plan.is_empty() { "nothing to write" } else { "the try is counted" };
        let report = SwitchReport {
            done: format!("slot {} is selected ({})", selection.slot, selection.reason.word()),
            boots_next: selection.slot,
            next_step: "nothing".to_owned(),
            switch_method: method.to_owned(),
            plan,
            dry_run: true,
        };
        output::dry_run(Format::object_if(self.json), &report)
    }
}

/// Opens the disk, read-only if it cannot be written, and selects.
fn on(disk: Option<&Path>, sector_size: Option<BlockSize>) -> Result<Selection> {
    let disk = selector::locate(disk, &output::note)?;
    let (machine, writable) = match LocalDisk::open(&disk, Mode::Write, sector_size) {
        Ok(machine) => (machine, true),
        Err(error) => {
            // A fault of the disk itself shows at the read.
            let machine = LocalDisk::open(&disk, Mode::Read, sector_size)?;
            output::note(&format!("nothing can be written: {}", crate::error::sentence(&error)));
            (machine, false)
        }
    };
    selector::select(&machine, writable, &output::note)
}

fn tell(selection: &Selection, json: bool) -> Result<()> {
    if json { output::json(&selection.json()?) } else { output::print(&selection.shell()) }
}

const USAGE: &str = "\
Usage: qstage-select [--disk DISK] [--json | --shell]

Chooses the A/B slot that an initramfs starts, counts its try, and prints where it
lies: as lines KEY='value' for a shell (the default), or as JSON. Without --disk a
disk is taken that holds partitions named platform_a and platform_b: of several that
from which the boot loader came, then the one whose GUID --disk names, then one that
is not removable.
";

/// The program `qstage-select`: the same without configuration, and with arguments read by hand, so that little is
/// linked into it and it fits an initramfs. Returns the exit code.
pub fn select_main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let (mut disk, mut json) = (None, false);
    let mut args = args.into_iter();
    let result = loop {
        let Some(arg) = args.next() else {
            break on(disk.as_deref(), None).and_then(|selection| tell(&selection, json));
        };
        match arg.to_str() {
            Some("--disk") => disk = args.next().map(PathBuf::from),
            Some("--json") => json = true,
            Some("--shell") => json = false,
            Some("--help" | "-h") => break output::print(USAGE),
            Some("--version" | "-V") => {
                break output::print(concat!("qstage-select ", env!("CARGO_PKG_VERSION"), "\n"));
            }
            _ => {
                let problem = "is not known; see qstage-select --help".to_owned();
                break Err(Error::Argument { what: arg.display().to_string(), problem });
            }
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            output::print_error(&error, json);
            error.class().exit_code()
        }
    }
}
