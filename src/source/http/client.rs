//! One request and its response: proxies, redirects, credentials, and the classification of a response. Retries are in
//! `fetch`.

use std::error::Error as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, IF_RANGE, LOCATION, RANGE,
};
use reqwest::{Client, Proxy, Response, StatusCode, Url, redirect};
use tokio_rustls::rustls;

use super::credentials::{Credentials, Proof};
use super::header::{ContentRange, Validator, retry_after, text, unsatisfied};
use super::resolver::Resolver;
use super::transfer_error::{RetryDecision, TransferError, of_status};
use super::{Unreachable, Web, proxy, tls};
use crate::error::Result;
use crate::source::address::shown;
use crate::source::allowed::same_host;

/// Maximum number of redirects that one request follows.
const REDIRECTS: usize = 10;

/// HTTP clients of one transfer, one per proxy. Each keeps its connections open and reuses them.
pub(super) struct Clients {
    web: Web,
    tls: rustls::ClientConfig,
    credentials: Credentials,
    made: Mutex<Vec<(Option<String>, Client)>>,
    /// Takes the servers to which no connection can be made, and whether one answers.
    unreachable: Unreachable,
}

/// Response that carries bytes of the file.
pub(super) struct FileResponse {
    /// The response, with the part of its body that has not been read yet.
    pub(super) response: Response,
    /// Offset in the file of the first byte of the body.
    pub(super) start: u64,
    /// Offset in the file after the last byte of the body; `None` if the server does not send it.
    pub(super) end: Option<u64>,
    /// Size of the whole file in bytes; `None` if the server does not send it.
    pub(super) total: Option<u64>,
    /// Whether the server serves byte ranges of the file.
    pub(super) ranges: bool,
    pub(super) validator: Validator,
    /// URL that sent the response, after redirects.
    pub(super) url: Url,
}

impl Clients {
    /// Reads the files that the settings name: credentials, certificates and key.
    pub(super) fn new(web: &Web, unreachable: &Unreachable) -> Result<Self> {
        let credentials = web.credentials.as_deref().map(Credentials::load).transpose()?.unwrap_or_default();
        let clients = Self {
            tls: tls::config(web)?,
            web: web.clone(),
            credentials,
            made: Mutex::default(),
            unreachable: unreachable.clone(),
        };
        // An unsupported proxy is a mistake in the configuration, not in the network, so it is refused here, before any
        // request.
        if let Some(proxy) = web.proxy.as_deref().filter(|proxy| *proxy != "none") {
            clients.client(Some(proxy)).map_err(|trouble| trouble.error("proxy", 0, 0))?;
        }
        Ok(clients)
    }

    fn client(&self, proxy: Option<&str>) -> Result<Client, TransferError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(known, _)| known.as_deref() == proxy) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .connect_timeout(self.web.limits.connect)
            .redirect(redirect::Policy::none())
            .referer(false)
            .dns_resolver(Arc::new(Resolver))
            .no_proxy()
            .http1_only()
            .user_agent(concat!("qstage/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = proxy {
            let failed = |problem: &str| {
                TransferError::Connect(
                    format!("proxy {}: {problem}", proxy::name(proxy)),
                    RetryDecision::OnceItAnswered,
                )
            };
            let scheme = proxy.split_once("://").map_or("http", |(scheme, _)| scheme).to_ascii_lowercase();
            if !["http", "https", "socks4", "socks4a", "socks5", "socks5h"].contains(&scheme.as_str()) {
                return Err(failed("its scheme is none of http, https, socks4, socks4a, socks5, socks5h"));
            }
            let mut through = Proxy::all(proxy).map_err(|_| failed("not the URL of a proxy"))?;
            let url =
                if proxy.contains("://") { proxy.parse() } else { format!("http://{proxy}").parse::<Url>() };
            if let Ok(url) = &url
                && let Some(Proof::Basic(user, password)) = self.credentials.of(url).next()
            {
                through = through.basic_auth(user, password);
            }
            builder = builder.proxy(through);
        }
        let client = builder.build().map_err(|error| TransferError::Answer(chain(&error)))?;
        made.push((proxy.map(str::to_owned), client.clone()));
        Ok(client)
    }

    /// Requests the bytes from `start` to before `end` (`None`: to the end) of the version of the file that `validator`
    /// identifies.
    pub(super) async fn get(
        &self,
        url: &Url,
        start: u64,
        end: Option<u64>,
        validator: Option<&Validator>,
    ) -> Result<FileResponse, TransferError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let through = proxy::select(&url, self.web.proxy.as_deref(), |name| std::env::var(name).ok());
            let mut request =
                self.client(through.as_deref())?.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            let last = end.map_or(String::new(), |end| end.saturating_sub(1).to_string());
            request = request.header(RANGE, format!("bytes={start}-{last}"));
            if let Some(value) =
                validator.and_then(Validator::if_range).and_then(|value| HeaderValue::from_str(value).ok())
            {
                request = request.header(IF_RANGE, value);
            }
            for proof in self.credentials.of(&url) {
                request = match proof {
                    Proof::Basic(user, password) => request.basic_auth(user, Some(password)),
                    Proof::Header(name, value) => request.header(name, value),
                };
            }
            let response = request.send().await.map_err(|error| {
                let trouble = of_error(&error).by_proxy(through.as_deref().map(proxy::name));
                // The one that a redirect led to, if there was one.
                if trouble.is_of_server() && !trouble.may_pass(validator.is_some()) {
                    self.unreachable.add(&url);
                }
                trouble
            })?;
            // User, password and query, which may be secret, are left out.
            let (host, status) = (url.host_str().unwrap_or_default(), response.status());
            tracing::debug!("{host}{}, bytes {start}-{last}: {status}", url.path());
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                self.unreachable.answer();
                return answer(response, start, url);
            }
            let to = text(response.headers(), &LOCATION).unwrap_or_default();
            url = follow(&url, to).and_then(|to| self.web.permits(to)).map_err(TransferError::Answer)?;
        }
        Err(TransferError::Answer(format!("more than {REDIRECTS} redirects")))
    }
}

/// URL that a redirect leads to. User and password of `from` are kept for the same origin only. A redirect from https to
/// http is refused: a server must not turn a transfer that was requested as private into an open one.
fn follow(from: &Url, to: &str) -> Result<Url, String> {
    let shown = |url: &Url| shown(url.as_str()).into_owned();
    let mut url = from.join(to).map_err(|error| format!("a redirect to what is no URL: {error}"))?;
    if !["http", "https"].contains(&url.scheme()) || from.scheme() == "https" && url.scheme() != "https" {
        return Err(format!("a redirect to {}, which is not {}", shown(&url), from.scheme()));
    }
    if url.origin() == from.origin() {
        if url.username().is_empty() && url.password().is_none() {
            let _ = url.set_username(from.username());
            let _ = url.set_password(from.password());
        }
    } else if !to.contains('@') {
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    Ok(url)
}

impl Web {
    /// Returns the URL if a redirect may lead to its host.
    fn permits(&self, to: Url) -> Result<Url, String> {
        let hosts = self.redirects.as_ref();
        if hosts.is_none_or(|hosts| hosts.iter().any(|host| same_host(host, &to))) {
            return Ok(to);
        }
        Err(format!(
            "a redirect to {}, which is the host of none of 'image_urls' and 'mirrors'",
            shown(to.as_str())
        ))
    }
}

/// Classifies the response to a request for the bytes from `start` on.
fn answer(response: Response, start: u64, url: Url) -> Result<FileResponse, TransferError> {
    let headers = response.headers();
    let status = response.status();
    if status == StatusCode::RANGE_NOT_SATISFIABLE
        && let Some(total) = unsatisfied(headers).filter(|total| *total <= start)
    {
        return Err(TransferError::Changed(format!("it has {total} bytes, byte {start} was requested")));
    }
    if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Err(of_status(status, retry_after(headers)));
    }
    if text(headers, &CONTENT_TYPE)
        .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
    {
        return Err(TransferError::Answer(
            "the answer is a web page, not a bundle: a portal or an error page".to_owned(),
        ));
    }
    if let Some(encoding) =
        text(headers, &CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity"))
    {
        return Err(TransferError::Answer(format!(
            "the server sends it as {encoding}, which was not asked for"
        )));
    }
    let (validator, length) = (Validator::of(headers), response.content_length());
    if status == StatusCode::PARTIAL_CONTENT {
        let Some(range) = ContentRange::of(headers).filter(|range| range.start == start) else {
            let got =
                text(headers, &reqwest::header::CONTENT_RANGE).unwrap_or("none").escape_default().to_string();
            return Err(TransferError::Answer(format!(
                "bytes from {start} were asked for, the server answers with range '{got}'"
            )));
        };
        if length.is_some_and(|length| length != range.end - range.start) {
            return Err(TransferError::Answer(
                "Content-Length and Content-Range contradict each other".to_owned(),
            ));
        }
        let (end, total) = (Some(range.end), Some(range.total));
        return Ok(FileResponse { response, start, end, total, ranges: true, validator, url });
    }
    let ranges =
        text(headers, &reqwest::header::ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"));
    Ok(FileResponse {
        response,
        start: 0,
        end: length,
        total: length,
        ranges: ranges && length.is_some(),
        validator,
        url,
    })
}

/// Classifies an error that occurred before the header of a response arrived.
fn of_error(error: &reqwest::Error) -> TransferError {
    let mut cause: Option<&dyn std::error::Error> = error.source();
    let mut refused = error.is_dns();
    while let Some(inner) = cause {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return TransferError::Tls(tls.to_string());
        }
        // The source of an `io::Error` skips the error that it wraps, so that one is taken by `get_ref`.
        let mut wrapped = inner.downcast_ref::<io::Error>();
        while let Some(io) = wrapped {
            if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return TransferError::Tls(tls.to_string());
            }
            refused |= io.kind() == io::ErrorKind::ConnectionRefused;
            wrapped = io.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>());
        }
        cause = inner.source();
    }
    // The error for a SOCKS proxy that is not running has its cause in its fields only, not in its chain of sources.
    refused |= error.is_connect() && format!("{error:?}").contains("ConnectionRefused");
    let hope = if refused { RetryDecision::OnceItAnswered } else { RetryDecision::Always };
    match error {
        _ if error.is_connect() => TransferError::Connect(chain(error), hope),
        _ if error.is_builder() => TransferError::Answer(chain(error)),
        _ => TransferError::Broken(chain(error)),
    }
}

/// Texts of the causes of an error. The error itself is left out: it contains the URL, with all that is secret in it.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = inner.source();
    }
    if texts.is_empty() { "the request failed".to_owned() } else { texts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_configured_hosts_only() {
        let parse = |text: &str| text.parse::<Url>().unwrap();
        let web = Web { redirects: Some(vec![parse("http://h/x"), parse("http://m:81/")]), ..Web::default() };
        for (to, good) in [
            ("http://h/other", true),
            ("https://h/other", true),
            ("http://m:81/y", true),
            ("http://m/y", false),
            ("http://h:22/", false),
            ("http://169.254.169.254/latest", false),
        ] {
            assert_eq!(web.permits(parse(to)).is_ok(), good, "{to}");
            assert!(Web::default().permits(parse(to)).is_ok(), "who is root may go anywhere");
        }
    }

    #[test]
    fn credentials_follow_to_the_same_host_only() {
        let follow = |from: &str, to: &str| follow(&from.parse().unwrap(), to).map(|url| url.to_string());
        assert_eq!(follow("http://u:p@h/x", "/y").unwrap(), "http://u:p@h/y");
        assert_eq!(follow("http://u:p@h/x", "http://h/y").unwrap(), "http://u:p@h/y");
        assert_eq!(follow("http://u:p@h/x", "http://h:81/y").unwrap(), "http://h:81/y");
        assert_eq!(follow("http://u:p@h/x", "//other/y").unwrap(), "http://other/y");
        assert_eq!(follow("http://u:p@h/x", "https://h/y").unwrap(), "https://h/y");
        assert!(follow("https://h/x", "http://u:hunter2@h/y").unwrap_err().contains("http://h/y"));
        assert!(follow("http://h/x", "file:///etc/shadow").is_err());
        assert!(follow("http://h/x", "http://").is_err());
    }
}
