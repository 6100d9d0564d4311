//! The requested end of a prepare, and the time limit of the requests that wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::service::owner::order::OrderResult;
use crate::service::owner::upgrade::Failure;
use crate::service::owner::{Owner, blocking};

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
        let discarded = blocking(&self.service, |service| Ok(service.place.discard_begun())).await;
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

    /// Answers the requests that wait for the end of a prepare, in a task: when the returned sender is dropped, or at their time
    /// limit. A slow device may hold the owner for longer.
    pub(super) fn answer_the_waiting(
        &mut self,
        waiting: Vec<oneshot::Sender<OrderResult>>,
    ) -> oneshot::Sender<()> {
        let (ended, end) = oneshot::channel();
        let errors: Vec<Error> = waiting.iter().map(|_| self.held_by()).collect();
        let patience = wait_until(self.stop_by.take());
        tokio::spawn(async move {
            let late = tokio::select! {
                _ = end => false,
                () = patience => true,
            };
            for (answer, error) in waiting.into_iter().zip(errors) {
                let _ = answer.send(if late { Err(error) } else { Ok(None) });
            }
        });
        ended
    }
}

/// Returns at that time, or never.
pub(super) async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
