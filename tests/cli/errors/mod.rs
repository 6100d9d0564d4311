//! Every failure that a user can cause: its own stable code, the exit code of its class, a message that names the remedy, a
//! disk that boots the same slot as before, and a next run that works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

mod bundles;
mod changed;
mod coverage;
mod deltas;
mod devices;
mod disks;
mod elsewhere;
mod in_use;
mod network;
/// What a refusal advises is accepted.
mod remedies;
mod rules;
mod services;
mod trust;
mod usage;

use machine::Bench;

/// A bundle is refused before the first write: not one byte of the disk changes. Then a good one is prepared.
#[track_caller]
fn refused(bench: &Bench, bundle: &str, code: &str) -> String {
    let before = bench.hash();
    let message = bench.at(&["prepare", bundle]).bad(code);
    assert_eq!(bench.hash(), before, "{code}: the disk was written");
    // Who comes later finds it in the status, as any other failure; a rule that forbids it is no failure.
    let class =
        qstage::Error::ALL.iter().find(|(name, _)| name.ends_with(&format!("_ERROR_{code}"))).unwrap().1;
    let status = bench.at(&["status"]);
    let told = !matches!(class, qstage::error::Class::Refused | qstage::error::Class::Usage);
    // A disk that cannot be read has no status.
    if told && status.code == Some(0) {
        let status = status.json();
        assert_eq!(status["error_state"], format!("UPGRADE_ERROR_{code}"), "{status}");
        assert!(status["install_path"].as_str().unwrap().ends_with(bundle), "{status}");
        assert!(message.contains(status["error_message"].as_str().unwrap()), "{status} {message}");
    }
    message
}

/// The next run with a good bundle works, whatever was before.
#[track_caller]
fn recovers(bench: &Bench) {
    bench.at(&["prepare", "v2.qimg"]).good();
    assert_eq!(bench.state("platform_b", &[]), "prepared");
    assert!(bench.holds("platform_b", "v2.img"));
    bench.at(&["verify", "--slot", "b"]).good();
    bench.at(&["cancel"]).good();
}
