//! The example at the root of the crate's documentation: an example that does not run is worse than none. It is compiled
//! here, and once more as a doctest; an independent reader of the table checks that the slots hold the releases.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

#[allow(dead_code, reason = "main is for `cargo run --example`")]
#[path = "../../examples/upgrade_image.rs"]
mod upgrade_image;

#[test]
fn the_upgrade_of_an_image_file_runs() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    upgrade_image::upgrade(dir.path()).unwrap();

    let disk = dir.path().join("disk.img");
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sfdisk").arg("--json").arg(&disk).env("PATH", path).output().unwrap();
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = table["partitiontable"]["partitions"].as_array().unwrap();
    for (slot, version) in [("platform_a", "1.0"), ("platform_b", "1.1")] {
        let row = rows.iter().find(|row| row["name"] == slot).unwrap();
        let image = fs::read(dir.path().join(format!("{version}.img"))).unwrap();
        let mut found = vec![0; image.len()];
        let start = row["start"].as_u64().unwrap() * 512;
        fs::File::open(&disk).unwrap().read_exact_at(&mut found, start).unwrap();
        assert!(found == image, "{slot} does not hold {version}");
    }
}
