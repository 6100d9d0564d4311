//! Inputs and surroundings of the verbs that work: pipes, firmware, a lost state directory, no signature, a configuration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use super::upgrades::{bits, status};
use crate::harness::machine;

use std::fs;
use std::io::Write;

use machine::{Bench, MIB, tool};
use serde_json::json;

#[test]
fn the_same_bundle_again_writes_nothing() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    let before = bench.hash();
    for more in [&[][..], &["--jobs", "1"], &["--no-read-back"]] {
        let report = bench.at(&[&["prepare", "v2.qimg", "--json"], more].concat()).json();
        assert_eq!((&report["written_bytes"], &report["zeroed_bytes"]), (&json!(0), &json!(0)));
        assert_eq!(report["reused_bytes"], 3 * MIB + 4321);
    }
    bench.piped(&["prepare", "-"], &fs::read(bench.path("v2.qimg")).unwrap()).good();
    assert_eq!(bench.hash(), before);
}

#[test]
fn a_pipe_is_as_good_as_a_file() {
    let bench = Bench::installed();
    let report = bench.piped(&["prepare", "-", "--json"], &fs::read(bench.path("v2.qimg")).unwrap()).json();
    assert_eq!(report["version"], "2.0");
    assert!(bench.holds("platform_b", "v2.img"));
    assert_eq!(status(&bench, &[])["install_path"], "-");
    bench.piped(&["verify", "-"], &fs::read(bench.path("v2.qimg")).unwrap()).good();
    // A pipe that a slow sender feeds in small pieces.
    bench.at(&["cancel"]).good();
    let bytes = fs::read(bench.path("v2.qimg")).unwrap();
    let mut slow = bench.start(&["prepare", "-"], std::process::Stdio::piped());
    let mut pipe = slow.child().stdin.take().unwrap();
    for piece in bytes.chunks(70_001) {
        pipe.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    drop(pipe);
    slow.end().good();
}

#[test]
fn firmware_comes_back_as_it_went_in() {
    let bench = Bench::new();
    bench.image("v1.img", MIB + 5, 1);
    for (name, len) in [("nic", 70_001), ("bios", 1), ("bmc", 3 * MIB)] {
        bench.image(&format!("{name}.bin"), len, len);
    }
    let blobs = ["--firmware", "nic=nic.bin", "--firmware", "bmc=bmc.bin", "--firmware", "bios=bios.bin"];
    bench.pack("v1", "1.0", &[&["--platform", "v1.img"], &blobs[..]].concat());
    bench.at(&["init", "disk.img", "--slot-size", "12M", "--bundle", "v1.qimg"]).good();
    let list = bench.at(&["firmware", "list", "--slot", "a", "--json"]).json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|blob| blob["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bios", "bmc", "nic"]);
    assert_eq!(bench.slot("platform_a", &[])["firmware"], json!(names));
    for blob in list.as_array().unwrap() {
        let name = blob["name"].as_str().unwrap();
        let original = fs::read(bench.path(&format!("{name}.bin"))).unwrap();
        assert_eq!(blob["size"], original.len());
        assert!(tool("b3sum", &["--no-names", &bench.text(&format!("{name}.bin"))]).trim() == blob["blake3"]);
        bench.at(&["firmware", "extract", name, "--slot", "a", "-o", "out"]).good();
        assert_eq!(fs::read(bench.path("out")).unwrap(), original, "{name}");
        let args = ["firmware", "extract", name, "--slot", "a", "--config", "config.toml"];
        assert_eq!(bench.command(&args).output().unwrap().stdout, original, "{name}");
    }
    assert!(bench.at(&["firmware", "list", "--slot", "a"]).good().contains("bmc"));
    // Another firmware alone makes it another platform.
    bench.image("nic2.bin", 70_001, 9);
    bench.pack("v2", "1.1", &["--platform", "v1.img", "--firmware", "nic=nic2.bin"]);
    assert_eq!(bench.at(&["plan", "v2.qimg", "--json"]).plan()["upgrade_type"], "SOFTWARE_AND_PLATFORM");
}

/// The state directory is a comfort: without it, and where it cannot be made, all is the same but the history.
#[test]
fn a_lost_state_directory_changes_nothing() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    let forget = || fs::remove_dir_all(bench.path("state")).unwrap();
    let before = (status(&bench, &[]), bench.at(&["slots"]).good());
    forget();
    assert_eq!((status(&bench, &[]), bench.at(&["slots"]).good()), before);
    bench.at(&["commit"]).good();
    forget();
    bench.at(&["mark-good", "--booted", "b"]).good();
    forget();
    assert_eq!(bench.state("platform_b", &[]), "good");
    fs::write(bench.path("state"), "not a directory").unwrap();
    bench.at(&["roll-back"]).good();
    // Where it is there, it remembers a failure until the next success; a refusal is none.
    let mut bad = machine::forge::Parts::of(&bench, "v2.qimg");
    bad.member("platform.img.zst")[100_000] ^= 1;
    bad.save(&bench, "bad.qimg");
    bench.blank("platform_b");
    let fail = || bench.at(&["prepare", "bad.qimg"]).bad("BUNDLE_FRAME_DIGEST");
    fail();
    // The reason could not be recorded; that the trial did not end is in the slot.
    assert_eq!(status(&bench, &[])["error_state"], "UPGRADE_ERROR_INTERRUPTED");
    fs::remove_file(bench.path("state")).unwrap();
    fail();
    bench.at(&["commit"]).bad("NOT_PREPARED");
    let now = status(&bench, &[]);
    assert_eq!(now["error_state"], "UPGRADE_ERROR_BUNDLE_FRAME_DIGEST");
    assert_eq!(
        (&now["state"], &now["install_path"]),
        (&json!("UPGRADE_IDLE"), &json!(bench.text("bad.qimg")))
    );
    assert!(now["error_message"].as_str().unwrap().contains("transfer"), "{now}");
    bench.at(&["prepare", "v2.qimg"]).good();
    assert_eq!(status(&bench, &[])["error_state"], "UPGRADE_ERROR_NO_ERROR");
    let history = |more: &[&str]| bench.at(&[&["history"], more].concat());
    let all = history(&["--json"]).json();
    let told: Vec<_> = all.as_array().unwrap().iter().map(|e| (&e["verb"], &e["code"])).collect();
    let (prepare, commit) = (json!("prepare"), json!("commit"));
    let [bad, refused, done] =
        ["BUNDLE_FRAME_DIGEST", "NOT_PREPARED", "NO_ERROR"].map(|c| json!(format!("UPGRADE_ERROR_{c}")));
    assert_eq!(told, [(&prepare, &bad), (&commit, &refused), (&prepare, &done)]);
    assert_eq!(history(&["--last", "1", "--json"]).json()[0], all[2]);
    let table = history(&["-n", "1"]).good();
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("prepare") && table.contains("done"), "{table}");
}

/// A plan shows what the container can reach.
#[test]
fn a_plan_says_what_is_open_to_the_container() {
    let bench = Bench::installed_with_software();
    let plan = |more: &str| {
        bench.config(&format!("[container]\ncommand = [\"/app\"]\n{more}"));
        let plan = bench.at(&["plan", "s2.qimg", "--json", "--booted", "a"]).plan();
        let human = bench.at(&["plan", "s2.qimg", "--booted", "a"]).out;
        (plan["container_open"].to_string(), human)
    };
    let (closed, human) = plan("users = \"private\"\n");
    assert_eq!(closed, "[]");
    assert!(!human.contains("Open to the container"), "{human}");
    let (open, human) = plan("users = \"host\"\nnetwork = \"host\"\ncapabilities = [\"CAP_SYS_ADMIN\"]\n");
    for what in ["users: ", "network: ", "capabilities: "] {
        assert!(
            open.contains(what) && human.contains(&format!("Open to the container: {what}")),
            "{open} {human}"
        );
    }
}

/// For development only, and never quietly.
#[test]
fn the_unsigned_mode_is_loud() {
    let bench = Bench::installed();
    let pack = ["pack", "--product", "demo", "--version", "2.0", "--platform", "v2.img", "-o", "bare.qimg"];
    let human = bench.run(&pack).good();
    assert!(human.contains("not signed"), "{human}");
    bench.at(&["prepare", "bare.qimg"]).bad("UNSIGNED");
    let run = bench.at(&["prepare", "bare.qimg", "--unsigned-for-development"]);
    assert!(run.err.contains("the signature is not checked"), "{}", run.err);
    run.good();
}

#[test]
fn the_configuration_stands_for_the_command_line() {
    let bench = Bench::installed();
    bench.config("tries = 7\njobs = 1\nmax_rate = \"100M\"\nproduct = \"demo\"\n");
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    assert_eq!(bits(&bench, 2), (2, 7, 0, 0));
    // The same without any file: all on the command line.
    let machine = ["--disk", "disk.img", "--state-dir", "state", "--booted", "b"];
    bench.run(&[&["mark-good"], &machine[..]].concat()).good();
    assert_eq!(bits(&bench, 2), (2, 0, 1, 0));
    // The file that the project ships explains every key and sets none.
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/config.toml");
    bench.run(&[&["slots", "--config", shipped], &machine[..]].concat()).good();
}
