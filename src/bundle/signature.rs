//! `manifest.json.sig`: one or more armored OpenSSH signatures (PROTOCOL.sshsig), back to back.
//!
//! Each must be in the one spelling that ssh-keygen writes (70 columns, LF), so that no byte of the member is
//! without meaning. Verifying by hand with several: cut out one block and give it to `ssh-keygen -Y verify`.

use base64ct::{Base64, Encoding};
use ssh_key::{LineEnding, SshSig};

use super::manifest::limit;
use crate::error::{Error, Result};

/// The SSHSIG namespace: a signature made for anything else is no signature of a bundle.
pub const NAMESPACE: &str = "qimg";
/// Upper limit of the size of `manifest.json.sig` in bytes: some forty signatures by RSA-4096.
pub const SIGNATURE_MAX: u64 = 64 << 10;

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----\n";
/// What a signature begins with: `MAGIC_PREAMBLE` of PROTOCOL.sshsig.
const MAGIC: &[u8] = b"SSHSIG";
/// Columns of a line of base64.
const COLUMNS: usize = 70;

/// One signature of the member.
#[derive(Debug)]
pub enum Candidate {
    /// It can be checked against a key.
    Known(Box<SshSig>),
    /// Whole by its outer form, of a kind that this build cannot check: by a certificate, say.
    Unknown,
}

/// Splits and decodes the signatures.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::SignatureFormat`].
pub fn parse(bytes: &[u8]) -> Result<Vec<Candidate>> {
    limit("manifest.json.sig in bytes", bytes.len() as u64, SIGNATURE_MAX)?;
    let bad = |problem: String| Error::SignatureFormat { problem };
    let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text".to_owned()))?;
    let mut candidates = Vec::new();
    for block in text.split_inclusive(END) {
        let number = candidates.len() + 1;
        let candidate = candidate(block).map_err(|problem| bad(format!("signature {number} {problem}")))?;
        candidates.push(candidate);
    }
    Ok(candidates)
}

/// Decodes one armored signature. The errors hold nothing of it: nobody vouches for it yet.
fn candidate(block: &str) -> Result<Candidate, &'static str> {
    let body = block.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let body = body.ok_or("has no armor of an SSH signature")?;
    let blob = Base64::decode_vec(&body.replace('\n', "")).map_err(|_| "is not base64")?;
    if armor(&blob) != block {
        return Err("is not spelled as ssh-keygen does");
    }
    let version = outline(&blob).ok_or("is damaged")?;
    // The library takes any version up to its own, 0 included, and keeps it out of what is signed; ssh-keygen does not.
    if version != SshSig::VERSION {
        return Err("is of another version");
    }
    Ok(match SshSig::from_pem(block) {
        // What the library makes of it is all of it: no byte is without meaning.
        Ok(signature) if spelled(&signature).as_deref() == Ok(block) => Candidate::Known(Box::new(signature)),
        _ => Candidate::Unknown,
    })
}

/// The version of a signature whose five fields fill it exactly (PROTOCOL.sshsig, "Blob format").
fn outline(blob: &[u8]) -> Option<u32> {
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
    let (version, mut rest) = blob.strip_prefix(MAGIC)?.split_at_checked(4)?;
    // Public key, namespace, reserved, hash algorithm, signature.
    for _ in 0..5 {
        let (len, behind) = rest.split_at_checked(4)?;
        rest = behind.split_at_checked(usize::try_from(number(len)?).ok()?)?.1;
    }
    if rest.is_empty() { number(version) } else { None }
}

/// The one spelling of these bytes.
fn armor(blob: &[u8]) -> String {
    let mut text = BEGIN.to_owned();
    let base64 = Base64::encode_string(blob);
    for line in base64.as_bytes().chunks(COLUMNS) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + END
}

/// The one spelling of a signature.
pub(crate) fn spelled(signature: &SshSig) -> Result<String, ssh_key::Error> {
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
    spelled(&signature).map_err(|problem| bad(problem.to_string()))
}
