//! `--dry-run`: each verb that writes marks, tables, variables or records has it, prints what it would write, and writes
//! nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::CommandFactory;
use machine::Bench;
use qstage::cli::Cli;

/// Verbs that cause such writes and have no dry run, and why.
const WITHOUT: &[(&str, &str)] = &[("serve", "writes by the verbs below, at the request of its clients")];

/// Verbs that write none of them.
const READERS: &[&str] = &[
    "pack",
    "sign",
    "delta",
    "inspect",
    "verify",
    "plan",
    "status",
    "slots",
    "history",
    "doctor",
    "token list",
    "firmware list",
    "firmware extract",
    "container status",
    "watch",
    "cluster status",
    "explain",
    "completions",
    "man",
];

/// Each verb that can be run, by its words.
fn leaves(command: &clap::Command, path: &str, all: &mut Vec<(String, bool)>) {
    let shown: Vec<_> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
    if shown.is_empty() {
        let dry = command.get_arguments().any(|arg| arg.get_long() == Some("dry-run") && !arg.is_hide_set());
        all.push((path.to_owned(), dry));
    }
    for verb in shown {
        leaves(verb, format!("{path} {}", verb.get_name()).trim(), all);
    }
}

#[test]
fn each_verb_that_writes_has_a_dry_run() {
    let mut all = Vec::new();
    leaves(&Cli::command(), "", &mut all);
    let without: Vec<&str> = WITHOUT.iter().map(|(verb, _)| *verb).collect();
    for (verb, dry) in &all {
        let part = verb.split(' ').next().unwrap();
        let listed = [READERS, &without].concat().iter().any(|known| known == verb || *known == part);
        assert!(*dry != listed, "'{verb}' needs --dry-run, or a line in one of the lists");
    }
    for verb in [READERS, &without].concat() {
        let is = |known: &str| known == verb || known.split(' ').next() == Some(verb);
        assert!(all.iter().any(|(known, _)| is(known)), "there is no verb '{verb}'");
    }
}

/// The list of readers is no claim: whatever opens a disk for writing is the file of a verb with a dry run.
#[test]
fn who_opens_a_disk_to_change_it_has_a_dry_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli");
    let mut writers = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let writes = ["open_to_change", "Mode::Write", "init::init"].iter().any(|word| text.contains(word));
        let listed = WITHOUT.iter().any(|(verb, _)| *verb == name) || name == "machine";
        if writes && !listed {
            writers += 1;
            assert!(text.contains("    dry_run: bool,"), "{name} writes, and has no dry run");
        }
    }
    assert!(writers > 5, "the verbs that write are not found any more");
}

/// Disk and state directory, as one number.
fn world(bench: &Bench) -> u32 {
    let mut all = fs::read(bench.path("disk.img")).unwrap();
    let mut files: Vec<_> =
        fs::read_dir(bench.path("state")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        all.extend(fs::read(file).unwrap());
    }
    crc32fast::hash(&all)
}

/// Runs a verb dry, for people and for programs: the world stays, the plan has these lines.
#[track_caller]
fn dry(bench: &Bench, verb: &[&str], says: &[&str]) {
    let before = world(bench);
    let verb = [verb, &["--dry-run"]].concat();
    let text = bench.at(&verb).good();
    assert!(text.contains("the plan, nothing was written:"), "{text}");
    let report = bench.at(&[&verb[..], &["--json"]].concat()).json();
    assert_eq!(report["dry_run"], true, "{report}");
    let plan: Vec<&str> =
        report["plan"].as_array().unwrap().iter().filter_map(|line| line.as_str()).collect();
    for wanted in says {
        let found = plan.iter().any(|line| line.starts_with("write LBA") && line.contains(wanted));
        assert!(found, "{verb:?}: no write of '{wanted}' in {plan:#?}");
    }
    assert!(plan.iter().all(|line| text.contains(line)), "{text}");
    assert_eq!(world(bench), before, "{verb:?} wrote");
}

#[test]
fn a_dry_run_writes_nothing() {
    let bench = Bench::installed();
    let prepared =
        ["the footer: torn", "the frames that are not in place", "the record", "the footer: whole"];
    dry(&bench, &["prepare", "v2.qimg"], &prepared);
    bench.at(&["prepare", "v2.qimg"]).good();
    let before = world(&bench);
    let again = bench.at(&["prepare", "v2.qimg", "--dry-run"]).good();
    assert!(again.contains("2.0 is prepared in platform_b already (nothing to write)"), "{again}");
    assert_eq!(world(&bench), before);
    dry(&bench, &["bench", "--disk", "disk.img"], &["the footer of platform_b: void"]);
    dry(&bench, &["commit"], &[""]);
    bench.at(&["commit"]).good();
    dry(&bench, &["select"], &[""]);
    let text = bench.at(&["select", "--dry-run"]).good();
    assert!(text.starts_with("slot b is selected (trial) (the try is counted)"), "{text}");
    // A refusal is one in a dry run too, and leaves no line in the history.
    let before = world(&bench);
    bench.at(&["prepare", "v2.qimg", "--dry-run"]).bad("ON_TRIAL");
    bench.at(&["bench", "--disk", "disk.img", "--dry-run"]).bad("ON_TRIAL");
    assert_eq!(world(&bench), before);
    let failed = "the mark of platform_b: failed, it did not become healthy";
    dry(&bench, &["health", "--trial-failed", "--booted", "b"], &[failed]);
    let checks = bench.path("checks");
    fs::create_dir(&checks).unwrap();
    fs::write(checks.join("disk"), "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(checks.join("disk"), fs::Permissions::from_mode(0o755)).unwrap();
    let health = bench.at(&["health", "--dir", "checks", "--booted", "b", "--dry-run"]);
    assert!(
        health.err.contains("the mark of platform_b: failed, health check checks/disk"),
        "{}",
        health.err
    );
    assert_eq!(world(&bench), before);
}

/// A dry run of a token prints none: standard output may be the file that keeps it.
#[test]
fn a_dry_run_of_a_token_makes_and_removes_none() {
    let bench = Bench::new();
    let run = |args: &[&str]| bench.run(&[&["token"], args, &["--file", "tokens"]].concat());
    let made = run(&["new", "ops", "--dry-run"]);
    assert!(
        made.out.is_empty() && made.err.contains("nothing was written: 'ops', which may write"),
        "{}",
        made.err
    );
    made.good();
    let report = run(&["new", "ops", "--read-only", "--dry-run", "--json"]).json();
    assert_eq!((&report["dry_run"], &report["privilege"]), (&true.into(), &"read".into()), "{report}");
    assert!(report["token"].is_null() && !bench.path("tokens").exists(), "{report}");
    run(&["new", "o/s", "--dry-run"]).bad("ARGUMENT");
    run(&["revoke", "ops", "--dry-run"]).bad("ARGUMENT");
    run(&["new", "ops"]).good();
    let before = fs::read(bench.path("tokens")).unwrap();
    run(&["new", "ops", "--dry-run"]).bad("ARGUMENT");
    assert!(
        run(&["revoke", "ops", "--dry-run"]).good().starts_with("nothing was written: 'ops' is in tokens")
    );
    assert_eq!(run(&["revoke", "ops", "--dry-run", "--json"]).json()["dry_run"], true);
    assert_eq!(fs::read(bench.path("tokens")).unwrap(), before);
    run(&["revoke", "ops"]).good();
}
