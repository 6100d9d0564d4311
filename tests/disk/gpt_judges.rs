//! Judgement of our tables by independent programs: sgdisk, sfdisk, cgpt and the `gpt` crate. If one is not installed, the
//! test fails and names the package.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::tables;

use std::fs;
use std::path::Path;
use std::process::Command;

use qstage::boot::Slots;
use qstage::commit;
use qstage::device::{BlockDevice, MemoryDevice};
use qstage::gpt::layout::{self, NewPartition};
use qstage::gpt::second::Scope;
use qstage::gpt::{Attributes, Copy, Method};
use qstage::host::DiskLock;
use qstage::units::{BlockSize, Group, Guid, MIB, Slot};
use tables::{Reader, Spec, selection, trial};

/// Runs a judge; its output, and whether it was content.
fn judge(program: &str, package: &str, args: &[&str], image: &Path) -> (bool, String) {
    let output = Command::new(program).args(args).arg(image).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {package}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn sgdisk(args: &[&str], image: &Path) -> String {
    let (ok, text) = judge("/usr/sbin/sgdisk", "gdisk", args, image);
    assert!(ok, "sgdisk {args:?}: {text}");
    text
}

/// sgdisk finds no problem. What it warns of are the gaps between header, array and first usable block: they
/// are what a second array needs, "helpful in some exotic configurations" in its words.
fn sgdisk_verifies(image: &Path) {
    let text = sgdisk(&["--verify"], image);
    assert!(text.contains("No problems found"), "{text}");
    let warnings = text.matches("Warning").count() + text.matches("Caution").count();
    assert_eq!(warnings, text.matches("Warning: There is a gap between the main").count(), "{text}");
}

fn sfdisk_verifies(image: &Path) {
    let (ok, text) = judge("/usr/sbin/sfdisk", "fdisk", &["--verify"], image);
    assert!(ok && text.contains("No errors detected"), "{text}");
}

/// The attributes of each partition as sfdisk and cgpt see them must be ours, bit by bit.
fn flags_agree(image: &Path, table: &qstage::gpt::Table) {
    let (ok, text) = judge("/usr/sbin/sfdisk", "fdisk", &["--json"], image);
    assert!(ok, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = json["partitiontable"]["partitions"].as_array().unwrap();
    let partitions = table.partitions();
    assert_eq!(rows.len(), partitions.len());
    for (row, partition) in rows.iter().zip(&partitions) {
        let node = row["node"].as_str().unwrap();
        assert!(node.ends_with(&partition.number.to_string()), "{node} is not {}", partition.number);
        assert_eq!(row["name"], partition.name.as_str());
        assert_eq!(row["uuid"].as_str().unwrap().to_lowercase(), partition.guid.to_string());
        assert_eq!(row["start"].as_u64().unwrap() * 512, partition.extent.at.0);
        assert_eq!(row["size"].as_u64().unwrap() * 512, partition.extent.len);
        assert_eq!(sfdisk_bits(row["attrs"].as_str().unwrap_or("")), table.attributes(partition.number).0);
        if !partition.name.starts_with("data") {
            cgpt_agrees(image, partition.number, table.attributes(partition.number));
        }
    }
}

/// "LegacyBIOSBootable GUID:49,56" as a number.
fn sfdisk_bits(text: &str) -> u64 {
    let named = [("RequiredPartition", 0), ("NoBlockIOProtocol", 1), ("LegacyBIOSBootable", 2)];
    let known = named.iter().filter(|(name, _)| text.contains(name)).map(|(_, bit)| 1u64 << bit);
    let listed = text.split("GUID:").nth(1).unwrap_or("");
    known.sum::<u64>()
        + listed.split(',').filter_map(|bit| bit.trim().parse::<u32>().ok()).map(|b| 1 << b).sum::<u64>()
}

fn cgpt_agrees(image: &Path, number: u32, ours: Attributes) {
    let number = number.to_string();
    let ask = |field: &str| -> u64 {
        let (ok, text) = judge("/usr/bin/cgpt", "cgpt", &["show", "-i", &number, field], image);
        assert!(ok, "cgpt {field}: {text}");
        text.trim().parse().unwrap_or_else(|_| panic!("cgpt {field}: {text}"))
    };
    assert_eq!(ask("-P"), u64::from(ours.priority()));
    assert_eq!(ask("-T"), u64::from(ours.tries()));
    assert_eq!(ask("-S"), u64::from(ours.successful()));
}

fn both_to(table: &qstage::gpt::Table, slot: Slot) -> qstage::gpt::Table {
    let slots = Slots::resolve(table, "disk").unwrap();
    let one = trial(table, &slots, Group::Platform, slot, 5);
    trial(&one, &slots, Group::Software, slot, 5)
}

/// Switches in memory and puts the result into a file for the judges.
fn switched(memory: &MemoryDevice, slot: Slot, path: &Path) -> (qstage::gpt::Table, Method, Scope) {
    let loaded = commit::load(memory, "disk").unwrap();
    let new = both_to(loaded.table().unwrap(), slot);
    let plan = commit::switch(memory, &DiskLock::new(()), &loaded, &new).unwrap();
    fs::write(path, memory.snapshot()).unwrap();
    (plan.primary, plan.method, loaded.second_reader().unwrap())
}

fn pairs(size: u64) -> Vec<NewPartition> {
    let linux: Guid = "0fc63daf-8483-4772-8e79-3d69d8477de4".parse().unwrap();
    ["platform_a", "platform_b", "software_a", "software_b", "data"]
        .map(|name| NewPartition {
            name: name.to_owned(),
            type_guid: linux,
            guid: None,
            size,
            attributes: Attributes(0),
        })
        .to_vec()
}

#[test]
fn a_fresh_layout_and_ten_switches_satisfy_every_judge() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let len = 8 * MIB + 4096;
    let memory = MemoryDevice::new(vec![0; len as usize], BlockSize::B512);
    let plan = layout::create("disk", len, BlockSize::B512, &pairs(MIB), None).unwrap();
    commit::lay_out(&memory, "disk", &DiskLock::new(()), &plan).unwrap();
    fs::write(&path, memory.snapshot()).unwrap();
    sgdisk_verifies(&path);
    sfdisk_verifies(&path);
    let mut places = Vec::new();
    for round in 0..10 {
        let slot = if round % 2 == 0 { Slot::B } else { Slot::A };
        let (table, method, scope) = switched(&memory, slot, &path);
        assert_eq!((method, scope), (Method::SecondArray, Scope::Both));
        places.push(table.header().entries_lba.0);
        sgdisk_verifies(&path);
        sfdisk_verifies(&path);
        flags_agree(&path, &table);
    }
    assert_eq!(places, [2; 10], "the array comes home each time");
}

#[test]
fn tables_of_sgdisk_with_holes_moved_arrays_and_no_gap_stay_clean() {
    let dir = tempfile::tempdir().unwrap();
    // The argument of sgdisk, the place of the array afterwards, and the way of the switch.
    let cases: [(&[&str], Option<u64>); 4] = [
        (&[], Some(2)),
        // -j moves the array: the boards that keep a boot loader at LBA 16 do that.
        (&["-j", "64"], Some(64)),
        (&["-j", "1024"], Some(1024)),
        (&["-a", "1", "-n", "9:34:99", "-c", "9:early"], None),
    ];
    for (i, (extra, place)) in cases.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.img"));
        fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
        let slots = ["-n", "1:2048:+1M", "-n", "2:0:+1M", "-n", "4:0:+1M", "-n", "5:0:+1M"];
        let names = ["-c", "1:platform_a", "-c", "2:platform_b", "-c", "4:software_a", "-c", "5:software_b"];
        let bits = ["-A", "1:set:49", "-A", "1:set:56", "-A", "4:set:49", "-A", "4:set:56", "-A", "2:set:60"];
        sgdisk(&[&["-o"][..], extra, &slots, &names, &bits].concat(), &path);
        sgdisk_verifies(&path);
        let memory = MemoryDevice::new(fs::read(&path).unwrap(), BlockSize::B512);
        for slot in [Slot::B, Slot::A, Slot::B] {
            let (table, method, _) = switched(&memory, slot, &path);
            assert_eq!(method == Method::SecondArray, place.is_some(), "{extra:?}: {method}");
            sgdisk_verifies(&path);
            sfdisk_verifies(&path);
            flags_agree(&path, &table);
            let numbers: Vec<u32> = table.partitions().iter().map(|p| p.number).collect();
            assert_eq!(numbers[..4], [1, 2, 4, 5]);
        }
        let loaded = commit::load(&memory, "disk").unwrap();
        let lba = loaded.table().unwrap().header().entries_lba.0;
        println!("sgdisk {extra:?}: array at LBA {lba} after three switches");
        assert!(place.is_none_or(|place| lba == place), "{extra:?}: array at LBA {lba}");
        // A judge writes: cgpt clears a flag, sgdisk renames; we read it and go on.
        let (ok, text) = judge("/usr/bin/cgpt", "cgpt", &["add", "-i", "2", "-T", "2"], &path);
        assert!(ok, "{text}");
        sgdisk(&["-c", "5:software_b"], &path);
        let memory = MemoryDevice::new(fs::read(&path).unwrap(), BlockSize::B512);
        assert_eq!(commit::load(&memory, "disk").unwrap().table().unwrap().attributes(2).tries(), 2);
        switched(&memory, Slot::A, &path);
        sgdisk_verifies(&path);
    }
}

#[test]
fn our_repair_satisfies_the_judges() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let spec = Spec::slots(512, 4096, 2048, 100);
    let last = 4095 * 512;
    for (what, at) in
        [("primary header", 512), ("primary array", 1024), ("backup", last), ("backup array", last - 16384)]
    {
        let mut image = spec.image();
        image[at..at + 512].fill(0xff);
        let memory = MemoryDevice::new(image, BlockSize::B512);
        let loaded = commit::load(&memory, "disk").unwrap();
        if commit::repair(&memory, &DiskLock::new(()), &loaded).unwrap().is_none() {
            // Bytes that are not ours: the backup is written by an explicit order only.
            commit::restore(&memory, &DiskLock::new(()), &loaded, Copy::Primary).unwrap();
        }
        fs::write(&path, memory.snapshot()).unwrap();
        sgdisk_verifies(&path);
        sfdisk_verifies(&path);
        assert!(
            memory.snapshot() == spec.image() || what == "primary array",
            "{what}: back to the very bytes"
        );
    }
}

/// Entries of 256 bytes are legal UEFI. Who reads them was found by this test; it fails when that changes.
#[test]
fn large_entries_are_switched_though_few_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let mut spec = Spec::slots(512, 4096, 2048, 100);
    spec.entry_size = 256;
    spec.first_usable = 66;
    fs::write(&path, spec.image()).unwrap();
    let before = large_entry_judges(&path);
    let memory = MemoryDevice::new(spec.image(), BlockSize::B512);
    let (_, method, scope) = switched(&memory, Slot::B, &path);
    assert_eq!((method, scope), (Method::SecondArray, Scope::NothingEntrySize));
    assert_eq!(selection(&memory.snapshot(), 512, Reader::Strict), Some((Some('b'), Some('b'))));
    assert_eq!(large_entry_judges(&path), before, "no judge changes its mind by our switch");
    println!("256-byte entries accepted by sgdisk, sfdisk, cgpt: {before:?}");
}

/// Whether sgdisk, sfdisk and cgpt find the five partitions.
fn large_entry_judges(path: &Path) -> [bool; 3] {
    let sees = |(ok, text): (bool, String)| ok && text.contains("platform_b") && text.contains("software_b");
    [
        sees(judge("/usr/sbin/sgdisk", "gdisk", &["--print"], path)),
        sees(judge("/usr/sbin/sfdisk", "fdisk", &["--json"], path)),
        sees(judge("/usr/bin/cgpt", "cgpt", &["show"], path)),
    ]
}

/// An image copied to a larger disk: the backup is where the primary header says, not in the last block. The
/// second reader then judges the primary alone; the rest is our own re-read.
#[test]
fn a_backup_in_the_middle_stays_there() {
    let mut image = Spec::slots(512, 4096, 2048, 100).image();
    image.resize(image.len() * 2, 0);
    let memory = MemoryDevice::new(image, BlockSize::B512);
    let dir = tempfile::tempdir().unwrap();
    let (table, _, scope) = switched(&memory, Slot::B, &dir.path().join("disk.img"));
    assert_eq!((table.header().alternate_lba.0, scope), (4095, Scope::PrimaryOnly));
}

/// A loop device with 4096-byte blocks, detached when dropped.
struct Loop(String);

impl Loop {
    fn attach(image: &Path) -> Self {
        let args = ["--find", "--show", "--sector-size", "4096"];
        let (ok, text) = judge("/usr/sbin/losetup", "mount", &args, image);
        assert!(ok, "losetup: {text} (needs root and loop devices)");
        Self(text.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn four_kilobyte_blocks_satisfy_sfdisk_and_sgdisk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let len = 16 * MIB;
    let memory = MemoryDevice::new(vec![0; len as usize], BlockSize::B4096);
    assert_eq!(memory.physical_block_size(), 4096);
    let plan = layout::create("disk", len, BlockSize::B4096, &pairs(2 * MIB), None).unwrap();
    commit::lay_out(&memory, "disk", &DiskLock::new(()), &plan).unwrap();
    let mut places = Vec::new();
    for slot in [Slot::B, Slot::A, Slot::B] {
        let (table, method, _) = switched(&memory, slot, &path);
        assert_eq!(method, Method::SecondArray);
        places.push(table.header().entries_lba.0);
        let device = Loop::attach(&path);
        sfdisk_verifies(Path::new(&device.0));
        sgdisk_verifies(Path::new(&device.0));
    }
    assert_eq!(places, [2; 3]);
}
