//! Clusters: the decisions about what the nodes do together, without access to a machine.
//!
//! ```text
//!   store (etcd) ──▶ Snapshot ──▶ View ──▶ next_action ──▶ Txn ──▶ store       on the leader, which any node can be
//!        ▲                          └────▶ step ──▶ the node acts, and reports the result
//!        └── orders of operators: prepare, commit, cancel, pause, resume, take back
//! ```
//!
//! The common state is a few keys. Each change of them is one transaction, on the condition that the state it was decided on
//! still holds: nothing depends on clocks, or on which node is the fastest. The driver keeps no state; the next leader
//! decides the same from the same keys.
//!
//! | key | holds | is written by |
//! |---|---|---|
//! | `members/<node>` | [`Member`](state::Member): a node that belongs to the cluster | join, leave |
//! | `alive/<node>` | [`Alive`](state::Alive), on a lease: the running release, and its standing | that node |
//! | `upgrade` | [`Upgrade`](state::Upgrade): stage, settings, error | the driver, orders |
//! | `result/<upgrade>/<node>` | [`Outcome`](state::Outcome): progress of that node | that node |
//! | `reboot` | [`Reboot`](state::Reboot): the nodes that are to reboot, that reboot, that have rebooted | the driver, orders |
//! | `leader` | the node that drives, on its lease | election |
//! | `restart/<node>` | [`Restart`](state::Restart), on the lease of the requesting node: a node is to restart its software | another node |
//!
//! | module | content |
//! |---|---|
//! | [`state`] | the values of the keys |
//! | [`store`] | transactions, revisions and leases; [`memory`]: a store without a network; [`etcd`]: the real store, with [`codec`] |
//! | [`view`] | all keys at one revision; [`replica`]: kept current by a watch |
//! | [`next`] | the driver: `rolling` for a rolling reboot, `upgrade` for everything else |
//! | [`turn`] | the steps of a node |
//! | [`orders`] | the orders of operators, and when each is allowed; [`admission`](orders::admission): of an upgrade; [`membership`]: join and leave |
//!
//! `tests/cluster` explores every interleaving of small clusters with a fault at every step.

mod action;
mod admission;
pub mod codec;
pub mod etcd;
mod group;
pub mod membership;
pub mod memory;
pub mod next;
pub mod orders;
pub mod replica;
mod rolling;
pub mod state;
pub mod store;
pub mod turn;
mod upgrade;
pub mod view;
