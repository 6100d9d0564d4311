//! A limit of bytes per second that all threads share.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Cancel;

/// A token bucket, kept as the one instant at which all bytes let through so far are paid for: nothing has
/// to be refilled, and no rounding adds up.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: NonZeroU64,
    paid_at: Mutex<Option<Instant>>,
}

/// How much of an idle time is remembered as credit: a worker that comes late makes up for it, a pause does
/// not allow a burst.
const CREDIT: Duration = Duration::from_millis(50);

/// The longest sleep between two looks at the request to stop.
const STEP: Duration = Duration::from_millis(100);

impl RateLimit {
    /// A limit of that many bytes per second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid_at: Mutex::new(None) }
    }

    /// Waits until `bytes` more fit the limit. Call it before a transfer; threads are served in the order
    /// of their calls.
    pub fn take(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let until = self.book(bytes, Instant::now());
        loop {
            cancel.check("waiting for the rate limit")?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// Enters `bytes` at `now` and says when they are paid for. The bytes pay first and go then, so the
    /// rate holds from the first byte on.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = now.checked_sub(CREDIT).unwrap_or(now);
        let from = paid_at.map_or(now, |paid_at| paid_at.max(credit));
        // An instant beyond what the clock can count is beyond anybody's patience as well.
        let until = from.checked_add(cost).unwrap_or(from);
        *paid_at = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(rate: u64) -> RateLimit {
        RateLimit::new(NonZeroU64::new(rate).unwrap())
    }

    proptest! {
        /// Whenever the threads come and however much each takes: in no stretch of time do more bytes pass
        /// than the rate allows, plus the credit; and a busy caller gets what the rate allows.
        #[test]
        fn the_rate_holds_over_every_stretch(calls in proptest::collection::vec((1u64..5_000_000, 0u64..200), 2..50)) {
            const RATE: u64 = 10_000_000;
            let limit = limit(RATE);
            let start = Instant::now();
            let mut now = start;
            let mut passed = Vec::new();
            for (bytes, pause) in calls {
                now += Duration::from_millis(pause);
                passed.push((limit.book(bytes, now), bytes));
            }
            for first in 0..passed.len() {
                let mut sum = 0;
                for &(at, bytes) in &passed[first + 1..] {
                    sum += bytes;
                    let stretch = at - passed[first].0 + CREDIT + Duration::from_micros(1);
                    prop_assert!(sum as f64 <= RATE as f64 * stretch.as_secs_f64());
                }
            }
        }
    }

    #[test]
    fn four_threads_get_the_rate_together() {
        // Never faster; not slower by more than 5 %, unless the machine has no time for us: it gets five attempts.
        let attempt = || {
            let limit = limit(40_000_000);
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..30 {
                            limit.take(200_000, &Cancel::default()).unwrap();
                        }
                    });
                }
            });
            // 24 MB at 40 MB/s.
            let took = begun.elapsed().as_secs_f64();
            assert!(took >= 0.6, "{took}");
            took
        };
        let took: Vec<f64> =
            (0..5).map(|_| attempt()).take_while(|took| *took >= 0.6 * 1.05 + 0.02).collect();
        assert!(took.len() < 5, "{took:?}");
    }

    #[test]
    fn a_long_wait_ends_on_request() {
        let (limit, cancel) = (limit(1), Cancel::default());
        let asker = std::thread::spawn({
            let cancel = cancel.clone();
            move || {
                std::thread::sleep(Duration::from_millis(50));
                cancel.request();
            }
        });
        let begun = Instant::now();
        assert_eq!(limit.take(u64::MAX, &cancel).unwrap_err().code(), "UPGRADE_ERROR_INTERRUPTED");
        assert!(begun.elapsed() < Duration::from_millis(250));
        asker.join().unwrap();
    }
}
