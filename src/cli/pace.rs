//! Intervals and figures of progress. Pure: time is an argument, as the duration since the start.

use std::time::Duration;

use serde::Serialize;

use crate::progress::Phase;

/// Lets through at most one event per interval.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    last: Option<Duration>,
}

impl Pace {
    /// A pace whose first event is due at once.
    pub(super) const fn new(every: Duration) -> Self {
        Self { every, last: None }
    }

    /// Whether an event may be shown at `now`; if so, the next one is due an interval later.
    pub(super) fn due(&mut self, now: Duration) -> bool {
        // A thread that read the clock earlier may come later; saturating makes its event not due.
        let due = self.last.is_none_or(|last| now.saturating_sub(last) >= self.every);
        if due {
            self.last = Some(now);
        }
        due
    }
}

/// Progress of a phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter {
    phase: Phase,
    total: u64,
    done: u64,
    reused: u64,
    began: Duration,
}

/// Figures at one instant; the `progress` event of the JSON lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Figures {
    /// The phase.
    pub(super) phase: Phase,
    /// Bytes done, never more than `total`.
    pub(super) done: u64,
    /// Bytes to do.
    pub(super) total: u64,
    /// Mean rate since the phase began, in bytes per second, without `reused`: what a maximum rate limits.
    pub(super) rate: u64,
    /// Bytes of `done` that were in place already.
    #[serde(skip_serializing_if = "is_none")]
    pub(super) reused: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

impl Meter {
    /// A phase of `total` bytes that begins at `now`.
    pub(super) const fn begin(phase: Phase, total: u64, now: Duration) -> Self {
        Self { phase, total, done: 0, reused: 0, began: now }
    }

    /// Counts `bytes` more.
    pub(super) const fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
    }

    /// Counts `bytes` more that were in place already.
    pub(super) const fn reuse(&mut self, bytes: u64) {
        self.advance(bytes);
        self.reused = self.reused.saturating_add(bytes);
    }

    /// The figures at `now`.
    pub(super) fn figures(&self, now: Duration) -> Figures {
        let done = self.done.min(self.total);
        let reused = self.reused.min(done);
        let seconds = now.saturating_sub(self.began).as_secs_f64();
        let rate = if seconds > 0.0 { ((done - reused) as f64 / seconds) as u64 } else { 0 };
        Figures { phase: self.phase, done, total: self.total, rate, reused }
    }
}

impl Figures {
    /// Whole percent done; an empty phase is done.
    pub(super) fn percent(&self) -> u64 {
        (u128::from(self.done) * 100)
            .checked_div(u128::from(self.total))
            .map_or(100, |percent| percent as u64)
    }

    /// Seconds left at this rate, rounded up, or `None` while the rate is unknown.
    pub(super) fn seconds_left(&self) -> Option<u64> {
        (self.rate > 0).then(|| (self.total - self.done).div_ceil(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn never_more_often_than_the_interval() {
        for step in [1, 7, 50, 199, 200, 201, 333, 1000] {
            let mut pace = Pace::new(ms(200));
            let shown: Vec<u64> = (0..10_000).step_by(step).filter(|&at| pace.due(ms(at))).collect();
            assert_eq!(shown[0], 0, "the first is shown at once");
            assert!(shown.windows(2).all(|pair| pair[1] - pair[0] >= 200), "step {step}: {shown:?}");
            // An event is shown at the first opportunity after each interval.
            assert!(
                shown.windows(2).all(|pair| pair[1] - pair[0] < 200 + step as u64),
                "step {step}: {shown:?}"
            );
        }
    }

    #[test]
    fn a_clock_read_late_is_not_a_new_interval() {
        let mut pace = Pace::new(ms(200));
        assert!(pace.due(ms(1000)));
        assert!(!pace.due(ms(900)));
        assert!(!pace.due(ms(1199)));
        assert!(pace.due(ms(1200)));
    }

    #[test]
    fn figures() {
        let mut meter = Meter::begin(Phase::Write, 1000, ms(5000));
        assert_eq!(meter.figures(ms(5000)).rate, 0);
        assert_eq!(meter.figures(ms(5000)).seconds_left(), None);
        meter.advance(250);
        let figures = meter.figures(ms(7000));
        assert_eq!((figures.done, figures.rate, figures.percent()), (250, 125, 25));
        assert_eq!(figures.seconds_left(), Some(6));
        meter.advance(u64::MAX);
        assert_eq!(meter.figures(ms(7000)).percent(), 100);
        assert_eq!(meter.figures(ms(7000)).seconds_left(), Some(0));
        let mut meter = Meter::begin(Phase::Write, 1000, ms(0));
        meter.reuse(500);
        meter.advance(100);
        let figures = meter.figures(ms(2000));
        assert_eq!((figures.done, figures.reused, figures.rate), (600, 500, 50), "what is limited counts");
        assert_eq!(Meter::begin(Phase::Verify, 0, ms(0)).figures(ms(0)).percent(), 100);
    }
}
