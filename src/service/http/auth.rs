//! Who asks, and what they may do.
//!
//! | comes by | with | may |
//! |---|---|---|
//! | any | a token that is known | what the file says of it |
//! | any | a token that is not known | nothing: a typing error must not pass for a guest |
//! | Unix socket | uid 0, or that of the service | write |
//! | Unix socket | any other uid | read |
//! | loopback | nothing | read |
//! | network | nothing | nothing |
//! | network, loopback | nothing, `--insecure-no-auth` | write |

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};
use crate::host::files::read_trusted_text;
use crate::service::http::attempts::Attempts;
use crate::service::http::origin::Origin;

/// Largest file of tokens in bytes.
const TOKENS_MAX: u64 = 1 << 20;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::service) enum Privilege {
    Read,
    Write,
}

/// Who it is, for the audit log.
#[derive(Debug, Clone)]
pub(in crate::service) struct Caller {
    pub(in crate::service) name: String,
    /// Whether it may see messages and not only codes: root, and who has a token.
    pub(in crate::service) informed: bool,
    pub(in crate::service) privilege: Privilege,
}

/// The rules and the tokens.
#[derive(Debug)]
pub(in crate::service) struct Authentication {
    file: Option<PathBuf>,
    insecure: bool,
    own_uid: u32,
    known: Mutex<(Option<SystemTime>, Vec<Token>)>,
    /// Failures by origin.
    pub(in crate::service) attempts: Attempts,
}

#[derive(Debug, Clone)]
struct Token {
    name: String,
    privilege: Privilege,
    hash: [u8; 32],
}

impl Authentication {
    /// # Errors
    /// [`Error::Config`]: the file of tokens cannot be used.
    pub(in crate::service) fn new(file: Option<PathBuf>, insecure: bool) -> Result<Self> {
        let known = match &file {
            Some(path) => load(path)?,
            None => (None, Vec::new()),
        };
        let own_uid = nix::unistd::geteuid().as_raw();
        Ok(Self { file, insecure, own_uid, known: Mutex::new(known), attempts: Attempts::default() })
    }

    /// Who asks.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], [`Error::Forbidden`].
    pub(in crate::service) fn admit(
        &self,
        origin: Origin,
        header: Option<&str>,
        needed: Privilege,
    ) -> Result<Caller> {
        let who = self.identify(origin, header)?;
        if who.privilege < needed { Err(Error::Forbidden { who: who.name }) } else { Ok(who) }
    }

    fn identify(&self, origin: Origin, header: Option<&str>) -> Result<Caller> {
        let refused = |problem: &str| Err(Error::Unauthenticated { problem: problem.to_owned() });
        if let Some(header) = header {
            let Some(token) =
                header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            else {
                return refused("the header Authorization is not 'Bearer TOKEN'");
            };
            return match self.find(token.1.trim()) {
                Some(token) => {
                    let name = format!("token {}", token.name);
                    Ok(Caller { name, informed: true, privilege: token.privilege })
                }
                None => refused("the token is not known"),
            };
        }
        let who =
            |name: String, privilege| Ok(Caller { name, informed: privilege == Privilege::Write, privilege });
        match origin {
            Origin::Socket { uid, .. } => {
                let trusted = uid == 0 || uid == self.own_uid;
                who(origin.to_string(), if trusted { Privilege::Write } else { Privilege::Read })
            }
            Origin::Network(from) if self.insecure => who(format!("anybody at {from}"), Privilege::Write),
            Origin::Network(from) if from.ip().to_canonical().is_loopback() => {
                who(format!("local {from}"), Privilege::Read)
            }
            Origin::Network(_) => refused("a token is needed: Authorization: Bearer TOKEN"),
        }
    }

    /// All known tokens are compared, each in constant time, so that no answer comes sooner for being nearly right.
    fn find(&self, token: &str) -> Option<Token> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.reload();
        let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.1.iter().fold(None, |found, token| {
            if bool::from(token.hash.ct_eq(&hash)) { Some(token.clone()) } else { found }
        })
    }

    /// Reads the file again when it has changed: a token is withdrawn by deleting its line, without a restart. A file
    /// that has become unusable withdraws all.
    fn reload(&self) {
        let Some(path) = &self.file else { return };
        let changed = fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.0 != changed || changed.is_none() {
            *known = load(path).unwrap_or_else(|error| {
                tracing::error!("no token is accepted: {error}");
                (changed, Vec::new())
            });
        }
    }
}

fn load(path: &Path) -> Result<(Option<SystemTime>, Vec<Token>)> {
    let failed = |problem: String| Error::Config { path: path.to_owned(), problem };
    // The time first: a change in between is then seen at the next look.
    let changed = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let text = read_trusted_text(path, TOKENS_MAX).map_err(|error| failed(error.to_string()))?;
    // Whoever can add a line to it can do all.
    let open = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o022 != 0);
    if open {
        return Err(failed("others than its owner may write it; chmod go-w".to_owned()));
    }
    parse(&text).map(|tokens| (changed, tokens)).map_err(failed)
}

/// Lines of `NAME PRIVILEGE SHA256`, `#` begins a comment.
fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let wrong = |problem: &str| format!("line {}: {problem}", number + 1);
        match words[..] {
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
    use super::*;

    fn hash(token: &str) -> String {
        Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn outcome(
        gate: &Authentication,
        origin: Origin,
        header: Option<&str>,
        needed: Privilege,
    ) -> &'static str {
        match gate.admit(origin, header, needed) {
            Ok(_) => "yes",
            Err(Error::Forbidden { .. }) => "forbidden",
            Err(_) => "unknown",
        }
    }

    /// The table above, every row with both privileges.
    #[test]
    fn the_rules_are_those_of_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        fs::write(&file, format!("# who\nr read {}\nw write {} # w\n", hash("rrr"), hash("www"))).unwrap();
        let gate = Authentication::new(Some(file.clone()), false).unwrap();
        let open = Authentication::new(Some(file), true).unwrap();
        let network = Origin::Network("192.0.2.1:9".parse().unwrap());
        let own = gate.own_uid;
        let socket = |uid| Origin::Socket { uid, pid: None };
        let (read, write) = (Some("Bearer rrr"), Some("bearer  www"));
        for local in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            let loopback = Origin::Network(local.parse().unwrap());
            for (gate, origin, header, to_read, to_write) in [
                (&gate, loopback, None, "yes", "forbidden"),
                (&gate, network, None, "unknown", "unknown"),
                (&open, loopback, None, "yes", "yes"),
                (&open, network, None, "yes", "yes"),
                (&gate, socket(0), None, "yes", "yes"),
                (&gate, socket(own), None, "yes", "yes"),
                (&gate, socket(own + 77), None, "yes", "forbidden"),
                (&gate, network, read, "yes", "forbidden"),
                (&gate, network, write, "yes", "yes"),
                (&gate, socket(0), read, "yes", "forbidden"),
                (&gate, loopback, Some("Bearer rrrr"), "unknown", "unknown"),
                (&open, loopback, Some("Bearer "), "unknown", "unknown"),
                (&gate, socket(0), Some("Basic d3d3"), "unknown", "unknown"),
                (&gate, loopback, Some("www"), "unknown", "unknown"),
            ] {
                assert_eq!(outcome(gate, origin, header, Privilege::Read), to_read, "{origin:?} {header:?}");
                assert_eq!(
                    outcome(gate, origin, header, Privilege::Write),
                    to_write,
                    "{origin:?} {header:?}"
                );
            }
        }
    }

    #[test]
    fn a_token_is_withdrawn_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        fs::write(&file, format!("w write {}\n", hash("www"))).unwrap();
        let gate = Authentication::new(Some(file.clone()), false).unwrap();
        let network = Origin::Network("192.0.2.1:9".parse().unwrap());
        let ask = || outcome(&gate, network, Some("Bearer www"), Privilege::Write);
        assert_eq!(ask(), "yes");
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&file, "garbage\n").unwrap();
        assert_eq!(ask(), "unknown");
        fs::write(&file, format!("w write {}\n", hash("www"))).unwrap();
        assert_eq!(ask(), "yes");
        fs::remove_file(&file).unwrap();
        assert_eq!(ask(), "unknown");
    }

    #[test]
    fn a_file_that_others_may_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        fs::write(&file, format!("w write {}\n", hash("www"))).unwrap();
        for (mode, good) in [(0o600, true), (0o644, true), (0o664, false), (0o602, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Authentication::new(Some(file.clone()), false).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn a_wrong_file_is_told_by_its_line() {
        for (text, line) in [("a", "line 1"), ("\nx all 00", "line 2"), ("x read 00", "line 1")] {
            assert!(parse(text).unwrap_err().starts_with(line), "{text}");
        }
        assert!(parse(&format!("x read {}g", "0".repeat(63))).is_err());
    }
}
