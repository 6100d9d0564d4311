//! The service: its REST contract, its rules, and the official client in several versions. A test of an endpoint goes to
//! `contract`, one of an order in some state to `rules`.

#[path = "../harness/mod.rs"]
mod harness;

/// Bundles that callers may name, and secrets that they are not shown.
mod boundary;
/// A cancel in each phase of a transfer.
mod cancel;
/// The verbs that talk to a service.
mod cli;
/// The newest official client drives an upgrade.
mod client;
/// Container upgrades through the service.
mod container;
/// Each endpoint and object of the contract.
mod contract;
/// A service or its worker that is killed in any state.
mod crash;
/// The OpenAPI document agrees with what is served.
mod document;
/// The orderly end, by SIGTERM.
mod ending;
/// A failed release stays visible after the fallback.
mod fallback;
/// The lock of a FleetLock server around a reboot.
mod fleet;
/// Tokens, origins and limits.
mod guard;
/// A service whose disk hangs.
mod hung;
/// Many clients during an upgrade.
mod load;
/// Metrics, alert rules and dashboard.
mod metrics;
/// How long each state is shown, and the objects that clients compare.
mod moments;
/// Readiness, watchdog and stop, as the service manager sees them.
mod notify;
/// The page for browsers.
mod page;
/// Orders that are accepted or refused in each state.
mod rules;
/// What is shown as running, and which error.
mod running;
/// Shares of connections and streams, by user and by address.
mod shares;
/// `qstage token`, and the default socket.
mod tokens;
/// Older official clients.
mod versions;
