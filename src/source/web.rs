//! Bundles from http(s): streamed, never stored. What protects the machine is the signature of the bundle; TLS
//! keeps the transfer private and whole.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use reqwest::Url;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, http};

use crate::bundle::source::{Source, Stopped};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::address::shown;

/// For name, connection, TLS and the header of the answer, each.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// A transfer of which nothing comes for so long is dead.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How soon a request to stop is seen.
const STEP: Duration = Duration::from_millis(100);
/// Bytes per block, and blocks that wait: what hides the jitter of a network from the disk.
const BLOCK: usize = 256 << 10;
const BLOCKS: usize = 8;

/// How servers are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Web {
    /// Certificates that may sign those of servers, as PEM; `None`: the roots of Mozilla.
    pub ca: Option<PathBuf>,
    /// Accept any certificate.
    pub insecure: bool,
}

impl Web {
    /// Begins a transfer. Its reads end within 200 ms of a request to stop.
    ///
    /// # Errors
    /// [`Error::Http`], [`Error::Config`] for certificates that cannot be used.
    pub fn open(&self, url: &Url, cancel: &Cancel) -> Result<Source> {
        let failed = |problem: String| Error::Http { url: shown(url.as_str()).into_owned(), problem };
        let config = Agent::config_builder()
            .tls_config(self.tls()?)
            .timeout_resolve(Some(CONNECT_LIMIT))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(CONNECT_LIMIT))
            .max_redirects(5)
            // Who asked for a private transfer does not get an open one because a server redirects there.
            .https_only(url.scheme() == "https")
            .user_agent(concat!("qstage/", env!("CARGO_PKG_VERSION")))
            .build();
        let response =
            Agent::new_with_config(config).get(url.as_str()).call().map_err(|e| failed(e.to_string()))?;
        if response.status() != http::StatusCode::OK {
            return Err(failed(format!("the server answered {}", response.status())));
        }
        let (sender, blocks) = sync_channel(BLOCKS);
        let body = response.into_body();
        // A thread, since a read of a socket that blocks sees no flag. It ends with the transfer or its reader.
        crate::workers::spawn("reading from the web", move || fetch(body, &sender))?;
        Ok(Source::Stream(Box::new(Stream { blocks, block: Vec::new(), at: 0, cancel: cancel.clone() })))
    }

    fn tls(&self) -> Result<TlsConfig> {
        let builder = TlsConfig::builder().disable_verification(self.insecure);
        let Some(path) = &self.ca else { return Ok(builder.build()) };
        let failed = |problem: String| Error::Config { path: path.clone(), problem };
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let mut certificates = Vec::new();
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| failed(error.to_string()))? {
                certificates.push(certificate);
            }
        }
        if certificates.is_empty() {
            return Err(failed("it holds no certificate".to_owned()));
        }
        Ok(builder.root_certs(RootCerts::new_with_certs(&certificates)).build())
    }
}

/// Reads the body to its end. A body that is shorter than announced is an error of the library, not an end.
fn fetch(body: Body, sender: &SyncSender<io::Result<Vec<u8>>>) {
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    loop {
        let mut block = vec![0; BLOCK];
        let read = reader.read(&mut block);
        let ended = !matches!(read, Ok(1..));
        let read = read.map(|len| {
            block.truncate(len);
            block
        });
        if sender.send(read).is_err() || ended {
            return;
        }
    }
}

struct Stream {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    at: usize,
    cancel: Cancel,
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut waited = Duration::ZERO;
        while self.at >= self.block.len() {
            if self.cancel.requested() {
                return Err(io::Error::other(Stopped));
            }
            match self.blocks.recv_timeout(STEP) {
                Ok(block) => {
                    (self.block, self.at) = (block?, 0);
                    // An empty block is the end; there is none behind it.
                    if self.block.is_empty() {
                        return Ok(0);
                    }
                }
                Err(RecvTimeoutError::Timeout) if waited >= STALL_LIMIT => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(RecvTimeoutError::Timeout) => waited += STEP,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let rest = self.block.get(self.at..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    /// Answers one request with these bytes, then holds the connection for a while.
    fn server(answer: Vec<u8>, hold: Duration) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x.qimg", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
            std::thread::sleep(hold);
        });
        url.parse().unwrap()
    }

    fn stream(url: &Url, cancel: &Cancel) -> Box<dyn Read + Send> {
        match Web::default().open(url, cancel) {
            Ok(Source::Stream(stream)) => stream,
            Ok(_) => panic!("a web server cannot be read positionally"),
            Err(error) => panic!("{error}"),
        }
    }

    fn answer(announced: usize, sent: usize) -> Vec<u8> {
        let body = (0..sent).map(|n| (n % 251) as u8);
        format!("HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n").bytes().chain(body).collect()
    }

    #[test]
    fn a_body_is_streamed_whole_and_a_short_one_is_an_error() {
        let len = 3 * BLOCK + 17;
        let mut all = Vec::new();
        let url = server(answer(len, len), Duration::ZERO);
        stream(&url, &Cancel::default()).read_to_end(&mut all).unwrap();
        assert!(answer(len, len).ends_with(&all) && all.len() == len);
        let url = server(answer(len, len - 1), Duration::ZERO);
        let error = stream(&url, &Cancel::default()).read_to_end(&mut all).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn what_is_no_bundle_is_told_with_its_address() {
        for (answer, word) in [("404 Not Found", "404"), ("206 Partial Content", "206")] {
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
            let url = server(answer.into_bytes(), Duration::ZERO);
            let Err(error) = Web::default().open(&url, &Cancel::default()) else {
                panic!("{word} was taken")
            };
            assert_eq!(error.code(), "UPGRADE_ERROR_HTTP");
            assert!(error.to_string().contains(word) && error.to_string().contains("/x.qimg"), "{error}");
        }
        let Err(error) =
            Web::default().open("http://127.0.0.1:9/x".parse::<Url>().as_ref().unwrap(), &Cancel::default())
        else {
            panic!("nobody answers there")
        };
        assert_eq!(error.class().exit_code(), 10);
    }

    #[test]
    fn a_stalled_transfer_ends_soon_after_the_request() {
        let cancel = Cancel::default();
        let mut stream = stream(&server(answer(100, 10), Duration::from_secs(5)), &cancel);
        let mut ten = [0; 10];
        stream.read_exact(&mut ten).unwrap();
        cancel.request();
        let begun = Instant::now();
        assert!(stream.read(&mut ten).is_err());
        assert!(begun.elapsed() < Duration::from_millis(500));
    }
}
