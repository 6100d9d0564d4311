//! Authentication of callers, and their privileges.
//!
//! | connection | token | privilege |
//! |---|---|---|
//! | any | a known token | as in the file of tokens |
//! | any | an unknown token | nothing: a typing error must not pass for a guest |
//! | Unix socket | uid 0, or that of the service | write |
//! | Unix socket | any other uid | read |
//! | loopback | nothing | read |
//! | network | nothing | nothing |
//! | network, loopback | nothing, `--insecure-no-auth` | write |

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};
use crate::reloaded::Reloaded;
use crate::service::http::attempts::Attempts;
use crate::service::http::origin::Origin;
use crate::service::http::tokens::{Privilege, Token, TokenFile};

/// An authenticated caller, for the audit log.
#[derive(Debug, Clone)]
pub(in crate::service) struct Caller {
    pub(in crate::service) name: String,
    /// Whether it may see messages and not only codes: root, and holders of a token.
    pub(in crate::service) informed: bool,
    pub(in crate::service) privilege: Privilege,
}

/// The rules of authentication, and the tokens.
pub(in crate::service) struct Authentication {
    insecure: bool,
    own_uid: u32,
    known: Reloaded<Arc<[Token]>>,
    /// Failures by origin.
    pub(in crate::service) attempts: Attempts,
}

impl Authentication {
    /// With a file of tokens that cannot be used no token is accepted, until it can. That is no reason not to serve: root on
    /// the Unix socket needs none, and a service that does not start leaves no way at all to a machine far away.
    pub(in crate::service) fn new(file: TokenFile, insecure: bool) -> Self {
        let known = Reloaded::always(vec![file.path.clone()], move || load_or_none(&file));
        let own_uid = nix::unistd::geteuid().as_raw();
        Self { insecure, own_uid, known, attempts: Attempts::default() }
    }

    /// Authenticates a request.
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
            Origin::Network(from) if self.insecure => {
                who(format!("unauthenticated at {from}"), Privilege::Write)
            }
            Origin::Network(from) if from.ip().to_canonical().is_loopback() => {
                who(format!("local {from}"), Privilege::Read)
            }
            Origin::Network(_) => refused("a token is needed: Authorization: Bearer TOKEN"),
        }
    }

    /// Compares all known tokens, each in constant time, so that the time of an answer reveals nothing about them.
    fn find(&self, token: &str) -> Option<Token> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // A token is withdrawn by deleting its line, without a restart. An unusable file withdraws all.
        let (known, _) = self.known.get();
        known.iter().fold(
            None,
            |found, token| {
                if bool::from(token.hash.ct_eq(&hash)) { Some(token.clone()) } else { found }
            },
        )
    }
}

fn load_or_none(file: &TokenFile) -> Arc<[Token]> {
    let none = |error: Error| {
        tracing::error!(code = error.code(), "no token is accepted: {error}");
        Arc::default()
    };
    file.read().map_or_else(none, Arc::from)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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

    /// The table at the head of this module, every row with both privileges.
    #[test]
    fn the_rules_are_those_of_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        fs::write(&file, format!("# who\nr read {}\nw write {} # w\n", hash("rrr"), hash("www"))).unwrap();
        let gate = Authentication::new(TokenFile::new(Some(&file)), false);
        let open = Authentication::new(TokenFile::new(Some(&file)), true);
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
        let gate = Authentication::new(TokenFile::new(Some(&file)), false);
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
            let gate = Authentication::new(TokenFile::new(Some(&file)), false);
            assert_eq!(gate.find("www").is_some(), good, "{mode:o}");
        }
    }
}
