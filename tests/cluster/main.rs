//! Tests of clusters: the pure state machine, explored exhaustively; the store, against a real etcd; and three real nodes.
#[path = "../harness/mod.rs"]
mod harness;

/// The official client, old and new.
mod clients;
/// Contract of a store, for the double and for etcd.
mod contract;
/// Orders as dry runs.
mod dry_runs;
/// A real etcd.
mod etcd;
/// Commands around the turn of a node.
mod hooks;
/// Three nodes: services with their own disks, which reboot into the slot that their table selects.
mod lab;
/// Every interleaving of small clusters with a fault at every step.
mod model;
/// Upgrades of the three nodes.
mod nodes;
/// A commit while etcd does not answer.
mod outage;
/// The page of a node in a browser.
mod page;
/// Invalid conditions: each is reported, nothing changes, and the running services continue.
mod refusals;
/// Many simulated nodes on one etcd.
mod scale;
/// Upgrades of the software on all nodes at once.
mod software;
/// The bundle of a node that fell back, before its next turn.
mod staging;
/// The bundle, from one node to the others.
mod streaming;
/// A bundle at a URL, which every node fetches.
mod urls;
/// Model of a cluster, as the exploration uses it.
mod world;
