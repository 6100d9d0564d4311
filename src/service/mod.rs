//! The service: the verbs of the engine over REST, for clients of the upgrade API and for operators. It holds no upgrade
//! logic; that is in the engine.
//!
//! ```text
//!  TCP + TLS ─┐                     ┌─▶ owner ──▶ engine (commit, mark-good, roll-back, cancel)
//!  Unix ──────┴▶ listen ▶ auth ▶ api┤     └─────▶ worker: a process 'qstage prepare'
//!                                   └─▶ snapshot (what is shown; never waits for a disk)
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`http`] | connections: Unix socket, TCP and TLS, who may call, limits per caller |
//! | `api` | one function per endpoint |
//! | `view`, `wording` | the objects of the wire contract; messages that name calls of the API |
//! | [`owner`] | the upgrade itself: its states, the one task that changes anything, the processes that read bundles, what follows a commit |
//! | [`fleet`] | client of a FleetLock server: a lock around the reboot of this machine |
//! | [`cluster`] | the work of this node as a member of a cluster |

mod api;
pub mod cluster;
pub mod fleet;
pub mod http;
pub mod owner;
mod view;
mod wording;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::host::notify;
use crate::source::allowed::Allowed;
use http::tokens::TokenFile;
use owner::disk::Place;
use owner::hooks::{AfterCommit, ContainerRestart};
use owner::worker::Arguments;

/// Where the service listens, and which callers it accepts.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Address for HTTPS.
    pub listen: SocketAddr,
    /// Path of the Unix socket; `None`: no socket.
    pub socket: Option<PathBuf>,
    /// Certificate chain and key as PEM files; `None`: self-signed, generated at the first start and stored.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// File of hashed tokens; `None`: there are no tokens.
    pub tokens: TokenFile,
    /// Names accepted in the header `Host`, besides the machine's own.
    pub hosts: Vec<String>,
    /// Whether every caller that can connect has all privileges.
    pub insecure_no_auth: bool,
}

/// The Unix socket of a service that root runs, unless another one is configured.
const SOCKET: &str = "/run/qstage/service.sock";
/// In place of a path: there is no socket.
const NO_SOCKET: &str = "none";

impl Listener {
    /// The socket that a service listens at. Users other than root have no directory for the default one.
    pub fn socket(configured: Option<&Path>) -> Option<PathBuf> {
        match configured {
            Some(path) => Some(path.to_owned()).filter(|path| path.as_os_str() != NO_SOCKET),
            None => nix::unistd::geteuid().is_root().then(|| SOCKET.into()),
        }
    }

    /// The socket that a client connects to; `None`: it has to use HTTPS.
    pub fn socket_of_client(configured: Option<&Path>) -> Option<PathBuf> {
        match configured {
            Some(_) => Self::socket(configured),
            None => Some(PathBuf::from(SOCKET)).filter(|path| path.exists()),
        }
    }
}

/// Number of threads for blocking work that are started before the first request.
const SPARE: usize = 4;

/// The state that all parts of a running service share.
pub struct Service {
    /// The disk.
    pub place: Place,
    /// Arguments of the processes that read bundles.
    pub arguments: Arguments,
    /// The action after a commit.
    pub after_commit: Arc<dyn AfterCommit>,
    /// The way to restart the software.
    pub container: Arc<dyn ContainerRestart>,
    /// Time limits of the configuration.
    pub limits: ServiceLimits,
    /// The bundles that callers may name.
    pub allowed: Allowed,
    /// The same object as `after_commit` if a reboot needs a FleetLock; `None`: it needs none.
    pub fleet: Option<Arc<fleet::LockedReboot>>,
    /// The cluster that this node takes part in; `None`: a single node.
    pub cluster: Option<cluster::Membership>,
}

/// Time limits of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Longest time from the start of the reboot command until the machine is down.
    pub reboot: Duration,
    /// Time after a boot of the machine, and after a trial, in which no upgrade may begin.
    pub waiting: Duration,
}

/// Serves until SIGHUP, SIGINT, SIGQUIT or SIGTERM. A prepare that runs is stopped then; when it is ordered again, it
/// continues where it stopped.
///
/// # Errors
/// [`Error::Listen`], [`Error::Config`]: the service could not start.
pub fn serve(service: Service, access: &Listener) -> Result<()> {
    let failed = |source| Error::NoThread { what: NAME.to_owned(), source };
    check_threads(WORKERS + 1)?;
    // Two threads: they only pass on messages; blocking work has threads of its own.
    // Those never end, and some are started before the first request: if the system refuses further threads, blocking work
    // queues for these. Without any, tokio would panic.
    let build = || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_keep_alive(Duration::from_secs(u64::from(u32::MAX)))
            .enable_all()
            .build()?;
        for _ in 0..SPARE {
            // Long enough that no thread takes two of these tasks.
            runtime.spawn_blocking(|| std::thread::sleep(Duration::from_millis(50)));
        }
        Ok(runtime)
    };
    // tokio has no other way to report that.
    let built = std::panic::catch_unwind(build);
    let refused = |_| Err(io::Error::other("the system has none to give"));
    let runtime = built.unwrap_or_else(refused).map_err(failed)?;
    let ending = runtime.block_on(run(Arc::new(service), access));
    // A thread may be writing the history; but one that waits for a dead disk must not keep the service from ending.
    let left = ending.as_ref().map_or(Duration::ZERO, |begun| ENDING.saturating_sub(begun.elapsed()));
    runtime.shutdown_timeout(left.max(LAST_WRITES));
    ending.map(drop)
}

/// Longest orderly end, from the signal on, unless a switch is under way: together with [`LAST_WRITES`] a second.
const ENDING: Duration = Duration::from_millis(900);
/// Time that threads get at the end in any case, to write what they have begun.
const LAST_WRITES: Duration = Duration::from_millis(100);

/// What an error calls the threads of this module.
const NAME: &str = "the service";
/// Threads that pass on messages.
const WORKERS: usize = 2;

/// Checks that the system gives this process `count` more threads, by starting and ending them. tokio panics if it gets none,
/// and that panic then waits for ever for the threads that had been started.
///
/// # Errors
/// [`Error::NoThread`].
fn check_threads(count: usize) -> Result<()> {
    let running = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = running();
    let mut threads = Vec::new();
    for _ in 0..count {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        // If one fails, all senders are dropped, which ends the others.
        threads.push((hold, crate::workers::spawn(NAME, move || held.recv())?));
    }
    for (hold, thread) in threads {
        drop(hold);
        let _ = thread.join();
    }
    // The kernel counts a thread for a moment after it was joined.
    let begun = Instant::now();
    while running() > before && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Serves; returns when the end was requested, once all that it started has ended.
async fn run(service: Arc<Service>, access: &Listener) -> Result<Instant> {
    let gate = http::auth::Authentication::new(access.tokens.clone(), access.insecure_no_auth);
    if access.insecure_no_auth {
        tracing::warn!(
            "--insecure-no-auth: every caller that can connect to {} controls this machine",
            access.listen
        );
    }
    raise_files();
    let certificate = {
        let (service, given) = (Arc::clone(&service), access.certificate.clone());
        move || {
            let members = service.cluster.as_ref().and_then(cluster::Membership::authorities);
            let state_dir = service.place.state_dir.clone();
            http::tls::server_tls(given.clone(), state_dir, members.map(std::path::Path::to_owned))
        }
    };
    let tls = certificate();
    if let Err(error) = &tls {
        let what = crate::error::sentence(error);
        tracing::error!(code = error.code(), "no HTTPS: {what}; it is tried again");
    }
    let tls = match tls {
        Err(_) if access.socket.is_some() => None,
        tls => Some(tls?),
    };
    let _only = owner::store::only_service(&service.place.state_dir)?;
    // Before the sockets: a signal must find its handler as soon as a client can connect.
    let mut end = signals()?;
    let listeners = http::listen::Listeners::open(access.listen, access.socket.as_deref()).await?;
    let (owner, handle) = owner::Owner::new(Arc::clone(&service)).await;
    if let Some(locked) = &service.fleet {
        fleet::LockRelease::start(locked, &handle, service.limits.reboot)?;
    }
    let (stop, stopped) = oneshot::channel();
    let mut owner = tokio::spawn(owner.run(stopped));
    let cluster = match &service.cluster {
        Some(membership) => Some(cluster::Cluster::start(&service, &handle, membership)?),
        None => None,
    };
    let router = api::router(service, handle.clone(), gate, http::hosts::Hosts::new(access), cluster);
    let listeners = tokio::spawn(listeners.serve(router, tls, certificate));
    notify_manager(notify::State::Ready);
    tokio::select! {
        _ = end.recv() => {}
        () = watch_owner(&handle) => {}
        // The owner ends on request only. A service without it would show an old state and do nothing; the service manager
        // starts it again.
        ended = &mut owner => return Err(lost(ended)),
    }
    let begun = Instant::now();
    notify_manager(notify::State::Stopping);
    tracing::info!("ending");
    // First new orders are refused, then the running work is stopped; only after that the process ends.
    listeners.abort();
    let _ = stop.send(());
    let _ = owner.await;
    owner::process::all_ended(ENDING.saturating_sub(begun.elapsed())).await;
    Ok(begun)
}

/// Raises the limit of open files to the permitted maximum: each connection takes one, and the usual limit of 1024 is lower
/// than the number of connections that are accepted.
fn raise_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES), hard));
    let _ = raised.inspect_err(|problem| tracing::warn!("the limit of open files stays: {problem}"));
}

/// Maximum of open files: connections of both listeners, their streams, and a reserve.
const OPEN_FILES: u64 = 65536;

/// Notifies the service manager. A failure is ignored: the service continues.
fn notify_manager(state: notify::State<'_>) {
    let _ = notify::notify(state).inspect_err(|problem| tracing::warn!("sd_notify: {problem}"));
}

/// Sends keep-alives at the rate that the manager requires, but only while the owner responds: a service that answers
/// requests and takes no order any more is not alive.
async fn watch_owner(handle: &owner::order::Handle) {
    let Some(beat) = notify::watchdog() else { return std::future::pending().await };
    loop {
        // A late response is no failure: the owner may be in the middle of a flush.
        if handle.order(owner::order::Order::Alive).await.is_ok() {
            notify_manager(notify::State::Alive);
        }
        tokio::time::sleep(beat).await;
    }
}

/// The error for an owner that has ended.
fn lost(ended: std::result::Result<(), tokio::task::JoinError>) -> Error {
    let reason = match ended.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(()) => "it came to its end".to_owned(),
        Err(Ok(panic)) => match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "a panic".to_owned(),
        },
        Err(Err(error)) => error.to_string(),
    };
    Error::Internal { what: format!("the owner of the upgrade is gone: {reason}") }
}

/// SIGHUP, SIGINT, SIGQUIT and SIGTERM. The handlers are installed before the sockets, so that no signal ends a service that answers.
fn signals() -> Result<tokio::sync::mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |problem| Error::Internal { what: format!("signal handlers: {problem}") };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut quit = signal(SignalKind::quit()).map_err(failed)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
        let _ = sender.send(()).await;
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "it is what is tested")]
    fn the_reason_of_a_dead_owner_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (task, word) in [(0, "boom 7"), (1, "constant"), (2, "end")] {
            let ended = runtime.block_on(async move {
                tokio::spawn(async move {
                    match task {
                        0 => panic!("boom {}", 7),
                        1 => panic!("constant"),
                        _ => {}
                    }
                })
                .await
            });
            assert!(lost(ended).to_string().contains(word));
        }
    }
}
