//! The GPT and the devices below it, without power cuts of whole verbs. Transactions on the table go to `gpt_*`, what the
//! kernel takes part in goes to the others.

#[path = "../harness/mod.rs"]
mod harness;

/// O_DIRECT, exclusive opening and flushes on real files and loop devices.
mod direct;
/// Disks that other tools and boards made, from installation to roll-back.
mod foreign_disks;
/// Every cut of a table transaction, for every reader.
mod gpt_cuts;
/// Writes and flushes that fail or are lost in the middle of a transaction.
mod gpt_faults;
/// Which copy is the table, and whose bytes are left alone.
mod gpt_foreign;
/// Tables as sgdisk, sfdisk, cgpt and the `gpt` crate read them.
mod gpt_judges;
/// What the kernel says of devices, partitions and their use.
mod local;
/// Upgrades on loop devices with partition nodes.
mod loop_devices;
