//! The service: its REST contract, its rules, and the official client in several versions.

#[path = "../harness/mod.rs"]
mod harness;

/// What callers may have read, and what is shown to whom.
mod boundary;
/// The verbs that talk to a service.
mod cli;
/// The newest official client drives an upgrade.
mod client;
/// Container upgrades by the service.
mod container;
/// Each endpoint and object of the contract.
mod contract;
/// A service or its worker that is killed at any time.
mod crash;
/// The OpenAPI document agrees with what is served.
mod document;
/// A failed release stays visible after the fallback.
mod fallback;
/// Tokens, origins and limits.
mod guard;
/// A disk that hangs.
mod hung;
/// Many clients beside an upgrade.
mod load;
/// Readiness, watchdog and stop, as the manager sees them.
mod notify;
/// Which order is accepted in which state.
mod rules;
/// What is shown as running, and which error.
mod running;
/// Older official clients.
mod versions;
