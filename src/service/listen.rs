//! Connections: who gets one, and for how long.
//!
//! Each door has its own limit, so that the network cannot shut out root on the Unix socket. At the limit new
//! connections wait in the kernel; those that say nothing are closed after [`HEADER_TIME`], those that have spoken after
//! [`IDLE_TIME`], those that do not read their answer after [`WRITE_TIME`]. One address gets half of the places at most, so that one client alone, silent or broken,
//! leaves room for the others.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::map_request;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::auth::Origin;
use super::patience::Patient;
use crate::error::{Error, Result};

/// Connections per door.
const CONNECTIONS: usize = 512;
/// Connections per address; whole organisations come from one behind a translator or a proxy.
const PER_ADDRESS: usize = CONNECTIONS / 2;
/// How long a client may take for TLS, and for its first header.
pub(super) const HEADER_TIME: Duration = Duration::from_secs(20);
/// How long a connection that has spoken may be idle, or take for its next header: clients that poll once a minute do so on
/// a kept connection, and not all of them try again where it is closed.
const IDLE_TIME: Duration = Duration::from_secs(100);
/// The times of a connection.
#[derive(Debug, Clone, Copy)]
struct Times {
    header: Duration,
    idle: Duration,
}

const TIMES: Times = Times { header: HEADER_TIME, idle: IDLE_TIME };

/// How long a client may leave an answer unread.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Headers longer than this are refused; hyper's own buffer is 400 KiB.
const HEADER_BYTES: usize = 16 << 10;

/// The places where connections come in.
pub(super) struct Doors {
    tcp: TcpListener,
    unix: Option<(UnixListener, SocketFile)>,
}

/// Removes the socket's file in the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Doors {
    /// Opens them and says in the log where.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub(super) async fn open(address: SocketAddr, socket: Option<&Path>) -> Result<Self> {
        let failed = |source| Error::Listen { address: address.to_string(), source };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let unix = match socket {
            Some(path) => {
                let listener = bind(path)
                    .await
                    .map_err(|source| Error::Listen { address: path.display().to_string(), source })?;
                Some((listener, SocketFile(path.to_owned())))
            }
            None => None,
        };
        let address = tcp.local_addr().map_err(failed)?;
        let socket = socket.map(|path| path.display().to_string()).unwrap_or_default();
        tracing::info!(address = %address, socket, "listening");
        Ok(Self { tcp, unix })
    }

    /// Serves for ever.
    pub(super) async fn serve(self, router: Router, tls: TlsAcceptor) {
        let tcp = serve_tcp(self.tcp, router.clone(), tls);
        match self.unix {
            Some((listener, _file)) => {
                tokio::join!(tcp, serve_unix(listener, router));
            }
            None => tcp.await,
        }
    }
}

/// Binds a Unix socket. One that a killed service left is replaced, one that is served is not.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::other("another service is listening there"));
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Everybody may connect: the kernel says who it is, and reading is allowed to all who are local.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn serve_tcp(listener: TcpListener, router: Router, tls: TlsAcceptor) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Shares::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                breathe(&error).await;
                continue;
            }
        };
        // Closed at once: to let it wait would keep the place that it may not have.
        let Some(share) = shares.take(from.ip()) else { continue };
        let (router, tls) = (router.clone(), tls.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_TIME, tls.accept(stream)).await {
                converse(stream, router, Origin::Network(from), TIMES).await;
            }
            drop((share, place));
        });
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Shares(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; given back when dropped.
struct Share {
    shares: Shares,
    address: IpAddr,
}

impl Shares {
    /// `None` where the address has all that it may have.
    fn take(&self, address: IpAddr) -> Option<Share> {
        let address = network(address);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count == PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = held.get_mut(&self.address) else { return };
        *count -= 1;
        if *count == 0 {
            held.remove(&self.address);
        }
    }
}

/// What counts as one address: of IPv6 the first 64 bits, since a host chooses the others itself (RFC 4291, 2.5.1).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

async fn serve_unix(listener: UnixListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                breathe(&error).await;
                continue;
            }
        };
        // Of the moment of connect(2), by the kernel (unix(7), SO_PEERCRED).
        let Ok(peer) = stream.peer_cred() else { continue };
        let (router, origin) = (router.clone(), Origin::Socket { uid: peer.uid(), pid: peer.pid() });
        tokio::spawn(async move {
            converse(stream, router, origin, TIMES).await;
            drop(place);
        });
    }
}

/// A failed accept is of the moment (no descriptor left, a peer that is gone): to spin would make it worse.
async fn breathe(error: &io::Error) {
    tracing::warn!("a connection could not be accepted: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    origin: Origin,
    times: Times,
) {
    let spoken = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&spoken);
    let router = router.layer(Extension(origin)).layer(map_request(move |request: Request| {
        heard.store(true, Ordering::Relaxed);
        std::future::ready(request)
    }));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(times.idle)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIME)), TowerToHyperService::new(router));
    let silent = async {
        tokio::time::sleep(times.header).await;
        if spoken.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = connection => if let Err(error) = result {
            tracing::debug!("a connection ended: {error}");
        },
        () = silent => tracing::debug!("a connection ended: nothing was asked for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_half_and_gives_it_back() {
        let shares = Shares::default();
        let take = |address: &str| shares.take(address.parse().unwrap());
        let mut held: Vec<Share> = (0..PER_ADDRESS).map(|_| take("192.0.2.1").unwrap()).collect();
        assert!(take("192.0.2.1").is_none());
        // The same one, as a socket of both families shows it.
        assert!(take("::ffff:192.0.2.1").is_none());
        let other = take("192.0.2.2");
        assert!(other.is_some());
        held.pop();
        assert!(take("192.0.2.1").is_some(), "what was given back can be taken again");
        drop((held, other));
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is remembered of those who left");
    }

    /// A client that asks once a minute on a kept connection must find it there.
    #[test]
    fn who_has_spoken_may_be_idle_and_who_has_not_may_not() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
        let (header, idle) = (Duration::from_millis(200), Duration::from_secs(3));
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let open = || {
            let (near, far) = duplex(1024);
            let origin = Origin::Socket { uid: 0, pid: None };
            tokio::spawn(converse(near, router.clone(), origin, Times { header, idle }));
            far
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut silent = open();
            assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0, "closed without a word");
            let mut polling = open();
            for _ in 0..2 {
                polling.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"here") {
                    assert_ne!(polling.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
                }
                tokio::time::sleep(header * 3).await;
            }
            assert_eq!(polling.read(&mut [0; 16]).await.unwrap(), 0, "closed in the end");
        });
        assert!(IDLE_TIME >= Duration::from_secs(90) && HEADER_TIME < IDLE_TIME);
    }

    #[test]
    fn a_host_cannot_multiply_itself_by_the_second_half_of_its_address() {
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
