//! Software images as containers. A new attempt to escape goes to `boundary`, a new way to run or stop to `swap`.

#[path = "../harness/mod.rs"]
mod harness;

/// Isolation of a container from its host.
mod boundary;
/// A swap that is killed at any instant.
mod crash;
/// Instant upgrades: downtime, health, the swap back.
mod swap;
