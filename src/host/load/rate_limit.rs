//! Limit in bytes per second that all threads share.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Cancel;

/// A token bucket, stored as the instant at which all bytes let through so far fit the rate: nothing has to be refilled,
/// and no rounding error accumulates.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: NonZeroU64,
    paid_at: Mutex<Option<Instant>>,
}

/// Idle time that counts as credit: a late worker makes up for its delay, but a pause does not allow a burst.
const CREDIT: Duration = Duration::from_millis(50);

/// Longest sleep between two checks of the stop request.
const STEP: Duration = Duration::from_millis(100);

impl RateLimit {
    /// A limit of this many bytes per second.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid_at: Mutex::new(None) }
    }

    /// Waits until `bytes` more fit the limit; to be called before a transfer. Threads are served in the order of their calls.
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

    /// Accounts for `bytes` at `now`, and returns the instant at which they may go. They wait first and go then, so the rate
    /// holds from the first byte on.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = now.checked_sub(CREDIT).unwrap_or(now);
        let from = paid_at.map_or(now, |paid_at| paid_at.max(credit));
        // An instant that the clock cannot represent: no wait, since such a wait would never end.
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
        /// For any calls: in no interval do more bytes pass than the rate allows, plus the credit; and a busy caller gets
        /// what the rate allows.
        #[test]
        fn the_rate_holds_over_every_interval(calls in proptest::collection::vec((1u64..5_000_000, 0u64..200), 2..50)) {
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
        // Never faster; at most 5 % slower. A loaded machine gets five attempts.
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
        // Without the request it is some centuries.
        assert!(begun.elapsed() < Duration::from_secs(20));
        asker.join().unwrap();
    }
}
