//! The command line as users see it. A verb's good path goes to `upgrades` or `verbs`, each error code to a module of `errors`.

#[path = "../harness/mod.rs"]
mod harness;

/// `qstage bench` and its report.
mod bench;
/// A disk of another update tool, changed over by the commands of the manual.
mod changeover;
/// `qstage doctor`, and how a disk and a configuration are found.
mod doctor;
/// `--dry-run` of each verb.
mod dry_runs;
/// Switches by EFI variables.
mod efi;
/// Each error code, reached by the command line.
mod errors;
/// `qstage explain`: every code that is shown can be looked up.
mod explain;
/// Help, man pages and completions; they agree with README and sample configuration.
mod help;
/// `init`: the factory install, also onto an existing table, and the dry run.
mod install;
/// Leftovers and obstacles: sparse files, temporary directories, files that are not regular.
mod leftovers;
/// Mistyped command lines.
mod mistakes;
/// Bundles from web servers: mirrors, broken links, real servers and proxies.
mod network;
/// Output for people and for programs, and exit codes.
mod output;
/// Signals, locks and the page cache of one process.
mod process;
/// `qstage-select`, the boot-time selector.
mod select;
/// Signatures: added, removed, and rotated keys.
mod signing;
/// Pipes that fall silent.
mod silence;
/// Bundles of software without a platform.
mod software_only;
/// Untrusted text: nothing in it acts on a terminal.
mod strangers;
/// Progress bars on a terminal.
mod terminal;
/// A slot on trial, its health checks, and the fallback.
mod trial;
/// The course of an upgrade, from installation to good or back.
mod upgrades;
/// Inputs and surroundings of the verbs: pipes, firmware, a lost state directory, a configuration.
mod verbs;
