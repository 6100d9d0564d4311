//! The software image as a container: started from its slot, swapped for another in well under a second, swapped back
//! when the new one is not healthy.
//!
//! ```text
//!   before, the old one serves      flip          gap                     after
//!  ┌──────────────────────────┐  ┌────────┐  ┌──────────────────────┐  ┌──────────────┐
//!  mount, read ahead, start to ─▶ Engine::  ─▶ stop old, open gate of ─▶ probe until    ─▶ mark good
//!  a gate before exec            commit       the new                   healthy        └─▶ or: stop, old again, flags back
//! ```
//!
//! Everything that takes long (mounting, namespaces, pre-reading: 0.2 s), and everything that waits for the disk (the
//! partition table), is done while the old container serves. Only the end of the old process and one execve(2) are left for
//! the gap.
//!
//! | power cut | state after boot | action of [`start()`] |
//! |---|---|---|
//! | before the flip | old selected, good | starts the old one |
//! | between flip and mark-good | new selected, on trial | counts a try, starts the new one; healthy: good; not: the old one |
//! | while that crashes again and again | no tries left | starts the old one |
//!
//! [`swap`](fn@swap), [`start()`], [`stop`], [`restart`] and [`status`] decide, and reach containers only through the trait
//! [`Runtime`]. It has two implementations: [`nspawn`] and a test double.

mod boundary;
pub mod config;
#[cfg(test)]
mod double;
mod dry_run;
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
pub use dry_run::{restart_dry_run, start_dry_run, stop_dry_run, swap_dry_run};
pub use isolation::{Cgroups, Users};
pub use nspawn::Nspawn;
pub use runtime::{Exit, Running, Runtime, Stopped};
pub use start::{ContainerStatus, Judge, StartReport, restart, start, status, stop};
pub use swap::{Rendezvous, SwapReport, swap, swap_together};
