//! A process that reads a bundle, from its start to its end.

use std::io;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::runtime::Handle;

use crate::host::load;

/// Number of processes that have not ended.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Waits until all processes have ended, for `limit` at most. They have to be dropped, or asked to end, before.
pub(in crate::service) async fn all_ended(limit: Duration) {
    let ended = async {
        while RUNNING.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(limit, ended).await;
}

/// A process. The drop kills it, and a task waits for its end: at the lowest priority it takes long to die on a busy machine, and
/// must not be left when the service has ended.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    child: Option<Child>,
    running: Option<Running>,
}

/// Counts a process until the drop.
#[derive(Debug)]
struct Running;

impl Running {
    fn new() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerProcess {
    pub(super) fn new(child: Child) -> Self {
        Self { child: Some(child), running: Some(Running::new()) }
    }

    /// Its number; `None`: it was reaped, and the number may be that of another one.
    fn pid(&self) -> Option<i32> {
        self.child.as_ref()?.id().and_then(|id| i32::try_from(id).ok())
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => Err(io::Error::other("the process is gone")),
        }
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it.
    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It has to run in order to end.
            load::raise(pid);
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if self.pid().is_none() {
            return;
        }
        self.kill();
        // Without a runtime there is no wait.
        if let (Some(mut child), Ok(runtime)) = (self.child.take(), Handle::try_current()) {
            let running = self.running.take();
            runtime.spawn(async move {
                let _ = child.wait().await;
                drop(running);
            });
        }
    }
}
