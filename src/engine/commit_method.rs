//! What a commit is: one decision for the command line and the service.

use super::Engine;
use super::transition::{self, Change, Effect};
use crate::error::Result;
use crate::state::UpgradeType;

/// How a new platform starts on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialStart {
    /// At the next reboot, by the boot loader.
    Reboot,
    /// Now, by kexec.
    Kexec,
}

/// What a commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMethod {
    /// Selects what is prepared. A reboot makes it run, or a restart of the software.
    Plain,
    /// Leaves the flags as they are, and starts the new platform by kexec.
    Kexec,
    /// Selects the new software, swaps its container at once, and back if it is not healthy.
    Swap,
}

impl CommitMethod {
    /// The method for what is prepared; `None`: nothing that could be committed, and the method reports why. `swaps`: a
    /// container runs the software, and is to be restarted.
    ///
    /// | start | swaps | prepared | method |
    /// |---|---|---|---|
    /// | kexec | any | any | kexec |
    /// | reboot | yes | software alone, or nothing | swap |
    /// | reboot | yes | platform | plain |
    /// | reboot | no | any | plain |
    pub const fn new(start: TrialStart, swaps: bool, prepared: Option<UpgradeType>) -> Self {
        match (start, swaps, prepared) {
            (TrialStart::Kexec, ..) => Self::Kexec,
            (TrialStart::Reboot, true, Some(UpgradeType::SoftwareOnly) | None) => Self::Swap,
            (TrialStart::Reboot, ..) => Self::Plain,
        }
    }

    /// Its change of the disk; of a swap the one that comes first.
    pub const fn change(self) -> Change<'static> {
        match self {
            Self::Plain | Self::Swap => Change::Commit,
            Self::Kexec => Change::CommitByKexec,
        }
    }
}

impl Engine<'_> {
    /// The type of what is prepared, checked as the commit itself checks it.
    ///
    /// # Errors
    /// [`Error::NotPrepared`](crate::Error::NotPrepared); class Disk and Io.
    pub fn prepared_type(&self) -> Result<UpgradeType> {
        let reboots = transition::commit(&self.view()?)?.effect == Effect::Reboot;
        Ok(if reboots { UpgradeType::SoftwareAndPlatform } else { UpgradeType::SoftwareOnly })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use UpgradeType::{SoftwareAndPlatform, SoftwareOnly};

    #[test]
    fn each_line_of_the_table() {
        for prepared in [None, Some(SoftwareOnly), Some(SoftwareAndPlatform)] {
            for swaps in [false, true] {
                let method = |start| CommitMethod::new(start, swaps, prepared);
                assert_eq!(method(TrialStart::Kexec), CommitMethod::Kexec);
                let swap = swaps && prepared != Some(SoftwareAndPlatform);
                let expected = if swap { CommitMethod::Swap } else { CommitMethod::Plain };
                assert_eq!(method(TrialStart::Reboot), expected, "{swaps} {prepared:?}");
            }
        }
    }
}
