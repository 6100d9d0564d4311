//! `qstage inspect`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::{ConfigArgs, InputArgs};
use super::machine::{self, OpenedInput};
use super::output::{self, Format, Palette};
use super::progress::Reporter;
use super::table;
use crate::bundle::{Summary, Trust};
use crate::error::Result;
use crate::host::trust;
use crate::progress::Cancel;
use crate::sandbox::Kept;
use crate::source::http::Web;
use crate::units::size;

/// Show the content of a bundle
///
/// The signature is checked only if --trust names the keys; without it everything shown
/// may be forged. The images are not read: 'qstage verify' does that.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Bundle or delta to show: a file or http(s) URL; '-' is standard input
    bundle: PathBuf,

    /// Check the signature against this OpenSSH allowed_signers file
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    config: ConfigArgs,
}

impl InspectArgs {
    pub(super) fn run(&self) -> Result<()> {
        // The content of an unverified manifest is only printed, and used for nothing else.
        let trust = match &self.trust {
            Some(file) => trust::read(file)?,
            None => Trust::dangerously_unsigned(),
        };
        let format = Format::object_if(self.json);
        let progress = Arc::new(Reporter::new(format));
        // Only the network settings of the configuration are used.
        let settings = self.config.settings()?;
        let web = Web { front_only: true, ..self.input.web(&settings) };
        let cancel = Cancel::default();
        let input = OpenedInput::open(&self.bundle, self.input.timeout(&settings), &cancel)?;
        let input = input.confine(Kept::default(), &web, &progress)?;
        let bundle = input.bundle(&trust, &web, &cancel, &machine::notices(&progress))?;
        drop(progress);
        output::result(format, &bundle.summary()?, human)
    }
}

fn human(summary: &Summary, palette: Palette) -> String {
    let created =
        i64::try_from(summary.created).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let mut text = table::facts(&[
        ("product", summary.product.clone()),
        ("version", summary.version.clone()),
        (
            "upgrades",
            summary.min_version.as_ref().map_or("any version".into(), |min| format!("{min} or later")),
        ),
        ("needs", summary.needs_platform.as_ref().map_or_else(String::new, ToString::to_string)),
        ("epoch", summary.epoch.to_string()),
        ("created", created.map_or("unknown".into(), |time| time.to_string())),
        (
            "signature",
            summary.signed_by.as_ref().map_or_else(
                || palette.warn("not checked (--trust FILE checks it)"),
                |signer| palette.good(&format!("good, by {signer}")),
            ),
        ),
    ]);
    if !summary.signatures.is_empty() {
        text += &table::facts(&[("signed with", summary.signatures.join(", "))]);
    }
    let rows = summary.payloads.iter().map(|payload| {
        vec![
            payload.name.as_str().into(),
            payload.version.as_str().into(),
            size::human(payload.size).into(),
            size::human(payload.compressed).into(),
            size::human(payload.frame_size.into()).into(),
            payload.blake3.to_string()[..16].into(),
        ]
    });
    text.push('\n');
    text += &table::render(
        &["PAYLOAD", "VERSION", ">SIZE", ">PACKED", ">FRAME", "BLAKE3 (BEGINNING)"],
        rows.collect(),
        palette,
    );
    if let Some(delta) = &summary.delta {
        let frames = &delta.frames;
        text += &format!(
            "\nA delta of {}, for a bundle of {}. Frames: {} in place, {} copied, {} patched, {} new, {} zero, \
             {} left to the bundle.\n",
            size::human(summary.bundle_bytes),
            size::human(delta.stands_for),
            frames.in_place,
            frames.copied,
            frames.patched,
            frames.plain,
            frames.zero,
            frames.from_bundle,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::PayloadSummary;
    use crate::units::{Blake3, Sha256};

    #[test]
    fn an_unchecked_signature_is_said_to_be_so() {
        let mut summary = Summary {
            product: "appliance".into(),
            version: "1.1".into(),
            created: 1_700_000_000,
            payloads: vec![PayloadSummary {
                name: "platform".into(),
                member: "platform.img.zst".into(),
                version: "1.1".into(),
                size: 64 << 20,
                compressed: 20 << 20,
                frame_size: 1 << 20,
                frames: 64,
                blake3: Blake3([0xab; 32]),
                sha256: Sha256([0; 32]),
            }],
            ..Summary::default()
        };
        assert_eq!(
            human(&summary, Palette::PLAIN),
            "product    appliance\n\
             version    1.1\n\
             upgrades   any version\n\
             epoch      0\n\
             created    2023-11-14T22:13:20Z\n\
             signature  not checked (--trust FILE checks it)\n\
             \n\
             PAYLOAD   VERSION      SIZE    PACKED    FRAME  BLAKE3 (BEGINNING)\n\
             platform  1.1      64.0 MiB  20.0 MiB  1.0 MiB  abababababababab\n"
        );
        summary.signed_by = Some("release@example.org".into());
        assert!(human(&summary, Palette::PLAIN).contains("signature  good, by release@example.org\n"));
    }
}
