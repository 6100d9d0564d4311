//! The disk of a machine: device nodes, parts of the disk, users, locks; on real loop devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::loops;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use loops::{Loop, Mount, eventually, is_root, run, scratch, sparse, text};
use qstage::device::{AlignedBuf, Direct, Mode};
use qstage::error::Error;
use qstage::gpt::Partition;
use qstage::host::{Access, Booted, LocalDisk, Machine};
use qstage::units::{BlockSize, ByteOffset, Extent, Guid};

const MIB: u64 = 1 << 20;

/// Partitions 1 and 3 of the layout, with a hole in the numbers.
fn slots() -> [Partition; 2] {
    [(1, "platform_a", 1), (3, "platform_b", 12)].map(|(number, name, at)| Partition {
        number,
        name: name.to_owned(),
        guid: Guid([number as u8; 16]),
        extent: Extent { at: ByteOffset(at * MIB), len: 10 * MIB },
    })
}

fn lay_out(disk: &Path, sector: u64) {
    let lines: String = slots()
        .iter()
        .map(|p| format!("{}: start={}, size={}\n", p.number, p.extent.at.0 / sector, p.extent.len / sector))
        .collect();
    let args = ["--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", text(disk)];
    let mut child = Command::new("sfdisk").args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("label: gpt\n{lines}").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn open(path: &Path, block: BlockSize) -> LocalDisk {
    LocalDisk::open(path, Mode::Write, Some(block)).unwrap()
}

fn filled(byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(4096);
    buf.fill(byte);
    buf
}

fn refusal<T>(result: qstage::error::Result<T>) -> Error {
    result.err().expect("it had to be refused")
}

/// Node, window onto the disk and window onto the image all reach the same bytes, on both sector sizes.
#[test]
fn a_partition_is_the_same_bytes_by_node_and_by_window() {
    if !is_root() {
        return;
    }
    for (sector, block) in [(512, BlockSize::B512), (4096, BlockSize::B4096)] {
        let dir = scratch();
        let image = sparse(&dir.path().join("disk"), 32 * MIB);
        let disk = Loop::new(&image, sector as u32, &[]);
        lay_out(&disk.0, sector);
        for (by, step) in ["window", "node"].into_iter().zip(1u8..) {
            if by == "node" {
                disk.nodes();
            }
            let machine = open(&disk.0, BlockSize::B512);
            let file = open(&image, block);
            for (slot, n) in slots().iter().zip(1u8..) {
                for (machine, n) in [(&machine, 10 * step + n), (&file, 100 + 10 * step + n)] {
                    let part = machine.open_partition(slot, Access::Exclusive).unwrap();
                    assert_eq!((part.len(), part.block_size()), (slot.extent.len, block));
                    part.write_at(&filled(n), ByteOffset(part.len() - 4096)).unwrap();
                    part.sync().unwrap();
                    let mut found = [0; 4096];
                    let at = slot.extent.at.0 + slot.extent.len - 4096;
                    File::open(&image).unwrap().read_exact_at(&mut found, at).unwrap();
                    assert_eq!(found, [n; 4096], "{by} of {}", slot.name);
                    part.write_at(&filled(n), ByteOffset(part.len())).unwrap_err();
                }
            }
            for (machine, why) in [(&machine, "none of its slots"), (&file, "image file")] {
                match machine.booted_from(&slots(), &slots()).unwrap() {
                    Booted::Unknown { why: found } => assert!(found.contains(why), "{found}"),
                    known => panic!("{known:?}"),
                }
            }
        }
    }
}

#[test]
fn a_mounted_slot_is_not_written() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let image = sparse(&dir.path().join("disk"), 32 * MIB);
    let disk = Loop::new(&image, 512, &[]);
    lay_out(&disk.0, 512);
    disk.nodes();
    run("mkfs.ext4", &["-q", text(&disk.node(1))]);
    let [a, b] = slots();
    let at = dir.path().join("mount point");
    let mount = Mount::new(&disk.node(1), &at, "ro");
    // Through the disk and through the image file beneath it.
    for machine in [open(&disk.0, BlockSize::B512), open(&image, BlockSize::B512)] {
        let user = machine.in_use(&a).unwrap().expect("it is mounted");
        assert!(user.contains(text(&disk.node(1))) && user.contains(text(&at)), "{user}");
        let error = refusal(machine.open_partition(&a, Access::Exclusive));
        assert!(
            matches!(&error, Error::SlotInUse { partition, by } if partition.contains("platform_a") && *by == user),
            "{error}"
        );
        machine.open_partition(&a, Access::Read).unwrap();
        machine.open_partition(&a, Access::Record).unwrap();
        assert_eq!(machine.in_use(&b).unwrap(), None);
        machine.open_partition(&b, Access::Exclusive).unwrap();
    }
    // The kernel's own word, where the mount is not seen.
    assert!(matches!(
        refusal(Direct::open(&disk.node(1), Mode::Claim, BlockSize::B512)),
        Error::SlotInUse { .. }
    ));
    drop(mount);
    let machine = open(&disk.0, BlockSize::B512);
    let held = eventually(|| machine.open_partition(&a, Access::Exclusive));
    // And no other process can open it while it is written.
    let mounting =
        || Command::new("mount").args(["-o", "ro", text(&disk.node(1)), text(&at)]).output().unwrap();
    assert!(!mounting().status.success());
    drop(held);
    drop(Mount::new(&disk.node(1), &at, "ro"));
}

/// A mount that only another mount namespace sees.
#[test]
fn a_mount_in_another_namespace_is_seen() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let disk = Loop::new(&sparse(&dir.path().join("disk"), 32 * MIB), 512, &[]);
    lay_out(&disk.0, 512);
    disk.nodes();
    run("mkfs.ext4", &["-q", text(&disk.node(1))]);
    let [a, _] = slots();
    let script = format!("mount -o ro {} {} && echo mounted && cat", text(&disk.node(1)), text(dir.path()));
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let machine = open(&disk.0, BlockSize::B512);
    let (seen, opened) = (machine.in_use(&a).unwrap(), machine.open_partition(&a, Access::Exclusive));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(line, "mounted\n");
    let seen = seen.expect("it is mounted");
    assert!(seen.contains(&format!("process {}", child.id())), "{seen}");
    assert!(matches!(refusal(opened), Error::SlotInUse { .. }));
}

#[test]
fn kernel_and_table_must_agree() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let disk = Loop::new(&sparse(&dir.path().join("disk"), 32 * MIB), 4096, &[]);
    lay_out(&disk.0, 4096);
    disk.nodes();
    let machine = open(&disk.0, BlockSize::B512);
    let [a, _] = slots();
    let moved = Extent { at: ByteOffset(2 * MIB), ..a.extent };
    let longer = Extent { len: a.extent.len + 4096, ..a.extent };
    for wrong in [
        Partition { extent: moved, ..a.clone() },
        Partition { extent: longer, ..a.clone() },
        Partition { number: 2, ..a.clone() },
    ] {
        for access in [Access::Read, Access::Exclusive, Access::Record] {
            let error = refusal(machine.open_partition(&wrong, access));
            assert!(matches!(error, Error::KernelTable { .. }), "{error}");
        }
    }
    machine.open_partition(&a, Access::Exclusive).unwrap();
    let error = refusal(LocalDisk::open(&disk.node(1), Mode::Write, None));
    let whole = text(&disk.0);
    assert!(matches!(&error, Error::Argument { problem, .. } if problem.ends_with(whole)), "{error}");
}

#[test]
fn a_window_lies_inside_the_disk_on_whole_sectors() {
    let dir = scratch();
    let image = sparse(&dir.path().join("disk"), 32 * MIB);
    let machine = open(&image, BlockSize::B4096);
    let [a, _] = slots();
    let with = |at, len| Partition { extent: Extent { at: ByteOffset(at), len }, ..a.clone() };
    let error = refusal(machine.open_partition(&with(MIB + 512, MIB), Access::Read));
    assert!(matches!(error, Error::Unaligned { at, unit: 4096, .. } if at == MIB + 512), "{error}");
    let error = refusal(machine.open_partition(&with(31 * MIB, 2 * MIB), Access::Read));
    assert!(matches!(error, Error::GptUnsupported { .. }), "{error}");
    let reader = LocalDisk::open(&image, Mode::Read, Some(BlockSize::B4096)).unwrap();
    reader.open_partition(&a, Access::Read).unwrap();
    refusal(reader.open_partition(&a, Access::Record));
}

/// The other process is util-linux's flock(1), so both follow the same convention.
#[test]
fn one_process_at_a_time_holds_the_disk() {
    let dir = scratch();
    let image = sparse(&dir.path().join("disk"), MIB);
    let disk = is_root().then(|| Loop::new(&image, 512, &[]));
    for path in [Some(&image), disk.as_ref().map(|disk| &disk.0)].into_iter().flatten() {
        let machine = open(path, BlockSize::B512);
        let mut other = Command::new("flock")
            .args(["--no-fork", "--exclusive", text(path), "sh", "-c", "echo locked; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(other.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (held, error) = (machine.is_locked(), machine.lock().err());
        // It dies without a word, as a crashed qstage would.
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(held.unwrap());
        let holder = format!("process {} (sleep)", other.id());
        assert!(matches!(&error, Some(Error::Busy { holder: found, .. }) if *found == holder), "{error:?}");
        assert!(!machine.is_locked().unwrap());
        let try_it =
            || Command::new("flock").args(["--nonblock", text(path), "true"]).status().unwrap().success();
        let lock = machine.lock().unwrap();
        assert!(machine.is_locked().unwrap() && !try_it());
        drop(lock);
        assert!(!machine.is_locked().unwrap() && try_it());
    }
}
