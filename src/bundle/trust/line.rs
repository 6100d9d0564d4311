//! One line of an `allowed_signers` file, byte for byte as OpenSSH reads it (sshsig.c,
//! `parse_principals_key_and_options`). If the manual is silent, its source decides; a generated table of lines is
//! also checked against ssh-keygen (tests/bundle/allowed_signers.rs).

use base64ct::{Base64, Encoding};
use ssh_key::public::KeyData;

use super::super::signature::NAMESPACE;
use super::{pattern, time};

/// White space in the C library.
const SPACE: &[u8] = b" \t\n\x0b\x0c\r";

/// A line that names a key.
#[derive(Debug)]
pub(super) struct AllowedSigner {
    /// Owners of the key: a pattern list.
    pub(super) principals: Vec<u8>,
    pub(super) key: KeyData,
    namespaces: Option<Vec<u8>>,
    /// In seconds since 1970, like `valid_before`; both ends are inclusive.
    valid_after: Option<i64>,
    valid_before: Option<i64>,
}

impl AllowedSigner {
    /// Parses a line, without its line feed. `None`: it is blank or a comment.
    ///
    /// # Errors
    /// Why the line is not usable. The message contains none of its bytes.
    pub(super) fn parse(line: &[u8]) -> Result<Option<Self>, String> {
        // A C string ends at its first zero.
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let line = skip(line, b" \t\n\r");
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(None);
        }
        let (principals, rest) = principals(line).ok_or("nothing follows the principals")?;
        let (options, key) = match key(rest) {
            Ok(key) => (LineOptions::default(), key),
            // A key type in the place of an option: the problem of the key is more helpful than "unknown option".
            Err(problem)
                if [b"ssh-", b"sk-s", b"sk-e", b"ecds"].iter().any(|begin| rest.starts_with(*begin)) =>
            {
                return Err(format!("key: {problem}"));
            }
            Err(problem) => {
                let end = options_end(rest).ok_or("a quote of the options has no end")?;
                let (options, rest) = rest.split_at(end);
                let Some((_, rest)) = rest.split_first() else { return Err(format!("key: {problem}")) };
                let options = LineOptions::parse(options)?;
                (options, key(skip(rest, b" \t")).map_err(|problem| format!("key: {problem}"))?)
            }
        };
        // Certificates would add a second chain of trust with its own clock and revocation.
        if options.authority {
            return Err("certificate authorities are not supported".to_owned());
        }
        let LineOptions { namespaces, valid_after, valid_before, .. } = options;
        Ok(Some(Self { principals, key, namespaces, valid_after, valid_before }))
    }

    /// Why a signature by this key does not count at `now` (seconds since 1970) although the key is listed; `None`
    /// if it counts.
    pub(super) fn refusal(&self, now: i64) -> Option<&'static str> {
        let fits = |list: &Vec<u8>| pattern::matches_list(NAMESPACE.as_bytes(), list);
        if !self.namespaces.as_ref().is_none_or(fits) {
            return Some("not listed for namespace qimg");
        }
        if self.valid_after.is_some_and(|limit| now < limit) {
            return Some("not yet valid by this machine's clock");
        }
        if self.valid_before.is_some_and(|limit| now > limit) {
            return Some("no longer valid by this machine's clock");
        }
        None
    }
}

/// The first word and the rest: `strdelimw` in misc.c. A quote may open within the word, and its end ends the word.
fn principals(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let end = line.iter().position(|byte| b" \t\r\n\"".contains(byte))?;
    let (word, rest) = line.split_at(end);
    let (mut word, mut rest) = (word.to_vec(), &rest[1..]);
    if line[end] == b'"' {
        let close = rest.iter().position(|byte| *byte == b'"')?;
        word.extend_from_slice(&rest[..close]);
        rest = &rest[close + 1..];
    }
    Some((word, skip(rest, b" \t\r\n")))
}

/// Parses a key: its type, its base64, a comment; `sshkey_read` in sshkey.c.
fn key(text: &[u8]) -> Result<KeyData, &'static str> {
    let end = blank(text).ok_or("it is missing")?;
    let (kind, rest) = text.split_at(end);
    let rest = skip(rest, b" \t");
    let blob = &rest[..blank(rest).unwrap_or(rest.len())];
    let base64: Vec<u8> = blob.iter().copied().filter(|byte| !SPACE.contains(byte)).collect();
    let base64 = std::str::from_utf8(&base64).map_err(|_| "it is not base64")?;
    let blob = Base64::decode_vec(base64).map_err(|_| "it is not base64")?;
    let key = ssh_key::PublicKey::from_bytes(&blob).map_err(|_| "of a kind that is not known, or damaged")?;
    // OpenSSH accepts the names of signature algorithms as key types too.
    let kind = match kind {
        b"rsa-sha2-256" | b"rsa-sha2-512" => b"ssh-rsa",
        b"webauthn-sk-ecdsa-sha2-nistp256@openssh.com" => b"sk-ecdsa-sha2-nistp256@openssh.com".as_slice(),
        kind => kind,
    };
    let data = key.key_data().clone();
    let supported = match &data {
        KeyData::Other(_) | KeyData::Dsa(_) => false,
        // SSH_RSA_MINIMUM_MODULUS_SIZE, 1024 bits.
        KeyData::Rsa(key) => key.n.as_positive_bytes().is_some_and(|n| n.len() >= 128),
        _ => true,
    };
    if !supported || data.algorithm().as_str().as_bytes() != kind {
        return Err("of a kind that is not known, or not the one that it is called");
    }
    Ok(data)
}

/// Where the options end: at a blank outside of quotes. `None`: a quote is not closed.
fn options_end(text: &[u8]) -> Option<usize> {
    let (mut at, mut quoted) = (0, false);
    while let Some(byte) = text.get(at) {
        match byte {
            b' ' | b'\t' if !quoted => break,
            b'\\' if text.get(at + 1) == Some(&b'"') => at += 1,
            b'"' => quoted = !quoted,
            _ => {}
        }
        at += 1;
    }
    (!quoted || at < text.len()).then_some(at)
}

/// The options of a line: `sshsigopt_parse`.
#[derive(Debug, Default)]
struct LineOptions {
    authority: bool,
    namespaces: Option<Vec<u8>>,
    valid_after: Option<i64>,
    valid_before: Option<i64>,
}

impl LineOptions {
    fn parse(mut text: &[u8]) -> Result<Self, String> {
        let mut options = Self::default();
        while !text.is_empty() {
            if let Some(rest) = name(text, b"cert-authority") {
                options.authority = true;
                text = rest;
            } else if let Some(rest) = name(text, b"namespaces=") {
                let value;
                (value, text) = value_of(rest)?;
                once(&mut options.namespaces, value)?;
            } else if let Some(rest) = name(text, b"valid-after=") {
                let value;
                (value, text) = value_of(rest)?;
                once(&mut options.valid_after, time::parse(&value)?)?;
            } else if let Some(rest) = name(text, b"valid-before=") {
                let value;
                (value, text) = value_of(rest)?;
                once(&mut options.valid_before, time::parse(&value)?)?;
            }
            match text {
                [] => break,
                [b','] => return Err("the options end with a comma".to_owned()),
                [b',', rest @ ..] => text = rest,
                // An unknown option may be a restriction: ignoring it would widen trust.
                _ => return Err("unknown option".to_owned()),
            }
        }
        match (options.valid_after, options.valid_before) {
            (Some(after), Some(before)) if before <= after => {
                Err("valid-before is not after valid-after".to_owned())
            }
            _ => Ok(options),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        Some(_) => Err("an option is given twice".to_owned()),
        None => Ok(()),
    }
}

/// The text after a name, whose case does not matter.
fn name<'t>(text: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let (begin, rest) = text.split_at_checked(name.len())?;
    begin.eq_ignore_ascii_case(name).then_some(rest)
}

/// A value in double quotes, within which `\"` is a quote, and the text after it: `opt_dequote` in misc.c.
fn value_of(text: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut rest = text.strip_prefix(b"\"").ok_or("the value of an option is not in double quotes")?;
    let mut value = Vec::new();
    loop {
        match rest {
            [] => return Err("a quote of the options has no end".to_owned()),
            [b'"', after @ ..] => return Ok((value, after)),
            [b'\\', b'"', after @ ..] => {
                value.push(b'"');
                rest = after;
            }
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
        }
    }
}

fn blank(text: &[u8]) -> Option<usize> {
    text.iter().position(|byte| b" \t".contains(byte))
}

fn skip<'t>(text: &'t [u8], bytes: &[u8]) -> &'t [u8] {
    let begin = text.iter().position(|byte| !bytes.contains(byte)).unwrap_or(text.len());
    &text[begin..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> i64 {
        time.parse::<jiff::Timestamp>().unwrap().as_second()
    }

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIHGAFN8+qXJ9VkdxEQLWjDDy5KRFAJEQ0Jh3yGQ3XqT";

    fn signer(line: &str) -> AllowedSigner {
        AllowedSigner::parse(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn lines_of_the_manual() {
        let plain = signer(&format!("user1@example.com,user2@example.com {KEY} a comment"));
        assert_eq!(plain.principals, b"user1@example.com,user2@example.com");
        assert!(plain.refusal(at("2026-01-01T00:00:00Z")).is_none());

        let fine = signer(&format!("*@x namespaces=\"file,qimg\",valid-after=\"20200101Z\" {KEY}"));
        assert!(fine.refusal(at("2026-01-01T00:00:00Z")).is_none());
        assert!(fine.refusal(at("2019-12-31T23:59:59Z")).unwrap().contains("not yet"));

        let other = signer(&format!("x namespaces=\"git\" {KEY}"));
        assert!(other.refusal(at("2026-01-01T00:00:00Z")).unwrap().contains("namespace"));

        // Up to and including the second that is named.
        let ended = signer(&format!("x valid-before=\"202001021530Z\" {KEY}"));
        assert!(ended.refusal(at("2020-01-02T15:30:00Z")).is_none());
        assert!(ended.refusal(at("2020-01-02T15:30:01Z")).unwrap().contains("no longer"));
    }

    #[test]
    fn lines_that_are_not_understood_are_skipped() {
        for (line, word) in [
            (format!("x cert-authority {KEY}"), "certificate"),
            (format!("x verify-required {KEY}"), "unknown option"),
            (format!("x valid-after=\"soon\" {KEY}"), "time"),
            (format!("x valid-after=\"20201301\" {KEY}"), "time"),
            (format!("x namespaces=qimg {KEY}"), "double quotes"),
            (format!("x namespaces=\"qimg\",namespaces=\"*\" {KEY}"), "twice"),
            ("x ssh-ed25519 AAAA".to_owned(), "key"),
            ("x".to_owned(), "principals"),
        ] {
            let problem = AllowedSigner::parse(line.as_bytes()).unwrap_err();
            assert!(problem.contains(word), "{line}: {problem}");
        }
    }
}
