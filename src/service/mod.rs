//! The service: the verbs of the engine over REST, for clients that speak the upgrade API and for people. It holds
//! no upgrade logic; what an upgrade is and does, the engine knows.
//!
//! ```text
//!  TCP + TLS ─┐                     ┌─▶ owner ──▶ engine (commit, mark-good, roll-back, cancel)
//!  Unix ──────┴▶ listen ▶ auth ▶ api┤     └─────▶ worker: a process 'qstage prepare'
//!                                   └─▶ snapshot (what is shown; never waits for a disk)
//! ```
//!
//! | module | knows |
//! |---|---|
//! | [`upgrade`] | the states and what leads from one to another; pure |
//! | `view`, `wording` | the objects of the wire contract; messages that name its calls |
//! | `owner` | the one task that changes anything; `order`: how it is reached; `store`: what of it survives; `calm`: the waiting period |
//! | `worker` | processes that read bundles; [`disk`]: the engine |
//! | `api` | one function per endpoint; `auth`: who may call it; `listen`, `tls`, `patience`: connections |
//! | [`hooks`], [`software`] | what follows a commit: a reboot, the swap of the container |

mod api;
mod auth;
mod calm;
pub mod disk;
pub mod hooks;
mod listen;
mod order;
mod owner;
mod patience;
pub mod software;
mod store;
pub mod tls;
pub mod upgrade;
mod view;
mod wording;
pub mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::host::notify;
use disk::Place;
use hooks::{AfterCommit, ContainerRestart};
use worker::Arguments;

/// Where and to whom the service answers.
#[derive(Debug, Clone)]
pub struct Access {
    /// Address for HTTPS.
    pub listen: SocketAddr,
    /// Path of the Unix socket; `None`: none.
    pub socket: Option<PathBuf>,
    /// Certificate chain and key as PEM files; `None`: self-signed, made at the first start and kept.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// File of hashed tokens.
    pub tokens: Option<PathBuf>,
    /// Whether anybody who can connect may do anything.
    pub insecure_no_auth: bool,
}

/// What all parts of a running service share.
pub struct Service {
    /// The disk.
    pub place: Place,
    /// What the processes that read bundles are started with.
    pub arguments: Arguments,
    /// What follows a commit.
    pub after_commit: Arc<dyn AfterCommit>,
    /// What restarts the software.
    pub container: Arc<dyn ContainerRestart>,
    /// Times that the configuration sets.
    pub limits: Limits,
}

/// Times that the configuration sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a command that reboots may take until the machine is down.
    pub reboot: Duration,
    /// For so long after a start of the machine, and after a trial, no upgrade may begin.
    pub waiting: Duration,
}

/// Serves until SIGINT or SIGTERM. An upgrade that is being prepared is stopped then, and goes on where it stopped
/// when it is ordered again.
///
/// # Errors
/// [`Error::Listen`], [`Error::Config`]: it could not start.
pub fn serve(service: Service, access: &Access) -> Result<()> {
    let failed = |problem| Error::Internal { what: format!("threads of the service: {problem}") };
    // Two threads: all that is done in them is to pass on messages; disks are waited for elsewhere.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    let result = runtime.block_on(run(Arc::new(service), access));
    // A thread that waits for a dead disk must not keep the service from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run(service: Arc<Service>, access: &Access) -> Result<()> {
    let gate = auth::Gate::new(access.tokens.clone(), access.insecure_no_auth)?;
    if access.insecure_no_auth {
        tracing::warn!("--insecure-no-auth: whoever can connect to {} owns this machine", access.listen);
    }
    let tls = tls::acceptor(access.certificate.as_ref(), &service.place.state_dir)?;
    let doors = listen::Doors::open(access.listen, access.socket.as_deref()).await?;
    let _only = store::only_service(&service.place.state_dir)?;
    let mut end = signals()?;
    let (owner, handle) = owner::Owner::new(Arc::clone(&service)).await;
    let (stop, stopped) = oneshot::channel();
    let owner = tokio::spawn(owner.run(stopped));
    let router = api::router(service, handle.clone(), gate);
    let doors = tokio::spawn(doors.serve(router, tls));
    tell(notify::State::Ready);
    tokio::select! {
        _ = end.recv() => {}
        () = watch_owner(&handle) => {}
    }
    tell(notify::State::Stopping);
    tracing::info!("ending");
    // New orders are refused, then what is under way is stopped, and only then does the process end.
    doors.abort();
    let _ = stop.send(());
    let _ = owner.await;
    Ok(())
}

/// A manager that cannot be told misses something; the service goes on.
fn tell(state: notify::State<'_>) {
    let _ = notify::notify(state).inspect_err(|problem| tracing::warn!("sd_notify: {problem}"));
}

/// Tells the manager for ever that the service is alive, as often as it wants to hear it, and only when the owner
/// answers: a service that answers requests and takes no order any more is not alive.
async fn watch_owner(handle: &order::Handle) {
    let Some(beat) = notify::watchdog() else { return std::future::pending().await };
    loop {
        // Late is not lost: the owner may be in the middle of a flush.
        if handle.order(order::Order::Alive).await.is_ok() {
            tell(notify::State::Alive);
        }
        tokio::time::sleep(beat).await;
    }
}

/// SIGINT and SIGTERM. Asked for before anything is begun, so that neither is lost.
fn signals() -> Result<tokio::sync::mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |problem| Error::Internal { what: format!("signal handlers: {problem}") };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        let _ = sender.send(()).await;
    });
    Ok(receiver)
}
