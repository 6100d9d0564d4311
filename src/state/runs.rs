//! The running slots of platform and software, and the evidence for them. One function determines them
//! (`engine/runs.rs`); engine, slots, plan, status, metrics, and the version that the service shows, use its
//! result.

use serde::Serialize;

use crate::units::{Group, Slot};

/// Evidence for the running slot of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    /// Stated by the caller: `--booted`, or the service that restarted the software itself.
    Caller,
    /// The kernel: its command line, its mounts and the devices below them.
    Kernel,
    /// The firmware: the EFI variables that name what it started.
    Firmware,
    /// A software slot on trial is in use, and the other one is not.
    Use,
    /// Software on trial beside the platform that it came with, which is running on trial: one boot started both.
    Platform,
    /// Software that is good and selected beside the running platform.
    Selected,
    /// Software that is good, while the other slot is selected on trial and there is no evidence that it was
    /// started.
    Before,
    /// No machine runs from a disk image: this is the slot that one would run.
    Image,
}

impl KnownBy {
    /// Wording in a sentence, after the slot.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Caller => "as the caller says",
            Self::Kernel => "by the kernel",
            Self::Firmware => "by the firmware",
            Self::Use => "by its use",
            Self::Platform => "started with its platform",
            Self::Selected => "good and selected",
            Self::Before => "good; the other one is not known to have been started",
            Self::Image => "if a machine booted this image",
        }
    }
}

/// The running slot of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunningSlot {
    /// This slot, with the evidence.
    Known(Slot, KnownBy),
    /// Unknown, with the reason.
    Unknown(String),
}

impl RunningSlot {
    /// The slot; `None` if unknown.
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Known(slot, _) => Some(*slot),
            Self::Unknown(_) => None,
        }
    }
}

/// The running slots of both groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// The platform.
    pub platform: RunningSlot,
    /// The software.
    pub software: RunningSlot,
}

impl Runs {
    /// The running slot of a group.
    pub const fn of(&self, group: Group) -> &RunningSlot {
        match group {
            Group::Platform => &self.platform,
            Group::Software => &self.software,
        }
    }

    /// Whether this is a disk image: no machine runs from it, so these are the slots that one would run.
    pub const fn is_image(&self) -> bool {
        matches!(self.platform, RunningSlot::Known(_, KnownBy::Image))
    }

    /// Whether a machine is known to run from that slot now.
    pub fn is_running(&self, group: Group, slot: Slot) -> bool {
        !self.is_image() && self.of(group).slot() == Some(slot)
    }
}
