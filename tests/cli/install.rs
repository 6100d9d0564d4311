//! The factory install onto an existing table, and the dry run of `init`: only the slots and their flags are written, and
//! nothing after a refusal or in a dry run.

use crate::harness::loops::{Loop, Mount, is_root, run, text};
use crate::harness::machine;

use std::fs;

use machine::{Bench, MIB, sfdisk, tool};
use serde_json::{Value, json};

/// A disk as an image builder makes it: an ESP, four slots out of order, a data partition; ESP and data hold something.
fn appliance() -> Bench {
    let bench = Bench::new();
    for seed in [1, 2] {
        bench.image(&format!("p{seed}.img"), 2 * MIB + 1000, seed);
        bench.image(&format!("s{seed}.img"), MIB + 3333, 10 + seed);
        let (platform, software) = (format!("p{seed}.img"), format!("s{seed}.img"));
        let images = ["--platform", &platform, "--software", &software];
        bench.pack(
            &format!("v{seed}"),
            &format!("{seed}.0"),
            &[&images[..], &["--frame-size", "256K"]].concat(),
        );
    }
    fs::File::create(bench.disk()).unwrap().set_len(40 * MIB).unwrap();
    let partitions = [
        ("-n1:2048:+2M", "-c1:esp", "-t1:ef00"),
        ("-n2:0:+8M", "-c2:platform_a", "-t2:8300"),
        ("-n3:0:+4M", "-c3:software_b", "-t3:8300"),
        ("-n5:0:+8M", "-c5:platform_b", "-t5:8300"),
        ("-n6:0:+4M", "-c6:software_a", "-t6:8300"),
        ("-n7:0:+4M", "-c7:data", "-t7:8300"),
    ];
    let args: Vec<&str> = partitions.iter().flat_map(|(n, c, t)| [*n, *c, *t]).collect();
    tool("sgdisk", &[&args[..], &["-A7:set:60", &bench.text("disk.img")]].concat());
    bench.poke(bench.extent("esp").0, b"loader");
    bench.poke(bench.extent("data").0 + 4096, b"state of years");
    bench
}

/// What is not ours, which must not change: the bytes of the other partitions, and the entries of all but for the flags.
fn foreign(bench: &Bench) -> Value {
    let hash = |name: &str| {
        let (at, len) = bench.extent(name);
        bench.hash_of(at, len).to_string()
    };
    let mut rows = sfdisk(&bench.disk())["partitions"].clone();
    for row in rows.as_array_mut().unwrap() {
        if row["name"] != "data" {
            row.as_object_mut().unwrap().remove("attrs");
        }
    }
    json!([hash("esp"), hash("data"), rows, fs::read(bench.disk()).unwrap()[..440]])
}

const KEEP: [&str; 5] = ["init", "disk.img", "--keep-table", "--bundle", "v1.qimg"];

#[test]
fn a_table_that_is_there_gets_a_release_into_both_slots() {
    for flag in ["priority", "legacy"] {
        let bench = appliance();
        bench.config(&format!("boot_flag = \"{flag}\"\n"));
        let before = foreign(&bench);
        let report = bench.at(&[&KEEP[..], &["--slot", "both", "--json"]].concat()).json();
        assert_eq!(report["installed"], "1.0");
        assert_eq!((&report["slots"], &report["table_kept"]), (&json!(["a", "b"]), &json!(true)));
        assert_eq!(report["partitions"][5], "data");
        assert_eq!(report["extents"][0], json!({"at": MIB, "len": 2 * MIB}));
        for slot in ["a", "b"] {
            assert!(bench.holds(&format!("platform_{slot}"), "p1.img"), "{flag}");
            assert!(bench.holds(&format!("software_{slot}"), "s1.img"), "{flag}");
            bench.at(&["verify", "--slot", slot]).good();
            assert_eq!(bench.state(&format!("platform_{slot}"), &[]), "good", "{flag}");
        }
        assert_eq!(foreign(&bench), before, "{flag}");
        let status = bench.at(&["status"]).json();
        assert_eq!(status["state"], "UPGRADE_IDLE", "{status}");
        assert_eq!(bench.slot("platform_a", &[])["boots_next"], true, "{flag}");
        // From there on it is a machine as any other, with a fallback from the first day.
        assert_eq!(bench.at(&["roll-back", "--json"]).json()["boots_next"], "b", "{flag}");
        assert_eq!(bench.at(&["roll-back", "--json"]).json()["boots_next"], "a", "{flag}");
        bench.at(&["prepare", "v2.qimg"]).good();
        bench.at(&["commit"]).good();
        bench.at(&["mark-good", "--booted", "b"]).good();
        assert!(bench.holds("platform_b", "p2.img") && bench.holds("platform_a", "p1.img"), "{flag}");
        assert_eq!(foreign(&bench), before, "{flag}");
    }
}

#[test]
fn one_slot_is_enough() {
    let bench = appliance();
    let said = bench.at(&[&KEEP[..], &["--slot", "b"]].concat()).good();
    assert!(said.contains("slot b holds 1.0 and boots"), "{said}");
    assert_eq!(bench.slot("platform_b", &[])["boots_next"], true);
    assert_eq!(bench.state("platform_a", &[]), "empty");
    bench.at(&["prepare", "v2.qimg"]).good();
    assert!(bench.holds("platform_a", "p2.img") && bench.holds("platform_b", "p1.img"));
}

#[test]
fn slots_that_hold_something_are_not_overwritten_unasked() {
    let bench = appliance();
    bench.poke(bench.extent("software_a").0, b"somebody's");
    let before = bench.hash();
    let message = bench.at(&KEEP).bad("NOT_BLANK");
    assert!(message.contains("software_a") && message.contains("--force"), "{message}");
    assert_eq!(bench.hash(), before);
    let report = bench.at(&[&KEEP[..], &["--force", "--json"]].concat()).json();
    assert_eq!(report["destroyed"], json!(["software_a: data, from byte 0 on"]));
    let before = bench.hash();
    let message = bench.at(&KEEP).bad("NOT_BLANK");
    assert!(message.contains("release 1.0"), "{message}");
    assert_eq!(bench.hash(), before);
    // What is being replaced does not boot until it is whole again, and is not called prepared.
    let damaged = fs::read(bench.path("v2.qimg")).unwrap();
    let at = damaged.len() - 20_000;
    fs::write(bench.path("bad.qimg"), [&damaged[..at], b"rot", &damaged[at + 3..]].concat()).unwrap();
    let onto = ["init", "disk.img", "--keep-table", "--force", "--bundle", "bad.qimg"];
    bench.at(&onto).bad("BUNDLE_FRAME_DIGEST");
    assert_eq!(bench.state("platform_a", &[]), "torn");
    bench.at(&["status"]).bad("NOTHING_BOOTS");
    bench.at(&["commit", "--booted", "b"]).bad("NOT_PREPARED");
    // Interrupted is not installed: it goes on without being asked again.
    bench.at(&["init", "disk.img", "--keep-table", "--bundle", "v2.qimg"]).good();
    assert_eq!(bench.state("platform_a", &[]), "good");
    assert!(bench.holds("platform_a", "p2.img"));
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_write() {
    let bench = appliance();
    bench.image("big.img", 9 * MIB, 5);
    bench.pack("big", "1.0", &["--platform", "big.img"]);
    let before = bench.hash();
    bench.at(&["init", "disk.img", "--keep-table", "--bundle", "big.qimg"]).bad("SLOT_TOO_SMALL");
    let bytes = fs::read(bench.path("v1.qimg")).unwrap();
    let from_pipe = ["init", "disk.img", "--keep-table", "--bundle", "-", "--slot", "both"];
    assert!(bench.piped(&from_pipe, &bytes).bad("ARGUMENT").contains("give a file"));
    for more in
        [&["--size", "1G"][..], &["--slot-size", "8M"], &["--software-size", "8M"], &["--reserve", "2M"]]
    {
        assert_eq!(bench.at(&[&KEEP[..], more].concat()).code, Some(2), "{more:?}");
    }
    assert_eq!(bench.run(&["init", "disk.img", "--keep-table"]).code, Some(2));
    assert_eq!(bench.run(&["init", "disk.img", "--slot", "both"]).code, Some(2));
    bench.at(&["init", "missing.img", "--keep-table", "--bundle", "v1.qimg"]).bad("OPEN");
    assert!(!bench.path("missing.img").exists());
    assert_eq!(bench.hash(), before);
    // A loader that goes by bit 2 would stop at the ESP's.
    bench.config("boot_flag = \"legacy\"\n");
    tool("sgdisk", &["-A1:set:2", &bench.text("disk.img")]);
    bench.at(&KEEP).bad("FOREIGN_BOOT_FLAG");
    tool("sgdisk", &["-d3", "-d6", &bench.text("disk.img")]);
    tool("sgdisk", &["-A1:clear:2", &bench.text("disk.img")]);
    bench.at(&KEEP).bad("SLOT_MISSING");
    tool("sgdisk", &["-d2", &bench.text("disk.img")]);
    bench.at(&KEEP).bad("SLOT_MISSING");
}

/// What is shown is what is done then.
#[test]
fn a_dry_run_of_init_writes_nothing() {
    let bench = appliance();
    fs::write(bench.path("full.img"), [7; 100]).unwrap();
    fs::File::options().append(true).open(bench.path("full.img")).unwrap().set_len(40 * MIB).unwrap();
    let new = ["init", "new.img", "--slot-size", "8M", "--software-size", "4M", "--bundle", "v1.qimg"];
    let full = ["init", "full.img", "--slot-size", "8M", "--force"];
    let both = [&KEEP[..], &["--slot", "both"]].concat();
    for (args, disk) in [(&new[..], "new.img"), (&full, "full.img"), (&both, "disk.img")] {
        let bytes = || fs::read(bench.path(disk)).ok();
        let before = bytes();
        let said = bench.at(&[args, &["--dry-run"]].concat()).good();
        assert!(said.contains("nothing was written") && said.contains("platform_b: 8.0 MiB at"), "{said}");
        assert_eq!(said.contains("would be destroyed: data, from byte 0 on"), disk == "full.img", "{said}");
        let mut dry = bench.at(&[args, &["--dry-run", "--json"]].concat()).json();
        assert!(bytes() == before, "{disk}");
        assert_eq!(dry["dry_run"].take(), true);
        let mut done = bench.at(&[args, &["--json"]].concat()).json();
        assert_eq!(done["dry_run"].take(), false);
        assert_eq!(dry, done, "{disk}");
        assert!(bytes() != before, "{disk}");
        // Refused by the one as by the other.
        let args: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--force").collect();
        bench.at(&[&args[..], &["--dry-run"]].concat()).bad("NOT_BLANK");
    }
    let small = ["init", "small.img", "--slot-size", "8M", "--size", "10M", "--dry-run"];
    bench.at(&small).bad("DISK_TOO_SMALL");
    assert!(!bench.path("small.img").exists());
}

/// Each remedy that the message names.
#[test]
fn remedies_where_nothing_boots() {
    let bench = appliance();
    let nothing = |bench: &Bench| {
        let message = bench.at(&["status"]).bad("NOTHING_BOOTS");
        for remedy in
            ["'qstage mark-good --slot a' (or b)", "--keep-table --bundle FILE", "--booted a (or b)"]
        {
            assert!(message.contains(remedy), "{message}");
        }
    };
    nothing(&bench);
    bench.at(&KEEP).good();
    assert_eq!(bench.at(&["status"]).json()["state"], "UPGRADE_IDLE");
    // Flags lost, as by a table that was copied from another disk.
    let number = |name: &str| if name == "platform_a" { 2 } else { 5 };
    let lost = |name: &str| {
        let clear = |bit: u32| format!("-A{}:clear:{bit}", number(name));
        let args: Vec<String> = [2].into_iter().chain(48..=56).map(clear).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        tool("sgdisk", &[&args[..], &[&bench.text("disk.img")]].concat());
    };
    lost("platform_a");
    nothing(&bench);
    bench.at(&["mark-good", "--slot", "a"]).good();
    assert_eq!(bench.slot("platform_a", &[])["boots_next"], true);
    lost("platform_a");
    nothing(&bench);
    assert_eq!(bench.at(&["status", "--booted", "a"]).code, Some(0));
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    assert!(bench.holds("platform_b", "p2.img"));
}

/// A block device, with partitions that the kernel knows.
#[test]
fn a_disk_of_the_kernel_is_installed_only_while_idle() {
    if !is_root() {
        return;
    }
    let bench = appliance();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    disk.nodes();
    run("mkfs.ext4", &["-q", text(&disk.node(7))]);
    let device = text(&disk.0).to_owned();
    let keep = ["init", &device, "--keep-table", "--bundle", "v1.qimg", "--slot", "both"];
    let at = bench.path("mnt");
    {
        let _data = Mount::new(&disk.node(7), &at, "ro");
        bench.at(&keep).bad("SLOT_IN_USE");
        bench.at(&[&keep[..], &["--dry-run"]].concat()).bad("SLOT_IN_USE");
    }
    let before = foreign(&bench);
    bench.at(&keep).good();
    let row = bench.slot("platform_a", &["--disk", &device, "--booted", "a"]);
    assert_eq!(row["boots_next"], true, "{row}");
    drop(disk);
    assert!(bench.holds("platform_a", "p1.img") && bench.holds("software_b", "s1.img"));
    assert_eq!(foreign(&bench), before);
}

/// What was good on a disk once forbids releases below its epoch to the factory as well: marks outlive what `--force` destroys.
#[test]
fn a_kept_table_remembers_the_highest_epoch() {
    let bench = appliance();
    let images = ["--platform", "p1.img", "--software", "s1.img", "--frame-size", "256K", "--epoch"];
    for (name, version, epoch) in [("new", "3.0", "5"), ("old", "3.1", "4"), ("same", "3.2", "5")] {
        bench.pack(name, version, &[&images[..], &[epoch]].concat());
    }
    let keep = |bundle: &str, more: &[&str]| {
        bench.at(&[&["init", "disk.img", "--keep-table", "--force", "--bundle", bundle], more].concat())
    };
    keep("new.qimg", &[]).good();
    let before = bench.hash();
    for more in [&[][..], &["--slot", "b"], &["--slot", "both"], &["--dry-run"]] {
        let message = keep("old.qimg", more).bad("EPOCH");
        assert!(message.contains("3.1 has epoch 4, lower than 5"), "{more:?}: {message}");
    }
    assert_eq!(bench.hash(), before);
    keep("same.qimg", &["--slot", "both"]).good();
    // Root may, but what was good stays known: nothing below it comes without the flag afterwards either.
    keep("old.qimg", &["--slot", "both", "--allow-epoch-rollback"]).good();
    keep("old.qimg", &[]).bad("EPOCH");
    bench.pack("next", "4.0", &[&images[..], &["4"]].concat());
    bench.at(&["prepare", "next.qimg"]).bad("EPOCH");
    keep("same.qimg", &[]).good();
}
