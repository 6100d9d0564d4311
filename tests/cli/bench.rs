//! `qstage bench` measures, and afterwards there is neither a bootable slot nor a file of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn qstage(args: &[&str], dir: &std::path::Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).current_dir(dir).output().unwrap()
}

#[test]
fn a_scratch_file_is_measured_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        qstage(&["bench", "--size", "8M", "--repeat", "1", "--json", "--at-least", "0.001"], dir.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let result: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(result["event"], "result");
    assert_eq!(result["image_bytes"], 8 << 20);
    assert_eq!(result["data_bytes"], 6 << 20, "of four mebibytes one is zero");
    let names: Vec<_> = result["runs"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    // The last one is what --at-least goes by.
    assert_eq!(names, ["prepare without read-back", "prepare, cold bundle", "prepare"]);
    assert!(result["bundle_gb_per_s"]["median"].as_f64().unwrap() > 0.0);
    for run in result["runs"].as_array().unwrap() {
        let (ideal, median) =
            (run["ideal_seconds"].as_f64().unwrap(), run["seconds"]["median"].as_f64().unwrap());
        assert!(ideal > 0.0 && median > 0.0);
        assert!((run["of_ideal"].as_f64().unwrap() - ideal / median).abs() < 1e-9);
    }
    for key in ["commit_ms", "commit_in_place_ms"] {
        assert!(result[key]["median"].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the scratch directory is still there");
}

#[test]
fn a_ratio_that_nothing_can_reach_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let output = qstage(&["bench", "--size", "4M", "--repeat", "1", "--at-least", "1000"], dir.path());
    assert_eq!(output.status.code(), Some(7), "class Io");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("UPGRADE_ERROR_TOO_SLOW") && stderr.contains("1000.00 was required"), "{stderr}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("REACHED"),
        "the figures are shown all the same"
    );
}

#[test]
fn a_disk_is_overwritten_only_when_told_so_and_never_left_prepared() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), vec![7_u8; 3 << 20]).unwrap();
    let run = |args: &[&str]| {
        let output = qstage(args, dir.path());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let state = ["--state-dir", "state"];
    let with_state = |args: &[&str]| run(&[args, &state].concat());
    let pack = ["pack", "--product", "p", "--version", "1", "--platform", "image", "-o", "x.qimg"];
    assert_eq!(run(&pack).0, Some(0));
    let init = ["init", "disk.img", "--slot-size", "16M", "--bundle", "x.qimg", "--unsigned-for-development"];
    assert_eq!(run(&init).0, Some(0), "{:?}", run(&init));
    let before = std::fs::read(dir.path().join("disk.img")).unwrap();

    let bench = ["bench", "--disk", "disk.img", "--size", "4M", "--repeat", "1"];
    let (code, _, stderr) = with_state(&bench);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--yes"), "{stderr}");
    assert!(std::fs::read(dir.path().join("disk.img")).unwrap() == before, "refused, but written");

    let (code, stdout, stderr) = with_state(&[&bench[..], &["--yes"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("platform_b") && stdout.contains("BOUND BY"), "{stdout}");
    let (_, status, _) = with_state(&["status", "--disk", "disk.img"]);
    assert!(status.contains("UPGRADE_IDLE"), "{status}");
    let after = std::fs::read(dir.path().join("disk.img")).unwrap();
    let slot_a = (1 << 20)..(17 << 20);
    assert!(before[slot_a.clone()] == after[slot_a], "the running slot was touched");

    // Killed after something whole was there, and overwritten again: nothing may be taken for a prepared release.
    let forever = [&bench[..5], &["--yes", "--repeat", "10000"], &state].concat();
    let mut child = Command::new(env!("CARGO_BIN_EXE_qstage"))
        .args(forever)
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).find(|line| line.contains("round 2 of 10000 is done"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told.is_some(), "it never came to its second round");
    let (_, slots, _) = with_state(&["slots", "--disk", "disk.img", "--json"]);
    let slots: serde_json::Value = serde_json::from_str(&slots).unwrap();
    assert_eq!(slots["slots"][1]["state"], "empty", "{slots}");
}
