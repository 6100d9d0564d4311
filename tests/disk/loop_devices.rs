//! A whole upgrade on real block devices with real file systems, judged by the programs that will read the disk:
//! mount, e2fsck, sgdisk, sfdisk, cgpt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::loops;
use crate::harness::machine;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use loops::{Loop, Mount, cached, is_root, run, sparse, text};
use machine::{Bench, MIB, tool};
use serde_json::{Value, json};

/// An ext4 image (in blocks that every sector size divides) with files of all sizes, and the directory that it was made of.
fn ext4(bench: &Bench, name: &str, size: &str, seed: u64) {
    let dir = bench.path(name);
    fs::create_dir_all(dir.join("etc/deep/er")).unwrap();
    let mut noise = machine::Noise(seed);
    for number in 0..40 {
        let len = noise.below(200_000) as usize;
        fs::write(dir.join(format!("etc/deep/er/{number}")), noise.bytes(len)).unwrap();
    }
    fs::write(dir.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("etc/deep/er/1", dir.join("link")).unwrap();
    let image = bench.text(&format!("{name}.ext4"));
    tool("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-d", text(&dir), &image, size]);
}

/// The file system in a partition is sound and holds the files of the directory. Without a node the partition is
/// seen through another loop device.
fn holds_files(bench: &Bench, partition: &Path, dir: &str) {
    tool("e2fsck", &["-fn", text(partition)]);
    let at = bench.path("mnt");
    let mount = Mount::new(partition, &at, "ro");
    run("diff", &["-r", "--no-dereference", "--exclude=lost+found", &bench.text(dir), text(&at)]);
    drop(mount);
}

/// Attributes of a partition by three programs that must agree; priority, tries and successful.
fn judged(disk: &Path, number: u32) -> (u64, u64, u64) {
    let disk = text(disk);
    let verified = tool("sgdisk", &["--verify", disk]);
    assert!(verified.contains("No problems found"), "{verified}");
    tool("sfdisk", &["--verify", disk]);
    let info = tool("sgdisk", &["-i", &number.to_string(), disk]);
    let line = info.lines().find_map(|line| line.strip_prefix("Attribute flags: ")).unwrap();
    let bits = u64::from_str_radix(line.trim(), 16).unwrap();
    let flags = (bits >> 48 & 15, bits >> 52 & 15, bits >> 56 & 1);
    let n = number.to_string();
    for (flag, expected) in [("-P", flags.0), ("-T", flags.1), ("-S", flags.2)] {
        assert_eq!(tool("cgpt", &["show", "-i", &n, flag, disk]).trim(), expected.to_string(), "cgpt {flag}");
    }
    let table: Value = serde_json::from_str(&tool("sfdisk", &["--json", disk])).unwrap();
    let attrs =
        table["partitiontable"]["partitions"][number as usize - 1]["attrs"].as_str().unwrap_or("").to_owned();
    let listed = attrs.split("GUID:").nth(1).unwrap_or("").split([',', ' ']);
    let high: u64 = listed.filter_map(|bit| bit.parse::<u32>().ok()).map(|bit| 1u64 << bit).sum();
    assert_eq!(high, bits & !0xf, "sfdisk: {attrs}");
    flags
}

/// A partition to mount: its node, or where the kernel has none a loop device over its place.
struct Seen(PathBuf, #[allow(dead_code, reason = "held for its Drop")] Option<Loop>);

fn seen(disk: &Loop, number: u32, sector: u32, nodes: bool) -> Seen {
    if nodes {
        return Seen(disk.node(number), None);
    }
    let table: Value = serde_json::from_str(&tool("sfdisk", &["--json", text(&disk.0)])).unwrap();
    let row = &table["partitiontable"]["partitions"][number as usize - 1];
    let bytes = |key: &str| (row[key].as_u64().unwrap() * u64::from(sector)).to_string();
    let limits = ["--offset", &bytes("start"), "--sizelimit", &bytes("size")];
    let window = Loop::new(&disk.0, sector, &limits);
    Seen(window.0.clone(), Some(window))
}

#[test]
fn an_upgrade_on_512_and_4096_byte_sectors_with_and_without_nodes() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    for (name, version, seed) in [("v1", "1.0", 1), ("v2", "2.0", 2)] {
        ext4(&bench, name, "12M", seed);
        bench.pack(name, version, &["--platform", &format!("{name}.ext4")]);
    }
    for (sector, nodes) in [(512, false), (512, true), (4096, false), (4096, true)] {
        let disk = Loop::new(&sparse(&bench.path("disk.img"), 36 * MIB), sector, &[]);
        let at = |args: &[&str]| bench.at(&[args, &["--disk", text(&disk.0)]].concat());
        bench.at(&["init", text(&disk.0), "--slot-size", "16M", "--bundle", "v1.qimg"]).good();
        if nodes {
            disk.nodes();
        }
        assert_eq!(judged(&disk.0, 1), (2, 0, 1), "{sector} {nodes}");
        let report = at(&["prepare", "v2.qimg", "--booted", "a", "--json"]).json();
        assert_eq!(report["targets"], json!(["platform_b"]));
        assert_eq!(judged(&disk.0, 2), (0, 0, 0));
        {
            let target = seen(&disk, 2, sector, nodes);
            let _mount = Mount::new(&target.0, &bench.path("target"), "ro");
            at(&["prepare", "v2.qimg", "--booted", "a"]).bad("SLOT_IN_USE");
        }
        at(&["commit", "--booted", "a"]).good();
        assert_eq!((judged(&disk.0, 1), judged(&disk.0, 2)), ((1, 0, 1), (2, 3, 0)));
        at(&["mark-good", "--booted", "b"]).good();
        assert_eq!((judged(&disk.0, 1), judged(&disk.0, 2)), ((1, 0, 1), (2, 0, 1)));
        let rows = at(&["slots", "--booted", "b", "--json"]).json();
        assert_eq!(rows["slots"][1]["version"], "2.0");
        assert!(rows["switch_method"].as_str().unwrap().contains("second array"), "{rows}");
        at(&["verify", "--slot", "b", "--booted", "b"]).good();
        for (number, dir) in [(1, "v1"), (2, "v2")] {
            holds_files(&bench, &seen(&disk, number, sector, nodes).0, dir);
        }
        // What runs may be mounted: it is not written, but its flags and its mark are.
        let running = seen(&disk, 2, sector, nodes);
        let mount = Mount::new(&running.0, &bench.path("root"), "ro");
        at(&["prepare", "v2.qimg", "--booted", "a"]).bad("SWITCH_PENDING");
        at(&["prepare", "v1.qimg", "--booted", "b", "--allow-downgrade"]).good();
        at(&["commit", "--booted", "b"]).good();
        at(&["roll-back", "--booted", "a"]).good();
        drop(mount);
        drop(running);
        holds_files(&bench, &seen(&disk, 2, sector, nodes).0, "v2");
    }
}

/// The kernel still has the nodes of the table that is destroyed.
#[test]
fn a_disk_is_laid_out_anew_while_the_kernel_has_its_partitions() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    disk.nodes();
    let init = |more: &[&str]| {
        bench.at(&[&["init", text(&disk.0), "--force", "--bundle", "v1.qimg"], more].concat())
    };
    init(&["--slot-size", "8M"]).good();
    assert_eq!(judged(&disk.0, 1), (2, 0, 1));
    // With other sizes they would lie: nothing is written by them.
    init(&["--slot-size", "6M"]).good();
    assert_eq!(judged(&disk.0, 1), (2, 0, 1));
    run("partx", &["-u", text(&disk.0)]);
    bench.at(&["verify", "--slot", "a", "--disk", text(&disk.0), "--booted", "a"]).good();
    let mount = Mount::new(&ext4_in(&bench, &disk), &bench.path("mnt"), "ro");
    init(&["--slot-size", "8M"]).bad("SLOT_IN_USE");
    drop(mount);
}

/// Makes a file system in the second partition, which is in foreign use now.
fn ext4_in(bench: &Bench, disk: &Loop) -> PathBuf {
    fs::create_dir_all(bench.path("mnt")).unwrap();
    tool("mkfs.ext4", &["-q", text(&disk.node(2))]);
    disk.node(2)
}

/// A table as old tools made it: the first partition at LBA 34, numbers with holes. There is no room for a second
/// array, and every report on which an operator bases a decision has that.
#[test]
fn a_table_without_room_is_switched_in_place_and_that_is_said() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    fs::remove_file(bench.disk()).unwrap();
    let disk = Loop::new(&sparse(&bench.disk(), 40 * MIB), 512, &[]);
    let parts = [
        "-n",
        "2:34:+8M",
        "-c",
        "2:platform_a",
        "-n",
        "5:0:+8M",
        "-c",
        "5:platform_b",
        "-n",
        "9:0:+1M",
        "-c",
        "9:data",
    ];
    tool("sgdisk", &[&["-a", "1"], &parts[..], &[text(&disk.0)]].concat());
    for nodes in [false, true] {
        if nodes {
            disk.nodes();
        }
        let (booted, other) = if nodes { ("a", "b") } else { ("b", "a") };
        let at = |args: &[&str]| bench.at(&[args, &["--disk", text(&disk.0), "--booted", booted]].concat());
        let bundle = if nodes { "v2.qimg" } else { "v1.qimg" };
        for verb in [&["plan", bundle][..], &["slots"]] {
            assert!(at(verb).good().contains("in place"), "{verb:?}");
            assert!(
                at(&[verb, &["--json"]].concat()).json()["switch_method"]
                    .as_str()
                    .unwrap()
                    .contains("in place")
            );
        }
        at(&["prepare", bundle]).good();
        assert!(at(&["commit", "--dry-run"]).good().contains("in place"));
        assert!(at(&["commit"]).good().contains("in place"));
        bench.at(&["mark-good", "--disk", text(&disk.0), "--booted", other]).good();
        let table: Value = serde_json::from_str(&tool("sfdisk", &["--json", text(&disk.0)])).unwrap();
        let rows = table["partitiontable"]["partitions"].as_array().unwrap();
        let seen: Vec<_> =
            rows.iter().map(|row| (row["node"].as_str().unwrap(), row["start"].as_u64())).collect();
        let ends = ["2", "5", "9"].map(|number| format!("{}p{number}", disk.0.display()));
        assert!(seen.iter().map(|row| row.0).eq(&ends) && seen[0].1 == Some(34), "{seen:?}");
    }
    let flags = |n: &str| tool("cgpt", &["show", "-i", n, "-P", text(&disk.0)]).trim().to_owned();
    assert_eq!((flags("2"), flags("5")), ("1".to_owned(), "2".to_owned()));
    tool("sfdisk", &["--verify", text(&disk.0)]);
}

/// An image twelve times the limit goes through a process that stays below 64 MiB, and leaves neither bundle nor slot in
/// the page cache. Nothing in the process grows with the image but the index, 36 bytes for each frame.
#[test]
fn memory_and_page_cache_stay_as_they_were() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let image = bench.path("big.img");
    let mut file = fs::File::create(&image).unwrap();
    file.set_len(768 * MIB).unwrap();
    let mut noise = machine::Noise(1);
    // 96 MiB of noise in 6 islands.
    for island in 0..6 {
        file.seek(SeekFrom::Start(island * 125 * MIB)).unwrap();
        file.write_all(&noise.bytes(16 << 20)).unwrap();
    }
    bench.pack("big", "1.0", &["--platform", "big.img", "--level", "1"]);
    let disk = Loop::new(&sparse(&bench.disk(), 1600 * MIB), 512, &["--direct-io=on"]);
    bench.at(&["init", text(&disk.0), "--slot-size", "780M"]).good();
    run("dd", &[&format!("if={}", bench.text("big.qimg")), "iflag=nocache", "count=0", "status=none"]);
    assert_eq!(cached(&bench.path("big.qimg")), 0);
    let args = ["prepare", "big.qimg", "--disk", text(&disk.0), "--booted", "a", "--json"];
    let mut running = bench.start(&args, std::process::Stdio::null());
    let status = format!("/proc/{}/status", running.id());
    // The kernel keeps the peak, so what is missed at the end is what grew in the last instant.
    let (mut peak, mut most) = (0, 0);
    while running.child().try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        most = most.max(cached(&bench.path("big.qimg")));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let report = running.end().json();
    assert_eq!(report["written_bytes"], 96 * MIB);
    assert_eq!(report["zeroed_bytes"], (768 - 96) * MIB);
    println!("peak {peak} KiB, {most} bytes of the bundle cached, {report}");
    // A window around the workers, while it runs; of the 96 MiB that it reads.
    assert!(most <= 24 * MIB, "{most} bytes of the bundle were cached");
    assert!((1 << 10..64 << 10).contains(&peak), "{peak} KiB");
    // What was read ahead of the end may stay, a few MiB at most.
    assert!(cached(&bench.path("big.qimg")) <= 4 * MIB, "the bundle fills the page cache");
    assert!(cached(&bench.disk()) <= 4 * MIB, "the slot fills the page cache");
}

/// The partitions of a disk that the kernel knows, from sysfs.
fn known(disk: &Loop) -> Vec<String> {
    let name = disk.0.file_name().unwrap().to_str().unwrap().to_owned();
    let entries = fs::read_dir(Path::new("/sys/block").join(&name)).unwrap().map(|e| e.unwrap().file_name());
    let mut found: Vec<String> = entries
        .map(|entry| entry.into_string().unwrap())
        .filter(|entry| entry.starts_with(&format!("{name}p")))
        .collect();
    found.sort();
    found
}

/// `init` makes the kernel read the new table. If a process has a partition of the old one open it cannot, and reports that with the
/// remedy, and until that is followed every verb is refused by KERNEL_TABLE.
#[test]
fn init_tells_the_kernel_or_says_that_it_could_not() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    fs::remove_file(bench.disk()).unwrap();
    let disk = Loop::new(&sparse(&bench.disk(), 64 * MIB), 512, &["--partscan"]);
    let path = text(&disk.0);
    let init = |size: &str| bench.at(&["init", path, "--slot-size", size, "--bundle", "v1.qimg", "--force"]);
    // A kernel without CONFIG_EFI_PARTITION reads a table and makes no nodes of it.
    let nodes = || {
        if known(&disk).is_empty() {
            disk.nodes();
        }
        assert_eq!(known(&disk).len(), 2);
    };
    let sectors = |number: u32| {
        let name = disk.node(number).file_name().unwrap().to_owned();
        fs::read_to_string(Path::new("/sys/class/block").join(name).join("size")).unwrap_or_default()
    };
    init("8M").good();
    nodes();
    assert_eq!(sectors(2).trim(), "16384");
    let first = init("10M");
    assert!(!first.err.contains("partx"), "{}", first.err);
    first.good();
    // It has forgotten the old layout.
    assert!(["", "20480"].contains(&sectors(2).trim()), "{}", sectors(2));
    nodes();
    // A process has a slot of the old layout open.
    let held = fs::File::open(disk.node(1)).unwrap();
    let second = init("12M");
    let notice = second.err.clone();
    second.good();
    assert!(notice.contains("busy") && notice.contains(&format!("'partx -d {path}'")), "{notice}");
    let on = ["prepare", "v2.qimg", "--disk", path, "--booted", "a"];
    let before = bench.hash();
    let message = bench.at(&on).bad("KERNEL_TABLE");
    assert!(message.contains("'partx -d'") && message.contains("'partx -a'"), "{message}");
    assert_eq!(bench.hash(), before, "a refusal writes nothing");
    drop(held);
    loops::forget(&[path]);
    run("partx", &["-a", path]);
    bench.at(&on).good();
}
