//! Failed authentications, limited in rate for each origin: within the rate each is answered at once and recorded; beyond it
//! the answer comes late, and what was not recorded is counted. A token that is right is taken at any time, so that nobody
//! locks out its holder by failing from the same address.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::service::http::origin::Peer;

/// Failures that may come at once.
const BURST: f64 = 64.0;
/// Failures per second beyond them.
const RATE: f64 = 1.0;
/// Origins that are remembered: an attacker with many addresses must not take memory.
const PEERS: usize = 1024;
/// How long an answer beyond the rate is held back.
pub(in crate::service) const DELAY: Duration = Duration::from_secs(1);

/// What failed before.
#[derive(Debug, Default)]
pub(in crate::service) struct Attempts(Mutex<HashMap<Peer, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    unrecorded: u64,
}

impl Attempts {
    /// Counts a failure. Within the rate: how many before it were not recorded. Beyond it: `None`.
    pub(in crate::service) fn failed(&self, peer: Peer, now: Instant) -> Option<u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PEERS && !known.contains_key(&peer) {
            // Who has had the time to earn its burst again is as good as new; where that frees no place, the oldest goes.
            let full = |bucket: &Bucket| now.duration_since(bucket.at).as_secs_f64() * RATE >= BURST;
            known.retain(|_, bucket| !full(bucket));
            if known.len() >= PEERS {
                let oldest = known.iter().min_by_key(|(_, bucket)| bucket.at).map(|(peer, _)| *peer);
                oldest.map(|peer| known.remove(&peer));
            }
        }
        let bucket = known.entry(peer).or_insert(Bucket { left: BURST, at: now, unrecorded: 0 });
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * RATE;
        bucket.left = (bucket.left + earned).min(BURST);
        bucket.at = now;
        if bucket.left < 1.0 {
            bucket.unrecorded += 1;
            return None;
        }
        bucket.left -= 1.0;
        Some(std::mem::take(&mut bucket.unrecorded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_limited_for_each_origin() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let count = |peer, at| (0..100).filter(|_| attempts.failed(peer, at).is_some()).count();
        assert_eq!(count(Peer::Loopback, now), 64);
        assert_eq!(count(Peer::User(7), now), 64, "of another one");
        let later = now + Duration::from_secs(3);
        assert_eq!(attempts.failed(Peer::Loopback, later), Some(36), "what was not recorded is counted");
        assert_eq!(count(Peer::Loopback, later), 2);
        for uid in 0..5000 {
            attempts.failed(Peer::User(uid), later);
        }
        assert!(attempts.0.lock().unwrap().len() <= PEERS);
    }
}
