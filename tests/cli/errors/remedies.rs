//! The remedy of a refusal is accepted in the state in which it is shown. `commit` after a commit advised a prepare, which was
//! refused; `prepare` after the roll-back of a trial advised a cancel, which was refused.

use crate::harness::machine::{Bench, tool};

/// A machine with software, and a bundle that no state knows.
fn machine() -> Bench {
    let bench = Bench::installed_with_software();
    bench.image("p3.img", 1 << 20, 3);
    bench.image("s3.img", 1 << 20, 13);
    bench.pack("new", "3.0", &["--platform", "p3.img", "--software", "s3.img", "--frame-size", "256K"]);
    bench
}

/// Each verb in a state of the slots: what is refused names what is accepted.
#[track_caller]
fn check(bench: &Bench, booted: &str, state: &str) {
    let prepare = &["prepare", "new.qimg"][..];
    let dry = |args: &[&str]| bench.at(&[args, &["--booted", booted, "--dry-run"]].concat());
    for verb in
        [prepare, &["prepare", "s3.qimg"], &["commit"], &["commit", "--retry"], &["roll-back"], &["cancel"]]
    {
        let run = dry(verb);
        if run.code == Some(0) {
            continue;
        }
        assert_eq!(run.code, Some(5), "{state}, {verb:?}: {}", run.err);
        let remedies: [(&str, &[&str]); 5] = [
            ("'qstage prepare'", prepare),
            ("'qstage cancel'", &["cancel"]),
            ("'qstage roll-back'", &["roll-back"]),
            ("'qstage mark-good'", &["mark-good"]),
            ("--retry", &["commit", "--retry"]),
        ];
        let named: Vec<&[&str]> =
            remedies.iter().filter(|(name, _)| run.err.contains(name)).map(|(_, args)| *args).collect();
        for remedy in &named {
            let then = dry(remedy);
            assert_eq!(then.code, Some(0), "{state}, {verb:?}: {}{remedy:?}: {}", run.err, then.err);
        }
        let reboot = run.err.contains("reboot");
        assert!(
            reboot
                || !named.is_empty()
                || ["nothing to do", "nothing is prepared"].iter().any(|w| run.err.contains(w)),
            "{state}, {verb:?}: no remedy: {}",
            run.err
        );
        let next = bench.slot(&format!("platform_{booted}"), &["--booted", booted])["boots_next"] == false;
        assert!(!reboot || next, "{state}, {verb:?}: a reboot would start the same: {}", run.err);
    }
}

#[test]
fn a_remedy_is_accepted_where_it_is_named() {
    let bench = machine();
    check(&bench, "a", "installed");
    bench.at(&["prepare", "s3.qimg"]).good();
    check(&bench, "a", "prepared");
    bench.at(&["commit"]).good();
    check(&bench, "a", "committed");
    check(&bench, "b", "on trial");
    bench.at(&["mark-good", "--booted", "b"]).good();
    check(&bench, "b", "good");
    bench.at(&["roll-back", "--booted", "b"]).good();
    check(&bench, "b", "rolled back from a good slot");
    check(&bench, "a", "rebooted after that");
}

#[test]
fn a_remedy_is_accepted_after_a_trial_that_ended_badly() {
    let bench = machine();
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    bench.at(&["roll-back", "--booted", "b"]).good();
    check(&bench, "b", "rolled back on trial");
    check(&bench, "a", "rebooted after that");

    let bench = machine();
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    let number = bench.slot("platform_b", &[])["partition"].to_string();
    let clear = [52, 53, 54, 55].map(|bit| format!("--attributes={number}:clear:{bit}"));
    tool("sgdisk", &[&clear.each_ref().map(String::as_str)[..], &[&bench.text("disk.img")]].concat());
    check(&bench, "a", "fallen back");
}

#[test]
fn a_remedy_is_accepted_in_an_upgrade_of_the_software() {
    let bench = machine();
    bench.at(&["prepare", "s2.qimg"]).good();
    check(&bench, "a", "software prepared");
    bench.at(&["commit"]).good();
    check(&bench, "a", "software on trial");
    bench.at(&["roll-back"]).good();
    check(&bench, "a", "software rolled back");
}
