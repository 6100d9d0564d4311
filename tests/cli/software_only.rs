//! Software-only bundles that carry no platform: beside which platform they are installed, and what each verb reports.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;

use serde_json::{Value, json};

use crate::harness::machine::{Bench, tool};

/// Platform 1.0 with software s1 runs; `app.qimg`, version 1.2, is software s2 alone for the platform `needed`.
fn bench(needed: &str) -> Bench {
    let bench = Bench::installed_with_software();
    app(&bench, needed);
    bench
}

fn app(bench: &Bench, needed: &str) {
    bench.pack("app", "1.2", &["--needs-platform", needed, "--software", "s2.img", "--frame-size", "256K"]);
}

fn digest(bench: &Bench, bundle: &str) -> String {
    let summary = bench.run(&["inspect", bundle, "--json"]).json();
    summary["payloads"][0]["blake3"].as_str().unwrap().to_owned()
}

fn codes(plan: &Value) -> Vec<&str> {
    let all = plan["blocked_by"].as_array().unwrap().iter();
    all.map(|one| one["code"].as_str().unwrap().trim_start_matches("UPGRADE_ERROR_")).collect()
}

#[test]
fn it_is_installed_beside_the_platform_that_it_needs() {
    let bench = bench("1.0..1.9");
    let members = tool("tar", &["tf", &bench.text("app.qimg")]);
    let expected = ["manifest.json", "manifest.json.sig", "index.bin", "software.img.zst"];
    assert_eq!(members.lines().collect::<Vec<_>>(), expected);
    let summary = bench.run(&["inspect", "app.qimg", "--json"]).json();
    assert_eq!(summary["needs_platform"], json!({"min_version": "1.0", "max_version": "1.9"}));
    let shown = bench.run(&["inspect", "app.qimg"]).good();
    assert!(shown.contains("needs      platform 1.0 to 1.9\n"), "{shown}");
    bench.run(&["verify", "app.qimg", "--trust", "allowed_signers"]).good();

    let plan = bench.at(&["plan", "app.qimg", "--json"]).json();
    assert_eq!(plan["upgrade_type"], "SOFTWARE_ONLY");
    assert_eq!(plan["needs_platform"], "platform 1.0 to 1.9");
    assert!(codes(&plan).is_empty(), "{plan}");
    let platform = ["platform_a", "platform_b"].map(|name| bench.extent(name));
    let before = platform.map(|(at, len)| bench.hash_of(at, len));
    // As a stream, which cannot go back.
    let bytes = fs::read(bench.path("app.qimg")).unwrap();
    bench.piped(&["prepare", "-"], &bytes).good();
    bench.at(&["commit"]).good();
    bench.at(&["mark-good"]).good();
    assert!(bench.holds("software_b", "s2.img"));
    assert_eq!(bench.slot("software_b", &[])["version"], "1.2");
    assert_eq!(platform.map(|(at, len)| bench.hash_of(at, len)), before);
    bench.at(&["verify", "--slot", "b", "--group", "software"]).good();
    bench.at(&["prepare", "app.qimg"]).bad("ALREADY_INSTALLED");
}

#[test]
fn it_is_refused_beside_another_platform_with_what_it_needs() {
    let bench = bench("2.0");
    let before = bench.hash();
    let plan = bench.run(&["plan", "app.qimg", "--json", "--config", "config.toml"]);
    let plan: Value = serde_json::from_str(plan.out.lines().next().unwrap()).unwrap();
    assert_eq!((&plan["upgrade_type"], codes(&plan)), (&"SOFTWARE_ONLY".into(), vec!["PLATFORM_NEEDED"]));
    let message = bench.at(&["prepare", "app.qimg"]).bad("PLATFORM_NEEDED");
    assert!(
        message.contains("needs platform 2.0, but the running platform is 1.0 with BLAKE3 "),
        "{message}"
    );
    assert_eq!(bench.hash(), before);
    // By digest: that of the release to come, then that of the running one.
    app(&bench, &digest(&bench, "s3.qimg"));
    let message = bench.at(&["prepare", "app.qimg"]).bad("PLATFORM_NEEDED");
    assert!(message.contains("the platform image with BLAKE3 "), "{message}");
    app(&bench, &digest(&bench, "s1.qimg"));
    bench.at(&["prepare", "app.qimg"]).good();
}

/// A platform that comes alone leaves the software where it is: that must be made for it.
#[test]
fn a_platform_is_refused_beside_software_that_needs_another() {
    let bench = bench("1.0");
    bench.at(&["prepare", "app.qimg"]).good();
    bench.at(&["commit"]).good();
    bench.at(&["mark-good"]).good();
    bench.pack("p2", "2.0", &["--platform", "p2.img"]);
    let message = bench.at(&["prepare", "p2.qimg"]).bad("PLATFORM_NEEDED");
    assert!(message.contains("1.2 is software alone, which needs platform 1.0"), "{message}");
    // With software of its own it comes, and both go back together to the software that was made for the old platform.
    bench.at(&["prepare", "s3.qimg"]).good();
    bench.at(&["commit"]).good();
    bench.at(&["roll-back", "--booted", "b"]).good();
    for slot in ["platform_a", "software_b"] {
        assert_eq!(bench.slot(slot, &["--booted", "b"])["boots_next"], true, "{slot}");
    }
}

#[test]
fn a_factory_install_takes_a_bundle_with_a_platform() {
    let bench = bench("1.0");
    let new = ["init", "new.img", "--slot-size", "5M", "--software-size", "4M", "--bundle", "app.qimg"];
    let message = bench.run(&[&new[..], &["--trust", "allowed_signers"]].concat()).bad("PLATFORM_NEEDED");
    assert!(message.contains("a factory install brings the first one"), "{message}");
    assert!(!bench.path("new.img").exists());
    let before = bench.hash();
    let keep = ["init", "disk.img", "--keep-table", "--force", "--bundle", "app.qimg"];
    bench.run(&[&keep[..], &["--trust", "allowed_signers"]].concat()).bad("PLATFORM_NEEDED");
    assert_eq!(bench.hash(), before);
}

/// A delta of the software alone, made from the full bundle that runs.
#[test]
fn a_delta_of_it_is_made_from_a_full_bundle() {
    let bench = Bench::installed_with_software();
    let mut changed = fs::read(bench.path("s1.img")).unwrap();
    changed[500..600].fill(7);
    fs::write(bench.path("s4.img"), changed).unwrap();
    bench.pack("app", "1.2", &["--needs-platform", "1.0", "--software", "s4.img", "--frame-size", "256K"]);
    bench.run(&["delta", "s1.qimg", "app.qimg", "-o", "app.qdelta"]).good();
    bench.at(&["prepare", "app.qdelta"]).good();
    assert!(bench.holds("software_b", "s4.img"));
}

#[test]
fn the_packer_wants_software_and_no_platform() {
    let bench = Bench::new();
    bench.image("x.img", 4096, 1);
    let pack = |more: &[&str]| {
        let args = ["pack", "--product", "demo", "--version", "1", "-o", "x.qimg"];
        bench.run(&[&args[..], more].concat())
    };
    for args in [
        &["--needs-platform", "1.0"][..],
        &["--needs-platform", "1.0", "--software", "x.img", "--platform", "x.img"],
        &["--needs-platform", "1.0", "--software", "x.img", "--firmware", "a=x.img"],
        &["--needs-platform", "2..1", "--software", "x.img"],
        &["--software", "x.img"],
    ] {
        let run = pack(args);
        assert!(run.code == Some(2) && !bench.path("x.qimg").exists(), "{args:?}: {run:?}");
    }
}
