//! The GPT and the devices below it, without power cuts of whole verbs. A test of table transactions goes to `gpt_*`, one that
//! needs devices of the kernel to the others.

#[path = "../harness/mod.rs"]
mod harness;

/// O_DIRECT, exclusive opens and flushes on real files and loop devices.
mod direct;
/// Disks that other tools and boards made, from installation to roll-back.
mod foreign_disks;
/// Every cut of a table transaction, for every reader.
mod gpt_cuts;
/// Writes and flushes that fail or are lost in the middle of a transaction.
mod gpt_faults;
/// Tables made by other tools: the choice of the valid copy, and foreign bytes that must not change.
mod gpt_foreign;
/// Tables as sgdisk, sfdisk, cgpt and the `gpt` crate read them.
mod gpt_judges;
/// Devices, partitions and their users, as the kernel reports them.
mod local;
/// Upgrades on loop devices with partition nodes.
mod loop_devices;
