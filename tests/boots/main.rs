//! Real boots in QEMU: independent boot loaders, UEFI implementations and kernels judge the result of a commit. The long ones
//! are marked as ignored and run by `scripts/test --full`. A new boot loader goes to `loaders`, its image to `guests::slots`.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../harness/mod.rs"]
mod harness;

/// States of the power-cut proof, as real loaders read them.
mod cuts;
/// Boots by UEFI.
mod efi;
/// Virtual machines, and the images that they boot.
mod guests;
/// Whole upgrades with stock boot loaders.
mod loaders;
/// The device mapper: kpartx, multipath, and what others map.
mod mapper;
/// Safe and unsafe procedures for the write of a table, for `cuts`.
mod procedures;
/// The selector in an initramfs.
mod select;
