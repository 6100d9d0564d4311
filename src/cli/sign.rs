//! `qstage sign`.

use std::path::PathBuf;

use clap::Args;

use super::destination::BundleOutput;
use super::output::{self, Format, Palette};
use crate::error::Result;
use crate::host::signer::fingerprint;
use crate::pack::{self, SignReport, Signer};

/// Add a signature to a bundle, or remove those of a key
///
/// Signatures that the bundle already has are kept, so that it can be signed by the
/// old and the new key while keys are replaced. To sign with a key in an agent or a
/// hardware token:
///
///   tar xOf x.qimg manifest.json > manifest.json
///   ssh-keygen -Y sign -n qimg -f KEY.pub manifest.json
///   qstage sign x.qimg --signature manifest.json.sig
///
/// When every machine trusts the new key: qstage sign x.qimg --remove OLD.pub
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
#[command(override_usage = "qstage sign [OPTIONS] <BUNDLE> [--key <FILE>|--signature <FILE>]
                   [--remove <KEY>]")]
#[command(group = clap::ArgGroup::new("with").required(true).multiple(true).args(["key", "signature", "remove"]))]
pub(super) struct SignArgs {
    /// Bundle to sign
    bundle: PathBuf,

    /// Private key: OpenSSH format, without a passphrase
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Signature made elsewhere over manifest.json, namespace qimg
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    signature: Option<PathBuf>,

    /// Remove the signatures by this key: a key file, or its fingerprint
    ///
    /// The fingerprint as 'qstage inspect' shows it, SHA256:... The last signature is
    /// removed only if another one is added.
    #[arg(long, value_name = "KEY")]
    remove: Option<PathBuf>,

    /// Bundle to write; '-' is standard output [default: BUNDLE itself]
    ///
    /// BUNDLE is replaced when the new file is complete.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the output if it exists
    #[arg(long)]
    force: bool,

    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

impl SignArgs {
    pub(super) fn run(&self) -> Result<()> {
        let signer = match (&self.key, &self.signature) {
            (Some(key), _) => Some(Signer::Key(key)),
            (None, Some(signature)) => Some(Signer::Detached(signature)),
            (None, None) => None,
        };
        let remove = self.remove.as_deref().map(fingerprint).transpose()?;
        let to = self.output.as_deref().map(|to| BundleOutput::new(to, self.force, self.json));
        let mut to = to.transpose()?;
        let report =
            pack::sign(&self.bundle, signer, remove.as_deref(), to.as_mut().map(BundleOutput::destination))?;
        let format = Format::object_if(self.json);
        let human = |report: &SignReport, _: Palette| {
            let mut text = format!("{}: ", report.path.display());
            if let Some(removed) = &report.removed {
                text += &format!("signatures by {removed} removed, ");
            }
            if let Some(added) = &report.added {
                text += &format!("signed with {}, ", added.display());
            }
            text + &format!("signatures: {}\n", report.signatures)
        };
        match to {
            Some(to) => to.outcome(format, &report, human),
            None => output::outcome(format, &report, human),
        }
    }
}
