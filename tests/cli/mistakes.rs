//! Mistyped command lines: exit code 2, and no hint that destroys something. The hint for `qstage install x.qimg` was once
//! `init`, which lays out a disk anew.

use std::fs;
use std::process::{Command, Output};

use clap::CommandFactory;
use clap::error::ErrorKind;
use qstage::cli::Cli;

use crate::harness::loops::is_root;
use crate::harness::machine::Bench;
use crate::harness::tiny_disk::TinyDisk;

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

/// The wrong file at each place where a newcomer names one: the message has what it is, or what belongs there, in one short line.
#[test]
fn the_wrong_file_is_named_with_what_it_is() {
    let bench = Bench::installed();
    fs::write(bench.path("noise"), [0xfe; 4096]).unwrap();
    fs::write(bench.path("words"), "a b\n".repeat(40)).unwrap();
    fs::write(bench.path("word"), "a b\n").unwrap();
    fs::write(bench.path("comments"), "# nothing yet\n").unwrap();
    let trusted = |file: &str| {
        let message = bench.run(&["verify", "v2.qimg", "--trust", file]).bad("TRUST_FILE");
        assert!(message.len() < 400, "{message}");
        message
    };
    for (file, part) in [
        (
            "key",
            "looks like a key, a certificate or a signature; write a line 'NAME namespaces=\"qimg\" KEY'",
        ),
        ("key.pub", "looks like a public key; write a line"),
        ("words", "line 3: "),
        ("words", "; and 37 lines more; write a line"),
        ("word", "; write a line"),
        ("comments", "it has no entry; write a line"),
    ] {
        let message = trusted(file);
        assert!(message.contains(part), "{file}, no '{part}': {message}");
    }
    for file in ["words", "comments"] {
        let run = bench.run(&["verify", file, "--trust", "allowed_signers"]);
        assert!(run.err.contains("it is no bundle, it looks like text"), "{}", run.err);
    }
    let pack = |key: &str, image: &str| {
        let words =
            ["pack", "--product", "demo", "--version", "9", "--platform", image, "--key", key, "-o", "x"];
        bench.run(&words)
    };
    let message = pack("noise", "v2.img").bad("SIGNING");
    assert!(message.contains("noise: it is no key of OpenSSH"), "{message}");
    let message = pack("key", ".").bad("OPEN");
    assert!(message.contains(".: no regular file; give a file with the image"), "{message}");
    // The public key: ssh-keygen signs with its other half, and announces nothing.
    let run = pack("key.pub", "v2.img");
    assert!(!run.err.contains("Signing data"), "{}", run.err);
    run.good();
}

/// A state directory that cannot be written is reported once, not with each of the records of a verb.
#[test]
fn a_state_directory_that_cannot_be_written_is_reported_once() {
    let bench = Bench::installed();
    fs::write(bench.path("no-directory"), "").unwrap();
    let machine = ["--disk", "disk.img", "--booted", "a", "--state-dir", "no-directory"];
    let run = bench.run(&[&["prepare", "v2.qimg", "--trust", "allowed_signers"], &machine[..]].concat());
    assert_eq!(run.err.matches("history and last error are not kept").count(), 1, "{}", run.err);
    run.good();
}

/// Where the room ends, the message has the file, and nothing of it is left.
#[test]
fn a_full_file_system_is_named_by_the_file() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let tiny = TinyDisk::new(&bench.path("tiny"));
    let words = ["pack", "--product", "demo", "--version", "9", "--platform", "v2.img", "-o", "tiny/x.qimg"];
    let message = bench.run(&words).bad("OUTPUT");
    assert!(message.contains("writing tiny/x.qimg: No space left on device"), "{message}");
    assert_eq!(fs::read_dir(bench.path("tiny")).unwrap().count(), 0);
    drop(tiny);
}

/// What is not on trial is not called good.
#[test]
fn nothing_is_good_that_is_not() {
    let bench = Bench::installed();
    let said = bench.run(&["mark-good", "--disk", "disk.img", "--booted", "b"]).good();
    assert!(said.contains("nothing to do: platform_b runs and is empty, not on trial"), "{said}");
    let said = bench.run(&["mark-good", "--disk", "disk.img", "--booted", "a"]).good();
    assert!(said.contains("nothing to do: what runs is good already"), "{said}");
}

/// "invalid digit found in string", "number would be zero for non-zero type", "invalid socket address syntax": messages for
/// programmers, which do not say what to write.
#[test]
fn a_wrong_value_is_answered_in_our_own_words() {
    fn walk(command: &clap::Command, words: &[String], values: &mut usize) {
        for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
            for wrong in ["x y", "0", "99999999999999999999", "-1", "1:2", ""] {
                let typed = match arg.get_long() {
                    Some(long) => vec![format!("--{long}={wrong}")],
                    None => vec!["--".to_owned(), wrong.to_owned()],
                };
                let line = words.iter().cloned().chain(typed);
                let Err(error) = Cli::command().try_get_matches_from(line) else { continue };
                if error.kind() != ErrorKind::ValueValidation {
                    continue;
                }
                *values += 1;
                let text = error.to_string();
                for phrase in ["found in string", "non-zero type", "syntax", "literal", "empty string"] {
                    assert!(!text.contains(phrase), "{words:?} {}: {text}", arg.get_id());
                }
            }
        }
        for verb in command.get_subcommands() {
            walk(verb, &[words, &[verb.get_name().to_owned()]].concat(), values);
        }
    }
    let mut values = 0;
    walk(&Cli::command(), &["qstage".to_owned()], &mut values);
    assert!(values > 100, "{values} values were refused");
}

/// A wrong name was answered by "No such file or directory" of the place where it was to be stored, a bundle that does not exist by a
/// missing file of keys, and a missing --yes after half a GiB had been written.
#[test]
fn what_was_typed_is_judged_before_the_machine() {
    let bench = Bench::new();
    let nowhere = ["--file", "no/such/tokens"];
    for (typed, code, part) in [
        (&["token", "new", "a b", nowhere[0], nowhere[1]][..], "ARGUMENT", "a name has 1 to 64"),
        (&["token", "revoke", "bob", nowhere[0], nowhere[1]], "ARGUMENT", "no token of this name"),
        (&["verify", "no.qimg", "--trust", "no/keys"], "OPEN", "no.qimg"),
        (&["init", "no/disk", "--bundle", "no.qimg", "--trust", "no/keys"], "OPEN", "no.qimg"),
        (&["bench", "--disk", "no/disk", "--bundle", "no.qimg"], "ARGUMENT", "--yes"),
    ] {
        let message = bench.run(typed).bad(code);
        assert!(message.contains(part), "{typed:?}: {message}");
    }
    for words in [["--product", "a\nb", "--version", "1"], ["--product", "a", "--version", "1 2"]] {
        let pack =
            [&["pack", "-o", "no/such/x", "--platform", "no.img", "--key", "no.key"][..], &words].concat();
        let refused = bench.run(&pack);
        assert!(refused.code == Some(2) && refused.err.contains("must have 1 to 64"), "{}", refused.err);
    }
    // What is right meets the machine, and the message has the remedy.
    let message = bench.run(&["token", "new", "bob", nowhere[0], nowhere[1]]).bad("OUTPUT");
    assert!(message.contains("; make its directory first"), "{message}");
    let message = bench.run(&["health", "--dir", "no/such"]).bad("OPEN");
    assert!(message.contains("; make it, with a program for each check"), "{message}");
}
