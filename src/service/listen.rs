//! Connections: who gets one, and for how long.
//!
//! Each door has its own limit, so that the network cannot shut out root on the Unix socket. At the limit new
//! connections wait in the kernel; those that say nothing are closed after [`HEADER_TIME`], those that do not read their
//! answer after [`WRITE_TIME`].

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
/// How long a client may take for TLS, and for each header; an idle connection ends then as well.
pub(super) const HEADER_TIME: Duration = Duration::from_secs(20);
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
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                breathe(&error).await;
                continue;
            }
        };
        let (router, tls) = (router.clone(), tls.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_TIME, tls.accept(stream)).await {
                converse(stream, router, Origin::Network(from)).await;
            }
            drop(place);
        });
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
            converse(stream, router, origin).await;
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
) {
    let service = TowerToHyperService::new(router.layer(Extension(origin)));
    let result = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIME)), service)
        .await;
    if let Err(error) = result {
        tracing::debug!("a connection ended: {error}");
    }
}
