//! Requests to the gateway: choice of the endpoint, authentication of a user.

use std::fmt;
use std::io::BufReader;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use base64ct::{Base64, Encoding};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use ureq::{Agent, Body, http};

use super::EtcdConfig;
use super::tls::EtcdClient;
use crate::error::{Error, Result};
use crate::reloaded::Reloaded;

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
pub(super) struct Gateway {
    endpoints: Vec<String>,
    /// Index of the member that answered last.
    current: AtomicUsize,
    access: Reloaded<EtcdClient>,
    /// See [`Gateway::renewal`].
    renewal: Mutex<Option<Result<()>>>,
    token: Mutex<Option<String>>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
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
        Ok(Self {
            endpoints: access.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            access: EtcdClient::reloaded(access)?,
            renewal: Mutex::new(None),
            token: Mutex::new(None),
        })
    }

    /// Result of the last reload of replaced certificates, once; `None`: there is no new one.
    pub(super) fn renewal(&self) -> Option<Result<()>> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn access(&self) -> EtcdClient {
        let (access, renewal) = self.access.get();
        if renewal.is_some() {
            *self.renewal.lock().unwrap_or_else(PoisonError::into_inner) = renewal;
        }
        access
    }

    /// Sends a request to one member after the other until one answers.
    pub(super) fn call(&self, path: &str, body: &Json) -> Result<Json> {
        self.call_as(path, body)
    }

    /// As [`Self::call`], with an answer of this type.
    pub(super) fn call_as<T: DeserializeOwned>(&self, path: &str, body: &Json) -> Result<T> {
        let mut answer = self.ask(|access| &access.agent, path, body)?;
        let text = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_string();
        let text = text.map_err(|problem| failed(&self.endpoint(0), &problem.to_string()))?;
        serde_json::from_str(&text)
            .map_err(|problem| failed(&self.endpoint(0), &format!("no answer of an etcd: {problem}")))
    }

    /// As [`Self::call`], for an answer that does not end.
    pub(super) fn stream(&self, path: &str, body: &Json) -> Result<BufReader<ureq::BodyReader<'static>>> {
        let answer = self.ask(|access| &access.watcher, path, body)?;
        Ok(BufReader::new(answer.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    fn endpoint(&self, further: usize) -> String {
        let at = self.current.load(Ordering::Relaxed).wrapping_add(further) % self.endpoints.len();
        self.endpoints.get(at).cloned().unwrap_or_default()
    }

    fn ask(
        &self,
        agent: impl Fn(&EtcdClient) -> &Agent,
        path: &str,
        body: &Json,
    ) -> Result<http::Response<Body>> {
        let (access, mut problems) = (self.access(), Vec::new());
        for further in 0..self.endpoints.len() {
            let endpoint = self.endpoint(further);
            match self.ask_one(&access, agent(&access), &endpoint, path, body) {
                Ok(answer) => {
                    let at =
                        self.current.load(Ordering::Relaxed).wrapping_add(further) % self.endpoints.len();
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(problem) => {
                    problems.push(format!("{endpoint}: {}", self.explained(&access, &endpoint, problem)))
                }
            }
        }
        Err(Error::ClusterStore { problem: problems.join("; ") })
    }

    /// Adds the cause of a failed request, where it can be found.
    fn explained(&self, access: &EtcdClient, endpoint: &str, problem: String) -> String {
        let cause = if problem.starts_with("timeout: global") || problem.contains("request timed out") {
            // A member without quorum answers this request alone, and names no leader.
            let status = self.ask_one(access, &access.agent, endpoint, "maintenance/status", &json!({}));
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
        access: &EtcdClient,
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
            let token = match &access.user {
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
                Err(problem) if access.user.is_some() && !fresh && problem.contains("token") => {}
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
