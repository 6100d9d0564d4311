//! What runs of platform and software, and by what that is known. One function finds it (`engine/runs.rs`); engine, slots,
//! plan, status, metrics, and the version that the service shows, have it from there.

use serde::Serialize;

use crate::units::{Group, Slot};

/// By what it is known which slot of a group runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    /// The caller said it: `--booted`, or the service that restarted the software itself.
    Caller,
    /// The kernel: its command line, its mounts and what lies below them.
    Kernel,
    /// The firmware, by the EFI variables that say what it started.
    Firmware,
    /// A software slot on trial is in use, and the other one is not.
    Use,
    /// Software on trial beside the platform that it came with, which runs on trial: one boot started both.
    Platform,
    /// Software that is good and selected beside the platform that runs.
    Selected,
    /// Software that is good, while the other slot is selected on trial and nothing shows that it was started.
    Before,
    /// No machine runs from a disk image: this is what one would run.
    Image,
}

impl KnownBy {
    /// As it stands behind a slot in a sentence.
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

/// What runs of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// That slot.
    Known(Slot, KnownBy),
    /// Not known, and why.
    Unknown(String),
}

impl Running {
    /// The slot, where it is known.
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Known(slot, _) => Some(*slot),
            Self::Unknown(_) => None,
        }
    }
}

/// What runs of both groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// The platform.
    pub platform: Running,
    /// The software.
    pub software: Running,
}

impl Runs {
    /// What runs of a group.
    pub const fn of(&self, group: Group) -> &Running {
        match group {
            Group::Platform => &self.platform,
            Group::Software => &self.software,
        }
    }

    /// Whether this is a disk image: no machine runs from it, whatever would run.
    pub const fn is_image(&self) -> bool {
        matches!(self.platform, Running::Known(_, KnownBy::Image))
    }

    /// Whether a machine runs from that slot now, as far as is known.
    pub fn is_running(&self, group: Group, slot: Slot) -> bool {
        !self.is_image() && self.of(group).slot() == Some(slot)
    }
}
