//! The waiting period: the time after a boot, and after the end of a trial, in which no further upgrade may begin. So a new
//! release proves itself while the previous slot can still be rolled back to.
//!
//! It is measured in uptime and not by the date: appliances boot without a clock.

use serde::{Deserialize, Serialize};

/// The time without a trial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingPeriod {
    /// Whether a slot was on trial at the last look.
    pub on_trial: bool,
    /// Uptime in seconds at which the last trial of this boot ended; 0: no trial has ended.
    pub since: u64,
    /// Uptime in seconds at which the present trial was first seen in this boot; 0: there is none.
    #[serde(default)]
    pub trial_since: u64,
}

impl WaitingPeriod {
    /// The state after another look.
    #[must_use]
    pub(in crate::service) const fn look(self, same_boot: bool, on_trial: bool, uptime: u64) -> Self {
        let since = match (self.on_trial, on_trial) {
            (true, false) => uptime,
            _ if same_boot => self.since,
            _ => 0,
        };
        let trial_since = match (on_trial, same_boot, self.trial_since) {
            (false, ..) => 0,
            (true, true, known) if known > 0 => known,
            (true, ..) => uptime,
        };
        Self { on_trial, since, trial_since }
    }

    /// Seconds since the present trial was first seen in this boot; `None`: there is no trial.
    pub(in crate::service) const fn trial_age(self, uptime: u64) -> Option<u64> {
        match self.trial_since {
            0 => None,
            since => Some(uptime.saturating_sub(since)),
        }
    }

    /// Seconds of the waiting period that are left.
    pub(in crate::service) const fn left(self, period: u64, uptime: u64) -> u64 {
        self.since.saturating_add(period).saturating_sub(uptime)
    }
}

/// Seconds since the boot; if the kernel does not report them, the machine counts as up for long.
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
        // After a reboot: from the boot, unless a trial has ended since.
        assert_eq!(waiting.look(false, false, 5).left(60, 5), 55);
        let trial = WaitingPeriod { on_trial: true, since: 300, trial_since: 200 };
        assert_eq!(trial.look(false, true, 5).look(true, false, 20).left(60, 20), 60);
        assert_eq!(trial.look(false, false, 20).left(60, 25), 55);
        assert_eq!(WaitingPeriod { on_trial: false, since: 7, trial_since: 0 }.left(u64::MAX, u64::MAX), 0);
        assert!(uptime() > 0);
    }

    #[test]
    fn the_age_of_a_trial_counts_from_its_first_look_in_this_boot() {
        let trial = WaitingPeriod::default().look(true, true, 100).look(true, true, 160);
        assert_eq!((trial.trial_age(160), trial.look(true, false, 170).trial_age(170)), (Some(60), None));
        // After the reboot into it.
        assert_eq!(trial.look(false, true, 20).look(true, true, 25).trial_age(25), Some(5));
    }
}
