//! The command line as a user meets it. A verb's good path goes to `verbs`, each error code to a module of `errors`.

#[path = "../harness/mod.rs"]
mod harness;

/// `qstage bench` and its report.
mod bench;
/// Verbs that switch by EFI variables.
mod efi;
/// Each error code, reached by the command line.
mod errors;
/// `qstage explain`: every code that is shown can be looked up.
mod explain;
/// Help, man pages, completions, and whether README and sample configuration agree with them.
mod help;
/// `init`: the factory install, onto a table that is there as well, and the dry run.
mod install;
/// What stays behind, and what stands in the way.
mod leftovers;
/// What is said to whoever mistypes.
mod mistakes;
/// Bundles from web servers: mirrors, broken links, real servers and proxies.
mod network;
/// What is printed where, and to whom.
mod output;
/// Signals, locks and the page cache of one process.
mod process;
/// `qstage-select`, the boot-time selector.
mod select;
/// Bars on a terminal.
mod terminal;
/// A slot on trial, its health checks, and falling back.
mod trial;
/// Each verb from installation to upgrade.
mod verbs;
