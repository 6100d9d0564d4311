//! Real boots: QEMU (by software emulation, which runs everywhere), stock boot loaders, Debian's kernel, busybox.
//!
//! ```text
//! inputs     the kernel and its modules, the stripped program: fetched once, kept in target/boots
//! tree       files of a small system: as an initramfs (cpio) or as an ext4 image
//! vm         one QEMU: drives, console, deadlines; it ends with its value
//! slots      images of platform slots that U-Boot or syslinux boot
//! readers    real readers of a partition table, run on a disk image
//! appliance  bundles of them, and a disk with one installed
//! uefi       the same for UEFI, which starts a slot by itself: OVMF, unified kernel images
//! ```
//!
//! Packages: qemu-system-x86 qemu-utils busybox-static u-boot-qemu u-boot-tools syslinux-common extlinux e2fsprogs.
#![allow(unreachable_pub, reason = "a module of tests")]

pub mod appliance;
pub mod inputs;
pub mod readers;
pub mod slots;
pub mod tree;
pub mod uefi;
pub mod vm;

use std::path::PathBuf;
use std::process::Command;

pub use appliance::Appliance;
pub use inputs::Inputs;
pub use tree::Tree;
pub use vm::{Bus, Machine, Vm};

/// The tools that every boot needs, and the packages that bring them.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("mkimage", "u-boot-tools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("strip", "binutils"),
    ("setpriv", "util-linux"),
];

/// The inputs of real boots; `None`, said loudly, where this machine has no QEMU. In CI that is a failure.
pub fn ready() -> Option<&'static Inputs> {
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| which(tool).is_none()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Some(Inputs::get());
    }
    assert!(std::env::var_os("CI").is_none(), "CI boots machines; missing packages: {missing:?}");
    eprintln!("SKIPPED: real boots need the packages {missing:?}");
    None
}

/// Where a program is; sbin counts, which is not in everybody's PATH on Debian.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a tool and gives what it prints; its failure is the test's.
pub fn tool(program: &str, args: &[&str]) -> String {
    let path = which(program).unwrap_or_else(|| panic!("{program} is not installed"));
    let output = Command::new(path).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
