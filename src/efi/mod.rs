//! Selects the slot to boot by EFI variables: values in, values out. Nothing here writes a variable.
//!
//! # The contract
//! A platform slot is a FAT file system which carries a unified kernel image at the same path in both slots
//! (`efi_loader`; by default the path that firmware tries on its own, `\EFI\BOOT\BOOTX64.EFI`). So the loader of a
//! slot is written, signed, verified, torn and completed with its platform image, by the same writes. Rejected: one
//! ESP with a file per slot, because an upgrade would change a FAT that the running slot boots from, and FAT has no
//! order of writes that survives a power cut. Also rejected: an ESP per slot beside it, because two partitions
//! would have to be right at once.
//!
//! The entry of a slot is the `Boot####` variable whose device path names the slot's partition by its unique GUID,
//! as `HD(n,GPT,GUID,...)/File(path)`. Descriptions, which firmware and people change, do not matter. If a slot has
//! no entry (a new machine, a reset of the firmware's settings), one is made when it is first needed, as `qstage a`
//! or `qstage b`. If it has several, all are deactivated together, and one is selected.
//!
//! | variable (UEFI 2.10, 3.3) | role |
//! |---|---|
//! | `BootNext` | the trial: used for one boot; the firmware deletes it before it starts the entry |
//! | `BootOrder` | the good slot: the first entry of ours boots whenever there is no trial |
//! | `Boot####` | entries; ours is inactive while its slot is written |
//! | `BootCurrent` | the running entry |
//! | `LoaderDevicePartUUID` | which partition the kernel image came from, by systemd-stub |
//!
//! | operation | steps, each one SetVariable |
//! |---|---|
//! | withdraw  | the other slot is in `BootOrder`, the target is not; `BootNext` does not name it; its entries inactive |
//! | try       | the other slot is in `BootOrder`, the target is not; its entry active; **`BootNext` names it** |
//! | keep      | its entry active; **`BootOrder` begins with it**; `BootNext` names no other slot |
//! | leave     | `BootOrder` begins with the other one, and lacks it if it is bad; `BootNext` does not name it; if bad, inactive |
//!
//! Every other variable, the order of the foreign entries among themselves and each byte of an entry but its ACTIVE
//! bit stay as they are. Steps that would change nothing are left out.

mod boot;
mod load_option;
mod nvram;
mod plan;

pub use boot::EfiBoot;
pub use load_option::{HardDrive, LoadOption};
pub use nvram::{Name, Nvram, Variable};
pub use plan::{SetVariable, VariablePlan};

/// The loader that firmware tries on an unknown medium (UEFI 2.10, 3.5.1.1), for this architecture.
pub const fn default_loader() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "\\EFI\\BOOT\\BOOTAA64.EFI"
    } else if cfg!(target_arch = "riscv64") {
        "\\EFI\\BOOT\\BOOTRISCV64.EFI"
    } else {
        "\\EFI\\BOOT\\BOOTX64.EFI"
    }
}

#[cfg(test)]
mod tests;
