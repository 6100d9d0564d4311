//! The requested end of a prepare, and the time limit of the requests that wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::service::owner::order::OrderResult;
use crate::service::owner::upgrade::Failure;
use crate::service::owner::{Owner, blocking};

/// Longest wait for a prepare that a device blocks.
pub(super) const LIMIT: Duration = Duration::from_millis(2500);

/// The same when the service ends, all in all: longer than the grace period, and less than a second together with the rest. The
/// kernel kills a process that is still there with the service.
pub(super) const ENDING: Duration = Duration::from_millis(800);

impl Owner {
    /// Requests the end of the child; [`report`](Self::report) is called at its end.
    pub(super) fn stop(&mut self, why: Error) {
        if let Some(child) = &mut self.child {
            if let Some(stop) = child.stop.take() {
                let _ = stop.send(());
            }
            self.stopping.get_or_insert((why, Vec::new()));
            self.stop_by = Instant::now().checked_add(LIMIT);
        }
    }

    /// Handles the end of a cancelled prepare's process: its torn slot is discarded, or it would be taken for a prepare that a
    /// power cut ended. The waiting callers are answered before the history is written: flushes take long on a busy disk.
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

    /// The error for a killed prepare that does not end.
    pub(super) fn held_by(&self) -> Error {
        let known =
            "the prepare was stopped and ends when it answers; nothing that runs was touched".to_owned();
        let (device, seconds) = self
            .snapshot
            .silence()
            .unwrap_or_else(|| (self.service.place.disk.display().to_string(), LIMIT.as_secs()));
        Error::NoAnswer { device, seconds, known }
    }

    /// Answers the callers that wait for a prepare that does not end.
    pub(super) fn stop_waiting(&mut self) {
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
        let deadline = wait_until(self.stop_by.take());
        tokio::spawn(async move {
            let late = tokio::select! {
                _ = end => false,
                () = deadline => true,
            };
            for (answer, error) in waiting.into_iter().zip(errors) {
                let _ = answer.send(if late { Err(error) } else { Ok(None) });
            }
        });
        ended
    }
}

/// Returns at `time`; `None`: never.
pub(super) async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
