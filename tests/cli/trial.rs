//! Failed trials, from the command line: the old slot boots again, the disk records the reason, and the same bundle is not
//! tried again automatically. `qstage select` stands for the boots; real ones are in boots/select.rs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use machine::{Bench, Run, tool};

/// A health check that says something and fails.
fn check(bench: &Bench, body: &str) {
    let dir = bench.path("health.d");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("20-disk"), format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(dir.join("20-disk"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn health(bench: &Bench, booted: &str) -> Run {
    bench.at(&["health", "--dir", "health.d", "--booted", booted])
}

/// Boots as an initramfs does; the slot that starts.
fn boot(bench: &Bench) -> String {
    bench.at(&["select", "--json"]).json()["slot"].as_str().unwrap().to_owned()
}

/// 2.0 is prepared and committed; slot a runs.
fn committed(flag: &str, tries: u8) -> Bench {
    let bench = Bench::installed();
    bench.config(&format!("boot_flag = \"{flag}\"\ntries = {tries}\n"));
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    check(&bench, "echo the disk is full; exit 3");
    bench
}

/// What the old slot says after the fallback, whatever is lost.
fn told(bench: &Bench, why: &str) {
    for _ in 0..2 {
        let status = bench.at(&["status", "--booted", "a"]).json();
        assert_eq!(
            (&status["state"], &status["is_blocked"]),
            (&"UPGRADE_IDLE".into(), &false.into()),
            "{status}"
        );
        assert_eq!(status["error_state"], "UPGRADE_ERROR_FELL_BACK");
        let message = status["error_message"].as_str().unwrap();
        assert!(message.contains("2.0 in platform_b") && message.contains("1.0 in platform_a"), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(status["install_path"].as_str().unwrap().ends_with("v2.qimg"));
        let slots = bench.at(&["slots", "--booted", "a"]).good();
        assert!(slots.contains("platform b: ") && slots.contains(why), "{slots}");
        assert_eq!(bench.state("platform_b", &["--booted", "a"]), "bad");
        // The state directory may be lost.
        let _ = fs::remove_dir_all(bench.path("state"));
    }
}

#[test]
fn the_reason_is_kept_across_the_fallback() {
    for tries in [1, 3] {
        let bench = committed("priority", tries);
        for left in (0..tries).rev() {
            assert_eq!(boot(&bench), "b");
            let text = health(&bench, "b").bad("UNHEALTHY");
            assert!(text.contains("the disk is full"), "{text}");
            // Still on trial: it could be marked good, and says how it fares.
            let status = bench.at(&["status", "--booted", "b"]).json();
            assert_eq!(status["state"], "UPGRADE_TRIAL", "{left}");
            assert!(status["details"].as_str().unwrap().contains("the disk is full"), "{status}");
            // The unit that reboots asks; what the check said stays.
            let failed = bench.at(&["health", "--trial-failed", "--booted", "b"]).good();
            assert!(failed.contains("the disk is full"), "{failed}");
        }
        assert_eq!(boot(&bench), "a");
        told(&bench, "the disk is full");
        // The health unit of the old slot makes it plain on the disk; the reason stays.
        check(&bench, "exit 0");
        health(&bench, "a").good();
        bench.at(&["health", "--trial-failed", "--booted", "a"]).bad("NO_TRIAL");
        bench.at(&["mark-good", "--booted", "a"]).good();
        let history = fs::read_to_string(history(&bench)).unwrap();
        assert!(history.contains("fall-back") && history.contains("the disk is full"), "{history}");
        let before = bench.hash();
        bench.at(&["mark-good", "--booted", "a"]).good();
        assert_eq!(bench.hash(), before, "settled once");
        assert_eq!(bench.slot("platform_b", &[])["priority"], 0);
        told(&bench, "the disk is full");
        again(&bench);
    }
}

fn history(bench: &Bench) -> std::path::PathBuf {
    let disk = fs::read_dir(bench.path("state")).unwrap().next().unwrap().unwrap().path();
    disk.join("history.jsonl")
}

/// The bundle is refused without --retry; another one is not.
fn again(bench: &Bench) {
    let before = bench.hash();
    let text = bench.at(&["prepare", "v2.qimg", "--booted", "a"]).bad("FAILED_BEFORE");
    assert!(text.contains("--retry"), "{text}");
    let text = bench.at(&["commit", "--booted", "a"]).bad("NOT_PREPARED");
    assert!(text.contains("--retry"), "{text}");
    assert_eq!(bench.hash(), before);
    let plan = bench.at(&["plan", "v2.qimg", "--booted", "a", "--json"]).plan();
    assert_eq!(plan["blocked_by"][0]["code"], "UPGRADE_ERROR_FAILED_BEFORE");
    // As it is.
    bench.at(&["commit", "--retry", "--booted", "a"]).good();
    assert_eq!(bench.state("platform_b", &["--booted", "a"]), "trial");
    bench.at(&["cancel", "--booted", "a"]).good();
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    let status = bench.at(&["status", "--booted", "a"]).json();
    assert_eq!(
        (&status["state"], &status["error_state"]),
        (&"UPGRADE_PREPARED".into(), &"UPGRADE_ERROR_NO_ERROR".into())
    );
}

/// A kernel that panics, a machine that hangs: no reason could be recorded, and that is reported.
#[test]
fn a_silent_death_is_told_too() {
    let bench = committed("priority", 2);
    assert_eq!([boot(&bench), boot(&bench), boot(&bench)], ["b", "b", "a"]);
    told(&bench, "tries are used up");
    // A prepare settles it as well, before it overwrites the slot.
    again_over(&bench);
}

fn again_over(bench: &Bench) {
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).bad("FAILED_BEFORE");
    bench.at(&["prepare", "v2.qimg", "--booted", "a", "--retry"]).good();
    assert_eq!(bench.state("platform_b", &["--booted", "a"]), "prepared");
    assert!(bench.at(&["commit", "--booted", "a"]).good().contains("2 tries"));
    assert_eq!(boot(bench), "b");
    bench.at(&["mark-good", "--booted", "b"]).good();
    assert_eq!(bench.state("platform_b", &["--booted", "b"]), "good");
}

/// A slot that failed once and was well in the next boot is good, and nothing of the failure is left.
#[test]
fn a_later_boot_of_the_trial_may_be_well() {
    let bench = committed("priority", 3);
    assert_eq!(boot(&bench), "b");
    health(&bench, "b").bad("UNHEALTHY");
    assert_eq!([boot(&bench), boot(&bench)], ["b", "b"]);
    // The last try: no flag selects it any more, but it runs.
    bench.at(&["mark-good", "--booted", "b"]).good();
    let slot = bench.slot("platform_b", &["--booted", "b"]);
    assert_eq!((&slot["state"], &slot["reason"]), (&"good".into(), &serde_json::Value::Null));
    assert_eq!(boot(&bench), "b");
}

/// By the legacy flag no loader counts: the unit that reboots rolls back.
#[test]
fn by_the_legacy_flag_the_slot_is_rolled_back() {
    let bench = committed("legacy", 3);
    // The check keeps why; that the trial is over says the unit that reboots.
    health(&bench, "b").bad("UNHEALTHY");
    assert_eq!(bench.state("platform_b", &["--booted", "b"]), "trial");
    bench.at(&["health", "--trial-failed", "--booted", "b"]).good();
    assert_eq!(bench.slot("platform_a", &["--booted", "b"])["boots_next"], true);
    told(&bench, "the disk is full");
    again(&bench);
    // The process that watches the boot gives a reason of its own.
    bench.at(&["commit", "--booted", "a"]).good();
    bench.at(&["roll-back", "--booted", "b", "--reason", "the watchdog bit"]).good();
    told(&bench, "the watchdog bit");
}

/// A roll-back without a reason is a decision of the operator; the bundle does not count as failed.
#[test]
fn a_roll_back_by_hand_is_no_failure() {
    let bench = committed("priority", 3);
    bench.at(&["roll-back", "--booted", "b"]).good();
    let status = bench.at(&["status", "--booted", "a"]).json();
    assert_eq!(status["error_state"], "UPGRADE_ERROR_NO_ERROR");
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
}

/// On the last try, and after the fallback: platform and software are always of one release.
#[test]
fn software_falls_back_with_its_platform() {
    let bench = Bench::installed_with_software();
    bench.config("tries = 2\n");
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    assert_eq!([boot(&bench), boot(&bench)], ["b", "b"]);
    let on = |slot: &str, booted: &str| bench.state(slot, &["--booted", booted]);
    assert_eq!([on("platform_b", "b"), on("software_b", "b")], ["trial", "trial"], "the last try");
    assert_eq!(boot(&bench), "a");
    assert_eq!([on("platform_b", "a"), on("software_b", "a")], ["bad", "bad"]);
    assert_eq!([on("platform_a", "a"), on("software_a", "a")], ["good", "good"]);
    // Not over the software that runs, though the flags name the other one.
    let plan = bench.at(&["plan", "s2.qimg", "--booted", "a", "--json"]).plan();
    let target = plan["payloads"].as_array().unwrap().iter().find(|p| p["name"] == "software").unwrap();
    assert_eq!(target["target"], "software_b", "{plan}");
    bench.at(&["mark-good", "--booted", "a"]).good();
    let software = bench.slot("software_b", &["--booted", "a"]);
    assert_eq!((&software["priority"], &software["reason"]), (&0.into(), &"its platform fell back".into()));
    assert_eq!(bench.slot("software_a", &["--booted", "a"])["boots_next"], true);
    bench.at(&["prepare", "s3.qimg", "--booted", "a"]).bad("FAILED_BEFORE");
    bench.at(&["prepare", "s2.qimg", "--booted", "a"]).good();
}

/// What is on trial is named by its partitions, with what ends the trial from there: one that has not begun is not marked good.
#[test]
fn the_obstacle_names_what_is_on_trial() {
    let bench = Bench::installed_with_software();
    let told = |booted: &str, partitions: &str, next: &str| {
        let fallback = partitions.replace("_b", "_a");
        let reason = format!("on trial: {partitions}; the only good fallback is {fallback}; {next}");
        let again = ["prepare", "s2.qimg", "--booted", booted, "--allow-downgrade"];
        let message = bench.at(&again).bad("ON_TRIAL");
        assert!(message.contains(&reason), "{message}");
        let status = bench.at(&["status", "--booted", booted]).json();
        assert_eq!(status["blocked_reason"], reason.as_str());
    };
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    let start = "reboot to start it, or undo the commit with 'qstage cancel'";
    let end = "end the trial by 'qstage mark-good' or 'qstage roll-back'";
    told("a", "platform_b and software_b", start);
    told("b", "platform_b and software_b", end);
    // The platform alone.
    bench.at(&["mark-good", "--slot", "b", "--booted", "b"]).good();
    told("b", "software_b", end);
    bench.at(&["mark-good", "--booted", "b"]).good();
    assert_eq!(bench.at(&["status", "--booted", "b"]).json()["is_blocked"], false);
    // Before its boot a trial ends by a roll-back too.
    let bench = Bench::installed_with_software();
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    bench.at(&["roll-back"]).good();
    bench.at(&["prepare", "s2.qimg"]).good();
}

/// A trial on its last try is as much on trial as on its first: it can be rolled back, and is not cancelled.
#[test]
fn the_last_try_is_a_try() {
    let bench = Bench::installed_with_software();
    bench.config("tries = 1\n");
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    assert_eq!(boot(&bench), "b");
    bench.at(&["cancel", "--booted", "b"]).bad("NOTHING_TO_CANCEL");
    bench.at(&["prepare", "s2.qimg", "--booted", "b", "--allow-downgrade"]).bad("ON_TRIAL");
    bench.at(&["roll-back", "--booted", "b"]).good();
    for slot in ["platform_a", "software_a"] {
        assert_eq!(bench.slot(slot, &["--booted", "b"])["boots_next"], true);
    }
}

/// What can be refused without a machine; the trial itself is in boots/select.rs.
#[test]
fn a_trial_by_kexec_is_for_one_flag_and_a_real_disk() {
    let bench = committed("priority", 3);
    let text = bench.at(&["commit", "--trial", "kexec", "--booted", "a"]).bad("KEXEC_TRIAL");
    assert!(text.contains("'priority'"), "{text}");
    bench.at(&["cancel", "--booted", "a"]).good();
    bench.config("boot_flag = \"legacy\"\n");
    bench.at(&["commit", "--trial", "kexec", "--booted", "a"]).bad("NOT_PREPARED");
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    let before = bench.hash();
    let text = bench.at(&["commit", "--trial", "kexec", "--booted", "a"]).bad("KEXEC");
    assert!(text.contains("platform_b"), "{text}");
    assert_eq!(bench.hash(), before, "nothing is written before the kernel is loaded");
}

/// A plan shows what becomes of a release that does not start, before it is committed.
#[test]
fn a_plan_says_which_trial_there_is() {
    let bench = Bench::installed();
    let plan = |flag: &str| {
        let args = ["plan", "v2.qimg", "--booted", "a", "--boot-flag", flag];
        let human = bench.at(&args).good();
        let json = bench.at(&[&args[..], &["--json"]].concat()).plan();
        let trial = json["trial"].as_str().unwrap().to_owned();
        assert!(human.contains(&trial), "{human}");
        trial
    };
    assert_eq!(plan("priority"), "3 boots; then the old slot boots again");
    assert!(plan("legacy").starts_with("none by the boot loader; 'qstage commit --trial kexec' "));
}

/// A disk that another tool has written: what runs has neither flags nor a record. Before: it was called the fallback.
#[test]
fn a_slot_without_flags_is_not_called_the_fallback() {
    let bench = Bench::installed();
    let disk = bench.text("disk.img");
    bench.blank("platform_a");
    for bit in 48..57 {
        tool("sgdisk", &[&format!("--attributes=1:clear:{bit}"), &disk]);
    }
    let foreign = |args: &[&str]| bench.at(&[args, &["--booted", "a"]].concat());
    foreign(&["prepare", "v2.qimg"]).good();
    let done = foreign(&["commit", "--dry-run"]).good();
    assert!(done.contains("without a fallback: slot a, which runs, has no boot flag"), "{done}");
    // The remedy that it names.
    tool("sgdisk", &["--attributes=1:set:48", "--attributes=1:set:56", &disk]);
    let done = foreign(&["commit"]).good();
    assert!(done.contains("with 3 tries, slot a is the fallback; slot b boots next"), "{done}");
}

/// A program that was copied without its mode, or whose interpreter is missing, checks nothing: a machine without any check would
/// pass as healthy.
#[test]
fn a_check_that_cannot_be_executed_is_said_and_a_missing_directory_is_an_error() {
    let bench = Bench::installed();
    let run = |dir: &str| bench.at(&["health", "--dir", dir]);
    let failed = run("none");
    assert!(failed.err.contains("none"), "{}", failed.err);
    failed.bad("OPEN");
    let file = |name: &str, content: &[u8], mode: u32| {
        fs::write(bench.path("checks").join(name), content).unwrap();
        fs::set_permissions(bench.path("checks").join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::create_dir(bench.path("checks")).unwrap();
    file("10-program", b"\x7fELF\x02\x01\x01", 0o644);
    file("20-script", b"#!/bin/sh\n", 0o644);
    file("30-text", b"exit 1\n", 0o644);
    file("40-empty", b"", 0o644);
    for no_check in ["README", "50-old~", "60.dpkg-old"] {
        file(no_check, b"#!/bin/sh\n", 0o644);
    }
    let told = run("checks");
    let said: Vec<&str> = told.err.lines().filter(|line| line.contains("cannot be executed")).collect();
    assert_eq!(said.len(), 4, "{}", told.err);
    for (line, name) in said.iter().zip(["10-program", "20-script", "30-text", "40-empty"]) {
        assert!(line.contains(&format!("{name} cannot be executed and was not asked (chmod +x)")), "{line}");
    }
    told.good();
    file("70-gone", b"#!/nonexistent/sh\n", 0o755);
    let failed = run("checks");
    assert!(failed.err.contains("70-gone") && failed.err.contains("cannot be run"), "{}", failed.err);
    failed.bad("UNHEALTHY");
}
