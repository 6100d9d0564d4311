//! Failed authentications, limited in rate per origin. Within the rate each is answered at once and recorded; beyond it the
//! answer is delayed, and the unrecorded ones are counted. A correct token is accepted at any time, so that failures from
//! the same address cannot lock out its holder.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::service::http::origin::Peer;

/// Number of failures within the rate at once.
const BURST: f64 = 64.0;
/// Further failures per second.
const RATE: f64 = 1.0;
/// Number of origins that are remembered: an attacker with many addresses must not fill the memory.
const PEERS: usize = 1024;
/// Delay of an answer beyond the rate.
pub(in crate::service) const DELAY: Duration = Duration::from_secs(1);

/// The failures so far.
#[derive(Debug, Default)]
pub(in crate::service) struct Attempts(Mutex<HashMap<Peer, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    unrecorded: u64,
}

impl Attempts {
    /// Counts a failure. Returns the number of unrecorded ones before it; `None`: it is beyond the rate.
    pub(in crate::service) fn failed(&self, peer: Peer, now: Instant) -> Option<u64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PEERS && !known.contains_key(&peer) {
            // An origin whose burst is available again needs no entry; if that frees no place, the oldest goes.
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
