//! Software images as containers.

#[path = "../harness/mod.rs"]
mod harness;

/// What a container may not do to its host.
mod boundary;
/// A swap that is killed at any time.
mod crash;
/// Instant upgrades: downtime, health, the way back.
mod swap;
