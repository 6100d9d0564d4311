//! Connections: their number and time limits.
//!
//! Each listener has its own limit, so that the network cannot shut out root on the Unix socket, and some places there are
//! reserved for root. At the limit of the network's listener, new connections wait in the kernel. A connection is closed
//! [`HEADER_TIME`] after its start if it has sent nothing, [`IDLE_TIME`] after its last request, and [`WRITE_TIME`] after
//! its client stopped reading. One address gets at most half of the places, and one user of this machine a quarter, so that
//! one client alone, silent or broken, leaves room for others. A listener that cannot be opened is tried again while the
//! others serve.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::map_request;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Result, sentence};
use crate::service::http::origin::{Certified, Origin, Peer};
use crate::service::http::shares::{Share, Shares};
use crate::service::http::tls::ServerTls;
use crate::service::http::write_timeout::WriteTimeout;

/// Maximum of connections per listener.
const CONNECTIONS: usize = 512;
/// Maximum of connections per address; a whole organisation may share one by address translation or a proxy.
const PER_ADDRESS: usize = CONNECTIONS / 2;
/// Maximum of connections per user on the Unix socket.
const PER_USER: usize = CONNECTIONS / 4;
/// Connections on the Unix socket that are reserved for root.
const RESERVE: usize = 64;
/// Time between two attempts to open a listener.
const RETRY: Duration = Duration::from_secs(5);
/// Time limit for the TLS handshake, and for the first header.
pub(in crate::service) const HEADER_TIME: Duration = Duration::from_secs(20);
/// Time limit between requests of a connection. Clients that poll once a minute keep their connection, and not all of them
/// try again if it is closed.
const IDLE_TIME: Duration = Duration::from_secs(100);
/// Time limits of a connection.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    header: Duration,
    idle: Duration,
}

const TIMES: Timeouts = Timeouts { header: HEADER_TIME, idle: IDLE_TIME };

/// Write timeout: longest time for which a client may read nothing of an answer.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Headers longer than this are refused; hyper's own buffer is 400 KiB.
const HEADER_BYTES: usize = 16 << 10;

/// The listeners of the service.
pub(in crate::service) struct Listeners {
    tcp: Result<TcpListener>,
    address: SocketAddr,
    unix: Option<Result<(UnixListener, SocketFile)>>,
    socket: Option<PathBuf>,
}

/// The first certificate that can be used; nothing is served without. The log had the reason at the start.
async fn until_certificate(make: impl Fn() -> Result<ServerTls>) -> ServerTls {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(certificate) = make() {
            tracing::info!("HTTPS: certificate and key can be used now");
            return certificate;
        }
    }
}

/// The server side of TLS for the next connection.
fn acceptor(tls: &ServerTls) -> TlsAcceptor {
    let (acceptor, renewal) = tls.get();
    match renewal {
        None => {}
        Some(Ok(())) => tracing::info!("HTTPS: certificate and key were replaced, and are used now"),
        Some(Err(error)) => {
            let told = sentence(&error);
            tracing::error!(
                code = error.code(),
                "HTTPS: the new certificate cannot be used, the previous one is: {told}"
            );
        }
    }
    acceptor
}

/// The file of the socket; the drop removes it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listeners {
    /// Opens the listeners and logs their addresses. A failure is logged while the others serve.
    ///
    /// # Errors
    /// [`Error::Listen`]: no listener can be opened.
    pub(in crate::service) async fn open(address: SocketAddr, socket: Option<&Path>) -> Result<Self> {
        let tcp = open_tcp(address).await;
        let unix = match socket {
            Some(path) => Some(open_unix(path).await),
            None => None,
        };
        let shut =
            |error: &Error| tracing::error!(code = error.code(), "{}; it is tried again", sentence(error));
        let tcp = match (tcp, &unix) {
            // No listener is open.
            (Err(error), None | Some(Err(_))) => return Err(error),
            (tcp, _) => tcp,
        };
        match (&tcp, &unix) {
            (Err(error), Some(Ok(_))) | (Ok(_), Some(Err(error))) => shut(error),
            (Ok(_), None | Some(Ok(_))) | (Err(_), _) => {}
        }
        if let Ok(tcp) = &tcp {
            let address = tcp.local_addr().unwrap_or(address);
            let socket = socket.filter(|_| matches!(unix, Some(Ok(_))));
            let socket = socket.map(|path| path.display().to_string()).unwrap_or_default();
            tracing::info!(address = %address, socket, "listening");
        } else {
            tracing::info!(socket = %socket.unwrap_or(Path::new("")).display(), "listening");
        }
        Ok(Self { tcp, address, unix, socket: socket.map(Path::to_owned) })
    }

    /// Serves for ever. Without `tls` that is tried again, by `make`, until certificate and key can be used: they may be made,
    /// or mounted, later.
    pub(in crate::service) async fn serve(
        self,
        router: Router,
        tls: Option<ServerTls>,
        make: impl Fn() -> Result<ServerTls>,
    ) {
        let tcp = async {
            let tls = match tls {
                Some(tls) => tls,
                None => until_certificate(make).await,
            };
            let listener = until_open(self.tcp, || open_tcp(self.address)).await;
            serve_tcp(listener, router.clone(), tls, TIMES).await;
        };
        let unix = async {
            let (Some(unix), Some(path)) = (self.unix, self.socket) else {
                return std::future::pending().await;
            };
            let (listener, _file) = until_open(unix, || open_unix(&path)).await;
            serve_unix(listener, router.clone(), TIMES).await;
        };
        tokio::join!(tcp, unix);
    }
}

async fn open_tcp(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address: address.to_string(), source })
}

async fn open_unix(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let failed = |source| Error::Listen { address: path.display().to_string(), source };
    bind(path).await.map(|listener| (listener, SocketFile(path.to_owned()))).map_err(failed)
}

/// Tries until a listener can be opened: the machine may get an address later, or a directory may be mounted later.
async fn until_open<T, F: Future<Output = Result<T>>>(first: Result<T>, open: impl Fn() -> F) -> T {
    let mut tried = first;
    loop {
        match tried {
            Ok(door) => return door,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
        tried = open().await;
        if tried.is_ok() {
            tracing::info!("listening at what could not be opened before");
        }
    }
}

/// Binds a Unix socket. A leftover of a killed service is replaced, the socket of a running one is not.
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
    // All users may connect: the kernel reports the user, and every local user may read.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn serve_tcp(listener: TcpListener, router: Router, tls: ServerTls, times: Timeouts) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Shares::new(PER_ADDRESS);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                breathe(&error).await;
                continue;
            }
        };
        // Closed at once: a waiting connection would occupy a place beyond its share.
        let Some(share) = shares.take(Peer::of_address(from.ip())) else { continue };
        let (router, tls) = (router.clone(), acceptor(&tls));
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(Ok(stream)) = tokio::time::timeout(times.header, tls.accept(stream)).await {
                let presented = stream.get_ref().1.peer_certificates();
                let certified = Certified(presented.is_some_and(|chain| !chain.is_empty()));
                converse(stream, router, (Origin::Network(from), certified), times).await;
            }
            drop((share, place));
        });
    }
}

async fn serve_unix(listener: UnixListener, router: Router, times: Timeouts) {
    let places = Places::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                breathe(&error).await;
                continue;
            }
        };
        // As of connect(2), by the kernel (unix(7), SO_PEERCRED).
        let Ok(peer) = stream.peer_cred() else { continue };
        // Closed at once if no place is free: otherwise root would have to wait as well.
        let Some(place) = places.take(peer.uid()) else { continue };
        let (router, origin) = (router.clone(), Origin::Socket { uid: peer.uid(), pid: peer.pid() });
        tokio::spawn(async move {
            converse(stream, router, (origin, Certified(false)), times).await;
            drop(place);
        });
    }
}

/// The places on the Unix socket: a share for each user, and a reserve for root.
struct Places {
    all: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    shares: Shares,
}

/// An occupied place.
struct Place {
    _share: Option<Share>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTIONS - RESERVE)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            shares: Shares::new(PER_USER),
        }
    }

    /// Takes a place; `None`: the user's share or the whole is exhausted.
    fn take(&self, uid: u32) -> Option<Place> {
        let take = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        if uid == 0 {
            let _permit = take(&self.reserve).or_else(|| take(&self.all))?;
            return Some(Place { _share: None, _permit });
        }
        let share = self.shares.take(Peer::User(uid))?;
        Some(Place { _share: Some(share), _permit: take(&self.all)? })
    }
}

/// Waits a moment after a failed accept. Its cause is temporary (no free descriptor, a peer that has gone), and a busy loop
/// would make it worse.
async fn breathe(error: &io::Error) {
    tracing::warn!("a connection could not be accepted: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    (origin, certified): (Origin, Certified),
    times: Timeouts,
) {
    let spoken = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&spoken);
    let router = router.layer(Extension(origin)).layer(Extension(certified)).layer(map_request(
        move |request: Request| {
            heard.store(true, Ordering::Relaxed);
            std::future::ready(request)
        },
    ));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(times.idle)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(
            TokioIo::new(WriteTimeout::new(stream, WRITE_TIME)),
            TowerToHyperService::new(router),
        );
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
        () = silent => tracing::debug!("a connection ended without a request"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::service::http::tls::server_tls;

    #[test]
    fn no_number_of_users_shuts_out_root() {
        let places = Places::new();
        let mut held: Vec<Place> = (0..PER_USER).map(|_| places.take(1000).unwrap()).collect();
        assert!(places.take(1000).is_none(), "a user has a share");
        for uid in 1001..1100 {
            held.extend((0..PER_USER).map_while(|_| places.take(uid)));
        }
        assert_eq!(held.len(), CONNECTIONS - RESERVE);
        let root: Vec<Place> = (0..RESERVE).map_while(|_| places.take(0)).collect();
        assert_eq!(root.len(), RESERVE, "root has places of its own");
        drop(held);
        assert!(places.take(1000).is_some());
    }

    #[test]
    fn a_door_that_cannot_be_opened_does_not_shut_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = taken.local_addr().unwrap();
            let listeners = Listeners::open(address, Some(&dir.path().join("s"))).await.unwrap();
            assert!(listeners.tcp.is_err() && matches!(listeners.unix, Some(Ok(_))));
            std::fs::write(dir.path().join("file"), "").unwrap();
            let unusable = dir.path().join("file/s");
            let listeners = Listeners::open("127.0.0.1:0".parse().unwrap(), Some(&unusable)).await.unwrap();
            assert!(listeners.tcp.is_ok() && matches!(listeners.unix, Some(Err(_))));
            assert_eq!(
                Listeners::open(address, Some(&unusable)).await.err().unwrap().code(),
                "UPGRADE_ERROR_LISTEN"
            );
            assert!(Listeners::open(address, None).await.is_err());
        });
    }

    /// A client that polls once a minute must find its connection open, over TLS as over the Unix socket.
    #[test]
    fn who_has_spoken_may_be_idle_and_who_has_not_may_not() {
        let times = Timeouts { header: Duration::from_millis(400), idle: Duration::from_secs(3) };
        let dir = tempfile::tempdir().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // On a machine that stands still meanwhile a client is late: it gets five attempts.
        let keeps_its_times = |attempt: u32| {
            let (server, connector) = identified(dir.path());
            runtime.block_on(async {
                let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let (address, path) =
                    (tcp.local_addr().unwrap(), dir.path().join(format!("socket{attempt}")));
                tokio::spawn(serve_unix(UnixListener::bind(&path).unwrap(), router.clone(), times));
                tokio::spawn(serve_tcp(tcp, router.clone(), server, times));
                let tls = || async {
                    let stream = TcpStream::connect(address).await.unwrap();
                    connector.connect(name.clone(), stream).await.unwrap()
                };
                let unix = || async { UnixStream::connect(&path).await.unwrap() };
                let without_handshake = TcpStream::connect(address).await.unwrap();
                let kept = tokio::join!(
                    closed(tls().await, times.header),
                    closed(unix().await, times.header),
                    closed(without_handshake, times.header),
                    polls(tls().await, times),
                    polls(unix().await, times),
                );
                println!("{kept:?}");
                kept == (true, true, true, true, true)
            })
        };
        assert!((0..5).any(keeps_its_times));
        assert!(IDLE_TIME >= Duration::from_secs(90) && HEADER_TIME < IDLE_TIME);
    }

    /// Whether a connection without a request is closed after `limit`, and not before.
    async fn closed(mut stream: impl AsyncRead + Unpin, limit: Duration) -> bool {
        let begun = Instant::now();
        // An end without a close_notify of TLS is an end, too.
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
        begun.elapsed() > limit / 2
    }

    /// Whether a connection that has spoken serves a request after a time beyond the limit of the first, and is closed in the end.
    async fn polls(mut stream: impl AsyncRead + AsyncWrite + Unpin, times: Timeouts) -> bool {
        for _ in 0..2 {
            if stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err() {
                return false;
            }
            let mut answer = Vec::new();
            while !answer.ends_with(b"here") {
                if stream.read_buf(&mut answer).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
            tokio::time::sleep(times.header * 3).await;
        }
        closed(stream, (times.idle - times.header * 3) / 2).await
    }

    /// The two ends of TLS for `localhost`, by an authority of their own.
    fn identified(dir: &Path) -> (ServerTls, TlsConnector) {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let files = (dir.join("certificate"), dir.join("key"));
        std::fs::write(&files.0, leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // The certificates of other nodes may be requested, as in a cluster.
        std::fs::write(dir.join("members"), root.pem()).unwrap();
        let server = server_tls(Some(files), dir.to_owned(), Some(dir.join("members"))).unwrap();
        (server, TlsConnector::from(Arc::new(client)))
    }
}
