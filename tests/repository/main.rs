//! The source tree itself: what it promises about its structure, and whether its scripts run. A rule about who may do what
//! goes to `architecture`; a test that starts a script of `scripts/` goes to `scripts`; a test of `examples/` goes to `examples`.

/// Imports, who opens what, dependencies and their homes, lengths, unsafe blocks.
mod architecture;
/// The examples of the library, run.
mod examples;
/// The scripts of the repository, run as a user runs them.
mod scripts;
