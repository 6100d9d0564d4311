//! Bundles on web servers: read at any offset by ranges, or from front to back, and never stored. The signature of the
//! bundle protects the machine; TLS keeps the transfer private and intact.
//!
//! ```text
//!   readers ──▶ file: WebFile, WebStream ──▶ plan (pure) ◀── fetch: a few lanes, each reads one response at a time ──▶ client: reqwest
//!      ▲                                       │                 ├── mirrors: which address to use
//!      └──────────── blocks, each taken once ◀─┘                 └── transfer_error (pure): what is retried, how long to wait
//! ```
//!
//! HTTP is done by `reqwest`, on the hyper and rustls that the service uses already. It supports proxies in absolute
//! form, by CONNECT and by SOCKS, Happy Eyeballs, and persistent connections. `ureq`, which was used before, supports
//! proxies by CONNECT only (Squid refuses that for http) and ignores SOCKS; its reads cannot be stopped. `curl` would
//! add a C library and its TLS. The code here adds what a stream of frames needs: what to read next, which version of a
//! file, when to retry, and when not to.

mod client;
mod credentials;
mod fetch;
mod file;
mod header;
mod list;
mod mirrors;
mod plan;
mod proxy;
mod resolver;
mod shared;
mod spare;
mod tls;
mod transfer_error;
mod unreachable;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use self::client::Clients;
use self::file::{Transfer, WebFile, WebStream};
use self::shared::{FailedTransfer, Shared};
use self::transfer_error::TransferError;
pub use self::unreachable::Unreachable;
use crate::bundle::source::{Source, read_failed};
use crate::error::{Class, Error, Result};
use crate::progress::Cancel;
use crate::source::address::shown;
use crate::workers;

/// Receives messages for the user about a transfer in progress.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// How web servers are reached and trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// PEM file with certificates of servers, or of authorities that may sign those; `None`: no such file.
    pub ca: Option<PathBuf>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
    /// Authorities that are trusted besides [`ca`](Self::ca); if empty, Mozilla's, unless `ca` is set.
    pub roots: Vec<Roots>,
    /// PEM file with the certificate chain that this client presents; `None`: no client certificate.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with the key of [`client_certificate`](Self::client_certificate).
    pub client_key: Option<PathBuf>,
    /// File with passwords and tokens by host; `None`: no such file.
    pub credentials: Option<PathBuf>,
    /// URL of a proxy, or `none` for no proxy; `None`: as the environment variables say.
    pub proxy: Option<String>,
    /// URLs of the same file, or, with a slash at the end, of directories that have it under the same name.
    pub mirrors: Vec<String>,
    /// Whether the search for a delta beside a bundle is skipped.
    pub no_deltas: bool,
    /// Whether only the front of a bundle will be read, so that a server need not begin to send the rest.
    pub front_only: bool,
    /// URLs to whose hosts a redirect may lead; `None`: to any host.
    pub redirects: Option<Vec<Url>>,
    /// Timeouts, minimum rate and retries of a transfer.
    pub limits: TransferLimits,
}

/// Bytes of the first request where only the front of a bundle will be read: manifest, signature and most indexes.
pub(super) const FRONT: u64 = 256 << 10;

/// Store of certificate authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roots {
    /// That of Mozilla, as of the build of this program.
    Mozilla,
    /// That of the operating system.
    System,
}

/// Timeouts, minimum rate and retries of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// Timeout of a connection, including name lookup and TLS.
    pub connect: Duration,
    /// Timeout of the wait for the next byte.
    pub stall: Duration,
    /// Minimum rate in bytes per second, over [`least_rate_time`](Self::least_rate_time) of waiting for bytes.
    pub least_rate: u64,
    /// Waiting time over which [`least_rate`](Self::least_rate) is measured; zero turns the check off.
    pub least_rate_time: Duration,
    /// Maximum number of consecutive retries, for each address, that bring less than 64 KiB.
    pub retries: u32,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            least_rate: 1024,
            least_rate_time: Duration::from_secs(60),
            retries: 8,
        }
    }
}

impl Web {
    /// Paths of the files and directories that a transfer reads.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let named = [&self.ca, &self.client_certificate, &self.client_key, &self.credentials];
        // Where the store of the system is elsewhere than usual: see SSL_CTX_load_verify_locations(3).
        let store = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
        let store = store.filter(|_| self.roots.contains(&Roots::System));
        let store = store.flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
        named.into_iter().flatten().cloned().chain(store)
    }

    /// Whether a transfer could begin with these settings: reads the files that they name, and contacts no server.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::NetworkConnect`] for settings that cannot be used; [`Error::Argument`] for a mirror that is no
    /// URL.
    pub(crate) fn check(&self) -> Result<()> {
        Clients::new(self, &Unreachable::default())?;
        let any =
            Url::parse("http://localhost/x").map_err(|error| Error::Internal { what: error.to_string() })?;
        self.mirrors.iter().try_for_each(|mirror| list::mirror_of(mirror, &any).map(drop))
    }

    /// Calls `open` with the file at `url`, or, if `url` is a list of addresses, with the file that the list leads to.
    /// Of several addresses the first is used first, and the others where it fails. If `open` finds that the bytes are
    /// no bundle, or not a trusted one, it is called again with the file of the other addresses. Reads of the file end
    /// within 200 ms of a request to stop.
    ///
    /// # Errors
    /// Class Network, [`Error::Interrupted`], [`Error::Config`] for files that cannot be used; those of `open`.
    pub fn read<T>(
        &self,
        url: &Url,
        cancel: &Cancel,
        notice: &Notice,
        open: impl Fn(Source) -> Result<T>,
    ) -> Result<T> {
        let first = self.front_only.then_some(FRONT);
        self.read_any(
            self.addresses(url, cancel, notice)?,
            first,
            &Unreachable::default(),
            cancel,
            notice,
            open,
        )
        .map(|(read, _)| read)
    }

    /// All addresses of the file at `url`: `url` itself or those of the list there, and those of the configured mirrors.
    ///
    /// # Errors
    /// Those of reading a list; [`Error::Argument`] for a mirror that is not an http or https URL.
    pub(super) fn addresses(&self, url: &Url, cancel: &Cancel, notice: &Notice) -> Result<Vec<Url>> {
        let mut urls = if list::is_one(url) { self.list(url, cancel, notice)? } else { vec![url.clone()] };
        for mirror in &self.mirrors {
            let mirror = list::mirror_of(mirror, urls.first().unwrap_or(url))?;
            if !urls.contains(&mirror) {
                urls.push(mirror);
            }
        }
        Ok(urls)
    }

    /// The same as [`read`](Self::read) from any of `urls`, and the one that answered first. The first request is for `first`
    /// bytes; `None`: for the whole file. Servers that are `unreachable` are not contacted while there are others.
    pub(super) fn read_any<T>(
        &self,
        mut urls: Vec<Url>,
        first: Option<u64>,
        unreachable: &Unreachable,
        cancel: &Cancel,
        notice: &Notice,
        open: impl Fn(Source) -> Result<T>,
    ) -> Result<(T, Url)> {
        loop {
            urls = unreachable.leave(urls);
            let (source, asked) = self.begin(urls.clone(), first, unreachable, cancel, notice)?;
            let several = urls.len() > 1;
            let asked = urls.remove(asked.min(urls.len() - 1));
            match open(source) {
                Err(problem) if several && tells_of_the_server(&problem) => {
                    notice(&format!("{} is asked no more: {problem}", shown(asked.as_str())));
                }
                result => return result.map(|read| (read, asked)),
            }
        }
    }

    /// Begins a transfer. Returns its source and the number of the address that answered.
    fn begin(
        &self,
        urls: Vec<Url>,
        first: Option<u64>,
        unreachable: &Unreachable,
        cancel: &Cancel,
        notice: &Notice,
    ) -> Result<(Source, usize)> {
        let shared = Shared::new(Clients::new(self, unreachable)?, self.limits, Arc::clone(notice), &urls);
        start(&shared, urls, first)?;
        let transfer = Transfer { shared, cancel: cancel.clone() };
        let head =
            transfer.wait(0, |state| state.head).map_err(|error| read_failed("its beginning", 0, error))?;
        let source = match head.len {
            Some(len) if head.ranges => Source::File(Arc::new(WebFile { transfer, len })),
            len => {
                transfer.shared.state().plan.declare(0..len.unwrap_or(u64::MAX));
                transfer.shared.work.notify_waiters();
                Source::Response(Box::new(WebStream { transfer, len, at: 0 }), len)
            }
        };
        Ok((source, head.mirror))
    }

    /// Addresses in the list at `url`.
    fn list(&self, url: &Url, cancel: &Cancel, notice: &Notice) -> Result<Vec<Url>> {
        let (source, _) = self.begin(vec![url.clone()], None, &Unreachable::default(), cancel, notice)?;
        list::read(source, url)
    }
}

/// Whether the problem lies in what a server sent, so that another server may have a better file.
fn tells_of_the_server(problem: &Error) -> bool {
    matches!(problem.class(), Class::Bundle | Class::Trust) || matches!(problem, Error::SourceLength { .. })
}

/// Fails the transfer if its thread panics, so that no reader waits for ever.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let trouble = TransferError::Broken("the thread of the transfer is gone".to_owned());
            self.0.fail(FailedTransfer { trouble, url: String::new(), at: 0, retries: 0 });
        }
    }
}

/// Starts the thread of the transfer, on which all its tasks run. It is not joined: a name lookup in progress cannot be
/// stopped.
fn start(shared: &Arc<Shared>, urls: Vec<Url>, first: Option<u64>) -> Result<()> {
    let failed = |error: io::Error| Error::Internal { what: format!("the thread of a transfer: {error}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let shared = Arc::clone(shared);
    let work = move || {
        let _guard = PanicGuard(&shared);
        runtime.block_on(async {
            tokio::select! {
                () = fetch::run(Arc::clone(&shared), urls, first) => {}
                () = shared.watch() => {}
                () = shared.closed.notified() => {}
            }
        });
        runtime.shutdown_background();
    };
    workers::spawn("reading from the web", work).map(drop)
}
