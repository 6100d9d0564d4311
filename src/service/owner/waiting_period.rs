//! The waiting period: for so long after the start of the machine, and after a trial has ended, no further upgrade may
//! begin, so that what runs proves itself while the slot before it is still there to go back to.
//!
//! It is counted in uptime and not by the date: appliances boot without a clock.

use serde::{Deserialize, Serialize};

/// Since when nothing has been on trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingPeriod {
    /// Whether something was on trial at the last look.
    pub on_trial: bool,
    /// Uptime in seconds at which the last trial of this boot ended; 0: none has.
    pub since: u64,
}

impl WaitingPeriod {
    /// After another look.
    #[must_use]
    pub(in crate::service) const fn look(self, same_boot: bool, on_trial: bool, uptime: u64) -> Self {
        let since = match (self.on_trial, on_trial) {
            (true, false) => uptime,
            _ if same_boot => self.since,
            _ => 0,
        };
        Self { on_trial, since }
    }

    /// Seconds of the waiting period that are left.
    pub(in crate::service) const fn left(self, period: u64, uptime: u64) -> u64 {
        self.since.saturating_add(period).saturating_sub(uptime)
    }
}

/// Seconds since the start of the machine; where the kernel does not tell it is taken for old.
pub(in crate::service) fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_the_start_and_from_the_end_of_a_trial() {
        let waiting = WaitingPeriod::default();
        assert_eq!((waiting.left(60, 10), waiting.left(60, 60), waiting.left(0, 0)), (50, 0, 0));
        let waiting =
            waiting.look(true, true, 100).look(true, true, 200).look(true, false, 300).look(true, false, 310);
        assert_eq!((waiting.left(60, 310), waiting.left(60, 400)), (50, 0));
        // A reboot: from its start, but for a trial that has ended since.
        assert_eq!(waiting.look(false, false, 5).left(60, 5), 55);
        let trial = WaitingPeriod { on_trial: true, since: 300 };
        assert_eq!(trial.look(false, true, 5).look(true, false, 20).left(60, 20), 60);
        assert_eq!(trial.look(false, false, 20).left(60, 25), 55);
        assert_eq!(WaitingPeriod { on_trial: false, since: 7 }.left(u64::MAX, u64::MAX), 0);
        assert!(uptime() > 0);
    }
}
