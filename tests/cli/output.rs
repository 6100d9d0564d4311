//! Exit codes and channels: results and events on standard output, messages for people on standard error.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn qstage(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    qstage(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [
        &["no-such-verb"][..],
        &["verify"],
        &["verify", "x.qimg", "--slot", "a"],
        &["verify", "--slot", "c"],
        &["sign", "x.qimg"],
        &["sign", "x.qimg", "--key", "k", "--signature", "s"],
        &["prepare", "x.qimg", "--max-rate", "10MB"],
        &["prepare", "x.qimg", "--trust", "t", "--unsigned-for-development"],
        &["prepare", "x.qimg", "--jobs", "0"],
        &["slots", "--config", "/no/such/file"],
        &["slots", "--sector-size", "1024"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn an_error_is_one_line_with_its_code_and_its_class_is_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("none.img");
    let output = run(&["status", "--disk", disk.to_str().unwrap()]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.starts_with("qstage: error: ") && text.ends_with(" [UPGRADE_ERROR_OPEN]\n"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("none.img"), "{text}");
    assert!(output.stdout.is_empty(), "status prints nothing but the seven keys");
}

#[test]
fn programs_get_the_error_as_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("none.img");
    let output = run(&["slots", "--json", "--disk", disk.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        text.starts_with(r#"{"v":1,"event":"error","code":"UPGRADE_ERROR_OPEN","class":"io","message":""#),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
    assert!(!stderr(&output).is_empty(), "people still see it");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value["message"].as_str().unwrap().contains("none.img"));
}

/// `qstage man | head -1` once killed tools written in Rust with a panic message and exit code 101.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = qstage(&["man"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let output =
        qstage(&["man"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).contains("UPGRADE_ERROR_OUTPUT"), "{}", stderr(&output));
}
