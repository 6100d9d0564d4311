//! Steps that the rules forbid in this state: the message names the rule and the remedy.

use std::io::Write;
use std::process::Stdio;

use super::{recovers, refused};
use crate::harness::machine::{Bench, MIB};

#[test]
fn releases_that_do_not_fit_what_runs() {
    let bench = Bench::installed();
    let pack = |name: &str, version: &str, more: &[&str]| {
        bench.pack(name, version, &[&["--platform", "v2.img"], more].concat());
        format!("{name}.qimg")
    };
    let refuse = |bundle: &str, code: &str, remedy: &str| {
        let text = refused(&bench, bundle, code);
        assert!(text.contains(remedy), "{text}");
        // 'plan' says the same without being asked to write.
        let plan = bench.at(&["plan", bundle, "--json"]).plan();
        assert_eq!(plan["blocked_by"][0]["code"], format!("UPGRADE_ERROR_{code}"));
        let human = bench.at(&["plan", bundle]).forbidden();
        assert!(human.contains(&format!("UPGRADE_ERROR_{code}")), "{human}");
    };
    let old = pack("old", "0.9", &[]);
    refuse(&old, "DOWNGRADE", "--allow-downgrade");
    let again = pack("again", "1.0", &[]);
    refuse(&again, "SAME_VERSION", "--allow-downgrade");
    let far = pack("far", "3.0", &["--min-version", "2.5"]);
    refuse(&far, "MIN_VERSION", "between them");
    refuse("v1.qimg", "ALREADY_INSTALLED", "nothing to do");
    bench.image("big.img", 9 * MIB, 5);
    bench.pack("big", "2.0", &["--platform", "big.img"]);
    // Not among the obstacles of a plan: no plan can be made.
    let text = refused(&bench, "big.qimg", "SLOT_TOO_SMALL");
    assert!(text.contains("8388608"), "{text}");
    bench.at(&["plan", "big.qimg"]).bad("SLOT_TOO_SMALL");
    bench.config("product = \"other\"\n");
    refuse("v2.qimg", "PRODUCT", "other");
    bench.config("");
    recovers(&bench);

    // Each rule has its override, and only that one.
    bench.at(&["prepare", &old, "--allow-epoch-rollback"]).bad("DOWNGRADE");
    bench.at(&["prepare", &old, "--allow-downgrade"]).good();
    bench.at(&["cancel"]).good();
    let high = pack("high", "2.0", &["--epoch", "7"]);
    bench.at(&["prepare", &high]).good();
    bench.at(&["commit"]).good();
    bench.at(&["mark-good", "--booted", "b"]).good();
    bench.image("v3.img", MIB, 3);
    bench.pack("low", "3.0", &["--platform", "v3.img", "--epoch", "6"]);
    bench.at(&["prepare", "low.qimg", "--allow-downgrade"]).bad("EPOCH");
    bench.at(&["prepare", "low.qimg", "--allow-epoch-rollback"]).good();
}

/// Prepared over, the slot that a roll-back has just selected would be lost, and the roll-back undone without a word.
#[test]
fn a_switch_that_waits_for_its_reboot_is_not_overwritten() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    bench.at(&["mark-good", "--booted", "b"]).good();
    bench.at(&["roll-back", "--booted", "b"]).good();
    let before = bench.hash();
    // Slot b still runs, so slot a, which boots next, would be the target.
    let again = ["prepare", "v1.qimg", "--booted", "b", "--allow-downgrade"];
    let text = bench.at(&again).bad("SWITCH_PENDING");
    assert!(text.contains("reboot") && text.contains("qstage cancel"), "{text}");
    assert_eq!(bench.at(&["status", "--booted", "b"]).json()["is_blocked"], true);
    assert_eq!(bench.hash(), before);
    assert!(bench.at(&["cancel", "--booted", "b"]).good().contains("platform_b stays selected"));
    assert_eq!(bench.slot("platform_b", &["--booted", "b"])["boots_next"], true);
    assert_eq!(bench.state("platform_a", &["--booted", "b"]), "good");
    bench.at(&["cancel", "--booted", "b"]).bad("NOTHING_TO_CANCEL");
    bench.at(&again).good();
}

#[test]
fn steps_out_of_turn() {
    let bench = Bench::installed();
    let before = bench.hash();
    for (verb, code) in
        [("commit", "NOT_PREPARED"), ("cancel", "NOTHING_TO_CANCEL"), ("roll-back", "NO_FALLBACK")]
    {
        bench.at(&[verb]).bad(code);
        assert_eq!(bench.hash(), before, "{verb}");
    }
    bench.at(&["commit", "--dry-run"]).bad("NOT_PREPARED");
    bench.at(&["mark-good", "--slot", "b"]).bad("NOTHING_TO_MARK");
    bench.at(&["verify", "--slot", "b"]).bad("NO_RECORD");
    bench.at(&["firmware", "list", "--slot", "b"]).bad("NO_RECORD");
    assert_eq!(bench.hash(), before);

    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    // It runs on trial: writing the other slot would destroy the only way back.
    let before = bench.hash();
    for booted in ["a", "b"] {
        bench.at(&["prepare", "v2.qimg", "--booted", booted]).bad("ON_TRIAL");
        bench.at(&["commit", "--booted", booted]).bad("NOT_PREPARED");
    }
    bench.at(&["cancel", "--booted", "b"]).bad("NOTHING_TO_CANCEL");
    assert_eq!(bench.hash(), before);
    // A trial that is over is no way back to.
    bench.at(&["roll-back", "--booted", "b"]).good();
    bench.at(&["roll-back"]).bad("NO_FALLBACK");
    recovers(&bench);
}

#[test]
fn one_at_a_time() {
    let bench = Bench::installed();
    let mut first = bench.start(&["prepare", "-"], Stdio::piped());
    let bytes = std::fs::read(bench.path("v2.qimg")).unwrap();
    let mut pipe = first.child().stdin.take().unwrap();
    pipe.write_all(&bytes[..bytes.len() / 2]).unwrap();
    // It has the lock when it writes, and then waits for more.
    while bench.at(&["status"]).json()["state"] != "UPGRADE_PREPARING" {
        assert!(first.child().try_wait().unwrap().is_none());
    }
    let text = bench.at(&["prepare", "v2.qimg"]).bad("BUSY");
    assert!(text.contains(&format!("process {}", first.id())), "{text}");
    bench.at(&["cancel"]).bad("BUSY");
    // Who only looks is not kept waiting.
    bench.at(&["slots"]).good();
    pipe.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(pipe);
    first.end().good();
    assert_eq!(bench.state("platform_b", &[]), "prepared");
}
