//! Requests to the gateway: choice of the endpoint, certificates, users.

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http};

use super::EtcdConfig;
use crate::error::{Error, Result};

/// Time limit for an answer of etcd. Without a quorum etcd itself abandons a request after some 7 s; an answer after that is
/// of no use to a node with a lease of 10 s.
const LIMIT: Duration = Duration::from_secs(4);
/// Time limit for a connection, so that a host that is down leaves time for the next one.
const CONNECT: Duration = Duration::from_millis(1500);
/// Time without data after which a watch is started again: a connection that broke without notice looks like that.
const SILENCE: Duration = Duration::from_secs(30);
/// Maximum size of an answer in bytes: enough for the data of some hundred nodes.
const ANSWER_LIMIT: u64 = 16 << 20;

const NO_CERTIFICATE: &str =
    "it requires a certificate of this node, 'cert' and 'key', or does not accept this one";
const CLOSED: &str = "it closed the connection, as an etcd does that requires a certificate of this node";
/// Words of a failed request, and what they mean.
const CAUSES: [(&str, &str); 9] = [
    ("UnknownIssuer", "the authority of its certificate is not among those of 'ca'"),
    // The authority was made anew under its name.
    (
        "BadSignature",
        "the authority of its certificate is not among those of 'ca', although one of them has its name",
    ),
    ("not valid for name", "its certificate is for another address"),
    // It answers a node without a certificate, and one with a foreign one, by any of these.
    ("CertificateRequired", NO_CERTIFICATE),
    ("UnknownCA", NO_CERTIFICATE),
    ("BadCertificate", NO_CERTIFICATE),
    // The answer is lost if etcd closes the connection first.
    ("Broken pipe", CLOSED),
    ("Connection reset", CLOSED),
    ("database space exceeded", "its database is full: compact and defragment it, and disarm its alarm"),
];

/// Client of all members of an etcd cluster.
#[derive(Debug)]
pub(super) struct Gateway {
    endpoints: Vec<String>,
    /// Index of the member that answered last.
    current: AtomicUsize,
    agent: Agent,
    watcher: Agent,
    user: Option<(String, String)>,
    token: Mutex<Option<String>>,
}

impl Gateway {
    pub(super) fn new(access: &EtcdConfig) -> Result<Self> {
        let wrong = |problem: String| Error::Argument { what: "[cluster] endpoints".to_owned(), problem };
        if access.endpoints.is_empty() {
            return Err(wrong("there is none; name at least one member of etcd".to_owned()));
        }
        for endpoint in &access.endpoints {
            if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                return Err(wrong(format!("'{endpoint}' is no URL such as https://HOST:2379")));
            }
        }
        let tls = tls(access)?;
        let agent = |global, per_read| {
            let config = Agent::config_builder().tls_config(tls.clone()).http_status_as_error(false);
            let config =
                config.timeout_connect(Some(CONNECT)).timeout_global(global).timeout_per_read(per_read);
            Agent::new_with_config(config.proxy(None).build())
        };
        let user = access.user.as_ref().map(|(name, file)| Ok((name.clone(), text(file)?.trim().to_owned())));
        Ok(Self {
            endpoints: access.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            agent: agent(Some(LIMIT), None),
            watcher: agent(None, Some(SILENCE)),
            user: user.transpose()?,
            token: Mutex::new(None),
        })
    }

    /// Sends a request to one member after the other until one answers.
    pub(super) fn call(&self, path: &str, body: &Json) -> Result<Json> {
        self.call_as(path, body)
    }

    /// As [`Self::call`], with an answer of this type.
    pub(super) fn call_as<T: DeserializeOwned>(&self, path: &str, body: &Json) -> Result<T> {
        let mut answer = self.ask(&self.agent, path, body)?;
        let text = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_string();
        let text = text.map_err(|problem| failed(&self.endpoint(0), &problem.to_string()))?;
        serde_json::from_str(&text)
            .map_err(|problem| failed(&self.endpoint(0), &format!("no answer of an etcd: {problem}")))
    }

    /// As [`Self::call`], for an answer that does not end.
    pub(super) fn stream(&self, path: &str, body: &Json) -> Result<BufReader<ureq::BodyReader<'static>>> {
        let answer = self.ask(&self.watcher, path, body)?;
        Ok(BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    fn endpoint(&self, further: usize) -> String {
        let at = self.current.load(Ordering::Relaxed).wrapping_add(further) % self.endpoints.len();
        self.endpoints.get(at).cloned().unwrap_or_default()
    }

    fn ask(&self, agent: &Agent, path: &str, body: &Json) -> Result<http::Response<Body>> {
        let mut problems = Vec::new();
        for further in 0..self.endpoints.len() {
            let endpoint = self.endpoint(further);
            match self.ask_one(agent, &endpoint, path, body) {
                Ok(answer) => {
                    let at =
                        self.current.load(Ordering::Relaxed).wrapping_add(further) % self.endpoints.len();
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(problem) => problems.push(format!("{endpoint}: {}", self.explained(&endpoint, problem))),
            }
        }
        Err(Error::ClusterStore { problem: problems.join("; ") })
    }

    /// Adds the cause of a failed request, where it can be found.
    fn explained(&self, endpoint: &str, problem: String) -> String {
        let cause = if problem.starts_with("timeout: global") || problem.contains("request timed out") {
            // A member without quorum answers this request alone, and names no leader.
            let status = self.ask_one(&self.agent, endpoint, "maintenance/status", &json!({}));
            match status.and_then(refused) {
                Ok(status) if number(&status["leader"]) == 0 => "its members have no quorum",
                _ => "it is too slow",
            }
        } else {
            match CAUSES.iter().find(|(word, _)| problem.contains(word)) {
                Some((_, cause)) => cause,
                None => return problem,
            }
        };
        format!("{cause} ({problem})")
    }

    fn ask_one(
        &self,
        agent: &Agent,
        endpoint: &str,
        path: &str,
        body: &Json,
    ) -> std::result::Result<http::Response<Body>, String> {
        let send = |token: Option<&str>, path: &str, body: &Json| {
            let mut request = agent.post(format!("{endpoint}/v3/{path}"));
            if let Some(token) = token {
                request = request.header("Authorization", token);
            }
            request.send(body.to_string()).map_err(|error| error.to_string())
        };
        for fresh in [false, true] {
            let token = match &self.user {
                None => None,
                Some((name, password)) => {
                    let mut kept = self.token.lock().unwrap_or_else(PoisonError::into_inner);
                    if fresh || kept.is_none() {
                        let order = json!({"name": name, "password": password});
                        let answer = send(None, "auth/authenticate", &order)?;
                        *kept = Some(refused(answer)?["token"].as_str().unwrap_or_default().to_owned());
                    }
                    kept.clone()
                }
            };
            let answer = send(token.as_deref(), path, body)?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            // A token expires some minutes after its last use, and when etcd restarts.
            match refused(answer) {
                Err(problem) if self.user.is_some() && !fresh && problem.contains("token") => {}
                Err(problem) => return Err(problem),
                Ok(_) => break,
            }
        }
        Err("it refuses the user".to_owned())
    }
}

/// Body of an answer, or the problem that it reports.
fn refused(mut answer: http::Response<Body>) -> std::result::Result<Json, String> {
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_string().unwrap_or_default();
    let body: Json = serde_json::from_str(&text).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    // Not all refusals of etcd are JSON.
    let plain = text.lines().next().unwrap_or_default();
    let said = body["error"].as_str().or(body["message"].as_str()).unwrap_or(plain);
    Err(format!("{status} {said}").trim().to_owned())
}

fn failed(endpoint: &str, problem: &str) -> Error {
    Error::ClusterStore { problem: format!("{endpoint}: {problem}") }
}

fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::Config { path: path.to_owned(), problem: error.to_string() })
}

fn tls(access: &EtcdConfig) -> Result<TlsConfig> {
    let failed = |path: &Path, problem: String| Error::Config { path: path.to_owned(), problem };
    let chain = |path: &Path| -> Result<Vec<Certificate<'static>>> {
        let text = text(path)?;
        let certificates = parse_pem(text.as_bytes()).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            return Err(failed(path, "there is no certificate in it".to_owned()));
        }
        Ok(certificates)
    };
    // The library's default is Mozilla's list, with which no etcd has a certificate; an organisation's own authority is among
    // those of the system.
    let authorities = match &access.ca {
        Some(ca) => chain(ca)?,
        None => system_authorities(),
    };
    let mut config = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&authorities));
    if let Some((certificate, key)) = &access.identity {
        let private = PrivateKey::from_pem(text(key)?.as_bytes())
            .map_err(|problem| failed(key, problem.to_string()))?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&chain(certificate)?, private)));
    }
    Ok(config.build())
}

/// Authorities that the system trusts. A system without any shows at the first connection, as an unknown issuer.
fn system_authorities() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs().certs;
    found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

/// Bytes in the encoding that the gateway accepts.
pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    Base64::encode_string(bytes.as_ref())
}

/// Bytes decoded from an answer of the gateway. Invalid text becomes empty, which is no value of this program.
pub(super) fn unbase64(text: &str) -> Vec<u8> {
    Base64::decode_vec(text).unwrap_or_default()
}

/// A 64-bit number, which the gateway sends as a string; an omitted one is 0.
pub(super) fn number(value: &Json) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

/// The first key after all keys that begin with `prefix`.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // etcd takes this as the end of all keys.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        for (prefix, end) in
            [(&b"/q/"[..], &b"/q0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")]
        {
            assert_eq!(end_of(prefix), end, "{prefix:?}");
        }
    }

    #[test]
    fn what_cannot_be_an_etcd_is_told_before_anything_is_asked() {
        let code = |access: &EtcdConfig| Gateway::new(access).unwrap_err().code();
        assert_eq!(code(&EtcdConfig::default()), "UPGRADE_ERROR_ARGUMENT");
        let named = |url: &str| EtcdConfig { endpoints: vec![url.into()], ..EtcdConfig::default() };
        assert_eq!(code(&named("etcd:2379")), "UPGRADE_ERROR_ARGUMENT");
        let ca = EtcdConfig { ca: Some("/dev/null".into()), ..named("https://x") };
        assert_eq!(code(&ca), "UPGRADE_ERROR_CONFIG");
    }
}
