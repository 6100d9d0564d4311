//! `manifest.json.sig`: one or more armored OpenSSH signatures (PROTOCOL.sshsig), back to back.
//!
//! Each must have the exact encoding that ssh-keygen writes (70 columns, LF), so that every byte of the member has
//! a meaning. To verify one of several by hand, pass its block to `ssh-keygen -Y verify`.

use base64ct::{Base64, Encoding};
use ssh_key::{HashAlg, LineEnding, PublicKey, SshSig};

use super::manifest::limit;
use crate::error::{Error, Result};

/// The SSHSIG namespace: a signature made for another purpose is not a signature of a bundle.
pub const NAMESPACE: &str = "qimg";
/// Upper limit of the size of `manifest.json.sig` in bytes: some forty signatures by RSA-4096.
pub const SIGNATURE_MAX: u64 = 64 << 10;

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----\n";
/// First bytes of a signature: `MAGIC_PREAMBLE` of PROTOCOL.sshsig.
const MAGIC: &[u8] = b"SSHSIG";
/// Length of a base64 line in characters.
const COLUMNS: usize = 70;

/// One signature of the member.
#[derive(Debug)]
pub enum SignatureBlock {
    /// A signature that can be checked against a key.
    Known(Box<SshSig>),
    /// Well-formed on the outside, but of a kind that this build cannot check: by a certificate, for instance.
    Unknown,
}

/// Splits and decodes the signatures.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::SignatureFormat`].
pub fn parse(bytes: &[u8]) -> Result<Vec<SignatureBlock>> {
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

/// The signatures without those by the key with this fingerprint.
///
/// # Errors
/// As [`parse`].
pub fn without(bytes: &[u8], fingerprint: &str) -> Result<Vec<u8>> {
    let parsed = parse(bytes)?;
    let text = String::from_utf8_lossy(bytes);
    let blocks = text.split_inclusive(END).zip(&parsed);
    let left = blocks.filter(|(_, block)| block.fingerprint().as_deref() != Some(fingerprint));
    Ok(left.map(|(block, _)| block).collect::<String>().into_bytes())
}

impl SignatureBlock {
    /// Fingerprint of the key that claims to have signed, as ssh-keygen shows it; `None` if the signature cannot be read.
    pub fn fingerprint(&self) -> Option<String> {
        match self {
            Self::Known(signature) => {
                let key = PublicKey::from(signature.public_key().clone());
                Some(key.fingerprint(HashAlg::Sha256).to_string())
            }
            Self::Unknown => None,
        }
    }
}

/// Decodes one armored signature. The errors contain none of its bytes, which are not authenticated yet.
fn candidate(block: &str) -> Result<SignatureBlock, &'static str> {
    let body = block.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let body = body.ok_or("has no armor of an SSH signature")?;
    let blob = Base64::decode_vec(&body.replace('\n', "")).map_err(|_| "is not base64")?;
    if armor(&blob) != block {
        return Err("is not spelled as ssh-keygen does");
    }
    let version = version_of(&blob).ok_or("is damaged")?;
    // The library accepts any version up to its own, 0 included, and leaves it out of the signed data; ssh-keygen
    // does not.
    if version != SshSig::VERSION {
        return Err("is of another version");
    }
    Ok(match SshSig::from_pem(block) {
        // Encoding it again yields the same block: every byte has a meaning.
        Ok(signature) if canonical(&signature).as_deref() == Ok(block) => {
            SignatureBlock::Known(Box::new(signature))
        }
        _ => SignatureBlock::Unknown,
    })
}

/// The version of a signature whose five fields fill it exactly (PROTOCOL.sshsig, "Blob format").
fn version_of(blob: &[u8]) -> Option<u32> {
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
    let (version, mut rest) = blob.strip_prefix(MAGIC)?.split_at_checked(4)?;
    // Public key, namespace, reserved, hash algorithm, signature.
    for _ in 0..5 {
        let (len, after) = rest.split_at_checked(4)?;
        rest = after.split_at_checked(usize::try_from(number(len)?).ok()?)?.1;
    }
    if rest.is_empty() { number(version) } else { None }
}

/// The canonical armor of these bytes.
fn armor(blob: &[u8]) -> String {
    let mut text = BEGIN.to_owned();
    let base64 = Base64::encode_string(blob);
    for line in base64.as_bytes().chunks(COLUMNS) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + END
}

/// The canonical encoding of a signature.
pub(crate) fn canonical(signature: &SshSig) -> Result<String, ssh_key::Error> {
    let mut text = signature.to_pem(LineEnding::LF)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Converts a detached signature (the `.sig` file of `ssh-keygen -Y sign`) to the canonical encoding.
///
/// # Errors
/// [`Error::SignatureFormat`]; also if its namespace is not [`NAMESPACE`].
pub fn import(bytes: &[u8]) -> Result<String> {
    let bad = |problem: String| Error::SignatureFormat { problem };
    let signature = SshSig::from_pem(bytes).map_err(|problem| bad(problem.to_string()))?;
    if signature.namespace() != NAMESPACE {
        return Err(bad(format!(
            "made for namespace '{}'; sign with 'ssh-keygen -Y sign -n {NAMESPACE}'",
            signature.namespace()
        )));
    }
    canonical(&signature).map_err(|problem| bad(problem.to_string()))
}
