//! A cluster: what its nodes do together, decided without a machine.
//!
//! ```text
//!   store (etcd) ──▶ Snapshot ──▶ View ──▶ next_action ──▶ Txn ──▶ store       whoever leads, any node can
//!        ▲                          └────▶ step ──▶ the node acts, and reports what came of it
//!        └── orders of operators: prepare, commit, cancel, pause, resume, take back
//! ```
//!
//! All that is common stands in a few keys, and every change of them is one transaction that is compared with what it was
//! decided on: nothing depends on clocks or on who is the fastest. The driver remembers nothing; the next leader decides
//! the same from the same keys.
//!
//! | key | holds | is written by |
//! |---|---|---|
//! | `members/<node>` | [`Member`](state::Member): who belongs to the cluster | join, leave |
//! | `alive/<node>` | [`Alive`](state::Alive), on a lease: what runs, and how well | that node |
//! | `upgrade` | [`Upgrade`](state::Upgrade): stage, settings, error | the driver, orders |
//! | `result/<upgrade>/<node>` | [`Outcome`](state::Outcome): how far that node has come | that node |
//! | `reboot` | [`Reboot`](state::Reboot): who is to reboot, reboots, has rebooted | the driver, orders |
//! | `leader` | who drives, on its lease | election |
//! | `restart/<node>` | [`Restart`](state::Restart), on the lease of who asked: a node is to restart its software | another node |
//!
//! | module | knows |
//! |---|---|
//! | [`state`] | the values of the keys |
//! | [`store`] | transactions, revisions and leases; [`memory`]: the same without a network; [`etcd`]: the real one, with [`codec`] |
//! | [`view`] | all keys at one revision |
//! | [`next`] | the driver: `upgrade` before, `rolling` in a rolling reboot |
//! | [`turn`] | what a node does |
//! | [`orders`] | what operators may ask for, and when |
//!
//! `tests/cluster` explores every interleaving of small clusters with a fault at every step.

mod action;
pub mod codec;
pub mod etcd;
mod group;
pub mod memory;
pub mod next;
pub mod orders;
mod rolling;
pub mod state;
pub mod store;
pub mod turn;
mod upgrade;
pub mod view;
