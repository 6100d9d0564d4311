//! Signatures of a bundle: added, removed, and keys that are rotated.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::fs;

use machine::{Bench, Run};
use serde_json::{Value, json};

#[test]
fn signatures_are_added_and_keys_rotated() {
    let bench = Bench::installed();
    bench.key("new", "ed25519");
    bench.trust("new_signers", &["new"]);
    let verify = |trust: &str| -> Run { bench.run(&["verify", "both.qimg", "--trust", trust]) };
    fs::copy(bench.path("v2.qimg"), bench.path("both.qimg")).unwrap();
    verify("new_signers").bad("UNTRUSTED");
    let report = bench.run(&["sign", "both.qimg", "--key", "new", "--json"]).json();
    assert_eq!(report["signatures"], 2);
    verify("new_signers").good();
    verify("allowed_signers").good();
    bench.run(&["sign", "v2.qimg", "--key", "new", "-o", "copy.qimg"]).good();
    assert_eq!(fs::read(bench.path("copy.qimg")).unwrap(), fs::read(bench.path("both.qimg")).unwrap());
    bench.config(&format!("trust = \"{}\"\n", bench.text("new_signers")));
    bench.at(&["prepare", "v2.qimg"]).bad("UNTRUSTED");
    bench.at(&["prepare", "both.qimg"]).good();
    // As many different keys as are demanded, and which they are.
    bench.trust("two_signers", &["key", "new"]);
    bench.config(&format!("trust = \"{}\"\nthreshold = 2\n", bench.text("two_signers")));
    bench.at(&["prepare", "v2.qimg"]).bad("TOO_FEW_SIGNERS");
    bench.at(&["prepare", "both.qimg"]).good();
    let summary = bench.run(&["inspect", "both.qimg", "--json", "--trust", "two_signers"]).json();
    let signed: Vec<&str> =
        summary["signatures"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(signed.len() == 2 && signed[0] != signed[1], "{summary}");
    assert_eq!(summary["signed_by"].as_str().unwrap().matches("SHA256:").count(), 2, "{summary}");
    let human = bench.run(&["inspect", "both.qimg"]).good();
    assert!(signed.iter().all(|key| human.contains(key)), "{human}");
}

#[test]
fn signatures_of_a_retired_key_are_removed() {
    let bench = Bench::installed();
    bench.key("new", "ed25519");
    bench.trust("new_signers", &["new"]);
    let verify = |trust: &str| -> Run { bench.run(&["verify", "both.qimg", "--trust", trust]) };
    bench.run(&["sign", "v2.qimg", "--key", "new", "-o", "both.qimg"]).good();
    // By its file, or by the fingerprint that inspect shows.
    let signers = || bench.run(&["inspect", "both.qimg", "--json"]).json()["signatures"].clone();
    let (all, fingerprint) = (signers(), signers()[0].as_str().unwrap().to_owned());
    assert_eq!(all.as_array().unwrap().len(), 2);
    let by_name = ["sign", "both.qimg", "--remove", &fingerprint, "-o", "one.qimg", "--json"];
    let report = bench.run(&by_name).json();
    assert_eq!((&report["signatures"], &report["removed"]), (&json!(1), &json!(fingerprint)), "{report}");
    bench.run(&["sign", "both.qimg", "--remove", "key.pub"]).good();
    assert_eq!(fs::read(bench.path("one.qimg")).unwrap(), fs::read(bench.path("both.qimg")).unwrap());
    assert_eq!(signers(), json!([all[1]]));
    verify("new_signers").good();
    verify("allowed_signers").bad("UNTRUSTED");
    let text = bench.run(&["sign", "both.qimg", "--remove", "key"]).bad("ARGUMENT");
    assert!(text.contains("has not signed"), "{text}");
    let text = bench.run(&["sign", "both.qimg", "--remove", "new.pub"]).bad("ARGUMENT");
    assert!(text.contains("no signature would be left"), "{text}");
    bench.run(&["sign", "both.qimg", "--remove", "v2.img"]).bad("SIGNING");
    // One for another in one step.
    bench.run(&["sign", "both.qimg", "--remove", "new.pub", "--key", "key"]).good();
    verify("allowed_signers").good();
    verify("new_signers").bad("UNTRUSTED");
}
