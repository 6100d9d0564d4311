//! The source tree itself: its structure, its scripts and its examples. A rule about what a module may use goes to
//! `architecture`, one about names to `names`, one about words of comments to `words`; a test that runs a script of
//! `scripts/` goes to `scripts`; a test of `examples/*.rs` goes to `examples`, of the guide and the examples of other tools to
//! `guide`.

/// Imports, opens, dependencies and the modules that may use them, file lengths, unsafe blocks.
mod architecture;
/// No two modules need each other.
mod circles;
/// The examples of the library, run.
mod examples;
/// The Rust files that the rules read.
mod files;
/// The guide of the manual, and the scripts that run its commands.
mod guide;
/// Type names that occur more than once, each with its reason.
mod names;
/// The scripts of the repository, run as a user runs them.
mod scripts;
/// Words that comments do not use, each with a better one.
mod words;
