//! Who may vouch for a bundle: an OpenSSH `allowed_signers` file (ssh-keygen(1), ALLOWED SIGNERS), so that keys
//! in agents and hardware tokens work and a key is rotated by shipping a new file.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ssh_key::{HashAlg, PublicKey};

use super::manifest::{Manifest, Vouched};
use super::signature::{self, NAMESPACE};
use crate::error::{Error, Result};

/// The keys that may sign bundles for this machine.
#[derive(Debug)]
pub struct Trust {
    path: PathBuf,
    policy: Policy,
}

#[derive(Debug)]
enum Policy {
    Signers { signers: Vec<Signer>, skipped: Vec<String> },
    Unsigned,
}

/// One usable line of the file.
#[derive(Debug)]
struct Signer {
    principals: String,
    key: PublicKey,
    namespaces: Option<Vec<String>>,
    valid_after: Option<Timestamp>,
    valid_before: Option<Timestamp>,
}

impl Trust {
    /// Reads an `allowed_signers` file. A line that this build cannot use (an unknown key type, a certificate
    /// authority) is skipped, as ssh-keygen does, so that a file for newer machines still serves; what was
    /// skipped is said when no key fits.
    ///
    /// # Errors
    /// [`Error::TrustFile`] where it cannot be read or holds no usable key.
    pub fn allowed_signers(path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::TrustFile { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path)
            .map_err(|problem| bad(format!("{problem}; name another file with --trust")))?;
        let (mut signers, mut skipped) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Signer::parse(line) {
                Ok(signer) => signers.push(signer),
                Err(problem) => skipped.push(format!("line {number}: {problem}")),
            }
        }
        if signers.is_empty() {
            let why = if skipped.is_empty() { "it has no entry".to_owned() } else { skipped.join("; ") };
            return Err(bad(format!("no usable key: {why}")));
        }
        Ok(Self { path: path.to_owned(), policy: Policy::Signers { signers, skipped } })
    }

    /// Accepts any bundle, signed or not. For development: it removes the protection that everything here
    /// is built on, and every caller says so by this name.
    pub fn dangerously_unsigned() -> Self {
        Self { path: PathBuf::new(), policy: Policy::Unsigned }
    }

    /// Turns the bytes of `manifest.json` into a [`Manifest`] if one of the signatures holds.
    ///
    /// # Errors
    /// [`Error::Unsigned`], [`Error::SignatureFormat`], [`Error::Untrusted`], [`Error::BadSignature`], and
    /// those of [`Claims::parse`](super::manifest::Claims::parse).
    pub fn verify(&self, manifest: Vec<u8>, signature: Vec<u8>) -> Result<Manifest> {
        let Policy::Signers { signers, skipped } = &self.policy else {
            return Manifest::vouched(manifest, signature, Vouched::Unsigned);
        };
        if signature.is_empty() {
            return Err(Error::Unsigned);
        }
        let now = Timestamp::now();
        let mut strangers = Vec::new();
        let mut forged = None;
        for candidate in signature::parse(&signature)? {
            let key = PublicKey::from(candidate.public_key().clone());
            let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
            let mut known = false;
            for signer in signers.iter().filter(|signer| signer.key.key_data() == key.key_data()) {
                if let Some(refusal) = signer.refusal(now) {
                    strangers.push(format!("{fingerprint} ({refusal})"));
                    known = true;
                } else if key.verify(NAMESPACE, &manifest, &candidate).is_ok() {
                    let voucher = format!("{} {fingerprint}", signer.principals);
                    return Manifest::vouched(manifest, signature, Vouched::Signature(voucher));
                } else {
                    forged = Some(fingerprint.clone());
                    known = true;
                }
            }
            if !known {
                strangers.push(format!("{fingerprint} (not listed)"));
            }
        }
        if let Some(key) = forged {
            return Err(Error::BadSignature { key });
        }
        strangers.extend(skipped.iter().map(|line| format!("unusable {line}")));
        Err(Error::Untrusted { path: self.path.clone(), signers: strangers.join(", ") })
    }
}

impl Signer {
    fn parse(line: &str) -> Result<Self, String> {
        let (principals, rest) = word(line);
        let (mut field, mut rest) = word(rest);
        let mut signer = Self {
            principals: principals.trim_matches('"').to_owned(),
            key: PublicKey::from(ssh_key::public::Ed25519PublicKey([0; 32])),
            namespaces: None,
            valid_after: None,
            valid_before: None,
        };
        // An optional field of options stands before the key; a key type is never a valid option.
        if !is_key_type(field) {
            signer.options(field)?;
            (field, rest) = word(rest);
        }
        let (blob, _comment) = word(rest);
        signer.key = PublicKey::from_openssh(&format!("{field} {blob}"))
            .map_err(|problem| format!("key: {problem}"))?;
        Ok(signer)
    }

    fn options(&mut self, field: &str) -> Result<(), String> {
        let mut rest = field;
        while !rest.is_empty() {
            let option;
            (option, rest) = until(rest, ',');
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            match name.to_ascii_lowercase().as_str() {
                "namespaces" => self.namespaces = Some(value.split(',').map(str::to_owned).collect()),
                "valid-after" => self.valid_after = Some(time(value)?),
                "valid-before" => self.valid_before = Some(time(value)?),
                // Certificates would bring a second chain of trust with clock and revocation of its own.
                "cert-authority" => return Err("certificate authorities are not supported".to_owned()),
                // An option that is not understood may be a restriction: ignoring it would widen trust.
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        Ok(())
    }

    /// Why a signature by this key does not count although the key is listed.
    fn refusal(&self, now: Timestamp) -> Option<String> {
        let wildcard = |pattern: &String| pattern == NAMESPACE || pattern == "*";
        if self.namespaces.as_ref().is_some_and(|list| !list.iter().any(wildcard)) {
            return Some(format!("not listed for namespace {NAMESPACE}"));
        }
        if self.valid_after.is_some_and(|limit| now < limit) {
            return Some("not yet valid by this machine's clock".to_owned());
        }
        if self.valid_before.is_some_and(|limit| now >= limit) {
            return Some("no longer valid by this machine's clock".to_owned());
        }
        None
    }
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| word.starts_with(prefix))
}

/// The first word and what follows; blanks inside double quotes belong to the word.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let mut quoted = false;
    let end = text.find(|c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    });
    text.split_at(end.unwrap_or(text.len()))
}

/// What stands before the first separator outside double quotes, and what stands behind it.
fn until(text: &str, separator: char) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|c: char| {
        quoted ^= c == '"';
        !quoted && c == separator
    });
    end.map_or((text, ""), |end| (&text[..end], &text[end + 1..]))
}

/// A time of ssh-keygen(1): `YYYYMMDD[HHMM[SS]]`, local unless a `Z` follows.
fn time(text: &str) -> Result<Timestamp, String> {
    let (digits, zone) = match text.strip_suffix('Z') {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    let bad = || format!("time '{text}' is not YYYYMMDD[HHMM[SS]][Z]");
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(bad());
    }
    // Two digits always fit; a part that is not there is zero.
    let part = |at: usize| digits.get(at..at + 2).and_then(|text| text.parse::<i8>().ok()).unwrap_or(0);
    let year = digits[..4].parse::<i16>().map_err(|_| bad())?;
    DateTime::new(year, part(4), part(6), part(8), part(10), part(12), 0)
        .and_then(|time| time.to_zoned(zone))
        .map(|zoned| zoned.timestamp())
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIHGAFN8+qXJ9VkdxEQLWjDDy5KRFAJEQ0Jh3yGQ3XqT";

    #[test]
    fn lines_of_the_manual() {
        let plain = Signer::parse(&format!("user1@example.com,user2@example.com {KEY} a comment")).unwrap();
        assert_eq!(plain.principals, "user1@example.com,user2@example.com");
        assert!(plain.refusal(Timestamp::now()).is_none());

        let fine =
            Signer::parse(&format!("*@x namespaces=\"file,qimg\",valid-after=\"20200101Z\" {KEY}")).unwrap();
        assert!(fine.refusal(Timestamp::now()).is_none());
        assert!(fine.refusal("2019-12-31T23:59:59Z".parse().unwrap()).unwrap().contains("not yet"));

        let other = Signer::parse(&format!("x namespaces=\"git\" {KEY}")).unwrap();
        assert!(other.refusal(Timestamp::now()).unwrap().contains("namespace"));

        let ended = Signer::parse(&format!("x valid-before=\"202001021530Z\" {KEY}")).unwrap();
        assert!(ended.refusal("2020-01-02T15:29:59Z".parse().unwrap()).is_none());
        assert!(ended.refusal("2020-01-02T15:30:00Z".parse().unwrap()).unwrap().contains("no longer"));
    }

    #[test]
    fn lines_that_are_not_understood_give_no_trust() {
        for (line, word) in [
            (format!("x cert-authority {KEY}"), "certificate"),
            (format!("x verify-required {KEY}"), "unknown option"),
            (format!("x valid-after=\"soon\" {KEY}"), "time"),
            (format!("x valid-after=\"20201301\" {KEY}"), "time"),
            ("x ssh-ed25519 AAAA".to_owned(), "key"),
            ("x".to_owned(), "key"),
        ] {
            let problem = Signer::parse(&line).unwrap_err();
            assert!(problem.contains(word), "{line}: {problem}");
        }
    }
}
