//! Blocking work on the disk. It has threads of its own, since the tasks must not wait, and is abandoned if a device does
//! not answer. No other work waits for a thread that a device blocks.

use std::sync::Arc;
use std::time::Duration;

use crate::device::watch::{PendingTransfer, silent};
use crate::error::{Error, Result};
use crate::service::Service;

/// Time without an answer of a device during a look, after which the service reports that and continues.
pub(in crate::service) const SILENCE: Duration = Duration::from_secs(2);
/// The same for changes of the disk: a flush of a slow disk takes longer.
const LONG_SILENCE: Duration = Duration::from_secs(15);
/// Runs disk work on a thread for blocking work.
pub(in crate::service) async fn blocking<T: Send + 'static>(
    service: &Arc<Service>,
    act: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    unless_silent(service, LONG_SILENCE, act).await
}

/// The same, abandoned when a device has not answered a transfer for `limit`. The thread ends when the device answers.
///
/// # Errors
/// [`Error::NoAnswer`].
pub(in crate::service) async fn unless_silent<T: Send + 'static>(
    service: &Arc<Service>,
    limit: Duration,
    act: impl FnOnce(&Service) -> Result<T> + Send + 'static,
) -> Result<T> {
    // A device that is already silent for that time will not answer this work.
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
        known: "what was ordered may still be done".to_owned(),
    }
}
