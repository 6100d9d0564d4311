//! Disks as boards and image tools make them: each goes through an installation, two upgrades, a roll-back and the selector.
//! The tools that made the table accept it afterwards as before, the array lies at the same place, and every byte outside of
//! slots and table is unchanged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::loops;
use crate::harness::machine;

use std::fs;
use std::ops::Range;
use std::process::Command;

use loops::Loop;
use machine::{Bench, MIB, is_root, tool};

const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// Bundles for all disks, made once a test.
fn bench() -> Bench {
    let bench = Bench::new();
    for seed in 1..=3u64 {
        bench.image(&format!("v{seed}.img"), 2 * MIB + 4321, seed);
        let (name, version) = (format!("v{seed}"), format!("{seed}.0"));
        bench.pack(&name, &version, &["--platform", &format!("{name}.img"), "--frame-size", "256K"]);
    }
    bench
}

/// A blank image file of the given size in MiB, in the place of the last one.
fn blank(bench: &Bench, mib: u64) {
    let _ = fs::remove_dir_all(bench.path("state"));
    let _ = fs::remove_file(bench.disk());
    fs::File::create(bench.disk()).unwrap().set_len(mib * MIB).unwrap();
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// The platform slots by name, as the primary table has them.
fn slots(bytes: &[u8], block: usize) -> impl Iterator<Item = (String, Range<usize>)> {
    let size = u32::from_le_bytes(bytes[block + 84..block + 88].try_into().unwrap()) as usize;
    bytes[number(bytes, block + 72) * block..].chunks(size).take(8).filter_map(move |entry| {
        let units: Vec<u16> = entry[56..128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        let name = String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned();
        let slot = number(entry, 32) * block..(number(entry, 40) + 1) * block;
        name.starts_with("platform_").then_some((name, slot))
    })
}

/// The byte ranges that are ours: header, arrays and backup header as the table names them, and both slots.
fn ours(bytes: &[u8], block: usize) -> Vec<Range<usize>> {
    let last = bytes.len() / block - 1;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let array_len = (u32_at(block + 80) * u32_at(block + 84)).next_multiple_of(block);
    let array = number(bytes, block + 72) * block;
    let mut ours = vec![block..2 * block, array..array + array_len];
    let alternate = number(bytes, block + 32);
    if (2..=last).contains(&alternate) && &bytes[alternate * block..][..8] == b"EFI PART" {
        let backup = number(bytes, alternate * block + 72) * block;
        ours.extend([alternate * block..(alternate + 1) * block, backup..backup + array_len]);
    }
    ours.extend(slots(bytes, block).map(|(_, slot)| slot));
    ours
}

/// Everything else, with its place.
fn foreign(bytes: &[u8], ours: &[Range<usize>]) -> Vec<u8> {
    let mut rest = bytes.to_vec();
    ours.iter().for_each(|range| rest[range.clone()].fill(0));
    rest
}

/// What the judges say of the table.
fn verdicts(bench: &Bench, block: usize) -> Vec<String> {
    let disk = bench.text("disk.img");
    let attached = (block == 4096).then(|| Loop::new(&bench.disk(), 4096, &[]));
    let target = attached.as_ref().map_or(disk, |attached| attached.0.to_str().unwrap().to_owned());
    let judge = |program: &str, args: &[&str]| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new(program).args(args).arg(&target).env("PATH", path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sound = text.contains("No problems found") || text.contains("No errors detected");
        format!("{program}: exit {:?}, sound {sound}", output.status.code())
    };
    vec![judge("sgdisk", &["--verify"]), judge("sfdisk", &["--verify"]), judge("cgpt", &["show", "-q"])]
}

/// Noise over these ranges of blocks: what others keep there.
fn sow(bench: &Bench, block: usize, ranges: &[Range<usize>]) {
    for range in ranges {
        let noise: Vec<u8> =
            (range.start * block..range.end * block).map(|i| (i * 31 + i / 509) as u8 | 1).collect();
        bench.poke((range.start * block) as u64, &noise);
    }
}

/// Installation, two upgrades, a roll-back, the selector.
fn life(bench: &Bench, what: &str, block: usize) {
    let before = fs::read(bench.disk()).unwrap();
    let (ours, home) = (ours(&before, block), number(&before, block + 72));
    let others = foreign(&before, &ours);
    let judged = verdicts(bench, block);
    let check = |step: &str| {
        let after = fs::read(bench.disk()).unwrap();
        assert!(foreign(&after, &ours) == others, "{what}, {step}: bytes that are not ours changed");
        assert_eq!(number(&after, block + 72), home, "{what}, {step}: the array is where it was put");
        assert_eq!(verdicts(bench, block), judged, "{what}, {step}");
    };
    for (bundle, from, to) in [("v1.qimg", "b", "a"), ("v2.qimg", "a", "b"), ("v3.qimg", "b", "a")] {
        bench.at(&["prepare", bundle, "--booted", from]).good();
        check("prepare");
        bench.at(&["commit", "--booted", from]).good();
        check("commit");
        bench.at(&["mark-good", "--booted", to]).good();
        check("mark-good");
    }
    bench.at(&["roll-back", "--booted", "a"]).good();
    check("roll-back");
    let selected = bench.at(&["select", "--json"]).json();
    assert_eq!((&selected["slot"], &selected["reason"]), (&"b".into(), &"good".into()), "{what}");
    check("select");
    let after = fs::read(bench.disk()).unwrap();
    for (name, slot) in slots(&after, block) {
        let image = fs::read(bench.path(if name == "platform_a" { "v3.img" } else { "v2.img" })).unwrap();
        assert!(after[slot][..image.len()] == image[..], "{what}: {name}");
    }
}

const SLOTS: [&str; 6] = ["-n", "1:2048:+8M", "-n", "2:20480:+8M", "-n", "5:40960:+4M"];
const NAMES: [&str; 6] = ["-c", "1:platform_a", "-c", "2:platform_b", "-c", "5:data"];

fn sgdisk(bench: &Bench, args: &[&str]) {
    tool("sgdisk", &[args, &[&bench.text("disk.img")]].concat());
}

/// Between the slots, in the foreign partition, after the last one.
const BETWEEN: [Range<usize>; 3] = [18432..20480, 40960..41000, 49152..50000];

#[test]
fn tables_of_sgdisk() {
    let bench = bench();
    let cases: [(&str, &[&str]); 6] = [
        ("sgdisk", &[]),
        ("sgdisk -j 64", &["-j", "64"]),
        ("sgdisk -j 1024", &["-j", "1024"]),
        ("sgdisk, 8 entries", &["-S", "8"]),
        ("sgdisk, 1024 entries", &["-S", "1024"]),
        ("sgdisk, hybrid MBR", &["-h", "1:2"]),
    ];
    for (what, extra) in cases {
        blank(&bench, 32);
        sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
        if !extra.is_empty() {
            sgdisk(&bench, extra);
        }
        sow(&bench, 512, &BETWEEN);
        life(&bench, what, 512);
    }
    // Saved, lost and loaded again.
    blank(&bench, 32);
    sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
    let saved = bench.text("saved");
    sgdisk(&bench, &["-b", &saved]);
    sgdisk(&bench, &["-Z"]);
    sgdisk(&bench, &["-l", &saved]);
    life(&bench, "sgdisk -l", 512);
    // Written to a larger medium: the backup lies in its midst.
    blank(&bench, 32);
    sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
    fs::OpenOptions::new().write(true).open(bench.disk()).unwrap().set_len(40 * MIB).unwrap();
    life(&bench, "grown", 512);
}

/// Disks that were copied, flashed or cut by others after their table was made.
#[test]
fn copied_shrunk_and_over_flashed_disks() {
    let bench = bench();
    let disk = bench.text("disk.img");
    let resize = |mib: u64| {
        fs::OpenOptions::new().write(true).open(bench.disk()).unwrap().set_len(mib * MIB).unwrap();
    };
    // A medium that held slots of another product, its selection the other way around; a smaller image is flashed over its
    // beginning. The foreign backup stays at the end of the medium.
    blank(&bench, 40);
    let strangers = ["-n", "1:4096:+8M", "-n", "2:24576:+8M", "-c", "1:platform_b", "-c", "2:platform_a"];
    sgdisk(&bench, &[&strangers[..], &["-A", "1:set:48", "-A", "1:set:56"]].concat());
    let medium = fs::read(bench.disk()).unwrap();
    blank(&bench, 32);
    sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
    sow(&bench, 512, &BETWEEN);
    let flashed = fs::read(bench.disk()).unwrap();
    fs::write(bench.disk(), [&flashed[..], &medium[flashed.len()..]].concat()).unwrap();
    let backup = medium.len() - 33 * 512;
    assert!(medium[backup..].iter().any(|byte| *byte != 0), "the stranger's backup is there");
    life(&bench, "flashed over another disk", 512);
    assert_eq!(fs::read(bench.disk()).unwrap()[backup..], medium[backup..]);

    // Replicated onto another medium, with GUIDs of its own.
    blank(&bench, 32);
    sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
    fs::copy(bench.disk(), bench.path("original")).unwrap();
    blank(&bench, 40);
    tool("sgdisk", &["-R", &disk, &bench.text("original")]);
    sgdisk(&bench, &["-G"]);
    life(&bench, "sgdisk -R", 512);

    // Cut off after the last partition: refused as what it is, and the remedy that is named works.
    blank(&bench, 32);
    sgdisk(&bench, &[&SLOTS[..], &NAMES[..]].concat());
    resize(26);
    let before = fs::read(bench.disk()).unwrap();
    let refusal = bench.at(&["prepare", "v1.qimg", "--booted", "b"]).bad("TABLE_LARGER_DISK");
    assert!(refusal.contains("sgdisk -e"), "{refusal}");
    assert!(fs::read(bench.disk()).unwrap() == before, "a refusal writes nothing");
    sgdisk(&bench, &["-e"]);
    sow(&bench, 512, &BETWEEN);
    life(&bench, "shrunk", 512);
}

#[test]
fn tables_of_sfdisk_parted_and_cgpt() {
    let bench = bench();
    let disk = bench.text("disk.img");
    blank(&bench, 32);
    fs::write(
        bench.path("script"),
        format!(
            "label: gpt\nstart=2048,size=16384,type={LINUX},name=platform_a\nstart=20480,size=16384,type={LINUX},name=platform_b\nstart=40960,size=8192,type={LINUX},name=data\n"
        ),
    )
    .unwrap();
    let script = format!("sfdisk -q '{disk}' < '{}'", bench.text("script"));
    tool("sh", &["-c", &script]);
    sow(&bench, 512, &BETWEEN);
    life(&bench, "sfdisk", 512);

    blank(&bench, 32);
    let parts = [
        "mkpart",
        "platform_a",
        "2048s",
        "18431s",
        "mkpart",
        "platform_b",
        "20480s",
        "36863s",
        "mkpart",
        "data",
        "40960s",
        "49151s",
    ];
    tool("parted", &[&["-s", &disk, "mklabel", "gpt"][..], &parts[..]].concat());
    sow(&bench, 512, &BETWEEN);
    life(&bench, "parted", 512);

    blank(&bench, 32);
    tool("cgpt", &["create", &disk]);
    tool("cgpt", &["boot", "-p", &disk]);
    for (number, from, size, name) in [
        ("1", "2048", "16384", "platform_a"),
        ("2", "20480", "16384", "platform_b"),
        ("7", "40960", "8192", "data"),
    ] {
        tool("cgpt", &["add", "-i", number, "-b", from, "-s", size, "-t", "data", "-l", name, &disk]);
    }
    sow(&bench, 512, &BETWEEN);
    life(&bench, "cgpt", 512);
}

#[test]
fn tables_of_image_builders() {
    let bench = bench();
    let disk = bench.text("disk.img");
    for (what, option) in [("genimage", ""), ("genimage without backup", "gpt-no-backup = true")] {
        let _ = fs::remove_file(bench.disk());
        let _ = fs::remove_dir_all(bench.path("state"));
        let part = |name: &str, at: &str, size: &str| {
            format!(
                "partition {name} {{ offset = {at} image = \"{size}\" partition-type-uuid = \"{LINUX}\" }}\n"
            )
        };
        let parts =
            part("platform_a", "1M", "8M") + &part("platform_b", "10M", "8M") + &part("data", "20M", "4M");
        let config = format!(
            "image disk.img {{ hdimage {{ partition-table-type = \"gpt\"\n{option}\n}}\n{parts}size = 32M\n}}\n"
        );
        fs::write(bench.path("genimage.cfg"), config).unwrap();
        let root = bench.path("genimage.root");
        fs::create_dir_all(&root).unwrap();
        for (name, mib) in [("8M", 8), ("4M", 4)] {
            fs::File::create(root.join(name)).unwrap().set_len(mib * MIB).unwrap();
        }
        let _ = fs::remove_dir_all(bench.path("genimage.tmp"));
        let path = |name: &str| bench.text(name);
        tool(
            "genimage",
            &[
                "--config",
                &path("genimage.cfg"),
                "--rootpath",
                &path("genimage.root"),
                "--tmppath",
                &path("genimage.tmp"),
                "--inputpath",
                &path("genimage.root"),
                "--outputpath",
                bench.disk().parent().unwrap().to_str().unwrap(),
            ],
        );
        // Flashed: without a backup the image ends where its last partition does.
        fs::OpenOptions::new().write(true).open(bench.disk()).unwrap().set_len(32 * MIB).unwrap();
        sow(&bench, 512, &BETWEEN);
        life(&bench, what, 512);
    }

    let _ = fs::remove_file(bench.disk());
    let _ = fs::remove_dir_all(bench.path("state"));
    fs::create_dir(bench.path("repart.d")).unwrap();
    for (i, (name, size)) in
        [("platform_a", "8M"), ("platform_b", "8M"), ("data", "4M")].into_iter().enumerate()
    {
        let text = format!(
            "[Partition]\nType=linux-generic\nLabel={name}\nSizeMinBytes={size}\nSizeMaxBytes={size}\n"
        );
        fs::write(bench.path(&format!("repart.d/{i}.conf")), text).unwrap();
    }
    let definitions = format!("--definitions={}", bench.text("repart.d"));
    tool(
        "systemd-repart",
        &["--empty=create", "--size=32M", "--dry-run=no", &definitions, "--seed=random", &disk],
    );
    life(&bench, "systemd-repart", 512);
}

#[test]
fn boards_with_loaders_outside_of_partitions() {
    let bench = bench();
    // Where the loader lies, and where the array has to be for that.
    let cases: [(&str, Range<usize>, &[&str]); 5] = [
        ("i.MX: LBA 66", 66..500, &[]),
        ("Rockchip: LBA 64", 64..700, &[]),
        ("Allwinner: LBA 256", 256..900, &[]),
        ("Allwinner: LBA 16, array moved", 16..900, &["-j", "1600"]),
        ("Rockchip: LBA 64 to 1900, U-Boot at 8192", 64..1900, &[]),
    ];
    for (what, loader, extra) in cases {
        blank(&bench, 40);
        // The first slot at 8 MiB; there is a gap after the loader in any case.
        sgdisk(
            &bench,
            &["-n", "1:16384:+8M", "-n", "2:36864:+8M", "-c", "1:platform_a", "-c", "2:platform_b"],
        );
        if !extra.is_empty() {
            sgdisk(&bench, extra);
        }
        sow(&bench, 512, &[loader, 8192..9000, 34000..36000, 60000..61000]);
        life(&bench, what, 512);
    }
}

#[test]
fn sectors_of_4096_bytes() {
    if !is_root() {
        return;
    }
    let bench = bench();
    bench.config("sector_size = 4096\n");
    blank(&bench, 32);
    {
        let attached = Loop::new(&bench.disk(), 4096, &[]);
        let device = attached.0.to_str().unwrap();
        tool(
            "sgdisk",
            &[
                "-n",
                "1:256:+8M",
                "-n",
                "2:2560:+8M",
                "-n",
                "5:5120:+4M",
                "-c",
                "1:platform_a",
                "-c",
                "2:platform_b",
                device,
            ],
        );
    }
    sow(&bench, 4096, &[6..200, 2304..2560, 5120..5130, 6200..6300]);
    life(&bench, "sgdisk, 4096", 4096);
}
