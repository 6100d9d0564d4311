//! The third boot flag with a real UEFI implementation: OVMF starts the slot that BootNext and BootOrder select, and nothing
//! else decides.

use std::fs;

use crate::guests::uefi::{LIMIT, Uefi, ready};
use crate::guests::{Vm, tool};

const A: &str = "system 1.0 runs from platform_a";
const B: &str = "system 2.0 runs from platform_b";

fn reboot(vm: &mut Vm, uefi: &Uefi, expected: &str) {
    vm.send("reboot -f");
    assert_eq!(uefi.up(vm), expected);
    println!("{expected} after {:?}", vm.age());
}

fn upgrade(vm: &mut Vm) {
    vm.run("qstage prepare /mnt/2.0.qimg --jobs 1");
    let said = vm.run("qstage commit");
    assert!(said.contains("slot b boots next") && said.contains("BootNext"), "{said}");
    println!("committed after {:?}", vm.age());
}

fn state(vm: &mut Vm) -> String {
    let slots = vm.run("qstage slots --json");
    let slots: serde_json::Value = serde_json::from_str(slots.lines().last().unwrap()).unwrap();
    let rows = slots["slots"].as_array().unwrap().iter();
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.map(|row| word(&row["state"])).collect::<Vec<_>>().join(" ")
}

/// A new machine, of whose slots the firmware knows nothing: the trial takes one boot, and the next one is the old
/// system's, without any action.
#[test]
fn a_trial_is_one_boot_and_the_firmware_falls_back() {
    let Some(inputs) = ready() else { return };
    let uefi = Uefi::new(inputs, &[("1.0", ""), ("2.0", "")]);
    let mut vm = uefi.machine().start();
    assert_eq!(uefi.up(&mut vm), A);
    println!("up after {:?}", vm.age());
    upgrade(&mut vm);
    assert_eq!(state(&mut vm), "good trial");
    reboot(&mut vm, &uefi, B);
    assert_eq!(state(&mut vm), "good trial");
    reboot(&mut vm, &uefi, A);
    assert_eq!(state(&mut vm), "good bad");
    let status = vm.run("qstage status");
    assert!(
        status.contains("2.0 in platform_b did not come up") && status.contains("its one boot is over"),
        "{status}"
    );
}

#[test]
#[ignore = "full: 90 s; the quick set has one trial that falls back"]
fn what_was_marked_good_stays_and_a_roll_back_leads_back() {
    let Some(inputs) = ready() else { return };
    let uefi = Uefi::new(inputs, &[("1.0", ""), ("2.0", "")]);
    let mut vm = uefi.machine().start();
    assert_eq!(uefi.up(&mut vm), A);
    upgrade(&mut vm);
    // The power goes right after the commit was reported: it is in the firmware's memory.
    vm.cut();
    let mut vm = uefi.machine().start();
    assert_eq!(uefi.up(&mut vm), B);
    vm.run("qstage mark-good");
    assert_eq!(state(&mut vm), "good good");
    reboot(&mut vm, &uefi, B);
    vm.run("qstage mark-good");
    vm.run("qstage roll-back");
    reboot(&mut vm, &uefi, A);
    assert_eq!(state(&mut vm), "good good");
    // Cancelled before its reboot, it is as if it had never been.
    upgrade(&mut vm);
    vm.run("qstage cancel");
    reboot(&mut vm, &uefi, A);
    assert_eq!(state(&mut vm), "good empty");
}

#[test]
#[ignore = "full: 60 s; the quick set has a trial that nobody ended"]
fn a_release_that_panics_is_left_at_once() {
    let Some(inputs) = ready() else { return };
    let uefi = Uefi::new(inputs, &[("1.0", ""), ("2.0", "echo it falls; exit 1\n")]);
    let mut vm = uefi.machine().start();
    assert_eq!(uefi.up(&mut vm), A);
    upgrade(&mut vm);
    vm.send("reboot -f");
    assert!(vm.wait_within(LIMIT, &["it falls"]).is_some(), "{}", vm.text());
    // The kernel panics, and reboots without a prompt.
    assert_eq!(uefi.up(&mut vm), A);
    assert_eq!(state(&mut vm), "good bad");
    assert!(vm.run("qstage status").contains("its one boot is over"));
    // A kernel image that firmware cannot load: the very same boot goes on to the old one.
    vm.run("qstage commit --retry");
    vm.run("dd if=/dev/zero of=/dev/nvme0n1p2 bs=1M count=40 2>/dev/null; sync");
    reboot(&mut vm, &uefi, A);
    assert_eq!(state(&mut vm), "good bad");
}

/// OVMF repairs a table of which one copy is bad, and then puts the primary array back to block 2, whatever it was.
#[test]
#[ignore = "full: 60 s; no firmware is needed to read a moved array"]
fn what_the_firmware_does_to_the_table_is_survived() {
    let Some(inputs) = ready() else { return };
    let uefi = Uefi::new(inputs, &[("1.0", ""), ("2.0", "")]);
    let (bench, disk) = (&uefi.bench, uefi.bench.text("disk.img"));
    let array = || {
        let image = fs::read(bench.disk()).unwrap();
        u64::from_le_bytes(image[512 + 72..512 + 80].try_into().unwrap())
    };
    // Flags in the table, so that a switch writes it; with two good slots there is always one more.
    let flags = ["--boot-flag", "priority", "--booted", "a"];
    let table = |words: &[&str]| bench.at(&[words, &flags].concat());
    table(&["mark-good", "--slot", "a"]).good();
    table(&["prepare", "2.0.qimg"]).good();
    table(&["commit"]).good();
    table(&["mark-good", "--slot", "b"]).good();
    let end = fs::metadata(bench.disk()).unwrap().len();
    for broken in ["nothing", "primary header", "primary array", "backup header"] {
        // Where a cut, version 0.1 or another tool may leave it: our own switches bring it home.
        let moved = 128;
        tool("sgdisk", &["-j", &moved.to_string(), &disk]);
        assert_eq!(array(), moved, "the array lies elsewhere");
        let at = match broken {
            "primary header" => Some(512),
            "primary array" => Some(moved * 512),
            "backup header" => Some(end - 512),
            _ => None,
        };
        if let Some(at) = at {
            bench.poke(at, &[0x5a; 300]);
        }
        let mut vm = uefi.machine().start();
        assert_eq!(uefi.up(&mut vm), A);
        let slots = vm.run("qstage slots");
        println!("{broken} broken: array at {moved} before, {} after\n{slots}", array());
        // In the guest, over the table as the firmware left it: a switch of the table.
        assert!(vm.run(&format!("qstage roll-back {}", flags.join(" "))).contains("rolled back"));
        vm.run("sync");
        vm.cut();
        let text = tool("sgdisk", &["--verify", &disk]);
        assert!(text.contains("No problems found"), "{broken} broken: {text}");
        table(&["slots"]).good();
    }
}
