//! Work that waits for the disk, beside the tasks that must not: on threads of its own, and given up where a device does not
//! answer. Nothing else waits for a thread that a device holds.

use std::sync::Arc;
use std::time::Duration;

use crate::device::watch::{PendingTransfer, silent};
use crate::error::{Error, Result};
use crate::service::Service;

/// How long a device may leave a look unanswered before the service says so and goes on.
pub(in crate::service) const SILENCE: Duration = Duration::from_secs(2);
/// The same for what changes the disk: a flush of a slow one takes its time.
const LONG_SILENCE: Duration = Duration::from_secs(15);
/// Runs disk work on a thread for it.
pub(in crate::service) async fn blocking<T: Send + 'static>(
    service: &Arc<Service>,
    act: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    unless_silent(service, LONG_SILENCE, act).await
}

/// The same, given up when a device leaves a transfer unanswered for `limit`: the thread ends when it answers.
///
/// # Errors
/// [`Error::NoAnswer`].
pub(in crate::service) async fn unless_silent<T: Send + 'static>(
    service: &Arc<Service>,
    limit: Duration,
    act: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    // What has not answered for so long will not answer this one.
    if let Some(waiting) = silent(limit) {
        return Err(no_answer(&waiting));
    }
    let service = Arc::clone(service);
    let lost = |problem| Error::Internal { what: format!("a thread was lost: {problem}") };
    let mut work = tokio::task::spawn_blocking(move || act(&service));
    loop {
        match tokio::time::timeout(Duration::from_millis(200), &mut work).await {
            Ok(done) => return done.map_err(lost)?,
            Err(_) => {
                if let Some(waiting) = silent(limit) {
                    return Err(no_answer(&waiting));
                }
            }
        }
    }
}

fn no_answer(waiting: &PendingTransfer) -> Error {
    Error::NoAnswer {
        device: waiting.device.clone(),
        seconds: waiting.age.as_secs(),
        known: "what was asked for may yet be done".to_owned(),
    }
}
