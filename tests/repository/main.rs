//! The source tree itself: what it promises about its structure, and whether its scripts run. A rule about who may do what
//! goes to `architecture`, one about names to `names`; a test that starts a script of `scripts/` goes to `scripts`; a test of
//! `examples/` goes to `examples`.

/// Imports, who opens what, dependencies and their homes, lengths, unsafe blocks.
mod architecture;
/// The examples of the library, run.
mod examples;
/// Type names that occur more than once, each with its reason.
mod names;
/// The scripts of the repository, run as a user runs them.
mod scripts;
