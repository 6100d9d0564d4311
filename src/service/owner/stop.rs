//! The end of a prepare that was asked for, and of the patience of those who asked.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::service::owner::Owner;

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
