//! `manifest.json.sig`: one or more armored OpenSSH signatures (PROTOCOL.sshsig), back to back.
//!
//! Each must be in the one spelling that ssh-keygen writes (70 columns, LF), so that no byte of the member is
//! without meaning. Verifying by hand with several: cut out one block and give it to `ssh-keygen -Y verify`.

use ssh_key::{LineEnding, SshSig};

use super::manifest::limit;
use crate::error::{Error, Result};

/// The SSHSIG namespace: a signature made for anything else is no signature of a bundle.
pub const NAMESPACE: &str = "qimg";
/// Upper limit of the size of `manifest.json.sig` in bytes: some forty signatures by RSA-4096.
pub const SIGNATURE_MAX: u64 = 64 << 10;

const END: &str = "-----END SSH SIGNATURE-----\n";

/// Splits and decodes the signatures.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::SignatureFormat`].
pub fn parse(bytes: &[u8]) -> Result<Vec<SshSig>> {
    limit("manifest.json.sig in bytes", bytes.len() as u64, SIGNATURE_MAX)?;
    let bad = |problem: String| Error::SignatureFormat { problem };
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text".to_owned()))?;
    let mut signatures = Vec::new();
    for block in text.split_inclusive(END) {
        let number = signatures.len() + 1;
        let signature =
            SshSig::from_pem(block).map_err(|problem| bad(format!("signature {number}: {problem}")))?;
        // The library takes any version up to its own, 0 included, and keeps it out of what is signed; ssh-keygen does not.
        if signature.version() != SshSig::VERSION {
            return Err(bad(format!("signature {number}: version {}", signature.version())));
        }
        let canonical = armor(&signature).map_err(|problem| bad(format!("signature {number}: {problem}")))?;
        if canonical != block {
            return Err(bad(format!("signature {number} is not spelled as ssh-keygen does")));
        }
        signatures.push(signature);
    }
    Ok(signatures)
}

/// The one spelling of a signature.
pub(crate) fn armor(signature: &SshSig) -> Result<String, ssh_key::Error> {
    let mut text = signature.to_pem(LineEnding::LF)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Brings a detached signature (the `.sig` file of `ssh-keygen -Y sign`) into the one spelling.
///
/// # Errors
/// [`Error::SignatureFormat`]; also where its namespace is not [`NAMESPACE`].
pub fn import(bytes: &[u8]) -> Result<String> {
    let bad = |problem: String| Error::SignatureFormat { problem };
    let signature = SshSig::from_pem(bytes).map_err(|problem| bad(problem.to_string()))?;
    if signature.namespace() != NAMESPACE {
        return Err(bad(format!(
            "made for namespace '{}'; sign with 'ssh-keygen -Y sign -n {NAMESPACE}'",
            signature.namespace()
        )));
    }
    armor(&signature).map_err(|problem| bad(problem.to_string()))
}
