//! A machine that changes over from another tool, with the commands of the page "Coming from RAUC, SWUpdate or Mender" as they
//! stand there: a disk that the other tool laid out and wrote, without any record of qstage.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::harness::machine::{Bench, tool};
use crate::upgrades::bits;
use serde_json::json;

const PAGE: &str = include_str!("../../src/manual/coming_from.md");
const MIB: u64 = 1 << 20;

/// The commands of sgdisk on the page, without the name of the program.
fn commands() -> Vec<&'static str> {
    PAGE.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("sgdisk ")).collect()
}

fn sgdisk(bench: &Bench, arguments: &str) {
    let disk = bench.text("disk.img");
    let words: Vec<&str> =
        arguments.split(' ').map(|word| if word == "DISK" { disk.as_str() } else { word }).collect();
    assert!(words.contains(&disk.as_str()), "no DISK in '{arguments}'");
    tool("sgdisk", &words);
}

#[test]
fn a_disk_of_another_tool_is_changed_over_as_the_page_says() {
    let [rename, flags] = commands()[..] else { panic!("{:?}", commands()) };
    let bench = Bench::new();
    // As another tool has it: an ESP, two root file systems, data.
    File::create(bench.path("disk.img")).unwrap().set_len(48 * MIB).unwrap();
    for partition in ["1:2048:+2M", "2:0:+12M", "3:0:+12M", "4:0:+4M"] {
        sgdisk(&bench, &format!("--new={partition} DISK"));
    }
    for name in ["1:ESP", "2:root0", "3:root1", "4:data"] {
        sgdisk(&bench, &format!("--change-name={name} DISK"));
    }
    bench.image("system.img", 3 * MIB, 1);
    let system = fs::read(bench.path("system.img")).unwrap();
    let disk = File::options().write(true).open(bench.path("disk.img")).unwrap();
    let start = |number: u32| {
        let text = tool("sgdisk", &["-i", &number.to_string(), &bench.text("disk.img")]);
        let line = text.lines().find_map(|line| line.strip_prefix("First sector: ")).unwrap().to_owned();
        line.split(' ').next().unwrap().parse::<u64>().unwrap() * 512
    };
    disk.write_all_at(&system, start(2)).unwrap();
    disk.write_all_at(b"of this machine", start(4)).unwrap();
    let old = (start(2), start(3), start(4));

    // Step 1: the names, for the other slot in the same way.
    assert!(rename.contains("=2:platform_a"), "{rename}");
    sgdisk(&bench, rename);
    sgdisk(&bench, &rename.replace("=2:platform_a", "=3:platform_b"));
    let slot = |name: &str| bench.slot(name, &["--booted", "a"]);
    let a = slot("platform_a");
    assert_eq!((&a["partition"], &a["version"], &a["booted"]), (&json!(2), &json!(null), &json!(true)));
    assert_ne!(a["state"], "good", "a slot without flags");
    // Step 3: the flags of a good slot, so that it is a fallback.
    sgdisk(&bench, flags);
    assert_eq!(bits(&bench, 2), (1, 0, 1, 0), "by sgdisk");
    assert_eq!(
        (slot("platform_a")["state"].clone(), slot("platform_a")["boots_next"].clone()),
        (json!("good"), json!(true))
    );
    // The next release, as usual.
    bench.image("v2.img", 3 * MIB, 2);
    bench.pack("v2", "2.0", &["--platform", "v2.img"]);
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    let select = || {
        let disk = bench.text("disk.img");
        let said = tool(env!("CARGO_BIN_EXE_qstage-select"), &["--json", "--disk", &disk]);
        serde_json::from_str::<serde_json::Value>(&said).unwrap()["slot"].clone()
    };
    // It does not come up: the tries run out, and the system of the other tool starts again, which is as it was.
    let tries = std::iter::repeat_with(select).take_while(|slot| slot == "b").take(20).count();
    assert_eq!(tries, 3);
    assert_eq!(select(), "a");
    let mut now = vec![0; system.len()];
    File::open(bench.path("disk.img")).unwrap().read_exact_at(&mut now, start(2)).unwrap();
    assert!(now == system, "the old system was changed");
    // Step 4: what lay on the data partition stays.
    let mut data = [0; 15];
    File::open(bench.path("disk.img")).unwrap().read_exact_at(&mut data, start(4)).unwrap();
    assert_eq!((&data, (start(2), start(3), start(4))), (b"of this machine", old));
    // And once more, to the end.
    bench.at(&["prepare", "v2.qimg", "--retry"]).good();
    bench.at(&["commit"]).good();
    assert_eq!(select(), "b");
    bench.run(&["mark-good", "--disk", "disk.img", "--booted", "b"]).good();
    let b = bench.slot("platform_b", &["--booted", "b"]);
    assert_eq!((&b["state"], &b["version"]), (&json!("good"), &json!("2.0")));
}
