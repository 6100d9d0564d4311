//! What runs containers, as the logic of swapping sees it.

use std::any::Any;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::SoftwareImage;
use crate::error::Result;
use crate::units::{Blake3, Slot};

/// A container whose program runs, or is about to.
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
    /// Whether it runs exactly this image.
    pub fn runs(&self, image: &SoftwareImage) -> bool {
        (self.slot, self.blake3) == (image.slot, image.blake3)
    }
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// When it was asked to.
    Gently,
    /// Killed: it did not end within the stop timeout.
    Killed,
}

/// What runs containers. Two homes: systemd-nspawn and a test double.
///
/// Everything that takes long belongs into [`arrange`](Self::arrange). All methods are called by the holder of
/// [`lock`](Self::lock), but `running`, which anybody may call.
pub trait Runtime: Send + Sync {
    /// Keeps all others who would start or stop containers out, in this process and in others, until it is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy).
    fn lock(&self) -> Result<Box<dyn Any>>;

    /// The containers that run: none or one, except after a crash in the middle of a swap.
    ///
    /// # Errors
    /// Class Io, where that cannot be found out.
    fn running(&self) -> Result<Vec<Running>>;

    /// Does all that can be done while another container runs: mounts the image, reads ahead, starts the container up
    /// to the gate in front of its program. It waits there until it is released or discarded; when this process dies it
    /// ends by itself.
    ///
    /// # Errors
    /// [`Error::ContainerStart`](crate::Error::ContainerStart); nothing is left behind then.
    fn arrange(&self, image: &SoftwareImage) -> Result<Running>;

    /// Opens the gate: the program starts. Returns when it has been executed, not when it is ready.
    ///
    /// # Errors
    /// [`Error::ContainerStart`](crate::Error::ContainerStart), where it cannot be executed; the container is gone then.
    fn release(&self, arranged: &Running) -> Result<()>;

    /// Ends a container, arranged or running, whatever it takes: the stop signal, after the stop timeout SIGKILL. What
    /// it had mounted is unmounted: its slot can be written again. One that has ended already is as good.
    ///
    /// # Errors
    /// [`Error::ContainerStop`](crate::Error::ContainerStop).
    fn stop(&self, running: &Running) -> Result<Stopped>;

    /// Asks once whether it is healthy; the error says why not.
    fn probe(&self, running: &Running) -> std::result::Result<(), String>;

    /// What of the host is open to this container, one sentence each; with `None`, to one that is started next.
    fn openings(&self, running: Option<&Running>) -> Vec<String>;

    /// Time since some fixed point.
    fn clock(&self) -> Duration;

    /// Waits so long.
    fn pause(&self, time: Duration);
}
