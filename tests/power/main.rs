//! Power cuts and failures: what is true after any instant at which the machine stops, a call fails or a process is killed.
//! A new verb gets a scene in `harness/proof/scenes.rs` and so joins `cuts`, `mutants`, `orders` and `faults`.

#[path = "../harness/mod.rs"]
mod harness;

/// Many processes, random verbs, signals, slow and failing devices, from a seed.
mod chaos;
/// A background prepare beside a busy disk.
mod courtesy;
/// Every cut of every verb on the priority and the legacy flag.
mod cuts;
/// Every cut of every verb where EFI variables take part.
mod efi_cuts;
/// Every read, write and flush of every verb fails once.
mod faults;
/// A prepare that was interrupted goes on where it stopped.
mod interrupted;
/// The cuts once more, from the log of a real block device.
mod logged_device;
/// Orders that are wrong on purpose are found by the proofs.
mod mutants;
/// The recorded operations of every scene, and the tables of SAFETY.md.
mod orders;
/// The program killed at random, beside others, on loop devices.
mod processes;
/// A verb that refuses has written nothing.
mod refusals;
/// Full logs, closed pipes, few threads, little memory, hanging devices.
mod surroundings;
