//! Real boots in QEMU: boot loaders, firmware and kernels that nobody here wrote say what a commit was worth. One program
//! of tests, so that the machines run side by side.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod cuts;
mod efi;
#[path = "../gpt_common/mod.rs"]
mod gpt_common;
mod harness;
mod loaders;
mod procedures;
#[path = "../proof_common/mod.rs"]
mod proof_common;
mod select;
#[path = "../support/mod.rs"]
mod support;
