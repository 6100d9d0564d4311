//! Mistyped command lines: exit code 2, and no hint that destroys something. The hint for `qstage install x.qimg` was once
//! `init`, which lays out a disk anew.

use std::process::{Command, Output};

fn qstage(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

/// The tip for a command line that is wrong.
#[track_caller]
fn tip(args: &[&str]) -> String {
    let (code, text) = qstage(args);
    assert_eq!(code, Some(2), "{text}");
    text.lines().find(|line| line.contains("tip:")).unwrap_or_default().to_owned()
}

#[test]
fn words_of_other_tools_lead_to_the_verb_that_does_the_same() {
    for (theirs, ours) in [
        ("install", "prepare"),
        ("update", "prepare"),
        ("rollback", "roll-back"),
        ("activate", "commit"),
        ("info", "inspect"),
        ("bundle", "pack"),
    ] {
        let tip = tip(&[theirs, "x.qimg"]);
        assert!(tip.ends_with(&format!("'{ours}'")), "{theirs}: {tip}");
    }
    // Those are words of the program, not of a group of verbs.
    assert!(!tip(&["container", "install"]).contains("prepare"));
}

#[test]
fn no_tip_destroys_anything() {
    for typed in ["instal", "inti", "inits", "ini", "init.", "cancle", "cancell", "canel"] {
        let tip = tip(&[typed]);
        assert!(!tip.contains("'init'") && !tip.contains("'cancel'"), "{typed}: {tip}");
    }
    for args in [
        &["init", "x", "--forc"][..],
        &["init", "x", "--forced"],
        &["prepare", "x", "--allow-downgrad"],
        &["prepare", "x", "--unsigned-for-developmnt"],
        &["plan", "x", "--override-compatibilty"],
    ] {
        assert_eq!(tip(args), "", "{args:?}");
    }
    for (group, typed, verb) in [
        ("cluster", "remove", "leave"),
        ("cluster", "leav", "leave"),
        ("cluster", "abandn", "abandon"),
        ("cluster", "takeback", "take-back"),
        ("token", "revok", "revoke"),
    ] {
        let tip = tip(&[group, typed]);
        assert!(!tip.contains(&format!("'{verb}'")), "{group} {typed}: {tip}");
    }
    for args in [&["bench", "--ye"][..], &["bench", "--yess"]] {
        assert!(!tip(args).contains("--yes"), "{args:?}");
    }
    // Other tips stay.
    assert!(tip(&["prepar"]).contains("'prepare'"));
    assert!(tip(&["init", "x", "--slot-siz", "8M"]).contains("'--slot-size'"));
    assert!(tip(&["cluster", "resum"]).contains("'resume'"));
}

#[test]
fn help_of_a_verb_by_both_ways() {
    for verb in [&["init"][..], &["firmware", "extract"], &[]] {
        let (code, text) = qstage(&[&["help"], verb].concat());
        assert_eq!((code, text), qstage(&[verb, &["--help"]].concat()));
    }
    let (code, text) = qstage(&["help", "nosuch"]);
    assert_eq!(code, Some(2), "{text}");
}
