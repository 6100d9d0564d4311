//! The runtime of containers, as swap and start see it.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::SoftwareImage;
use crate::error::Result;
use crate::units::{Blake3, Slot};

/// A container that runs, or waits at its gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its name, different for every start.
    pub id: String,
    /// The software slot that it was started from.
    pub slot: Slot,
    /// Version of the image.
    pub version: String,
    /// BLAKE3 of the image at the time of the start.
    pub blake3: Blake3,
}

impl Running {
    /// Whether it was started from exactly this image.
    pub fn runs(&self, image: &SoftwareImage) -> bool {
        (self.slot, self.blake3) == (image.slot, image.blake3)
    }
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// By the stop signal.
    Gracefully,
    /// Killed: it did not end within the stop timeout.
    Killed,
}

/// How the program of a container ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this exit status.
    Status(i32),
    /// By a signal, by its name without SIG.
    Signal(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // systemd-nspawn(1): its own status if that of the program is not known.
            Self::Status(255) => f.write_str("exit status 255, or by a signal"),
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// A container runtime. Two implementations: systemd-nspawn and a test double.
///
/// Everything that takes long belongs into [`arrange`](Self::arrange). The caller of a method holds [`lock`](Self::lock),
/// except for `running`.
pub trait Runtime: Send + Sync {
    /// Excludes all other starts and stops of containers, in this process and in others, until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy).
    fn lock(&self) -> Result<Box<dyn Any>>;

    /// The containers that run: none or one, except after a crash in the middle of a swap.
    ///
    /// # Errors
    /// Class Io, if that cannot be found out.
    fn running(&self) -> Result<Vec<Running>>;

    /// Does everything that can be done while another container runs: mounts the image, reads ahead, starts the container up
    /// to the gate before its program. There it waits until it is released or stopped; if this process dies, it ends.
    ///
    /// # Errors
    /// [`Error::ContainerStart`](crate::Error::ContainerStart); then nothing is left over.
    fn arrange(&self, image: &SoftwareImage) -> Result<Running>;

    /// Opens the gate: the program starts. Returns when it has been executed, not when it is ready.
    ///
    /// # Errors
    /// [`Error::ContainerStart`](crate::Error::ContainerStart), if it cannot be executed; the container is gone then.
    fn release(&self, arranged: &Running) -> Result<()>;

    /// Ends a container, arranged or running: by the stop signal, after the stop timeout by SIGKILL. Its mounts are removed,
    /// so its slot can be written again. Succeeds if the container has already ended.
    ///
    /// # Errors
    /// [`Error::ContainerStop`](crate::Error::ContainerStop).
    fn stop(&self, running: &Running) -> Result<Stopped>;

    /// Probes once; the error is the reason why the container is not healthy.
    fn probe(&self, running: &Running) -> std::result::Result<(), String>;

    /// How the program of a container has just ended; `None`: that is not known.
    fn exit(&self, ended: &Running) -> Option<Exit>;

    /// Openings of the isolation of this container, one sentence each; `None`: of the next one that is started.
    fn openings(&self, running: Option<&Running>) -> Vec<String>;

    /// Time since an arbitrary fixed point.
    fn clock(&self) -> Duration;

    /// Waits for this time.
    fn pause(&self, time: Duration);
}
