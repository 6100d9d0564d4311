//! The file of tokens. It has the SHA-256 of each token, so that a copy of the file lets no caller in.
//!
//! ```text
//! # comment
//! NAME read|write SHA256
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::host::files::{OutputFile, lock_file, read_trusted_text};
use crate::units::{hex, text};

/// Largest size of the file of tokens in bytes.
const MAX: u64 = 1 << 20;
/// Random bytes of a new token.
const RANDOM: usize = 32;
/// Time limit for the lock of the file.
const LOCK: Duration = Duration::from_secs(10);
/// Longest name in bytes.
const NAME_MAX: usize = 64;

/// The file that is used if the configuration names none.
pub const DEFAULT: &str = "/etc/qstage/tokens";

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// Read what the service shows.
    Read,
    /// Change things too.
    Write,
}

impl Privilege {
    /// Name in the file of tokens and in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The configured file of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// Its path.
    pub path: PathBuf,
    /// Whether it must exist. The default file may be missing: then no token is known.
    pub required: bool,
}

impl TokenFile {
    /// The configured file, or the default one.
    pub fn new(configured: Option<&Path>) -> Self {
        Self { path: configured.unwrap_or(Path::new(DEFAULT)).to_owned(), required: configured.is_some() }
    }

    /// The known tokens.
    ///
    /// # Errors
    /// [`Error::Config`]: it cannot be used.
    pub fn read(&self) -> Result<Vec<Token>> {
        parse(&self.text(self.required)?).map_err(|problem| self.failed(problem))
    }

    /// Makes a token, adds it to the file, and returns it: it cannot be read again.
    ///
    /// # Errors
    /// [`Error::Argument`]: the name is taken or cannot be used; [`Error::Config`]; [`Error::Output`].
    pub fn add(&self, name: &str, privilege: Privilege) -> Result<String> {
        // Before the lock, whose directory may be missing: the name is wrong wherever the file is.
        self.add_dry_run(name)?;
        self.change(|text, tokens| {
            check_new(name, tokens)?;
            let mut random = [0; RANDOM];
            let fill = SystemRandom::new().fill(&mut random);
            fill.map_err(|_| self.output(io::Error::other("the kernel has no random bytes")))?;
            let token = hex(&random);
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            let line = format!("{end}{name} {} {}\n", privilege.word(), hash(&token));
            Ok((text.to_owned() + &line, token))
        })
    }

    /// Removes a token from the file. A running service refuses it from its next request on.
    ///
    /// # Errors
    /// [`Error::Argument`]: there is none of this name; [`Error::Config`]; [`Error::Output`].
    pub fn revoke(&self, name: &str) -> Result<()> {
        self.revoke_dry_run(name)?;
        self.change(|text, tokens| {
            self.check_known(name, tokens)?;
            let kept = text.split_inclusive('\n').filter(|line| words(line).first() != Some(&name));
            Ok((kept.collect(), ()))
        })
    }

    /// Whether [`add`](Self::add) would add a token; writes nothing.
    ///
    /// # Errors
    /// Those of [`add`](Self::add) but [`Error::Output`].
    pub fn add_dry_run(&self, name: &str) -> Result<()> {
        check_new(name, &self.tokens()?)
    }

    /// Whether [`revoke`](Self::revoke) would remove a token; writes nothing.
    ///
    /// # Errors
    /// Those of [`revoke`](Self::revoke) but [`Error::Output`].
    pub fn revoke_dry_run(&self, name: &str) -> Result<()> {
        self.check_known(name, &self.tokens()?)
    }

    /// The tokens of a file that may be missing.
    fn tokens(&self) -> Result<Vec<Token>> {
        parse(&self.text(false)?).map_err(|problem| self.failed(problem))
    }

    fn check_known(&self, name: &str, tokens: &[Token]) -> Result<()> {
        if tokens.iter().any(|token| token.name == name) {
            return Ok(());
        }
        let known: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
        let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(argument(name, &format!("{} has no token of this name, only: {list}", self.path.display())))
    }

    /// Replaces the file by a changed text. The lock is a file of its own, since the file itself is replaced.
    fn change<T>(&self, change: impl FnOnce(&str, &[Token]) -> Result<(String, T)>) -> Result<T> {
        let mut lock = self.path.clone().into_os_string();
        lock.push(".lock");
        let locked = lock_file(Path::new(&lock), LOCK).map_err(|source| self.output(source))?;
        let _locked =
            locked.ok_or_else(|| self.output(io::Error::other("another process is changing it")))?;
        let text = self.text(false)?;
        let tokens = parse(&text).map_err(|problem| self.failed(problem))?;
        let (text, result) = change(&text, &tokens)?;
        let write = || {
            let mut file = OutputFile::create(&self.path, 0o600)?;
            file.write_all(text.as_bytes())?;
            file.publish()
        };
        write().map_err(|source| self.output(source))?;
        Ok(result)
    }

    fn text(&self, required: bool) -> Result<String> {
        match read_trusted_text(&self.path, MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(String::new()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(self.failed(format!("{error}; 'qstage token new NAME' makes it")))
            }
            read => read.map_err(|error| self.failed(error.to_string())),
        }
    }

    fn failed(&self, problem: String) -> Error {
        Error::Config { path: self.path.clone(), problem }
    }

    fn output(&self, source: io::Error) -> Error {
        Error::Output { path: self.path.clone(), source }
    }
}

/// A token, by its hash.
#[derive(Debug, Clone, Serialize)]
pub struct Token {
    /// Name in the audit log.
    pub name: String,
    /// Privilege of a caller with this token.
    pub privilege: Privilege,
    /// SHA-256 of the token.
    #[serde(skip)]
    pub(super) hash: [u8; 32],
}

fn argument(name: &str, problem: &str) -> Error {
    Error::Argument { what: text::shown(name).into_owned(), problem: problem.to_owned() }
}

fn check_new(name: &str, tokens: &[Token]) -> Result<()> {
    check_name(name)?;
    if tokens.iter().any(|token| token.name == name) {
        return Err(argument(name, "there is a token of this name; 'qstage token revoke' removes it"));
    }
    Ok(())
}

/// A name is one word of the file, and of the audit log.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(argument(name, "a name has 1 to 64 letters, digits, '-', '_', '.' and '@'"));
    }
    Ok(())
}

/// Hexadecimal SHA-256 of a token.
fn hash(token: &str) -> String {
    hex(&Sha256::digest(token))
}

/// The words of a line before its comment.
fn words(line: &str) -> Vec<&str> {
    line.split('#').next().unwrap_or_default().split_whitespace().collect()
}

/// Parses the lines of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |problem: &str| format!("line {}: {problem}", number + 1);
        match words(line)[..] {
            [] => {}
            [name, privilege, hash] => {
                let privilege = match privilege {
                    "read" => Privilege::Read,
                    "write" => Privilege::Write,
                    _ => return Err(wrong("the privilege is neither 'read' nor 'write'")),
                };
                let hash = unhex(hash).ok_or_else(|| wrong("the hash is not 64 hexadecimal digits"))?;
                tokens.push(Token { name: name.to_owned(), privilege, hash });
            }
            _ => return Err(wrong("expected NAME PRIVILEGE SHA256")),
        }
    }
    Ok(tokens)
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |sum, d| sum << 4 | d)).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_wrong_file_is_told_by_its_line() {
        for (text, line) in [("a", "line 1"), ("\nx all 00", "line 2"), ("x read 00", "line 1")] {
            assert!(parse(text).unwrap_err().starts_with(line), "{text}");
        }
        assert!(parse(&format!("x read {}g", "0".repeat(63))).is_err());
    }

    #[test]
    fn a_token_is_added_and_revoked_and_other_lines_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let file = TokenFile::new(Some(&path));
        let old = format!("# ours\nold read {} # bob's", hash("old"));
        fs::write(&path, &old).unwrap();
        let (new, other) =
            (file.add("new", Privilege::Write).unwrap(), file.add("n2", Privilege::Read).unwrap());
        assert!(new.len() == 2 * RANDOM && new != other, "{new}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{old}\nnew write {}\n", hash(&new))), "{text}");
        assert!(!text.contains(&new));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names = || file.read().unwrap().into_iter().map(|token| token.name).collect::<Vec<_>>();
        assert_eq!(names(), ["old", "new", "n2"]);
        assert_eq!(file.add("old", Privilege::Read).unwrap_err().code(), "UPGRADE_ERROR_ARGUMENT");
        file.revoke("new").unwrap();
        assert!(file.revoke("new").unwrap_err().to_string().contains("old, n2"));
        assert_eq!(names(), ["old", "n2"]);
        assert!(fs::read_to_string(&path).unwrap().starts_with(&old));
        for name in ["", "a b", "a#", "ä", &"x".repeat(65)] {
            assert!(file.add(name, Privilege::Read).is_err(), "{name}");
        }
        fs::write(&path, "garbage\n").unwrap();
        assert_eq!(file.add("x", Privilege::Read).unwrap_err().code(), "UPGRADE_ERROR_CONFIG");
        assert_eq!(fs::read_to_string(&path).unwrap(), "garbage\n", "a file that is not understood stays");
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        assert!(TokenFile::new(Some(&path)).read().is_err());
        assert!(TokenFile { path, required: false }.read().unwrap().is_empty());
        assert_eq!(TokenFile::new(None).path, Path::new(DEFAULT));
    }
}
