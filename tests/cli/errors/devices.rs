//! Devices that cannot be written at the moment; with real loop devices and file systems.

use std::fs;

use crate::harness::loops::{Loop, Mount, forget, is_root, run, sparse, text};
use crate::harness::machine::{Bench, MIB};

#[test]
fn a_disk_that_is_read_only() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let disk = Loop::new(&bench.disk(), 512, &["--read-only"]);
    let before = bench.hash();
    let on = ["--disk", text(&disk.0), "--booted", "a"];
    let message = bench.at(&[&["prepare", "v2.qimg"], &on[..]].concat()).bad("READ_ONLY");
    assert!(message.contains(text(&disk.0)) && message.contains("make it writable"), "{message}");
    for verb in ["commit", "cancel", "mark-good", "roll-back"] {
        bench.at(&[&[verb], &on[..]].concat()).bad("READ_ONLY");
    }
    bench.at(&["init", text(&disk.0), "--force"]).bad("READ_ONLY");
    // Who only looks needs no more.
    bench.at(&[&["plan", "v2.qimg"], &on[..]].concat()).good();
    bench.at(&[&["verify", "--slot", "a"], &on[..]].concat()).good();
    assert_eq!(bench.hash(), before);
}

/// A sparse image on a file system that cannot hold what it promises.
#[test]
fn a_file_system_that_is_full() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let outer = Loop::new(&sparse(&bench.path("outer"), 24 * MIB), 512, &[]);
    run("mkfs.ext4", &["-q", "-O", "^has_journal", text(&outer.0)]);
    let at = bench.path("mnt");
    let _mount = Mount::new(&outer.0, &at, "rw");
    run("cp", &["--sparse=always", text(&bench.disk()), text(&at.join("disk.img"))]);
    bench.config(&format!("disk = \"{}\"\n", at.join("disk.img").display()));
    // Leave less than the new image takes.
    let free: u64 = run("stat", &["-f", "-c", "%a", text(&at)]).parse().unwrap();
    let unit: u64 = run("stat", &["-f", "-c", "%S", text(&at)]).parse().unwrap();
    fs::write(at.join("ballast"), vec![1; (free * unit - MIB) as usize]).unwrap();
    let message = bench.at(&["prepare", "v2.qimg"]).bad("NO_SPACE");
    assert!(message.contains("platform_b") && message.contains("free some"), "{message}");
    assert_eq!(bench.state("platform_a", &[]), "good");
    assert_eq!(bench.slot("platform_a", &[])["boots_next"], true);
    bench.at(&["verify", "--slot", "a"]).good();
    fs::remove_file(at.join("ballast")).unwrap();
    bench.at(&["prepare", "v2.qimg"]).good();
}

#[test]
fn a_slot_that_is_busy() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    fs::File::create(bench.path("fs.img")).unwrap().set_len(4 * MIB).unwrap();
    run("mkfs.ext4", &["-q", text(&bench.path("fs.img"))]);
    bench.pack("fs", "1.5", &["--platform", "fs.img"]);
    bench.at(&["prepare", "fs.qimg"]).good();
    for nodes in [true, false] {
        let (at, len) = bench.extent("platform_b");
        let disk = Loop::new(&bench.disk(), 512, &[]);
        let on = ["--disk", text(&disk.0), "--booted", "a"];
        let inner;
        let mounted = if nodes {
            disk.nodes();
            disk.node(2)
        } else {
            let window = ["--offset", &at.to_string(), "--sizelimit", &len.to_string()];
            inner = Loop::new(&disk.0, 512, &window);
            inner.0.clone()
        };
        let mount = Mount::new(&mounted, &bench.path("mnt"), "ro");
        let before = bench.hash();
        let message = bench.at(&[&["prepare", "v2.qimg"], &on[..]].concat()).bad("SLOT_IN_USE");
        assert!(message.contains("platform_b") && message.contains("is mounted at"), "{message}");
        // Through the file under the loop device, too.
        bench.at(&["prepare", "v2.qimg"]).bad("SLOT_IN_USE");
        bench.at(&["cancel"]).bad("SLOT_IN_USE");
        let status = bench.at(&[&["status"], &on[..]].concat()).json();
        assert_eq!(status["is_blocked"], true, "{status}");
        assert_eq!(bench.hash(), before);
        drop(mount);
        assert_eq!(bench.at(&[&["status"], &on[..]].concat()).json()["is_blocked"], false);
    }
    bench.at(&["prepare", "v2.qimg"]).good();
}

/// The medium fails after a certain byte: read errors with their offset.
#[test]
fn a_disk_that_fails() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    let (at, _) = bench.extent("platform_a");
    fs::File::options().write(true).open(bench.disk()).unwrap().set_len(at + MIB).unwrap();
    let message = bench.at(&["verify", "--slot", "a", "--disk", text(&disk.0), "--booted", "a"]).bad("READ");
    assert!(message.contains("platform_a") && message.contains("at byte"), "{message}");
}

/// An old table in the kernel once made a tool write where a partition had been.
#[test]
fn a_kernel_that_knows_another_table() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    disk.nodes();
    forget(&["--nr", "2", text(&disk.0)]);
    let before = bench.hash();
    let on = ["--disk", text(&disk.0), "--booted", "a"];
    let message = bench.at(&[&["prepare", "v2.qimg"], &on[..]].concat()).bad("KERNEL_TABLE");
    assert!(message.contains("partx -a"), "{message}");
    assert_eq!(bench.hash(), before);
    run("partx", &["-a", "--nr", "2", text(&disk.0)]);
    bench.at(&[&["prepare", "v2.qimg"], &on[..]].concat()).good();
}

/// The new slot has been selected, and nothing says whether it runs already: to guess would mark good what never
/// booted.
#[test]
fn a_disk_of_which_nobody_knows_what_runs() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    let at = |args: &[&str]| bench.at(&[args, &["--disk", text(&disk.0)]].concat());
    let refused = |verbs: &[&[&str]]| {
        let before = bench.hash();
        for verb in verbs {
            let message = at(verb).bad("BOOTED_UNKNOWN");
            assert!(message.contains("--booted a") && message.contains("qstage.partuuid="), "{message}");
        }
        let status = at(&["status"]).json();
        let reason = status["blocked_reason"].as_str().unwrap();
        assert!(reason.contains("which slot is running") || reason.contains("on trial"), "{status}");
        let rows = at(&["slots", "--json"]).json();
        assert!(rows["slots"].as_array().unwrap().iter().all(|slot| slot["booted"] == false), "{rows}");
        let table = at(&["slots"]).good();
        assert!(table.contains("runs    unknown: /"), "{table}");
        assert_eq!(bench.hash(), before);
        status["state"].as_str().unwrap().to_owned()
    };
    // That only slot a boots by its flags is no evidence of what runs.
    let verbs: &[&[&str]] = &[
        &["prepare", "v2.qimg"],
        &["plan", "v2.qimg"],
        &["commit"],
        &["mark-good"],
        &["roll-back"],
        &["cancel"],
    ];
    assert_eq!(refused(verbs), "UPGRADE_IDLE");
    at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    assert_eq!(refused(verbs), "UPGRADE_PREPARED");
    at(&["commit", "--booted", "a"]).good();
    assert_eq!(refused(&verbs[2..]), "UPGRADE_TRIAL");
    at(&["mark-good", "--booted", "b"]).good();
    assert_eq!(refused(verbs), "UPGRADE_IDLE");
    let rows = at(&["slots", "--json", "--booted", "b"]).json();
    assert_eq!((&rows["slots"][0]["booted"], &rows["slots"][1]["booted"]), (&false.into(), &true.into()));
    // No machine runs from an image file: there the one that boots next is taken, and called so.
    let table = bench.at(&["slots"]).good();
    assert!(!table.contains("runs,") && table.contains("next"), "{table}");
    let plan = bench.at(&["plan", "v1.qimg"]).forbidden();
    assert!(plan.contains("slot b boots next"), "{plan}");
}

#[test]
fn files_past_the_page_cache_where_that_does_not_work() {
    let bench = Bench::installed();
    bench.at(&["slots", "--disk", "/proc/version"]).bad("NO_DIRECT_IO");
    if !is_root() {
        return;
    }
    let outer = Loop::new(&sparse(&bench.path("outer"), 64 * MIB), 4096, &[]);
    run("mkfs.ext4", &["-q", "-b", "4096", text(&outer.0)]);
    let at = bench.path("mnt");
    let _mount = Mount::new(&outer.0, &at, "rw");
    let disk = at.join("disk.img");
    run("cp", &["--sparse=always", text(&bench.disk()), text(&disk)]);
    let message = bench.at(&["prepare", "v2.qimg", "--disk", text(&disk)]).bad("DIRECT_IO_UNIT");
    assert!(message.contains("losetup"), "{message}");
    // The way out that the message names.
    let inner = Loop::new(&disk, 512, &[]);
    bench.at(&["prepare", "v2.qimg", "--booted", "a", "--disk", text(&inner.0)]).good();
}
