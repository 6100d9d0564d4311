//! Disks without the needed layout, damaged or too small disks, and disks that are merely unusual.

use crate::harness::tables;

use std::fs;

use tables::Spec;

use super::{recovers, refused};
use crate::harness::machine::{Bench, MIB, Noise, tool};

#[test]
fn a_disk_that_is_none() {
    let bench = Bench::installed();
    let mut noise = Noise(3);
    let mut mbr = vec![0; 512];
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    for content in [vec![0; 4 << 20], noise.bytes(4 << 20), [mbr, vec![0; 4 << 20]].concat(), vec![0; 512]] {
        fs::write(bench.path("other.img"), &content).unwrap();
        for verb in [&["prepare", "v2.qimg"][..], &["status"], &["commit"], &["slots"], &["plan", "v2.qimg"]]
        {
            let text = bench.at(&[verb, &["--disk", "other.img"]].concat()).bad("NOT_GPT");
            assert!(text.contains("qstage init"), "{text}");
        }
        assert_eq!(fs::read(bench.path("other.img")).unwrap(), content);
    }
    // An empty file is no disk either.
    fs::write(bench.path("other.img"), "").unwrap();
    bench.at(&["slots", "--disk", "other.img"]).bad("NOT_GPT");
    fs::write(bench.path("other.img"), [0; 700]).unwrap();
    bench.at(&["slots", "--disk", "other.img"]).bad("OPEN");
}

#[test]
fn init_destroys_nothing_unasked() {
    let bench = Bench::installed();
    let before = bench.hash();
    let text = bench.at(&["init", "disk.img"]).bad("NOT_BLANK");
    assert!(text.contains("GUID partition table") && text.contains("--force"), "{text}");
    bench.at(&["init", "disk.img", "--size", "1G"]).bad("ARGUMENT");
    bench.at(&["init", "disk.img", "--slot-size", "64M", "--force"]).bad("DISK_TOO_SMALL");
    bench
        .at(&["init", "disk.img", "--slot-size", "1M", "--force", "--bundle", "v1.qimg"])
        .bad("SLOT_TOO_SMALL");
    assert_eq!(bench.hash(), before);
    let small = ["init", "new.img", "--slot-size", "8M", "--size", "10M"];
    bench.at(&small).bad("DISK_TOO_SMALL");
    bench.at(&["init", "new.img", "--slot-size", "1M", "--bundle", "v1.qimg"]).bad("SLOT_TOO_SMALL");
    assert!(!bench.path("new.img").exists(), "a file that was not asked for");
    bench.at(&["init", "disk.img", "--slot-size", "8M", "--force"]).good();
    // What slot a held before is still there, but no record authenticates it.
    assert_eq!(bench.state("platform_a", &[]), "empty");
    bench.at(&["status"]).bad("NOTHING_BOOTS");
    bench.at(&["prepare", "v2.qimg"]).bad("NOTHING_BOOTS");
    bench.at(&["mark-good", "--slot", "a"]).bad("NOTHING_TO_MARK");
    // The first installation on a blank disk.
    bench.at(&["prepare", "v2.qimg", "--booted", "b"]).good();
    assert!(bench.holds("platform_a", "v2.img"));
}

#[test]
fn damaged_tables() {
    let bench = Bench::installed();
    let pristine = fs::read(bench.disk()).unwrap();
    let len = pristine.len() as u64;
    let vital = bench.vital();
    let array = u64::from_le_bytes(pristine[512 + 72..512 + 80].try_into().unwrap()) * 512;
    let backup_array = len - 33 * 512;
    // One copy is damaged in any way: repaired, said so, and the upgrade goes on.
    for (at, rot) in [(512, 0x5a), (array, 0x5a), (len - 512, 0), (backup_array, 0)] {
        fs::write(bench.disk(), &pristine).unwrap();
        bench.poke(at, &[rot; 512]);
        assert_ne!(bench.at(&["slots", "--json"]).json()["table"], "both copies sound and equal", "at {at}");
        let run = bench.at(&["prepare", "v2.qimg"]);
        assert!(run.err.contains("repaired"), "{}", run.err);
        run.good();
        assert_eq!(bench.vital(), vital, "at {at}");
        let text = tool("sgdisk", &["--verify", &bench.text("disk.img")]);
        assert!(text.contains("No problems found"), "{text}");
    }
    // Where a backup was lies something else: it stays there, the upgrade goes on, and 'repair' says how to get a backup.
    for at in [len - 512, backup_array] {
        fs::write(bench.disk(), &pristine).unwrap();
        bench.poke(at, &[0x5a; 512]);
        let shown = bench.at(&["slots", "--json"]).json()["table"].to_string();
        assert!(shown.contains("no backup") && shown.contains("qstage repair --from primary"), "{shown}");
        bench.at(&["prepare", "v2.qimg"]).good();
        assert!(fs::read(bench.disk()).unwrap()[at as usize..][..512] == [0x5a; 512], "at {at}");
        let dry = bench.at(&["repair", "--from", "primary", "--dry-run"]).good();
        assert!(dry.contains("backup header") || dry.contains("backup array"), "{dry}");
        assert!(fs::read(bench.disk()).unwrap()[at as usize..][..512] == [0x5a; 512], "at {at}");
        bench.at(&["repair", "--from", "primary"]).good();
        assert_eq!(bench.at(&["slots", "--json"]).json()["table"], "equal");
        bench.at(&["repair"]).good();
    }
    // Both are: nothing is guessed and nothing is written.
    for (first, second) in [(512, len - 512), (array, backup_array), (512, backup_array), (array, len - 512)]
    {
        fs::write(bench.disk(), &pristine).unwrap();
        bench.poke(first, &[0x5a; 300]);
        bench.poke(second, &[0x5a; 300]);
        let text = refused(&bench, "v2.qimg", "GPT_DAMAGED");
        assert!(text.contains("sgdisk --load-backup"), "{text}");
        for verb in ["status", "slots", "commit", "mark-good", "roll-back", "cancel"] {
            bench.at(&[verb]).bad("GPT_DAMAGED");
        }
    }
    fs::write(bench.disk(), &pristine).unwrap();
    recovers(&bench);
}

/// gptmbr starts nothing where two partitions carry bit 2: said before anything is written.
#[test]
fn the_legacy_flag_on_a_partition_of_others() {
    let bench = Bench::installed();
    bench.config("boot_flag = \"legacy\"\n");
    let disk = bench.text("disk.img");
    tool("sgdisk", &["-n", "3:0:+256K", "-c", "3:data", "-A", "3:set:2", &disk]);
    let text = refused(&bench, "v2.qimg", "FOREIGN_BOOT_FLAG");
    assert!(text.contains("3 'data'") && text.contains("sgdisk --attributes=3:clear:2"), "{text}");
    let shown = bench.at(&["slots", "--json"]).json()["table"].to_string();
    assert!(shown.contains("partition 3 'data'"), "{shown}");
    let plan = bench.at(&["plan", "v2.qimg", "--json"]).plan()["blocked_by"].to_string();
    assert!(plan.contains("FOREIGN_BOOT_FLAG"), "{plan}");
    tool("sgdisk", &["-A", "3:clear:2", &disk]);
    bench.at(&["prepare", "v2.qimg"]).good();
    tool("sgdisk", &["-A", "3:set:2", &disk]);
    let before = bench.hash();
    bench.at(&["commit"]).bad("FOREIGN_BOOT_FLAG");
    assert_eq!(bench.hash(), before);
    tool("sgdisk", &["-A", "3:clear:2", &disk]);
    bench.at(&["commit"]).good();
    assert!(tool("sgdisk", &["-A", "2:show", &disk]).contains("2:2:1"));
}

#[test]
fn slots_that_are_not_there_or_there_twice() {
    let bench = Bench::installed();
    let disk = bench.text("disk.img");
    bench.pack("soft", "3.0", &["--platform", "v1.img", "--software", "v2.img"]);
    let text = refused(&bench, "soft.qimg", "SLOT_MISSING");
    assert!(text.contains("software_"), "{text}");
    let rename = |name: &str| tool("sgdisk", &["--change-name", &format!("2:{name}"), &disk]);
    rename("platform_c");
    let text = refused(&bench, "v2.qimg", "SLOT_MISSING");
    assert!(text.contains("'platform_b'") && text.contains("--change-name"), "{text}");
    rename("platform_a");
    let text = refused(&bench, "v2.qimg", "SLOT_AMBIGUOUS");
    assert!(text.contains("1, 2"), "{text}");
    // In another spelling: what is there is listed.
    rename("PLATFORM_B");
    let text = refused(&bench, "v2.qimg", "SLOT_MISSING");
    assert!(text.contains("1 'platform_a', 2 'PLATFORM_B'"), "{text}");
    rename("platform_b");
    recovers(&bench);
    // As image tools that copy a partition make it; the selector boots and says so.
    let guid = |number: &str, guid: &str| {
        tool("sgdisk", &["--partition-guid", &format!("{number}:{guid}"), &disk]);
    };
    let (own, other) = ("aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002");
    guid("1", own);
    guid("2", own);
    let text = refused(&bench, "v2.qimg", "PARTUUID_AMBIGUOUS");
    assert!(text.contains("partitions 1, 2") && text.contains("--partition-guid"), "{text}");
    let run = bench.at(&["select"]);
    assert!(run.err.contains("2 partitions have the PARTUUID"), "{}", run.err);
    run.good();
    guid("2", other);
    recovers(&bench);

    // Two partitions over the same bytes: writing one would destroy the other.
    let mut spec = Spec::slots(512, 65536, 2048, 8192);
    spec.parts[1].2 -= 1;
    fs::write(bench.disk(), spec.image()).unwrap();
    let text = refused(&bench, "v2.qimg", "GPT_UNSUPPORTED");
    assert!(text.contains("overlaps"), "{text}");
}

/// The content of the slot differs from its record: found by reading, reported with the offset, cured by preparing again.
#[test]
fn a_slot_that_rots() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    let (at, _) = bench.extent("platform_b");
    bench.poke(at + MIB + 17, b"rot");
    let text = bench.at(&["verify", "--slot", "b"]).bad("SLOT_DAMAGED");
    assert!(text.contains("1 of 13 frames") && text.contains("1048576"), "{text}");
    bench.at(&["verify", "--slot", "a"]).good();
    let again = bench.at(&["prepare", "v2.qimg", "--json"]).json();
    assert_eq!(again["written_bytes"], 256 << 10, "only the frame that rotted: {again}");
    bench.at(&["verify", "--slot", "b"]).good();
}

/// All that UEFI allows and that other tools do not make: it is read as it is said, and nothing of it is lost.
#[test]
fn unusual_tables_are_served() {
    let mut large = Spec::slots(512, 131_072, 8192, 16384);
    large.entry_size = 256;
    large.first_usable = 66;
    let mut moved = Spec::slots(512, 131_072, 8192, 16384);
    moved.entries_lba = 1000;
    moved.first_usable = 2048;
    let mut few = Spec::slots(512, 131_072, 8192, 16384);
    few.count = 8;
    let tight = Spec::slots(512, 131_072, 34, 16384);
    let big = Spec::slots(4096, 16384, 256, 2048);
    for (name, spec, method) in [
        ("entries of 256 bytes", large, "second array"),
        ("array at LBA 1000", moved, "second array"),
        ("8 entries", few, "second array"),
        ("first partition at LBA 34", tight, "in place"),
        ("sectors of 4096 bytes", big, "second array"),
    ] {
        let bench = Bench::new();
        fs::write(bench.disk(), spec.image()).unwrap();
        bench.image("v1.img", MIB + 1, 1);
        bench.image("s1.img", MIB / 2, 2);
        bench.pack("v1", "1.0", &["--platform", "v1.img", "--software", "s1.img"]);
        let foreign = |bench: &Bench| {
            let (at, len) = bench.extent("data");
            bench.hash_of(at, len)
        };
        if spec.block == 4096 {
            // sfdisk has no option for the sector size of a file.
            bench.at(&["prepare", "v1.qimg"]).good();
            bench.at(&["commit"]).good();
            bench.at(&["mark-good", "--booted", "b"]).good();
            assert_eq!(bench.state("platform_b", &[]), "good", "{name}");
            continue;
        }
        bench.poke(bench.extent("data").0, b"not ours");
        let before = foreign(&bench);
        let slots = bench.at(&["slots", "--json"]).json();
        assert!(slots["switch_method"].as_str().unwrap().contains(method), "{name}: {slots}");
        bench.at(&["prepare", "v1.qimg"]).good();
        bench.at(&["commit"]).good();
        assert_eq!(bench.state("platform_b", &[]), "trial", "{name}");
        bench.at(&["mark-good", "--booted", "b"]).good();
        assert!(bench.holds("platform_b", "v1.img") && bench.holds("software_b", "s1.img"), "{name}");
        assert_eq!(foreign(&bench), before, "{name}");
        let image = fs::read(bench.disk()).unwrap();
        let (_, entry_size) = tables::primary(&image, spec.block).unwrap();
        assert_eq!(entry_size, spec.entry_size as usize, "{name}");
        // Numbers, names and the foreign partition's attributes are what they were.
        let rows = crate::harness::machine::sfdisk(&bench.disk());
        let nodes: Vec<_> =
            rows["partitions"].as_array().unwrap().iter().map(|row| row["node"].clone()).collect();
        assert!(nodes[4].as_str().unwrap().ends_with('6'), "{name}: {nodes:?}");
    }
}
