//! Connections to a service: HTTPS or a Unix socket, one request per connection, so that a restart of the service in between
//! goes unnoticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use clap::Args;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::cli::environment;
use crate::cli::output::planned;
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::service::Listener;
use crate::service::http::tls::CERTIFICATE;

/// Time limit of a response; long, since a bundle may have to be read first, perhaps over a network.
const LIMIT: Duration = Duration::from_secs(90);
/// Largest response in bytes: a history.
const ANSWER_LIMIT: usize = 4 << 20;

/// The flags that name a service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Service")]
pub(in crate::cli) struct ServiceArgs {
    /// Service to connect to: https://HOST:PORT or unix:PATH [env: QSTAGE_SERVICE]
    #[arg(long, value_name = "ADDRESS")]
    service: Option<String>,

    /// File with the token for the service [env: QSTAGE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Certificate of the service or of its authority, as PEM
    ///
    /// Default: the self-signed one of a service on this machine.
    #[arg(long, value_name = "FILE")]
    service_ca: Option<PathBuf>,

    /// Accept any certificate of the service
    #[arg(long, conflicts_with = "service_ca")]
    service_insecure: bool,
}

impl ServiceArgs {
    /// Whether a service was named.
    pub(in crate::cli) const fn is_given(&self) -> bool {
        self.service.is_some()
    }

    /// A client of the named service; by default of the service in the configuration.
    pub(in crate::cli) fn client(&self, settings: &Settings) -> Result<Client> {
        let named = || environment::path(environment::SERVICE)?.into_os_string().into_string().ok();
        let configured = || match Listener::socket_of_client(settings.service.socket.as_deref()) {
            Some(path) => format!("unix:{}", path.display()),
            None => format!("https://{}", settings.service.listen()),
        };
        let name = self.service.clone().or_else(named).unwrap_or_else(configured);
        let token = self.token_file.clone().or_else(|| environment::path(environment::TOKEN_FILE));
        let token = token.as_deref().map(read_token).transpose()?;
        let way = if let Some(path) = name.strip_prefix("unix:") {
            Way::Unix(path.into())
        } else if name.starts_with("https://") {
            let own = settings.state_dir.join(CERTIFICATE);
            let ca = self.service_ca.clone().or_else(|| own.exists().then_some(own));
            Way::Https(agent(ca.as_deref(), self.service_insecure)?)
        } else {
            let problem = format!("'{name}' is neither https://HOST:PORT nor unix:PATH");
            return Err(Error::Argument { what: "--service".to_owned(), problem });
        };
        Ok(Client { name: name.trim_end_matches('/').to_owned(), token, way })
    }
}

fn read_token(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

fn agent(ca: Option<&Path>, insecure: bool) -> Result<Agent> {
    let mut tls = TlsConfig::builder().disable_verification(insecure);
    if let Some(path) = ca.filter(|_| !insecure) {
        let pem = fs::read(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        let certificate = Certificate::from_pem(&pem)
            .map_err(|error| Error::Config { path: path.to_owned(), problem: error.to_string() })?;
        tls = tls.root_certs(RootCerts::new_with_certs(&[certificate.to_owned()]));
    }
    // The status of a response is part of it, not an error of the transfer.
    let config = Agent::config_builder().tls_config(tls.build()).http_status_as_error(false);
    Ok(Agent::new_with_config(config.timeout_global(Some(LIMIT)).proxy(None).build()))
}

enum Way {
    Https(Agent),
    Unix(PathBuf),
}

/// A service.
pub(in crate::cli) struct Client {
    name: String,
    token: Option<String>,
    way: Way,
}

/// Answer to an order as a dry run.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli) struct PlannedOrder {
    dry_run: bool,
    /// What would be done, as a sentence.
    done: String,
    /// The writes, one line each.
    plan: Vec<String>,
}

impl PlannedOrder {
    /// The text for people.
    pub(in crate::cli) fn for_people(&self) -> String {
        planned(&self.done, &self.plan)
    }
}

/// Body of an error.
#[derive(Deserialize)]
struct ErrorBody {
    error_class: String,
    description: String,
}

/// Whether the OpenAPI document of a service describes a dry run of POST requests to `path`.
fn has_dry_run(document: &str, path: &str) -> bool {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let fits = |template: &str| {
        let mut parts = template.split('/').zip(path.split('/'));
        template.split('/').count() == path.split('/').count()
            && parts.all(|(part, given)| part.starts_with('{') || part == given)
    };
    let paths = document["paths"].as_object().into_iter().flatten();
    // The path itself, before one with a parameter.
    let found = paths.filter(|(template, _)| fits(template)).max_by_key(|(template, _)| *template == path);
    found
        .and_then(|(_, item)| item["post"]["parameters"].as_array())
        .is_some_and(|parameters| parameters.iter().any(|one| one["name"] == "dry_run"))
}

impl Client {
    /// Sends a GET request; returns the body of the response.
    pub(in crate::cli) fn get(&self, path: &str) -> Result<String> {
        self.call(Method::GET, path, String::new())
    }

    /// Sends a POST request; returns the body of the response.
    pub(in crate::cli) fn post(&self, path: &str, body: &Value) -> Result<String> {
        self.call(Method::POST, path, body.to_string())
    }

    /// Sends a POST request as a dry run; returns what the service would do.
    ///
    /// # Errors
    /// Those of [`post`](Self::post); [`Error::ServiceUnreachable`]: the service knows no dry run of that.
    pub(in crate::cli) fn dry_run(&self, path: &str, body: &Value) -> Result<PlannedOrder> {
        let refuse = |problem: &str| {
            let service = self.name.clone();
            Err(Error::ServiceUnreachable { service, problem: problem.to_owned() })
        };
        // A service ignores parameters that it does not know: an older one would carry out the order.
        if !has_dry_run(&self.get("/v1/qstage/openapi.json")?, path) {
            return refuse("is an older qstage, which has no dry run of that; nothing was ordered");
        }
        let mark = if path.contains('?') { '&' } else { '?' };
        let text = self.post(&format!("{path}{mark}dry_run=true"), body)?;
        let planned = serde_json::from_str(&text).ok().filter(|planned: &PlannedOrder| planned.dry_run);
        planned.map_or_else(|| refuse("did not answer a dry run as one; look at its status"), Ok)
    }

    /// Name of the service in messages.
    pub(in crate::cli) fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, method: Method, path: &str, body: String) -> Result<String> {
        let (status, text) = match &self.way {
            Way::Https(agent) => self.over_https(agent, method, path, body),
            Way::Unix(socket) => self.over_unix(socket, method, path, body),
        }
        .map_err(|problem| Error::ServiceUnreachable { service: self.name.clone(), problem })?;
        if status.is_success() {
            return Ok(text);
        }
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(error) => Err(Error::remote(&error.error_class, &error.description)),
            Err(_) => Err(Error::ServiceUnreachable {
                service: self.name.clone(),
                problem: format!("answered {status}, not as a service of upgrades does"),
            }),
        }
    }

    fn request<B>(&self, method: Method, uri: String, body: B) -> Result<Request<B>, String> {
        let mut request = Request::builder().method(method).uri(uri).header("Host", "localhost");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.header("Content-Type", "application/json").body(body).map_err(|error| error.to_string())
    }

    fn over_https(
        &self,
        agent: &Agent,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), String> {
        let uri = format!("{}{path}", self.name);
        let mut request = self.request(method.clone(), uri, body)?;
        // Its own is the right one here.
        request.headers_mut().remove("Host");
        let answer = if method == Method::GET { agent.run(request.map(|_| ())) } else { agent.run(request) };
        let mut answer = answer.map_err(|error| match error {
            // Without the word "io" before it.
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        })?;
        let text = answer.body_mut().with_config().limit(ANSWER_LIMIT as u64).read_to_string();
        Ok((answer.status(), text.map_err(|error| error.to_string())?))
    }

    fn over_unix(
        &self,
        socket: &Path,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, String), String> {
        let request = self.request(method, path.to_owned(), Body::from(body))?;
        let talk = async {
            let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let bytes = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_LIMIT).await;
            let bytes = bytes.map_err(|error| error.to_string())?;
            Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let limited = async { tokio::time::timeout(LIMIT, talk).await };
        runtime
            .map_err(|error| error.to_string())?
            .block_on(limited)
            .unwrap_or_else(|_| Err("gave no answer".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_is_what_the_document_describes() {
        let dry = r#"{"post": {"parameters": [{"name": "dry_run"}]}}"#;
        let document = format!(
            r#"{{"paths": {{"/v1/{{node}}/leave": {dry}, "/v1/a/leave": {{"post": {{}}}}, "/v1/pause": {dry},
                 "/v1/join": {{"get": {{"parameters": [{{"name": "dry_run"}}]}}}}}}}}"#
        );
        for (path, has) in [
            ("/v1/pause", true),
            ("/v1/pause?n=1", true),
            ("/v1/3/leave", true),
            ("/v1/a/leave", false),
            ("/v1/join", false),
            ("/v1/pause/3", false),
            ("/v1", false),
        ] {
            assert_eq!(has_dry_run(&document, path), has, "{path}");
        }
        assert!(!has_dry_run("no document", "/v1/pause"));
    }
}
