//! Leftovers and obstacles of a verb: blocks of sparse files, temporary directories, files that are not regular.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::clock::{Clock, HANG};
use crate::harness::machine::{Bench, is_root, tool};

/// Before: the scratch directory of a killed bench stayed for ever.
#[test]
fn what_a_killed_bench_leaves_is_gone_with_the_next_one() {
    let bench = Bench::new();
    let room = bench.path("room");
    fs::create_dir(&room).unwrap();
    let left = || fs::read_dir(&room).unwrap().count();
    let args = ["bench", "--scratch", "room", "--size", "4M", "--repeat"];
    let mut child = bench.command(&[&args[..], &["10000"]].concat());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while left() == 0 {
        assert!(begun.elapsed() < HANG, "it makes no scratch directory");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left(), 1, "nothing to clear away: this test shows nothing");
    // Killed between the making of a directory and its lock; no process has such a number.
    fs::create_dir(room.join(".qstage-bench.4294967295")).unwrap();
    bench.run(&[&args[..], &["1"]].concat()).good();
    assert_eq!(left(), 0);
}

/// Before: `init` allocated all of it.
#[test]
fn a_large_image_file_takes_little_of_its_disk() {
    let bench = Bench::installed();
    bench.at(&["init", "large.img", "--size", "60G", "--slot-size", "20G", "--bundle", "v1.qimg"]).good();
    let allocated = || fs::metadata(bench.path("large.img")).unwrap().blocks() * 512;
    assert_eq!(fs::metadata(bench.path("large.img")).unwrap().len(), 60 << 30);
    assert!(allocated() < 16 << 20, "{} after init", allocated());
    bench.at(&["prepare", "v2.qimg", "--disk", "large.img"]).good();
    assert!(allocated() < 24 << 20, "{} after prepare", allocated());
}

/// Before: a FIFO held every verb; a device was read for ever.
#[test]
fn what_is_no_file_in_the_state_directory_is_said_at_once() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    let mut own = fs::read_dir(bench.path("state")).unwrap().map(|entry| entry.unwrap().path());
    let own: PathBuf = own.find(|path| path.is_dir()).unwrap();
    for name in ["history.jsonl", "state.json"] {
        let path = own.join(name);
        let kept = fs::read(&path).unwrap_or_default();
        for kind in ["FIFO", "device", "directory"] {
            let _ = fs::remove_file(&path);
            match kind {
                "FIFO" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
                // Only root may make one.
                "device" if !is_root() => continue,
                "device" => drop(tool("mknod", &[path.to_str().unwrap(), "c", "1", "5"])),
                _ => fs::create_dir(&path).unwrap(),
            }
            for verb in ["status", "history"] {
                let begun = Clock::start();
                let run = bench.at(&[verb]);
                assert!(begun.elapsed() < Duration::from_secs(3), "{verb} beside a {kind}");
                let read = (verb == "history") == (name == "history.jsonl");
                assert!(!read || run.err.contains("no regular file"), "{verb} beside a {kind}: {run:?}");
            }
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            fs::write(&path, &kept).unwrap();
        }
    }
}

/// Before: of a large history the oldest part was shown.
#[test]
fn a_large_history_shows_the_newest() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    let mut own = fs::read_dir(bench.path("state")).unwrap().map(|entry| entry.unwrap().path());
    let path = own.find(|path| path.is_dir()).unwrap().join("history.jsonl");
    let line = r#"{"time":"2026-01-01T00:00:00Z","verb":"prepare","code":"NO_ERROR","message":"old"}"#;
    fs::write(&path, format!("{line}\n").repeat((20 << 20) / line.len())).unwrap();
    bench.at(&["cancel"]).good();
    let shown = bench.at(&["history"]).good();
    assert!(shown.contains("cancel"), "{}", &shown[shown.len().saturating_sub(400)..]);
}

/// Before: a slot that is being written was reported as damaged.
#[test]
fn a_slot_that_is_being_written_is_not_damaged() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.blank("platform_b");
    let mut prepare = bench.command(&["prepare", "v2.qimg", "--max-rate", "1M", "--config", "config.toml"]);
    let mut prepare = prepare.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut seen = 0;
    while prepare.try_wait().unwrap().is_none() {
        let run = bench.at(&["verify", "--slot", "b"]);
        assert!(!run.err.contains("SLOT_DAMAGED"), "{run:?}");
        seen += u32::from(run.err.contains("is being written"));
    }
    assert!(seen > 0, "it was never verified while it was written");
    bench.at(&["verify", "--slot", "b"]).good();
    bench.at(&["verify", "--slot", "a"]).good();
}
