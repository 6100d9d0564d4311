//! Whole upgrades with real boots: stock boot loaders read the committed table, and Debian's kernel starts from the slot.

use crate::guests::slots::Loader;
use crate::guests::{Appliance, Machine, Tree, Vm, ready};

/// The harness by itself: Debian's kernel, an initramfs, the program in it.
#[test]
fn the_harness_boots_a_kernel_and_the_program() {
    let Some(inputs) = ready() else { return };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let initrd = dir.path().join("initrd");
    let init =
        "mount -t devtmpfs dev /dev; exec >/dev/console 2>&1\nqstage --version; echo it ends; poweroff -f\n";
    std::fs::write(&initrd, Tree::system(inputs).script("init", init).cpio()).unwrap();
    let mut vm = Machine::new().kernel(&inputs.kernel, &initrd, "quiet panic=-1").once().start();
    assert!(vm.wait("qstage 0").contains(concat!("qstage ", env!("CARGO_PKG_VERSION"))));
    println!("booted after {:?}", vm.age());
    vm.wait("it ends");
    vm.end();
}

/// Slot a stages 2.0 into slot b and commits; b boots and says so; then back. One machine, never switched off.
fn upgrade_and_back(mut vm: Vm) {
    let up = vm.wait("runs from");
    assert_eq!(up, "system 1.0 runs from /dev/vda1, platform_a");
    println!("slot a after {:?}", vm.age());
    vm.run("qstage prepare /mnt/2.0.qimg");
    assert!(vm.run("qstage commit").contains("slot b boots next"));
    println!("committed after {:?}", vm.age());
    vm.send("reboot -f");
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/vda2, platform_b");
    println!("slot b after {:?}", vm.age());
    vm.run("qstage mark-good");
    vm.run("qstage roll-back");
    vm.send("reboot -f");
    assert_eq!(vm.wait("runs from"), "system 1.0 runs from /dev/vda1, platform_a");
    println!("back after {:?}\n{}", vm.age(), vm.run("qstage slots"));
}

#[test]
fn u_boot_follows_the_legacy_flag_there_and_back() {
    let Some(inputs) = ready() else { return };
    let appliance = Appliance::new(inputs, Loader::UBoot, &[("1.0", ""), ("2.0", "")]);
    upgrade_and_back(appliance.machine().u_boot().start());
}

#[test]
#[ignore = "full: 80 s; the quick set boots with gptmbr once"]
fn syslinux_follows_the_legacy_flag_there_and_back() {
    let Some(inputs) = ready().filter(|_| crate::harness::machine::is_root()) else { return };
    let appliance = Appliance::new(inputs, Loader::Syslinux, &[("1.0", ""), ("2.0", "")]);
    upgrade_and_back(appliance.machine().start());
}

/// What was committed to an image on a bench boots by gptmbr and syslinux.
#[test]
fn syslinux_boots_what_was_committed_to_an_image() {
    let Some(inputs) = ready().filter(|_| crate::harness::machine::is_root()) else { return };
    let appliance = Appliance::new(inputs, Loader::Syslinux, &[("1.0", ""), ("2.0", "")]);
    let bench = &appliance.bench;
    bench.at(&["prepare", "2.0.qimg", "--booted", "a"]).good();
    bench.at(&["commit", "--booted", "a"]).good();
    let mut vm = appliance.machine().start();
    assert_eq!(vm.wait("runs from"), "system 2.0 runs from /dev/vda2, platform_b");
    vm.run("qstage mark-good");
}
