//! `qstage select` and `qstage-select` on disks in every state: they name the slot that other readers of the flags would
//! select, count its try if the disk is writable, and name the best slot if no flag selects one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::loops;
use crate::harness::machine;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use loops::{Loop, is_root, text};
use machine::{Bench, Run, tool};
use qstage::Error;
use qstage::host::kernel::Kernel;
use qstage::selector::{BootOrigin, find_disk};
use serde_json::{Value, json};

/// What the small program says, which must be what the large one says; of the first nothing may be written in between.
fn select(bench: &Bench, disk: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qstage-select"));
    command.args(["--json", "--disk", disk]).current_dir(bench.path("."));
    command.output().unwrap().into()
}

/// Slot and reason.
fn choice(run: Run) -> (String, String) {
    let told = run.json();
    let word = |key: &str| told[key].as_str().unwrap().to_owned();
    (word("slot"), word("reason"))
}

fn said(slot: &str, reason: &str) -> (String, String) {
    (slot.to_owned(), reason.to_owned())
}

/// A flag of a platform slot as cgpt shows it: P, T, S.
fn cgpt(bench: &Bench, slot: &str, flag: &str) -> u64 {
    let number = bench.slot(&format!("platform_{slot}"), &[])["partition"].to_string();
    let disk = bench.text("disk.img");
    tool("cgpt", &["show", "-i", &number, flag, &disk]).trim().parse().unwrap()
}

fn set(bench: &Bench, slot: &str, (priority, tries, successful): (u64, u64, u64)) {
    let number = bench.slot(&format!("platform_{slot}"), &[])["partition"].to_string();
    let [p, t, s] = [priority, tries, successful].map(|n| n.to_string());
    tool("cgpt", &["add", "-i", &number, "-P", &p, "-T", &t, "-S", &s, &bench.text("disk.img")]);
}

fn on_trial() -> Bench {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    bench
}

#[test]
fn a_trial_is_counted_and_runs_out() {
    let bench = on_trial();
    let disk = bench.text("disk.img");
    for left in [2, 1, 0] {
        let told = if left == 1 { bench.at(&["select", "--json"]) } else { select(&bench, &disk) }.json();
        let (at, size) = bench.extent("platform_b");
        assert_eq!(
            (&told["slot"], &told["reason"], &told["tries_left"]),
            (&json!("b"), &json!("trial"), &json!(left))
        );
        let slot = bench.slot("platform_b", &[]);
        let place = &told["platform"];
        assert_eq!((&place["partuuid"], &place["number"]), (&slot["partuuid"], &slot["partition"]));
        assert_eq!(
            (&place["offset"], &place["size"], &place["node"]),
            (&json!(at), &json!(size), &Value::Null)
        );
        assert_eq!((cgpt(&bench, "b", "-T"), cgpt(&bench, "b", "-P"), cgpt(&bench, "b", "-S")), (left, 2, 0));
        tool("sgdisk", &["--verify", &disk]);
    }
    let before = bench.hash();
    for _ in 0..2 {
        assert_eq!(choice(select(&bench, &disk)), said("a", "good"));
        assert_eq!(bench.hash(), before, "a good slot is not written");
    }
    // The slot that was marked good in its last try is good.
    bench.at(&["mark-good", "--booted", "b"]).good();
    assert_eq!(choice(select(&bench, &disk)), said("b", "good"));
}

/// As cgpt writes the flags, ours reads them, for `cgpt prioritize` too.
#[test]
fn flags_of_cgpt_are_followed() {
    let bench = Bench::installed();
    let disk = bench.text("disk.img");
    let cases = [
        ((1, 0, 1), (2, 0, 1), "b"),
        ((15, 0, 1), (15, 0, 1), "a"),
        ((15, 0, 0), (1, 0, 1), "b"),
        ((3, 1, 0), (2, 0, 1), "a"),
        ((0, 15, 1), (1, 1, 0), "b"),
        ((4, 0, 1), (5, 15, 0), "b"),
    ];
    for (a, b, expected) in cases {
        set(&bench, "a", a);
        set(&bench, "b", b);
        let (slot, _) = choice(select(&bench, &disk));
        assert_eq!(slot, expected, "{a:?} {b:?}");
        let tries = |slot: &str, was: (u64, u64, u64)| was.1 - u64::from(slot == expected && was.2 == 0);
        assert_eq!((cgpt(&bench, "a", "-T"), cgpt(&bench, "b", "-T")), (tries("a", a), tries("b", b)));
    }
    for slot in ["a", "b", "a"] {
        set(&bench, "a", (1, 0, 1));
        set(&bench, "b", (1, 0, 1));
        let number = bench.slot(&format!("platform_{slot}"), &[])["partition"].to_string();
        // It makes the type of the partition one of ChromeOS', which is what it ranks; the type is nothing to us.
        tool("cgpt", &["add", "-i", "1", "-t", "kernel", &disk]);
        tool("cgpt", &["add", "-i", "2", "-t", "kernel", &disk]);
        tool("cgpt", &["prioritize", "-i", &number, &disk]);
        assert_eq!(choice(select(&bench, &disk)).0, slot);
    }
}

#[test]
fn one_copy_of_the_table_is_enough_and_the_other_is_repaired() {
    let bench = on_trial();
    let disk = bench.text("disk.img");
    let len = fs::metadata(bench.disk()).unwrap().len();
    for (at, left) in [(512, 2), (len - 512, 1)] {
        bench.poke(at, &[0; 512]);
        let run = select(&bench, &disk);
        assert!(run.err.contains("not both sound") && run.err.contains("repaired"), "{}", run.err);
        assert_eq!(run.json()["tries_left"], left);
        let verified = tool("sgdisk", &["--verify", &disk]);
        assert!(verified.contains("No problems found"), "{verified}");
    }
    bench.poke(512, &[0; 512]);
    bench.poke(len - 512, &[0; 512]);
    let run: Run = select(&bench, &disk);
    assert_eq!(run.code, Some(6));
    bench.at(&["select"]).bad("GPT_DAMAGED");
}

#[test]
fn without_flags_the_best_slot_is_named_and_nothing_written() {
    let bench = on_trial();
    let disk = bench.text("disk.img");
    let expect = |slot: &str, why: &str| {
        let before = bench.hash();
        assert_eq!(choice(select(&bench, &disk)), said(slot, "rescue"), "{why}");
        assert_eq!(bench.hash(), before);
    };
    set(&bench, "a", (1, 0, 0));
    set(&bench, "b", (2, 0, 0));
    expect("a", "the factory marked it good, b was only tried");
    // The last 8 KiB of a slot are its mark and its footer.
    let (at, size) = bench.extent("platform_a");
    bench.poke(at + size - 8192, &[0; 4096]);
    expect("b", "none is good: of two that were tried the higher priority");
    set(&bench, "b", (0, 0, 0));
    expect("b", "whole and never tried");
    set(&bench, "a", (0, 0, 0));
    expect("a", "of equals slot a");
    bench.poke(at + size - 4096, &[0; 4096]);
    expect("b", "the only one with a record");
    let (at, size) = bench.extent("platform_b");
    bench.poke(at + size - 4096, &[0; 4096]);
    expect("a", "no record anywhere");
}

/// A good slot boots by its flags although its record is void, and a slot that has no partner is started too.
#[test]
fn a_void_record_and_a_missing_partner_do_not_matter() {
    let bench = Bench::installed();
    let disk = bench.text("disk.img");
    bench.blank("platform_a");
    assert_eq!(choice(select(&bench, &disk)), said("a", "good"));
    let number = bench.slot("platform_b", &[])["partition"].to_string();
    tool("sgdisk", &["--delete", &number, &disk]);
    assert_eq!(choice(select(&bench, &disk)), said("a", "good"));
    let number = if number == "1" { "2" } else { "1" };
    tool("sgdisk", &["--delete", number, &disk]);
    bench.at(&["select"]).bad("SLOT_MISSING");
}

/// A try that cannot be counted could be made for ever: the good slot starts instead.
#[test]
fn a_disk_that_takes_no_writes_boots_the_good_slot() {
    if !is_root() {
        return;
    }
    let bench = on_trial();
    let node = Loop::new(&bench.disk(), 512, &["--read-only"]);
    let run = select(&bench, text(&node.0));
    assert!(run.err.contains("read-only") && run.err.contains("try cannot be counted"), "{}", run.err);
    assert_eq!(choice(run), said("a", "good"));
    set(&bench, "a", (1, 0, 0));
    assert_eq!(choice(select(&bench, text(&node.0))), said("b", "uncounted"));
    assert_eq!(cgpt(&bench, "b", "-T"), 3);
}

/// The device node is reported if the kernel has one.
#[test]
fn nodes_of_the_kernel_are_named() {
    if !is_root() {
        return;
    }
    let bench = on_trial();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    disk.nodes();
    let told = select(&bench, text(&disk.0)).json();
    assert_eq!(
        told["platform"]["node"],
        text(&disk.node(told["platform"]["number"].as_u64().unwrap() as u32))
    );
}

/// Verbs that only look need no --disk: they take the disk that the selector would take. The machine of the test has two disks
/// with slots, and the kernel shows no other ones.
#[test]
fn verbs_that_look_find_the_disk_of_the_selector() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    fs::copy(bench.disk(), bench.path("clone.img")).unwrap();
    tool("sgdisk", &["--randomize-guids", &bench.text("clone.img")]);
    let disks = [Loop::new(&bench.disk(), 512, &[]), Loop::new(&bench.path("clone.img"), 512, &[])];
    let block = bench.path("block");
    fs::create_dir(&block).unwrap();
    let names = disks.each_ref().map(|disk| disk.0.file_name().unwrap().to_str().unwrap().to_owned());
    for name in &names {
        symlink(fs::canonicalize(format!("/sys/block/{name}")).unwrap(), block.join(name)).unwrap();
    }
    let run = |words: &str| -> Run {
        let script = "mount --bind \"$BLOCK\" /sys/block && exec \"$QSTAGE\" $WORDS -v --state-dir state";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.env("BLOCK", &block).env("QSTAGE", env!("CARGO_BIN_EXE_qstage")).env("WORDS", words);
        command.env_remove("QSTAGE_DISK").current_dir(bench.path(".")).output().unwrap().into()
    };
    let selected = run("select --dry-run");
    let taken = |name: &&String| selected.err.contains(&format!("{name} is taken: "));
    let disk = format!("/dev/{}", names.iter().find(taken).unwrap_or_else(|| panic!("{}", selected.err)));
    assert!(selected.err.contains(&format!("partition table of {disk}")), "{}", selected.err);
    selected.good();
    assert_eq!(run("slots --json").json()["disk"], disk.as_str());
    for words in ["slots", "status", "status --human"] {
        let told = run(words);
        assert!(told.err.contains(&format!("{disk} is taken: ")), "{words}: {}", told.err);
        assert!(told.err.contains(&format!("partition table of {disk}")), "{words}: {}", told.err);
        told.good();
    }
    // A GUID names one of them, and is a hint for both.
    for (name, image) in names.iter().zip(["disk.img", "clone.img"]) {
        let about = tool("sgdisk", &["--print", &bench.text(image)]);
        let guid = about.lines().find_map(|line| line.strip_prefix("Disk identifier (GUID): ")).unwrap();
        let told = run(&format!("slots --json --disk {}", guid.trim()));
        assert_eq!(told.json()["disk"], format!("/dev/{name}"));
    }
    // A verb that changes something wants the disk to be named.
    run("cancel").bad("ARGUMENT");
}

#[test]
fn software_goes_with_the_platform() {
    let bench = Bench::installed_with_software();
    let disk = bench.text("disk.img");
    let pair = || {
        let told = select(&bench, &disk).json();
        (told["platform"]["name"].clone(), told["software"]["name"].clone())
    };
    assert_eq!(pair(), (json!("platform_a"), json!("software_a")));
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    for _ in 0..3 {
        assert_eq!(pair(), (json!("platform_b"), json!("software_b")));
    }
    // The flags of the software still select b, whose platform fell back.
    assert_eq!(pair(), (json!("platform_a"), json!("software_a")));
}

#[test]
fn the_lines_are_safe_to_evaluate() {
    let bench = on_trial();
    let odd = "it's; $(touch hit) `touch hit` \"x\".img";
    fs::rename(bench.disk(), bench.path(odd)).unwrap();
    let mut command = Command::new("sh");
    command.current_dir(bench.path(".")).env("DISK", odd).env("SELECT", env!("CARGO_BIN_EXE_qstage-select"));
    let script = r#"set -eu; lines=$("$SELECT" --disk "$DISK"); eval "$lines"
        printf '%s|' "$QSTAGE_SLOT" "$QSTAGE_REASON" "$QSTAGE_TRIES_LEFT" "$QSTAGE_DISK" "$QSTAGE_PLATFORM" \
          "$QSTAGE_PLATFORM_NODE" "$QSTAGE_PLATFORM_NUMBER" "$QSTAGE_SOFTWARE" "$QSTAGE_SOFTWARE_SIZE""#;
    let run: Run = command.args(["-c", script]).output().unwrap().into();
    assert_eq!(run.good(), format!("b|trial|2|{odd}|platform_b||2|||"));
    assert!(!bench.path("hit").exists());
}

#[test]
fn who_reads_the_flags_needs_no_selector() {
    let bench = Bench::installed();
    let text = bench.at(&["select", "--boot-flag", "legacy"]).bad("SELECTOR_UNUSED");
    assert!(text.contains("'legacy'") && text.contains("not used"), "{text}");
}

#[test]
fn the_small_program_explains_itself() {
    let small = |args: &[&str]| -> Run {
        Command::new(env!("CARGO_BIN_EXE_qstage-select")).args(args).output().unwrap().into()
    };
    assert!(small(&["--help"]).good().contains("--disk DISK"));
    assert!(small(&["--version"]).good().starts_with("qstage-select "));
    small(&["--dusk"]).bad("ARGUMENT");
    small(&["--disk", "/dev/null"]).bad("OPEN");
}

/// A machine of which only these disks are known. Not the real one: its disks may be in use.
fn machine(bench: &Bench, disks: &[(&str, Option<&Path>)]) -> Kernel {
    let [sys, dev] = ["sys", "dev"].map(|name| bench.path(name));
    let _ = (fs::remove_dir_all(&sys), fs::remove_dir_all(&dev));
    fs::create_dir_all(sys.join("block")).unwrap();
    fs::create_dir_all(&dev).unwrap();
    for (name, file) in disks {
        let dir = sys.join("block").join(name);
        fs::create_dir_all(dir.join("holders")).unwrap();
        fs::write(dir.join("size"), "16384\n").unwrap();
        fs::write(dir.join("removable"), if name.contains("stick") { "1\n" } else { "0\n" }).unwrap();
        fs::write(dir.join("dev"), "8:0\n").unwrap();
        fs::write(dir.join("uevent"), format!("DEVNAME={name}\n")).unwrap();
        file.map(|file| symlink(file, dev.join(name)).unwrap());
    }
    Kernel { proc: bench.path("proc"), sys, dev }
}

#[test]
fn the_disk_is_found_by_its_partitions() {
    let bench = Bench::installed();
    let disk = bench.disk();
    fs::copy(&disk, bench.path("clone.img")).unwrap();
    fs::write(bench.path("blank.img"), vec![0; 1 << 20]).unwrap();
    let (clone, blank) = (bench.path("clone.img"), bench.path("blank.img"));
    let notes = std::cell::RefCell::new(Vec::new());
    let find = |disks: &[(&str, Option<&Path>)]| {
        notes.borrow_mut().clear();
        let note = |text: &str| notes.borrow_mut().push(text.to_owned());
        find_disk(&machine(&bench, disks), &BootOrigin::default(), &note)
    };
    let found = find(&[("sda", Some(&blank)), ("sr0", None), ("vda", Some(&disk))]).unwrap();
    assert!(found.ends_with("vda"), "{found:?}");
    match find(&[("sda", Some(&blank)), ("sr0", None)]).unwrap_err() {
        Error::NoDisk { read } => assert!(read.contains("sda") && read.contains("sr0"), "{read}"),
        other => panic!("{other}"),
    }
    assert!(notes.borrow().is_empty(), "{notes:?}");
    // A copy on a stick comes up first: the internal disk boots, and what was seen is said.
    let found = find(&[("sda-stick", Some(&clone)), ("sdb", Some(&disk))]).unwrap();
    assert!(found.ends_with("sdb"), "{found:?}");
    let said = notes.borrow().join("; ");
    assert!(
        said.contains("sdb is taken: it is not removable") && said.contains("the same PARTUUID"),
        "{said}"
    );
    assert!(find(&[("sda-stick", Some(&clone))]).unwrap().ends_with("sda-stick"));
    // The paths of one disk under multipath hold the same table; it stands for them.
    let kernel = machine(&bench, &[("dm-0", Some(&disk)), ("sda", Some(&disk)), ("sdb", Some(&disk))]);
    for path in ["sda", "sdb"] {
        fs::create_dir(bench.path(&format!("sys/block/{path}/holders/dm-0"))).unwrap();
    }
    assert!(find_disk(&kernel, &BootOrigin::default(), &|_| ()).unwrap().ends_with("dm-0"));
    // With the primary table gone Linux shows no partitions; the disk is found all the same.
    let mut bytes = fs::read(&clone).unwrap();
    bytes[512..1024].fill(0);
    fs::write(&clone, bytes).unwrap();
    assert!(find(&[("sdb", Some(&clone))]).is_ok());
}
