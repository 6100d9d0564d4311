//! The interface between handlers and owner: orders, their answers, and the snapshot.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::service::owner::upgrade::{Failure, UpgradeSettings};
use crate::service::owner::worker::{Begun, Overrides, Planned};
use crate::service::view::ServiceSnapshot;
use crate::state::SwitchReport;
use crate::units::Slot;

/// Maximum of waiting orders; further ones are refused.
pub(in crate::service) const WAITING: usize = 64;

/// An order of a handler.
#[derive(Debug)]
pub(in crate::service) enum Order {
    Prepare {
        settings: UpgradeSettings,
        planned: Planned,
        overrides: Overrides,
        /// `None`: a dry run, which only checks whether it would be accepted.
        begun: Option<Box<Begun>>,
    },
    Commit {
        /// Only checks whether it would be accepted and begun.
        dry_run: bool,
    },
    Cancel,
    MarkGood(Option<Slot>),
    RollBack,
    Reboot,
    Halt,
    RestartContainer,
    /// A member of a cluster has started the selected software, or gone back: the running release has to be determined again.
    SoftwareSwapped,
    /// A bundle could not be opened.
    Refused {
        settings: UpgradeSettings,
        failure: Failure,
    },
    /// A liveness probe; an owner that is not stuck answers at once.
    Alive,
}

/// Answer to an order: the report of the engine, if there is one.
pub(in crate::service) type OrderResult = Result<Option<SwitchReport>>;

/// A handler's end of the connection to the owner.
#[derive(Debug, Clone)]
pub(in crate::service) struct Handle {
    pub(in crate::service) orders: mpsc::Sender<(Order, oneshot::Sender<OrderResult>)>,
    pub(in crate::service) shown: watch::Receiver<Arc<ServiceSnapshot>>,
}

impl Handle {
    /// Sends an order and waits for its answer: accepted and begun, or refused.
    ///
    /// # Errors
    /// The refusal.
    pub(in crate::service) async fn order(&self, order: Order) -> OrderResult {
        let (answer, answered) = oneshot::channel();
        self.orders.try_send((order, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::ServiceBusy { problem: format!("{WAITING} requests wait already") }
            }
            mpsc::error::TrySendError::Closed(_) => {
                Error::ServiceBusy { problem: "the service is ending".into() }
            }
        })?;
        let lost = |_| Error::Internal { what: "the owner of the upgrade gave no answer".to_owned() };
        answered.await.map_err(lost)?
    }

    /// Does `work`, unless the service ends meanwhile; then `work` is dropped.
    ///
    /// # Errors
    /// Those of `work`; [`Error::ServiceEnded`].
    pub(in crate::service) async fn unless_ended<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            done = work => done,
            // The owner takes no order any more.
            () = self.orders.closed() => Err(Error::ServiceEnded { doing: doing.to_owned() }),
        }
    }

    /// The current snapshot.
    pub(in crate::service) fn snapshot(&self) -> Arc<ServiceSnapshot> {
        Arc::clone(&self.shown.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that finds no place was refused as if an upgrade were under way, which could be cancelled.
    #[test]
    fn a_request_without_a_place_is_not_an_upgrade() {
        let (orders, mut waiting) = mpsc::channel(1);
        let (_show, shown) = watch::channel(Arc::new(ServiceSnapshot::default()));
        let handle = Handle { orders, shown };
        let (answer, _answered) = oneshot::channel();
        handle.orders.try_send((Order::Alive, answer)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = || runtime.block_on(handle.order(Order::Alive)).unwrap_err();
        assert_eq!(refused().code(), "UPGRADE_ERROR_SERVICE_BUSY");
        waiting.close();
        assert!(refused().to_string().contains("the service is ending"), "{}", refused());
    }
}
