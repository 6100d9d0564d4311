//! A background prepare beside processes that wait for the disk: it pauses, reports that, and reaches its minimum rate.
use std::fs;
use std::time::{Duration, Instant};

use crate::harness::clock::{Clock, HANG};
use crate::harness::load::Load;
use crate::harness::machine::{Bench, MIB};

fn stalled() -> Option<u64> {
    let text = fs::read_to_string("/proc/pressure/io").ok()?;
    text.lines().next()?.rsplit("total=").next()?.parse().ok()
}

#[test]
fn a_background_prepare_gives_way_says_so_and_keeps_its_floor() {
    let Some(before) = stalled() else {
        eprintln!("SKIPPED: this kernel has no /proc/pressure");
        return;
    };
    let bench = Bench::new();
    for (name, version, seed) in [("v1", "1.0", 1), ("v2", "2.0", 2)] {
        bench.image(&format!("{name}.img"), 32 * MIB, seed);
        bench.pack(name, version, &["--platform", &format!("{name}.img"), "--frame-size", "256K"]);
    }
    bench.at(&["init", "disk.img", "--slot-size", "40M", "--bundle", "v1.qimg"]).good();
    // Processes that write to the disk of the test and wait for it, all the time.
    let write = "dd if=/dev/zero of=\"$0\" bs=64k count=64 oflag=direct,dsync status=none";
    let load = Load::new(4, write, |number| bench.path(&format!("load{number}")));
    let begun = Instant::now();
    while stalled().unwrap() - before < 500_000 {
        assert!(begun.elapsed() < HANG, "the load makes nobody wait");
        std::thread::sleep(Duration::from_millis(100));
    }

    // 24 MiB of data: 12 s at 2 MiB/s, without pauses in favour of others.
    let background = ["prepare", "v2.qimg", "--background", "--max-rate"];
    let mut command =
        bench.command(&[&background[..], &["2M", "--config", "config.toml", "--json"]].concat());
    let mut child = command.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let begun = Instant::now();
    let said = lines.find_map(|line| line.ok().filter(|line| line.contains("gave way to other processes")));
    let after = begun.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.is_some_and(|line| line.contains("--min-rate sets a floor")), "nothing said in {after:?}");

    let timed = |args: &[&str]| {
        bench.blank("platform_b");
        let clock = Clock::start();
        let run = bench.at(args);
        let took = clock.elapsed();
        assert!(!run.err.contains("gave way"), "{run:?}");
        run.good();
        took
    };
    let floor = timed(&[&background[..], &["4M", "--min-rate", "3M"]].concat());
    // Beside the same load, and never in favour of it: 8 s, and what the disk takes.
    let plain = timed(&["prepare", "v2.qimg", "--max-rate", "3M"]);
    assert!(
        floor < plain.mul_f64(1.5) + Duration::from_secs(2),
        "{floor:?} with a floor, {plain:?} without pauses"
    );
    drop(load);
}
