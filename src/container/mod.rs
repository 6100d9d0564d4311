//! The software image as a container: started from its slot, swapped for another in well under a second, swapped back
//! when the new one is not healthy.
//!
//! ```text
//!   before, the old one serves      flip          gap                     after
//!  ┌──────────────────────────┐  ┌────────┐  ┌──────────────────────┐  ┌──────────────┐
//!  mount, read ahead, start to ─▶ Engine::  ─▶ stop old, open gate of ─▶ probe until    ─▶ mark good
//!  a gate in front of exec       commit       the new                   healthy        └─▶ or: stop, old again, flags back
//! ```
//!
//! All that takes long (mounting, namespaces, pre-reading: 0.2 s) and all that waits for the disk (the partition table)
//! is done while the old container serves. What is left in the gap is the end of the old process and one execve(2).
//!
//! | cut | what a boot finds | what [`start()`] does |
//! |---|---|---|
//! | before the flip | old selected, good | starts the old one |
//! | between flip and mark-good | new selected, on trial | counts a try, starts the new one; healthy: good; not: the old one |
//! | while that crashes again and again | no tries left | starts the old one |
//!
//! [`swap`](fn@swap), [`start()`], [`stop`], [`restart`] and [`status`] decide, and know containers by the [`Runtime`] only. It has
//! two homes: [`nspawn`] and the double of the tests.

pub mod config;
#[cfg(test)]
mod double;
mod isolation;
pub mod nspawn;
mod probe;
mod runtime;
mod start;
mod steps;
mod swap;
#[cfg(test)]
mod tests;

pub use config::{Config, Network, Probe};
pub use isolation::{Cgroups, Users};
pub use nspawn::Nspawn;
pub use runtime::{Running, Runtime, Stopped};
pub use start::{ContainerStatus, StartReport, restart, start, status, stop};
pub use swap::{SwapReport, swap};
