//! The trusted keys: an OpenSSH `allowed_signers` file (ssh-keygen(1), ALLOWED SIGNERS), so that keys in agents and
//! hardware tokens work and a key is rotated by shipping a new file.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

use self::line::AllowedSigner;
use super::kind;
use super::manifest::{Manifest, Provenance};
use super::signature::{self, NAMESPACE, SignatureBlock};
use crate::error::{Error, Result};

mod line;
mod pattern;
mod time;

/// Maximum size of a trust file in bytes: some thousand keys.
pub const TRUST_MAX: u64 = 1 << 20;

/// The keys that may sign bundles for this machine.
#[derive(Debug)]
pub struct Trust {
    path: PathBuf,
    policy: TrustPolicy,
    demand: Demand,
}

/// Requirements beyond a signature by a listed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Number of different keys that must have signed.
    pub threshold: NonZeroUsize,
    /// Only keys of this principal count, as with `ssh-keygen -Y verify -I`; `None`: keys of any principal.
    pub principal: Option<String>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { threshold: NonZeroUsize::MIN, principal: None }
    }
}

#[derive(Debug)]
enum TrustPolicy {
    Signers { signers: Vec<AllowedSigner>, skipped: Vec<String> },
    Unsigned,
}

/// Number of lines whose problems are shown.
const SHOWN: usize = 3;

/// Why a file has no usable key: the kind of file that it is instead, or its first lines, each with its problem.
fn no_signer(text: &[u8], skipped: &[String]) -> String {
    const ENTRY: &str =
        "write a line 'NAME namespaces=\"qimg\" KEY' for each public key, see ssh-keygen(1), ALLOWED SIGNERS";
    match kind::guess(text).filter(|kind| *kind != kind::TEXT) {
        Some(found) => return format!("it looks like {found}; {ENTRY}"),
        None if skipped.is_empty() => return format!("it has no entry; {ENTRY}"),
        None => {}
    }
    let mut shown: Vec<&str> = skipped.iter().take(SHOWN).map(String::as_str).collect();
    let more = format!("and {} lines more", skipped.len().saturating_sub(SHOWN));
    if skipped.len() > SHOWN {
        shown.push(&more);
    }
    format!("{}; {ENTRY}", shown.join("; "))
}

impl Trust {
    /// Parses an `allowed_signers` file; `path` is used in messages. A line that this build cannot use (an unknown
    /// key type, a certificate authority) is skipped, as ssh-keygen does, so that a file for newer machines works
    /// too. Skipped lines are reported if no key matches.
    ///
    /// # Errors
    /// [`Error::TrustFile`] if it holds no usable key.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let (mut signers, mut skipped) = (Vec::new(), Vec::new());
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate().map(|(i, line)| (i + 1, line)) {
            match AllowedSigner::parse(line) {
                Ok(signer) => signers.extend(signer),
                Err(problem) => skipped.push(format!("line {number}: {problem}")),
            }
        }
        if signers.is_empty() {
            let problem = format!("no usable key: {}", no_signer(text, &skipped));
            return Err(Error::TrustFile { path: path.to_owned(), problem });
        }
        let policy = TrustPolicy::Signers { signers, skipped };
        Ok(Self { path: path.to_owned(), policy, demand: Demand::default() })
    }

    /// Number of keys that are valid for a bundle now, and the lines of the file that were skipped, with the reason.
    pub fn keys(&self) -> (usize, &[String]) {
        let TrustPolicy::Signers { signers, skipped } = &self.policy else { return (0, &[]) };
        let now = Timestamp::now().as_second();
        (signers.iter().filter(|signer| self.refusal(signer, now).is_none()).count(), skipped)
    }

    /// The same keys with more requirements.
    pub fn demanding(self, demand: Demand) -> Self {
        Self { demand, ..self }
    }

    /// Accepts any bundle, signed or not. For development: it removes the protection that all else is built on, and
    /// the name makes every caller state that.
    pub fn dangerously_unsigned() -> Self {
        Self { path: PathBuf::new(), policy: TrustPolicy::Unsigned, demand: Demand::default() }
    }

    /// Turns the bytes of `manifest.json` into a [`Manifest`] if enough signatures are valid.
    ///
    /// # Errors
    /// [`Error::Unsigned`], [`Error::SignatureFormat`], [`Error::Untrusted`], [`Error::TooFewSigners`],
    /// [`Error::BadSignature`], and those of [`ManifestFields::parse`](super::manifest::ManifestFields::parse).
    pub fn verify(&self, manifest: Vec<u8>, signature: Vec<u8>) -> Result<Manifest> {
        let vouched = match &self.policy {
            TrustPolicy::Signers { .. } => Provenance::Signature(self.judge(&manifest, &signature)?),
            TrustPolicy::Unsigned => Provenance::Unsigned,
        };
        Manifest::with_provenance(manifest, signature, vouched)
    }

    /// The signers of these bytes that are trusted now: principals and fingerprint of each key.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), except those of the manifest.
    pub fn judge(&self, manifest: &[u8], signature: &[u8]) -> Result<String> {
        self.judge_at(manifest, signature, Timestamp::now().as_second())
    }

    /// [`judge`](Self::judge) at another time, in seconds since 1970.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    pub fn judge_at(&self, manifest: &[u8], signature: &[u8], now: i64) -> Result<String> {
        let TrustPolicy::Signers { signers, skipped } = &self.policy else { return Ok(String::new()) };
        if signature.is_empty() {
            return Err(Error::Unsigned);
        }
        let mut found = Findings::default();
        for (number, candidate) in (1..).zip(signature::parse(signature)?) {
            let SignatureBlock::Known(candidate) = candidate else {
                found.ignored.push(format!("signature {number} (of a kind that is not known)"));
                continue;
            };
            let key = PublicKey::from(candidate.public_key().clone());
            let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
            let mut known = false;
            for signer in signers.iter().filter(|signer| signer.key == *key.key_data()) {
                known = true;
                if let Some(refusal) = self.refusal(signer, now) {
                    found.ignored.push(format!("{fingerprint} ({refusal})"));
                } else if key.verify(NAMESPACE, manifest, &candidate).is_ok() {
                    found.holds(signer, &fingerprint);
                    break;
                } else {
                    found.forged = Some(fingerprint.clone());
                }
            }
            if !known {
                found.ignored.push(format!("{fingerprint} (not listed)"));
            }
        }
        let needed = self.demand.threshold.get();
        if found.keys.len() >= needed {
            return Ok(found.names.join(", "));
        }
        if let Some(key) = found.forged {
            return Err(Error::BadSignature { key });
        }
        if !found.keys.is_empty() {
            let (path, signers) = (self.path.clone(), found.names.join(", "));
            return Err(Error::TooFewSigners { path, found: found.keys.len(), needed, signers });
        }
        found.ignored.extend(skipped.iter().map(|line| format!("unusable {line}")));
        Err(Error::Untrusted { path: self.path.clone(), signers: found.ignored.join(", ") })
    }

    fn refusal(&self, signer: &AllowedSigner, now: i64) -> Option<&'static str> {
        let principal = self.demand.principal.as_ref();
        let fits = |name: &String| pattern::matches_list(name.as_bytes(), &signer.principals);
        if !principal.is_none_or(fits) {
            return Some("not listed for the required principal");
        }
        signer.refusal(now)
    }
}

/// Result of checking the signatures of a bundle.
#[derive(Default)]
struct Findings<'t> {
    /// The keys with a valid signature, each once.
    keys: Vec<&'t KeyData>,
    /// Principals and fingerprint of each of these keys.
    names: Vec<String>,
    /// Fingerprint of the key of an invalid signature; `None` if there is none.
    forged: Option<String>,
    /// Signatures that do not count, with the reason.
    ignored: Vec<String>,
}

impl<'t> Findings<'t> {
    fn holds(&mut self, signer: &'t AllowedSigner, fingerprint: &str) {
        if !self.keys.contains(&&signer.key) {
            self.keys.push(&signer.key);
            self.names.push(format!("{} {fingerprint}", String::from_utf8_lossy(&signer.principals)));
        }
    }
}
