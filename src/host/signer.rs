//! Makes signatures: with a key file directly, or through `ssh-keygen` for keys that only it can use.

use std::path::Path;

use ssh_key::{HashAlg, PrivateKey, PublicKey};

use super::program::Program;
use crate::bundle::signature::{NAMESPACE, canonical, import};
use crate::error::{Error, Result};

/// Text that a key signs in a test. It is no manifest, so the signature is of no use to an attacker.
const TRIAL: &[u8] = b"qstage: does this key sign?";

/// Signs a test text, to find a key that does not work before hours of packing. A key that needs a passphrase or a touch asks
/// one more time.
///
/// # Errors
/// [`Error::Signing`].
pub fn try_out(key_path: &Path) -> Result<()> {
    sign(TRIAL, key_path).map(drop)
}

/// Signs the bytes of a manifest with a key file.
///
/// A plain private key is used directly. Every other key goes to `ssh-keygen -Y sign`, which supports agents, passphrases and
/// touches: RSA, a public key whose private half an agent holds, an encrypted key, a hardware token.
///
/// # Errors
/// [`Error::Signing`].
pub fn sign(manifest: &[u8], key_path: &Path) -> Result<String> {
    let bad = |problem: String| Error::Signing { key: key_path.to_owned(), problem };
    let text = read_key(key_path)?;
    let signature = match PrivateKey::from_openssh(&text) {
        Ok(key) if is_simple(&key) => {
            let signature =
                key.sign(NAMESPACE, HashAlg::Sha512, manifest).map_err(|problem| bad(problem.to_string()))?;
            canonical(&signature).map_err(|problem| bad(problem.to_string()))?.into_bytes()
        }
        _ => ssh_keygen(manifest, key_path)?,
    };
    import(&signature)
}

/// Fingerprint of a key: of a public or private key file, or as ssh-keygen and `qstage inspect` show it.
///
/// # Errors
/// [`Error::Signing`].
pub fn fingerprint(key: &Path) -> Result<String> {
    if let Some(given) = key.to_str().filter(|given| given.starts_with("SHA256:")) {
        return Ok(given.to_owned());
    }
    let bad = |problem: String| Error::Signing { key: key.to_owned(), problem };
    let text = read_key(key)?;
    // The public half of a private key is not encrypted.
    let public = PublicKey::from_openssh(&text)
        .or_else(|_| PrivateKey::from_openssh(&text).map(|private| private.public_key().clone()));
    let public =
        public.map_err(|_| bad("it is no OpenSSH key and no fingerprint 'SHA256:...'".to_owned()))?;
    Ok(public.fingerprint(HashAlg::Sha256).to_string())
}

/// Reads a key file, which is text.
fn read_key(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        let problem = match error.kind() {
            std::io::ErrorKind::InvalidData => "it is no key of OpenSSH".to_owned(),
            _ => error.to_string(),
        };
        Error::Signing { key: path.to_owned(), problem }
    })
}

/// Whether the `ssh-key` crate can sign with this key. It cannot with RSA: ssh-key 0.6.7 passes one prime twice to the `rsa`
/// crate, which refuses the key ("cryptographic error"). Verification is not affected.
fn is_simple(key: &PrivateKey) -> bool {
    !key.is_encrypted() && !key.algorithm().as_str().starts_with("sk-") && !key.algorithm().is_rsa()
}

/// Runs `ssh-keygen -Y sign`, which reads the message from standard input and prints the armored signature. It inherits
/// terminal and standard error for prompts and errors; without -q it also announces what it reads.
fn ssh_keygen(manifest: &[u8], key_path: &Path) -> Result<Vec<u8>> {
    let bad = |problem: String| Error::Signing { key: key_path.to_owned(), problem };
    let outcome = Program::interactive("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key_path)
        .input(manifest)
        .answer()
        .run()
        .map_err(|problem| bad(format!("ssh-keygen: {problem}")))?;
    if !outcome.end.success() {
        return Err(bad(format!("ssh-keygen -Y sign failed ({})", outcome.end)));
    }
    Ok(outcome.answer)
}
