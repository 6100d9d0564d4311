//! Power cuts and failures: the state after any instant at which the machine stops, a call fails or a process is killed. A new
//! verb gets a scene in `harness/proof/scenes.rs`, which includes it in `cuts`, `mutants`, `orders` and `faults`.

#[path = "../harness/mod.rs"]
mod harness;

/// A background prepare beside a busy disk.
mod background;
/// Many processes, random verbs, signals, slow and failing devices, from a seed.
mod chaos;
/// Every cut of every verb with the priority and the legacy flag.
mod cuts;
/// Every cut of a prepare from a delta; bad sectors of its base.
mod deltas;
/// Every cut of every verb with EFI variables.
mod efi_cuts;
/// Every read, write and flush of every verb fails once.
mod faults;
/// An interrupted prepare continues where it stopped.
mod interrupted;
/// The cuts again, from the log of a real block device.
mod logged_device;
/// Deliberately wrong orders of writes, which the proofs must find.
mod mutants;
/// The recorded order of every scene's writes, and the tables of SAFETY.md.
mod orders;
/// Other orders of our own acts, made by rule: each is noticed, or known to be harmless.
mod other_orders;
/// The program killed at random, beside others, on loop devices.
mod processes;
/// A verb that refuses has written nothing.
mod refusals;
/// Full logs, closed pipes, few threads, little memory, hanging devices.
mod surroundings;
