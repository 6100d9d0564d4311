//! Bundles on web servers: read at any place by ranges, or from front to back, never stored. What protects the machine is
//! the signature of the bundle; TLS keeps the transfer private and whole.
//!
//! ```text
//!   readers ──▶ file: WebFile, WebStream ──▶ plan (pure) ◀── fetch: a few lanes, each one answer after the other ──▶ client: reqwest
//!      ▲                                       │                 ├── mirrors: whom to ask
//!      └──────────── blocks, each taken once ◀─┘                 └── trouble (pure): what may pass, how long to wait
//! ```
//!
//! The HTTP is that of `reqwest`, on the hyper and rustls that the service has already: proxies in absolute form, by CONNECT
//! and SOCKS, Happy Eyeballs, kept connections. `ureq`, which was here before, speaks to proxies by CONNECT only (Squid
//! refuses that for http) and ignores SOCKS; a read of it cannot be stopped. `curl` would bring a C library and its TLS.
//! Ours is what a stream of frames needs: what to read next, which version of a file, when to try again, and when not to.

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
mod tls;
mod transfer_error;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use self::client::Clients;
use self::file::{Transfer, WebFile, WebStream};
use self::mirrors::host;
use self::shared::{FailedTransfer, Shared};
use self::transfer_error::TransferError;
use crate::bundle::source::{Source, read_failed};
use crate::error::{Class, Error, Result};
use crate::progress::Cancel;
use crate::source::address::shown;
use crate::workers;

/// Takes what a person should know of a transfer that goes on.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// How web servers are reached and trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// Certificates of servers, or that may sign those of servers, as PEM.
    pub ca: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure: bool,
    /// Authorities that are trusted besides [`ca`](Self::ca); none named: Mozilla's, unless `ca` is given.
    pub roots: Vec<Roots>,
    /// Our own certificate chain and its key, as PEM.
    pub client_certificate: Option<PathBuf>,
    /// See [`client_certificate`](Self::client_certificate).
    pub client_key: Option<PathBuf>,
    /// File with passwords and tokens by host.
    pub credentials: Option<PathBuf>,
    /// URL of a proxy, or `none`; `None`: what the environment says.
    pub proxy: Option<String>,
    /// Addresses of the same file, or, with a slash at the end, below which it lies by its name.
    pub mirrors: Vec<String>,
    /// Whether no delta is looked for beside a bundle.
    pub no_deltas: bool,
    /// Whether no more than the front of a bundle will be read, so that a server need not begin to send the rest.
    pub front_only: bool,
    /// Addresses whose hosts a redirect may lead to; `None`: any host.
    pub redirects: Option<Vec<Url>>,
    /// How much patience a transfer gets.
    pub limits: TransferLimits,
}

/// How much is asked for at first where only the front of a bundle will be read: manifest, signature and most indexes.
pub(super) const FRONT: u64 = 256 << 10;

/// A store of certificate authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roots {
    /// Those of Mozilla, as this program was built.
    Mozilla,
    /// Those of the operating system.
    System,
}

/// How much patience a transfer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferLimits {
    /// For a connection, name and TLS included.
    pub connect: Duration,
    /// For the next byte.
    pub stall: Duration,
    /// Bytes per second that must come, while they are waited for, over [`least_rate_time`](Self::least_rate_time).
    pub least_rate: u64,
    /// See [`least_rate`](Self::least_rate).
    pub least_rate_time: Duration,
    /// Tries in a row, after the first one, that bring less than 64 KiB.
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
    /// The files that a transfer reads.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca, &self.client_certificate, &self.client_key, &self.credentials].into_iter().flatten()
    }

    /// Has a file read by `open`, from `url` or from where a list of addresses at `url` leads; of several addresses the first
    /// is asked first, and the others where it fails. Where `open` finds that what came is no bundle, or not one that is
    /// trusted, it is called again with what the other addresses have. Its reads end within 200 ms of a request to stop.
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
        self.read_any(self.addresses(url, cancel, notice)?, first, cancel, notice, open)
    }

    /// All addresses of the file at `url`: that one, or those of the list there, and those of the mirrors.
    ///
    /// # Errors
    /// Those of reading a list; [`Error::Argument`] for a mirror that is none.
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

    /// The same as [`read`](Self::read) from any of `urls`. The first request is for `first` bytes, or for all.
    pub(super) fn read_any<T>(
        &self,
        mut urls: Vec<Url>,
        first: Option<u64>,
        cancel: &Cancel,
        notice: &Notice,
        open: impl Fn(Source) -> Result<T>,
    ) -> Result<T> {
        loop {
            let (source, asked) = self.begin(urls.clone(), first, cancel, notice)?;
            match open(source) {
                Err(problem) if urls.len() > 1 && tells_of_the_server(&problem) => {
                    let liar = urls.remove(asked.min(urls.len() - 1));
                    notice(&format!("{} is asked no more: {problem}", shown(liar.as_str())));
                }
                result => return result,
            }
        }
    }

    /// Begins a transfer. Which of the addresses answered is the other result.
    fn begin(
        &self,
        urls: Vec<Url>,
        first: Option<u64>,
        cancel: &Cancel,
        notice: &Notice,
    ) -> Result<(Source, usize)> {
        let asked = urls.first().map(host).unwrap_or_default();
        let shared = Shared::new(Clients::new(self)?, self.limits, Arc::clone(notice), asked, urls.len());
        start(&shared, urls, first)?;
        let transfer = Transfer { shared, cancel: cancel.clone() };
        let head =
            transfer.wait(|state| state.head).map_err(|error| read_failed("its beginning", 0, error))?;
        let source = match head.len {
            Some(len) if head.ranges => Source::File(Arc::new(WebFile { transfer, len })),
            len => {
                transfer.shared.state().plan.declare(0..len.unwrap_or(u64::MAX));
                transfer.shared.work.notify_waiters();
                let stream = Box::new(WebStream { transfer, len, at: 0 });
                match len {
                    Some(len) => Source::Sized(stream, len),
                    None => Source::Stream(stream),
                }
            }
        };
        Ok((source, head.mirror))
    }

    /// The addresses in the list at `url`.
    fn list(&self, url: &Url, cancel: &Cancel, notice: &Notice) -> Result<Vec<Url>> {
        let (source, _) = self.begin(vec![url.clone()], None, cancel, notice)?;
        list::read(source, url)
    }
}

/// Whether another server may have something better than what this is about.
fn tells_of_the_server(problem: &Error) -> bool {
    matches!(problem.class(), Class::Bundle | Class::Trust) || matches!(problem, Error::SourceLength { .. })
}

/// Ends the transfer if its thread panics: no reader may wait for it for ever.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let trouble = TransferError::Broken("the thread of the transfer is gone".to_owned());
            self.0.fail(FailedTransfer { trouble, url: String::new(), at: 0, retries: 0 });
        }
    }
}

/// Starts the thread of the transfer, on which all its tasks run. It is not waited for: a name that is being looked up cannot be stopped.
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
