//! Making signatures: with a key file directly, or through `ssh-keygen` for keys that only it can use.

use std::path::Path;

use ssh_key::{HashAlg, PrivateKey};

use super::program::Program;
use crate::bundle::signature::{NAMESPACE, import, spelled};
use crate::error::{Error, Result};

/// What a key signs to show that it can. It is no manifest, so the signature is of no use to anybody.
const TRIAL: &[u8] = b"qstage: does this key sign?";

/// Signs something else than a manifest, to find a key that does not work before hours of packing. A key that asks for a
/// passphrase or a touch asks one more time.
///
/// # Errors
/// [`Error::Signing`].
pub fn try_out(key_path: &Path) -> Result<()> {
    sign(TRIAL, key_path).map(drop)
}

/// Signs the bytes of a manifest with the key in a file.
///
/// A plain private key is used directly. For everything else (RSA, a public key whose private half an agent holds, an
/// encrypted key, a hardware token) `ssh-keygen -Y sign` is asked: it knows agents, passphrases and touches.
///
/// # Errors
/// [`Error::Signing`].
pub fn sign(manifest: &[u8], key_path: &Path) -> Result<String> {
    let bad = |problem: String| Error::Signing { key: key_path.to_owned(), problem };
    let text = std::fs::read_to_string(key_path).map_err(|problem| bad(problem.to_string()))?;
    let signature = match PrivateKey::from_openssh(&text) {
        Ok(key) if is_simple(&key) => {
            let signature =
                key.sign(NAMESPACE, HashAlg::Sha512, manifest).map_err(|problem| bad(problem.to_string()))?;
            spelled(&signature).map_err(|problem| bad(problem.to_string()))?.into_bytes()
        }
        _ => ssh_keygen(manifest, key_path)?,
    };
    import(&signature)
}

/// Whether the crate can sign with it by itself. RSA it cannot: ssh-key 0.6.7 hands one prime twice to the `rsa` crate,
/// which refuses the key ("cryptographic error"). Verifying is not affected.
fn is_simple(key: &PrivateKey) -> bool {
    !key.is_encrypted() && !key.algorithm().as_str().starts_with("sk-") && !key.algorithm().is_rsa()
}

/// `ssh-keygen -Y sign` reads the message from its standard input and prints the armor; what it wants to ask or
/// tell goes over the terminal and standard error, which it keeps.
fn ssh_keygen(manifest: &[u8], key_path: &Path) -> Result<Vec<u8>> {
    let bad = |problem: String| Error::Signing { key: key_path.to_owned(), problem };
    let outcome = Program::interactive("ssh-keygen")
        .args(["-Y", "sign", "-n", NAMESPACE, "-f"])
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
