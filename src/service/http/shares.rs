//! Fair shares of a limited resource: connections, streams of events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::service::http::origin::Peer;

/// The number of units that each caller holds.
#[derive(Debug, Clone)]
pub(in crate::service) struct Shares {
    most: usize,
    held: Arc<Mutex<HashMap<Peer, usize>>>,
}

/// One unit; the drop returns it.
#[derive(Debug)]
pub(in crate::service) struct Share {
    shares: Shares,
    peer: Peer,
}

impl Shares {
    /// Shares of at most `most` units per caller.
    pub(in crate::service) fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    /// Takes a unit; `None`: the caller's share is exhausted.
    pub(in crate::service) fn take(&self, peer: Peer) -> Option<Share> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(peer).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), peer })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = held.get_mut(&self.peer) else { return };
        *count -= 1;
        if *count == 0 {
            held.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Peer {
        Peer::of_address(address.parse().unwrap())
    }

    #[test]
    fn each_gets_its_share_and_gives_it_back() {
        let shares = Shares::new(3);
        let mut held: Vec<Share> = (0..3).map(|_| shares.take(of("192.0.2.1")).unwrap()).collect();
        assert!(shares.take(of("192.0.2.1")).is_none());
        // The same address, as a socket of both families shows it.
        assert!(shares.take(of("::ffff:192.0.2.1")).is_none());
        let others = (shares.take(of("192.0.2.2")).unwrap(), shares.take(Peer::User(7)).unwrap());
        held.pop();
        assert!(shares.take(of("192.0.2.1")).is_some(), "what was given back can be taken again");
        drop((held, others));
        assert!(shares.held.lock().unwrap().is_empty(), "nothing is remembered of those who left");
    }

    #[test]
    fn nobody_multiplies_by_addresses_that_cost_nothing() {
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(of(address), Peer::Loopback, "{address}");
        }
    }
}
