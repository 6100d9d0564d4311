//! How handlers reach the owner: an order, its answer, and what is shown.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::upgrade::{Failure, Settings};
use super::view::Snapshot;
use super::worker::{Begun, Overrides, Planned};
use crate::error::{Error, Result};
use crate::state::SwitchReport;
use crate::units::Slot;

/// Orders that wait; more are refused.
pub(super) const WAITING: usize = 64;

/// What handlers ask for.
#[derive(Debug)]
pub(super) enum Order {
    Prepare {
        settings: Settings,
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
    /// A bundle could not be opened.
    Refused {
        settings: Settings,
        failure: Failure,
    },
    /// Answered at once, by an owner that is not stuck.
    Alive,
}

/// What is answered where an order was followed: the report of the engine, where there is one.
pub(super) type Answer = Result<Option<SwitchReport>>;

/// How handlers reach the owner.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) orders: mpsc::Sender<(Order, oneshot::Sender<Answer>)>,
    pub(super) shown: watch::Receiver<Arc<Snapshot>>,
}

impl Handle {
    /// Gives an order and waits for its answer: accepted and begun, or refused.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn order(&self, order: Order) -> Answer {
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
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shown.borrow())
    }
}
