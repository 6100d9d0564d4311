//! `qstage sign`.

use std::path::PathBuf;

use clap::Args;

use super::destination::BundleOutput;
use super::output::{self, Format, Palette};
use crate::error::{Error, Result};
use crate::pack::{self, SignReport, Signer};

/// Add a signature to a bundle
///
/// Signatures that the bundle already has are kept, so that it can be signed by the
/// old and the new key while keys are replaced. To sign with a key in an agent or a
/// hardware token:
///
///   tar xOf x.qimg manifest.json > manifest.json
///   ssh-keygen -Y sign -n qimg -f KEY.pub manifest.json
///   qstage sign x.qimg --signature manifest.json.sig
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
#[command(group = clap::ArgGroup::new("with").required(true).args(["key", "signature"]))]
pub(super) struct SignArgs {
    /// Bundle to sign
    bundle: PathBuf,

    /// Private key: OpenSSH format, without a passphrase
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,

    /// Signature made elsewhere over manifest.json, namespace qimg
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,

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
            (Some(key), _) => Signer::Key(key),
            (None, Some(signature)) => Signer::Detached(signature),
            // clap ensures that one of the two is given.
            (None, None) => return Err(Error::Internal { what: "sign without a signer".to_owned() }),
        };
        let to = self.output.as_deref().map(|to| BundleOutput::new(to, self.force, self.json));
        let mut to = to.transpose()?;
        let report = pack::sign(&self.bundle, signer, to.as_mut().map(BundleOutput::destination))?;
        let format = Format::object_if(self.json);
        let human = |report: &SignReport, _: Palette| {
            format!(
                "{}: signed with {}, signatures: {}\n",
                report.path.display(),
                report.added.display(),
                report.signatures
            )
        };
        match to {
            Some(to) => to.outcome(format, &report, human),
            None => output::outcome(format, &report, human),
        }
    }
}
