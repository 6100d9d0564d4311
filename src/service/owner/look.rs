//! Looks at the disk: others may change it at any time, and its content counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::service::Service;
use crate::service::owner::disk::DiskView;
use crate::service::owner::upgrade::{Input, LocalUpgrade, Phase};
use crate::service::owner::waiting_period::uptime;
use crate::service::owner::{Done, Owner, SILENCE, unless_silent};

impl Owner {
    /// Starts a look at the disk, unless one is under way: a disk that hangs must not pile up threads.
    pub(super) fn look(&mut self) {
        if std::mem::replace(&mut self.looking, true) {
            return;
        }
        let (service, done, number) = (Arc::clone(&self.service), self.done.0.clone(), self.looks);
        tokio::spawn(async move {
            let look = unless_silent(&service, SILENCE, |service| service.place.look()).await;
            let _ = done.send(Done::Looked(number, Box::new(look))).await;
        });
    }

    /// Looks, applies `input`, and shows both at once: a client that reads PREPARED must find the bundle in the slots.
    pub(super) async fn settle(&mut self, input: Option<Input>) {
        self.looks += 1;
        let look = unless_silent(&self.service, SILENCE, |service| service.place.look()).await;
        if let Some(input) = input {
            let _ = self.enter(input);
        }
        if let Ok(look) = &look {
            self.observe(look);
        }
        self.snapshot.take(look, self.upgrade.phase);
        self.publish();
    }

    /// Applies the result of a look. After a swap, COMMITTED stays for as long as a client that polls each second needs to see
    /// it, even if the new software is already good.
    pub(super) fn observe(&mut self, look: &DiskView) {
        let held = self.held_until.is_some_and(|until| Instant::now() < until);
        if held && self.upgrade.phase == Phase::Committed {
            self.upgrade = self.upgrade.clone().looked(&look.disk);
        } else {
            let _ = self.enter(Input::Observed(look.disk.clone()));
        }
    }
}

/// When the waiting period ends; `None`: it has ended.
pub(super) fn waiting_until(service: &Service, upgrade: &LocalUpgrade) -> Option<Instant> {
    if service.limits.waiting.is_zero() {
        return None;
    }
    let left = upgrade.waiting.left(service.limits.waiting.as_secs(), uptime());
    Instant::now().checked_add(Duration::from_secs(left)).filter(|_| left > 0)
}
