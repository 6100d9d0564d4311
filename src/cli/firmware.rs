//! `qstage firmware`: the blobs after the platform image of a slot.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::args::MachineArgs;
use super::machine::Host;
use super::output::{self, Format, Stdout};
use super::table;
use crate::error::{Error, Result};
use crate::host::files::OutputFile;
use crate::units::Slot;
use crate::units::size;

/// List or extract the firmware that a platform slot holds
#[derive(Debug, Args)]
pub(super) struct FirmwareArgs {
    #[command(subcommand)]
    verb: FirmwareVerb,
}

#[derive(Debug, Subcommand)]
enum FirmwareVerb {
    List(ListArgs),
    Extract(ExtractArgs),
}

impl FirmwareArgs {
    pub(super) fn run(&self) -> Result<()> {
        match &self.verb {
            FirmwareVerb::List(args) => args.run(),
            FirmwareVerb::Extract(args) => args.run(),
        }
    }

    pub(super) const fn wants_json(&self) -> bool {
        match &self.verb {
            FirmwareVerb::List(args) => args.json,
            FirmwareVerb::Extract(_) => false,
        }
    }
}

/// List the firmware blobs of a slot
#[derive(Debug, Args)]
struct ListArgs {
    /// Platform slot: a or b
    #[arg(long, value_name = "SLOT")]
    slot: Slot,

    /// Print one JSON array
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

impl ListArgs {
    fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let blobs = Host::open_to_look(&settings)?.engine(settings.policy()).firmware_list(self.slot)?;
        output::result(Format::object_if(self.json), &blobs, |blobs, palette| {
            let rows = blobs.iter().map(|blob| {
                let (size, hash) = (size::human(blob.size), blob.blake3.to_string());
                vec![blob.name.as_str().into(), blob.version.as_str().into(), size.into(), hash.into()]
            });
            table::render(&["NAME", "VERSION", ">SIZE", "BLAKE3"], rows.collect(), palette)
        })
    }
}

/// Extract a firmware blob of a slot, verified
#[derive(Debug, Args)]
struct ExtractArgs {
    /// Name of the blob, as 'qstage firmware list' shows it
    name: String,

    /// Platform slot: a or b
    #[arg(long, value_name = "SLOT")]
    slot: Slot,

    /// File to write; it appears only when it is whole [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    machine: MachineArgs,
}

impl ExtractArgs {
    fn run(&self) -> Result<()> {
        let settings = self.machine.settings()?;
        let host = Host::open_to_look(&settings)?;
        let engine = host.engine(settings.policy());
        match &self.output {
            None => engine.firmware_extract(self.slot, &self.name, &mut Stdout).map(|_| ()),
            Some(path) => {
                write_whole(path, |out| engine.firmware_extract(self.slot, &self.name, out).map(|_| ()))
            }
        }
    }
}

/// Writes a file that appears under its name only when it is complete: a flash program that waits for the file must not find
/// half of it.
fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |source: io::Error| Error::Output { path: path.to_owned(), source };
    let mut file = OutputFile::create(path, 0o666).map_err(failed)?;
    fill(&mut file)?;
    file.publish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_failed_extraction_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nic.bin");
        let fill = |out: &mut dyn Write| {
            out.write_all(b"half").unwrap();
            Err(Error::Interrupted { doing: "testing".into() })
        };
        assert!(write_whole(&path, fill).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let fill = |out: &mut dyn Write| {
            assert!(!path.exists());
            out.write_all(b"whole").unwrap();
            Ok(())
        };
        write_whole(&path, fill).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
