//! Remedies: of refusals that come from the state of the slots, and for causes that the system reports.

use std::fmt;
use std::io::{self, ErrorKind};

use crate::units::Slot;

/// The remedy of a refusal that comes from the state of the slots. An alternative is named only where it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// No trial and no switch is pending: a bundle may be prepared.
    Prepare,
    /// As before; a release that failed its trial may be tried again too.
    PrepareOrRetry,
    /// Another bundle than the named one is prepared.
    CommitOther,
    /// The release on trial waits for its reboot.
    Start {
        /// Whether the commit can be undone before.
        cancel: bool,
    },
    /// The software on trial was not started.
    StartSoftware {
        /// Whether the other release can be selected again instead.
        roll_back: bool,
    },
    /// A release runs on trial.
    EndTrial {
        /// Whether the other release can be selected again.
        roll_back: bool,
    },
    /// Another slot than the running one, not on trial, is selected to boot next.
    Reboot {
        /// The selected slot.
        slot: Slot,
        /// The running slot, if it can be selected again; else `None`.
        stay: Option<Slot>,
    },
}

/// The end of a message, after a semicolon.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "run 'qstage prepare' first",
            Self::PrepareOrRetry => "install another release, or try it again with --retry",
            Self::CommitOther => "commit that one, or discard it with 'qstage cancel'",
            Self::Start { cancel: true } => "reboot to start it, or undo the commit with 'qstage cancel'",
            Self::Start { cancel: false } => "reboot to start it",
            Self::StartSoftware { roll_back: true } => {
                "restart the software to start it, or go back by 'qstage roll-back'"
            }
            Self::StartSoftware { roll_back: false } => "restart the software to start it",
            Self::EndTrial { roll_back: true } => "end the trial by 'qstage mark-good' or 'qstage roll-back'",
            Self::EndTrial { roll_back: false } => "end the trial by 'qstage mark-good'",
            Self::Reboot { slot, stay: None } => return write!(f, "reboot into slot {slot}"),
            Self::Reboot { slot, stay: Some(running) } => {
                return write!(f, "reboot into slot {slot}, or stay in slot {running} with 'qstage cancel'");
            }
        })
    }
}

/// A cause whose text names its remedy.
pub(super) trait WithRemedy {
    /// The text, followed by the remedy if the cause has one.
    fn with_remedy(&self) -> String;
}

/// The cause of a failed write of a file.
impl WithRemedy for io::Error {
    fn with_remedy(&self) -> String {
        let remedy = match self.kind() {
            ErrorKind::NotFound => "make its directory first",
            ErrorKind::NotADirectory => "name a place below a directory, not below a file",
            ErrorKind::IsADirectory => "name a file in it",
            ErrorKind::PermissionDenied => "run it as a user who may write there, such as root",
            ErrorKind::ReadOnlyFilesystem => "name a place on a file system that is not read-only",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space",
            _ => return self.to_string(),
        };
        format!("{self}; {remedy}")
    }
}

/// The remedy of an upgrade that is under way: after its commit it is no longer cancelled.
pub(super) fn of_busy(doing: &str) -> &'static str {
    match doing {
        "preparing" => "wait for it to end or cancel it",
        _ => "wait for it to end",
    }
}
