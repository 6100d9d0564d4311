//! Real boots in QEMU: boot loaders, firmware and kernels that nobody here wrote judge what a commit was worth. The long
//! ones are marked as ignored and run by `scripts/test --full`.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../harness/mod.rs"]
mod harness;

/// States of the power-cut proof, as real loaders read them.
mod cuts;
/// UEFI firmware.
mod efi;
/// Virtual machines and what they boot.
mod guests;
/// Stock boot loaders.
mod loaders;
/// The device mapper: kpartx, multipath, and what others map.
mod mapper;
/// Functions of the kernel's and the firmware's readers.
mod procedures;
/// The selector in an initramfs.
mod select;
