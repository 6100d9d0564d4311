//! `qstage pack`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::args::JobsArgs;
use super::destination::BundleOutput;
use super::machine;
use super::output::{Format, Palette};
use super::progress::Reporter;
use super::values;
use crate::bundle::manifest::FRAME_MAX;
use crate::bundle::name;
use crate::bundle::needs::NeededPlatform;
use crate::error::{Error, Result};
use crate::pack::{self, PackReport, PackSpec};
use crate::units::size;

/// Smallest frame in bytes: with smaller ones the index grows and compression suffers, without a benefit.
const FRAME_SMALLEST: u32 = 64 << 10;

/// Pack images into a bundle and sign it
///
/// The bundle is a tar archive of independent zstd frames with a signed manifest;
/// 'tar tvf' lists it. Packing the same images with the same options and the same
/// SOURCE_DATE_EPOCH gives the same bytes, the signature of some key types excepted.
#[derive(Debug, Args)]
// clap does not wrap usage lines, and this one is wider than 80 columns.
#[command(override_usage = "qstage pack [OPTIONS] --product <NAME> --version <VERSION>
                   --platform <FILE> --output <FILE>
       qstage pack [OPTIONS] --product <NAME> --version <VERSION>
                   --needs-platform <PLATFORM> --software <FILE> --output <FILE>")]
pub(super) struct PackArgs {
    /// Product that the bundle is for; machines of other products refuse it
    #[arg(long, value_name = "NAME", value_parser = name::parse_product)]
    product: String,

    /// Version of the bundle, such as 1.4.2
    // Without a distinct id it would collide with the program's flag --version.
    #[arg(id = "bundle_version", long = "version", value_name = "VERSION", value_parser = name::parse_word)]
    version: String,

    /// Operating system image: the platform slot's content from its first byte
    #[arg(long, value_name = "FILE", required_unless_present = "needs_platform")]
    platform: Option<PathBuf>,

    /// Pack software alone, for machines with this platform: a digest or versions
    ///
    /// The bundle carries no platform: the BLAKE3 of the image that is needed (b3sum, or
    /// 'qstage inspect --json' of a full bundle), or its versions: 1.4, 1.4..1.9, 1.4..,
    /// ..1.9; both ends belong to the range. Beside another platform it is refused.
    /// Releases of qstage that do not know such bundles refuse their format version.
    #[arg(long, value_name = "PLATFORM", requires = "software", conflicts_with_all = ["platform", "firmware"])]
    needs_platform: Option<NeededPlatform>,

    /// Software (container) image
    #[arg(long, value_name = "FILE")]
    software: Option<PathBuf>,

    /// Firmware blob, stored after the platform image; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_firmware)]
    firmware: Vec<(String, PathBuf)>,

    /// Private key: OpenSSH format, without a passphrase
    ///
    /// Leave it out to sign later with 'qstage sign', or with ssh-keygen if the key is
    /// in an agent or a hardware token. The key is tested before the packing; one that
    /// asks for a passphrase or a touch asks twice.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Bundle to write; '-' is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Replace the bundle if it exists
    ///
    /// Never one of the files that are packed.
    #[arg(long)]
    force: bool,

    /// Oldest version that may be upgraded directly [default: any]
    #[arg(long, value_name = "VERSION", value_parser = name::parse_word)]
    min_version: Option<String>,

    /// Anti-rollback epoch: raise it if older releases have a known vulnerability
    ///
    /// A machine refuses a bundle whose epoch is lower than the highest that was ever
    /// marked good on it.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::whole::<u64>)]
    epoch: u64,

    /// zstd level: 1 is fastest, 19 smallest
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = values::level)]
    level: i32,

    /// Uncompressed size of a frame, a power of two, 64K to 8M
    ///
    /// A frame is verified and written as a whole.
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_frame_size)]
    frame_size: u32,

    #[command(flatten)]
    jobs: JobsArgs,

    /// Print progress and result as JSON lines
    #[arg(long)]
    pub(super) json: bool,
}

impl PackArgs {
    pub(super) fn run(&self) -> Result<()> {
        let format = Format::lines_if(self.json);
        let spec = PackSpec {
            product: self.product.clone(),
            version: self.version.clone(),
            min_version: self.min_version.clone(),
            epoch: self.epoch,
            created: creation_time()?,
            platform: self.platform.clone(),
            needs_platform: self.needs_platform.clone(),
            software: self.software.clone(),
            firmware: self.firmware.clone(),
            key: self.key.clone(),
            level: self.level,
            frame_size: self.frame_size,
            jobs: self.jobs.jobs,
        };
        let mut to = BundleOutput::new(&self.output, self.force, self.json)?;
        let progress = Reporter::new(format);
        let report = pack::pack(&spec, to.destination(), &progress, &machine::cancel_on_signals()?)?;
        drop(progress);
        to.outcome(format, &report, human)
    }
}

fn human(report: &PackReport, palette: Palette) -> String {
    let signed = if report.signed { palette.good("signed") } else { palette.warn("not signed") };
    format!(
        "{}: {} from {} of images in {:.1} s, {signed}\n",
        report.path.display(),
        size::human(report.bundle_bytes),
        size::human(report.image_bytes),
        report.seconds,
    )
}

/// The current time, or `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org/specs/source-date-epoch/>), in seconds since
/// 1970. It is for people only: no decision depends on it.
fn creation_time() -> Result<u64> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    };
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| Error::Argument {
        what: "SOURCE_DATE_EPOCH".to_owned(),
        problem: format!("'{}' is no number of seconds; set it right or unset it", text.display()),
    })
}

fn parse_firmware(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !file.is_empty() => {
            let name = name::parse_word(name).map_err(|rule| format!("the name {rule}"))?;
            Ok((name, file.into()))
        }
        _ => Err("write NAME=FILE, as in nic=firmware/nic.bin".to_owned()),
    }
}

fn parse_frame_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse_size(text)?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() && (FRAME_SMALLEST..=FRAME_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{bytes} bytes are no frame size: a power of two from 64K to 8M is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_a_name_and_a_file() {
        assert_eq!(parse_firmware("nic=a=b.bin"), Ok(("nic".to_owned(), "a=b.bin".into())));
        for text in ["nic", "=x", "nic=", ""] {
            assert!(parse_firmware(text).is_err(), "{text}");
        }
    }

    #[test]
    fn frame_sizes_are_powers_of_two_within_limits() {
        assert_eq!(parse_frame_size("64K"), Ok(1 << 16));
        assert_eq!(parse_frame_size("8M"), Ok(1 << 23));
        for text in ["0", "32K", "16M", "1000000", "4G", "3M"] {
            assert!(parse_frame_size(text).is_err(), "{text}");
        }
    }
}
