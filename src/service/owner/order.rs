//! How handlers reach the owner: an order, its answer, and what is shown.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::service::owner::upgrade::{Failure, UpgradeSettings};
use crate::service::owner::worker::{Begun, Overrides, Planned};
use crate::service::view::ServiceSnapshot;
use crate::state::SwitchReport;
use crate::units::Slot;

/// Orders that wait; more are refused.
pub(in crate::service) const WAITING: usize = 64;

/// What handlers ask for.
#[derive(Debug)]
pub(in crate::service) enum Order {
    Prepare {
        settings: UpgradeSettings,
        planned: Planned,
        overrides: Overrides,
        begun: Box<Begun>,
    },
    Commit,
    Cancel,
    MarkGood(Option<Slot>),
    RollBack,
    Reboot,
    Halt,
    RestartContainer,
    /// A member of a cluster has started the software that is selected, or gone back: what runs is to be found anew.
    SoftwareSwapped,
    /// A bundle could not be opened.
    Refused {
        settings: UpgradeSettings,
        failure: Failure,
    },
    /// Answered at once, by an owner that is not stuck.
    Alive,
}

/// What is answered where an order was followed: the report of the engine, where there is one.
pub(in crate::service) type OrderResult = Result<Option<SwitchReport>>;

/// How handlers reach the owner.
#[derive(Debug, Clone)]
pub(in crate::service) struct Handle {
    pub(in crate::service) orders: mpsc::Sender<(Order, oneshot::Sender<OrderResult>)>,
    pub(in crate::service) shown: watch::Receiver<Arc<ServiceSnapshot>>,
}

impl Handle {
    /// Gives an order and waits for its answer: accepted and begun, or refused.
    ///
    /// # Errors
    /// The refusal.
    pub(in crate::service) async fn order(&self, order: Order) -> OrderResult {
        let (answer, answered) = oneshot::channel();
        self.orders.try_send((order, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::UpgradeBusy { doing: format!("{WAITING} requests wait") }
            }
            mpsc::error::TrySendError::Closed(_) => {
                Error::UpgradeBusy { doing: "the service is ending".into() }
            }
        })?;
        let lost = |_| Error::Internal { what: "the owner of the upgrade gave no answer".to_owned() };
        answered.await.map_err(lost)?
    }

    /// What is shown now.
    pub(in crate::service) fn snapshot(&self) -> Arc<ServiceSnapshot> {
        Arc::clone(&self.shown.borrow())
    }
}
