//! Real processes on real devices: killed at any instant, started twice, out of space, their disk removed while they run.
//! tests/power/cuts.rs has every order of writes; here the kernel, the loop driver and the locks take part.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::clock::HANG;
use crate::harness::loops;
use crate::harness::proof;
use crate::harness::tables;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use loops::{Loop, Mount, is_root, run, scratch, sparse, text};
use proof::{Random, RecordState, Release, holds, record};
use tables::{Reader, selection};

const MIB: u64 = 1 << 20;
/// Partitions as `init` lays them out: platform a and b of 4 MiB, software a and b of 2 MiB.
const PLACES: [(&str, u64, u64); 4] = [
    ("platform_a", MIB, 4 * MIB),
    ("platform_b", 5 * MIB, 4 * MIB),
    ("software_a", 9 * MIB, 2 * MIB),
    ("software_b", 11 * MIB, 2 * MIB),
];
const DISK: u64 = 14 * MIB;

/// A directory with keys, two releases and a disk that holds the first.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: scratch() };
        let line = format!("release@example.org {}\n", proof::key().public_key().to_openssh().unwrap());
        fs::write(lab.path("allowed_signers"), line).unwrap();
        for (version, seed) in [("1.0", 10), ("2.0", 20)] {
            let bundle = Release::new(if seed == 10 { "1.0" } else { "2.0" }, seed, 500).pack();
            fs::write(lab.path(&format!("v{}.qimg", &version[..1])), &*bundle).unwrap();
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a disk image with release 1.0 in slot a.
    fn image(&self, path: &Path) {
        let (bundle, trust) = (self.path("v1.qimg"), self.path("allowed_signers"));
        let args =
            ["init", text(path), "--slot-size", "4M", "--software-size", "2M", "--bundle", text(&bundle)];
        let args = [&args[..], &["--trust", text(&trust)]].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A verb on a disk, run from a slot.
    fn verb(&self, disk: &Path, booted: char, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
        let booted = booted.to_string();
        command.args(verb).args(["--disk", text(disk), "--booted", &booted]);
        command.arg("--state-dir").arg(self.path("state"));
        if verb[0] == "prepare" {
            command.arg("--trust").arg(self.path("allowed_signers")).arg("--allow-downgrade");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn prepare(&self, disk: &Path, booted: char, bundle: char, more: &[&str]) -> Command {
        let bundle = self.path(&format!("v{bundle}.qimg"));
        let mut command = self.verb(disk, booted, &["prepare", text(&bundle)]);
        command.args(more);
        command
    }
}

/// A process that is ended with its value.
struct Running(Child);

impl Running {
    fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
    /// Kills it after a while, unless it ends by itself before; whether it was killed.
    fn kill_after(mut self, wait: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < wait {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.0.kill().unwrap();
        !self.0.wait().unwrap().success()
    }
    fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut text).unwrap();
        (self.0.wait().unwrap().code().unwrap(), text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The disk as its backing file holds it.
fn read(image: &Path) -> Vec<u8> {
    let mut bytes = vec![0; DISK as usize];
    let file = File::open(image).unwrap();
    let len = (file.metadata().unwrap().len() as usize).min(bytes.len());
    file.read_exact_at(&mut bytes[..len], 0).unwrap();
    bytes
}

/// Waits until a prepare holds the lock of its disk and writes slot b.
fn until_it_writes(image: &Path, before: &[u8]) {
    let begun = Instant::now();
    while slot(&read(image), "platform_b") == slot(before, "platform_b") {
        assert!(begun.elapsed() < HANG, "it does not write");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn slot<'a>(disk: &'a [u8], name: &str) -> &'a [u8] {
    let (_, at, len) = PLACES.iter().find(|place| place.0 == name).unwrap();
    &disk[*at as usize..(at + len) as usize]
}

/// Every record that is whole is true; and whether that of a slot is.
fn whole(disk: &[u8], of: &str) -> bool {
    PLACES.iter().fold(false, |found, (name, ..)| match record(slot(disk, name)) {
        RecordState::Whole(manifest) => {
            assert!(holds(slot(disk, name), name.split('_').next().unwrap(), &manifest), "{name} lies");
            found || *name == of
        }
        RecordState::Nothing | RecordState::Torn => found,
    })
}

/// The image and record of a slot, without its mark.
fn essence(disk: &[u8], name: &str) -> u32 {
    let slot = slot(disk, name);
    let end = slot.len();
    crc32fast::hash(&slot[..end - 8192]) ^ crc32fast::hash(&slot[end - 4096..]).rotate_left(7)
}

fn succeed(output: Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn killed_at_random_instants_on_a_loop_device() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let image = lab.path("disk.img");
    lab.image(&image);
    let disk = Loop::new(&image, 512, &[]);
    let mut random = Random(std::process::id().into());
    let begun = Instant::now();
    // How long each takes, so that the kills fall anywhere within.
    let mut spans = [Duration::from_millis(150), Duration::from_millis(40)];
    let (mut kills, mut cycles, mut booted) = ([0, 0], 0, 'a');
    let limit = if std::env::var_os("QSTAGE_PROOF").is_some() { 180 } else { 20 };
    while begun.elapsed() < Duration::from_secs(limit) || cycles == 0 {
        let other = if booted == 'a' { 'b' } else { 'a' };
        let bundle = if booted == 'a' { '2' } else { '1' };
        let old = essence(&read(&image), &format!("platform_{booted}"));
        for (phase, name) in ["prepare", "commit"].into_iter().enumerate() {
            for round in 0.. {
                let mut command = match name {
                    "prepare" => lab.prepare(&disk.0, booted, bundle, &[]),
                    _ => lab.verb(&disk.0, booted, &["commit"]),
                };
                // The last round of each phase is left alone, so that the next phase has something to do.
                let wait = spans[phase].mul_f64((random.next() % 1000) as f64 / 900.0);
                let alone = round == 6;
                let start = Instant::now();
                let killed = Running::spawn(&mut command).kill_after(if alone {
                    Duration::from_secs(60)
                } else {
                    wait
                });
                if !killed {
                    spans[phase] = start.elapsed();
                }
                kills[phase] += usize::from(killed);
                let bytes = read(&image);
                assert_eq!(essence(&bytes, &format!("platform_{booted}")), old, "the running slot changed");
                let selected = selection(&bytes, 512, Reader::Strict);
                let is = |slot: char| selected == Some((Some(slot), Some(slot)));
                let is_whole = whole(&bytes, &format!("platform_{other}"));
                assert!(is(booted) || name == "commit" && is(other), "{name}: {selected:?}");
                assert!(killed || is_whole, "{name} says that it is done");
                if is(other) {
                    assert!(is_whole, "selected and not whole");
                    break;
                }
                if !killed && name == "prepare" {
                    break;
                }
                assert!(killed, "commit says that it is done");
            }
        }
        succeed(lab.verb(&disk.0, other, &["mark-good"]).output().unwrap());
        booted = other;
        cycles += 1;
    }
    println!(
        "{} kills of prepare, {} of commit, {cycles} whole upgrades, {:?}",
        kills[0],
        kills[1],
        begun.elapsed()
    );
    assert!(kills[0] + kills[1] >= 10, "{kills:?}");
}

#[test]
fn two_at_once_never_both() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let image = lab.path("disk.img");
    lab.image(&image);
    let disk = Loop::new(&image, 512, &[]);
    // A slow one and one that does not wait so long: refused, with the holder's name.
    let before = read(&image);
    let first = Running::spawn(&mut lab.prepare(&disk.0, 'a', '2', &["--max-rate", "100K"]));
    until_it_writes(&image, &before);
    let second = Running::spawn(&mut lab.prepare(&disk.0, 'a', '2', &[]));
    let commit = Running::spawn(&mut lab.verb(&disk.0, 'a', &["commit"]));
    for (name, other) in [("prepare", second), ("commit", commit)] {
        let (code, message) = other.end();
        assert_eq!(code, 5, "{name}: {message}");
        assert!(message.contains("UPGRADE_ERROR_BUSY") && message.contains("qstage"), "{name}: {message}");
    }
    assert!(first.kill_after(Duration::ZERO), "the first one was still at it");
    // The lock ends with its holder. Two fast ones: one after the other, and both are right.
    let both = [0, 1].map(|_| Running::spawn(&mut lab.prepare(&disk.0, 'a', '2', &[])));
    for (code, message) in both.map(Running::end) {
        assert!(code == 0 || code == 5 && message.contains("UPGRADE_ERROR_BUSY"), "{message}");
    }
    assert!(whole(&read(&image), "platform_b"));
}

#[test]
fn a_full_file_system_costs_nothing() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let holder = sparse(&lab.path("holder.img"), 16 * MIB);
    run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^has_journal", text(&holder)]);
    let device = Loop::new(&holder, 512, &[]);
    let mount = Mount::new(&device.0, &lab.path("mnt"), "rw");
    let image = lab.path("mnt/disk.img");
    // The image has holes where slot b will be; they do not all fit.
    lab.image(&image);
    let before = read(&image);
    let free = run("df", &["--output=avail", "--block-size=1", text(&lab.path("mnt"))]);
    let free: u64 = free.lines().last().unwrap().trim().parse().unwrap();
    let filler = File::create(lab.path("mnt/filler")).unwrap();
    filler.write_all_at(&vec![1; free.saturating_sub(MIB) as usize], 0).unwrap();
    filler.sync_all().unwrap();
    let output = lab.prepare(&image, 'a', '2', &[]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{message}");
    assert!(message.contains("UPGRADE_ERROR_NO_SPACE"), "{message}");
    let after = read(&image);
    for name in ["platform_a", "software_a"] {
        assert!(slot(&before, name) == slot(&after, name), "{name}");
    }
    assert!(!whole(&after, "platform_b"));
    assert_eq!(selection(&after, 512, Reader::Strict), Some((Some('a'), Some('a'))));
    // With room it goes on.
    drop(filler);
    fs::remove_file(lab.path("mnt/filler")).unwrap();
    succeed(lab.prepare(&image, 'a', '2', &[]).output().unwrap());
    assert!(whole(&read(&image), "platform_b"));
    drop(mount);
}

#[test]
fn a_disk_that_is_cut_off_mid_write_is_an_error() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let image = lab.path("disk.img");
    lab.image(&image);
    let before = read(&image);
    let disk = Loop::new(&image, 512, &[]);
    let running = Running::spawn(&mut lab.prepare(&disk.0, 'a', '2', &["--max-rate", "200K"]));
    until_it_writes(&image, &before);
    // From now on the device ends within slot b.
    File::options().write(true).open(&image).unwrap().set_len(6 * MIB).unwrap();
    run("losetup", &["-c", text(&disk.0)]);
    let (code, message) = running.end();
    assert!([6, 7].contains(&code), "{code}: {message}");
    assert!(message.contains("byte") || message.contains("flushing"), "where? {message}");
    let after = read(&image);
    assert!(slot(&before, "platform_a") == slot(&after, "platform_a"));
    assert_eq!(selection(&after, 512, Reader::Strict).unwrap().0, Some('a'));
}
