//! The program as installed, on a block device of the kernel that logs its requests: the order of writes and flushes is
//! recorded from outside, below page cache, loop device and FUSE. Every cut of that log is judged as in cuts.rs; then the
//! device fails at each sector in turn.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod device;
use crate::harness::machine;
use crate::harness::proof;
use crate::harness::tables;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use device::{Fault, Logged};
use proof::cuts::{Report, Rules, judge};
use proof::scenes::{AA, BB, releases};
use proof::{Site, boots, factory, key};
use qstage::boot::BootFlag;
use qstage::units::Slot;
use tables::{Op, Reader};

/// A directory with bundle, keys and configuration, and the disk with 1.0 in slot a.
fn bench() -> Option<(tempfile::TempDir, Vec<u8>)> {
    if !machine::is_root() {
        return None;
    }
    if !Path::new("/usr/bin/qemu-storage-daemon").exists() {
        assert!(std::env::var_os("CI").is_none(), "CI has qemu-storage-daemon");
        eprintln!("SKIPPED: needs qemu-storage-daemon (apt-get install qemu-system-common)");
        return None;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let releases = releases();
    fs::write(dir.path().join("v2.qimg"), &*releases.v2).unwrap();
    let line = format!("release@example.org {}\n", key().public_key().to_openssh().unwrap());
    fs::write(dir.path().join("allowed_signers"), line).unwrap();
    fs::write(dir.path().join("config.toml"), "trust = \"allowed_signers\"\nstate_dir = \"state\"\n")
        .unwrap();
    Some((dir, factory(512, BootFlag::Priority, &releases.v1)))
}

/// Runs a verb of the program, from slot a, on a device; whether it succeeded, and what it said.
fn run(dir: &Path, device: &Logged, verb: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_qstage"))
        .args(verb)
        .args(["--config", "config.toml", "--booted", "a", "--disk", device.node()])
        .current_dir(dir)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

const PREPARE: &[&str] = &["prepare", "v2.qimg"];
const COMMIT: &[&str] = &["commit"];

/// Runs a verb on a device without faults; returns the disk below it and the log.
fn recorded(dir: &Path, image: &[u8], verb: &[&str]) -> (Vec<u8>, Vec<Op>) {
    let device = Logged::new(dir, image, Fault::None);
    let (good, said) = run(dir, &device, verb);
    assert!(good, "{verb:?}: {said}");
    let (after, ops) = device.end_with_log();
    // The log is complete: replayed over the old disk it gives the new one.
    let mut replayed = image.to_vec();
    for op in &ops {
        if let Op::Write(at, bytes) = op {
            replayed[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }
    assert!(replayed == after, "the log of {verb:?} is not complete");
    (after, ops)
}

fn rules(commit: bool) -> Rules<'static> {
    Rules {
        block: 512,
        site: Site::new(Slot::A, BootFlag::Priority),
        choices: if commit { vec![AA, BB] } else { vec![AA] },
        prepared: vec!["2.0"],
        targets: vec!["platform_b", "software_b"],
        marked: vec![],
        readers: vec![Reader::Fallback, Reader::Strict, Reader::Lenient],
        thorough: false,
        next: None,
    }
}

fn told(verb: &str, ops: &[Op], report: &Report) {
    let flushes = ops.iter().filter(|op| matches!(op, Op::Sync)).count();
    println!(
        "{verb}: {} writes and {flushes} flushes logged, {} states, {} distinct tables and records",
        ops.len() - flushes,
        report.states,
        report.distinct
    );
}

#[test]
fn every_cut_of_what_reached_the_device_is_harmless() {
    let Some((dir, factory)) = bench() else { return };
    let (prepared, ops) = recorded(dir.path(), &factory, PREPARE);
    let report = judge(&factory, &ops, &rules(false));
    told("prepare", &ops, &report);
    assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
    let (committed, ops) = recorded(dir.path(), &prepared, COMMIT);
    let report = judge(&prepared, &ops, &rules(true));
    told("commit", &ops, &report);
    assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
    assert_eq!(boots(&committed, 512, BootFlag::Priority, Reader::Strict), Some(BB));
    // The judge detects the same log without its flushes.
    let careless: Vec<Op> = ops.into_iter().filter(|op| !matches!(op, Op::Sync)).collect();
    assert!(!judge(&prepared, &careless, &rules(true)).wrong.is_empty(), "nobody needs the flushes");
}

#[test]
fn a_sector_that_cannot_be_written_costs_nothing() {
    let Some((dir, factory)) = bench() else { return };
    let (prepared, ops) = recorded(dir.path(), &factory, PREPARE);
    let (_, commit) = recorded(dir.path(), &prepared, COMMIT);
    let sectors = |ops: &[Op]| -> BTreeSet<u64> {
        let of = |op: &Op| match op {
            Op::Write(at, bytes) => at / 512..(at + bytes.len() as u64) / 512,
            Op::Sync => 0..0,
        };
        ops.iter().flat_map(of).collect()
    };
    // Of a prepare one sector in 40: it writes the frames of two images.
    let (staged, switched) = (sectors(&ops), sectors(&commit));
    let some = staged.iter().step_by(40).map(|sector| (PREPARE, &factory, Fault::Write(*sector)));
    let all = switched.iter().map(|sector| (COMMIT, &prepared, Fault::Write(*sector)));
    let flushes = [(PREPARE, &factory, Fault::Flush), (COMMIT, &prepared, Fault::Flush)];
    let mut count = 0;
    for (verb, before, fault) in some.chain(all).chain(flushes) {
        let device = Logged::new(dir.path(), before, fault);
        let (good, said) = run(dir.path(), &device, verb);
        let after = device.end();
        assert!(!good && said.contains("[UPGRADE_ERROR_"), "{verb:?}, {fault:?}: {said}");
        for reader in [Reader::Fallback, Reader::Strict, Reader::Lenient] {
            let got = boots(&after, 512, BootFlag::Priority, reader);
            let expected = if verb == COMMIT { got == Some(AA) || got == Some(BB) } else { got == Some(AA) };
            assert!(expected, "{verb:?}, {fault:?}: {reader:?} boots {got:?}");
        }
        // On a disk that works again it goes on from there.
        if count % 8 == 0 {
            let device = Logged::new(dir.path(), &after, Fault::None);
            if verb == PREPARE {
                let (good, said) = run(dir.path(), &device, PREPARE);
                assert!(good, "prepare after {fault:?}: {said}");
            }
            let (good, said) = run(dir.path(), &device, COMMIT);
            assert!(good || said.contains("already committed"), "commit after {fault:?}: {said}");
            let end = device.end();
            assert_eq!(boots(&end, 512, BootFlag::Priority, Reader::Strict), Some(BB), "{fault:?}");
        }
        count += 1;
    }
    println!("{count} faults");
    assert!(count > 80, "{count}");
}
