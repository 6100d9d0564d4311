//! The end of a prepare that was asked for, and of the patience of those who asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::service::owner::upgrade::Failure;
use crate::service::owner::{Owner, SILENCE, unless_silent};

/// How long they wait for a prepare that a device holds.
pub(super) const LIMIT: Duration = Duration::from_millis(2500);

impl Owner {
    /// Asks the child to stop; [`report`](Self::report) hears of its end.
    pub(super) fn stop(&mut self, why: Error) {
        if let Some(child) = &mut self.child {
            if let Some(stop) = child.stop.take() {
                let _ = stop.send(());
            }
            self.stopping.get_or_insert((why, Vec::new()));
            self.stop_by = Instant::now().checked_add(LIMIT);
        }
    }

    /// Ends a prepare that was cancelled, when its process has ended: what it has written is discarded, or it would be taken
    /// for a prepare that a power cut interrupted. Those who wait are answered before the history is written: each flush on a
    /// busy disk takes its time.
    pub(super) async fn cancelled(&mut self) {
        let discarded =
            unless_silent(&self.service, SILENCE, |service| Ok(service.place.discard_begun())).await;
        let discarded = discarded.unwrap_or_else(Err);
        let failure = match &discarded {
            Ok(_) | Err(Error::NothingToCancel { .. }) => Failure::from(&Error::Cancelled),
            Err(error) => Failure::from(error),
        };
        let (service, recorded) = (Arc::clone(&self.service), failure.clone());
        self.fail_as("prepare", failure, false).await;
        tokio::task::spawn_blocking(move || service.place.record_cancelled(discarded, &recorded));
    }

    /// What holds a prepare that was killed.
    pub(super) fn held_by(&self) -> Error {
        let known =
            "the prepare was stopped and ends when it answers; nothing that runs was touched".to_owned();
        let (device, seconds) = self
            .snapshot
            .silence()
            .unwrap_or_else(|| (self.service.place.disk.display().to_string(), LIMIT.as_secs()));
        Error::NoAnswer { device, seconds, known }
    }

    /// Answers those who wait for the end of a prepare that does not end.
    pub(super) fn give_up_waiting(&mut self) {
        self.stop_by = None;
        let waiting = self.stopping.as_mut().map(|(_, waiting)| std::mem::take(waiting));
        for answer in waiting.into_iter().flatten() {
            let _ = answer.send(Err(self.held_by()));
        }
    }
}

/// Returns at that time, or never.
pub(super) async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
