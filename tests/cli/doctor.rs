//! `qstage doctor` on disk images, its archive, and the ways in which a disk and a configuration are found. What it says of a
//! machine (loader, initramfs, units, kernel) is tested beside it, in src/doctor, on machines that are made up.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::machine::{Bench, tool};

/// The findings of a subject: verdict and message.
fn about<'a>(report: &'a Value, subject: &str) -> Vec<(&'a str, &'a str)> {
    let all = report["findings"].as_array().unwrap().iter();
    let text = |one: &'a Value, key: &str| one[key].as_str().unwrap();
    all.filter(|one| one["subject"] == subject)
        .map(|one| (text(one, "verdict"), text(one, "message")))
        .collect()
}

#[test]
fn a_sound_image_has_no_problem_and_each_fault_is_named_with_its_remedy() {
    let bench = Bench::installed();
    let report = bench.at(&["doctor", "--json"]).json();
    assert_eq!(report["problems"], 0, "{report:#}");
    assert!(about(&report, "boot")[0].1.starts_with("platform_a boots next: 1.0, good"), "{report:#}");
    assert_eq!(about(&report, "fallback")[0].0, "warning");
    // An image has no loader, no units and no kernel.
    assert!(about(&report, "units").is_empty() && about(&report, "initramfs").is_empty());
    let text = bench.at(&["doctor"]).good();
    assert!(text.starts_with("warning: fallback: ") && text.contains("\n  remedy: "), "{text}");
    assert!(bench.at(&["doctor", "--all"]).good().contains("good: keys: 1 in "));

    bench.config("boot_flga = \"legacy\"\n");
    let failed = bench.at(&["doctor", "--disk", "disk.img"]);
    assert!(failed.out.contains("did you mean 'boot_flag'? [UPGRADE_ERROR_CONFIG]"), "{}", failed.out);
    // Which keys count is in the configuration: a missing default file is no finding of its own.
    assert!(
        !failed.out.contains("allowed_signers") && failed.out.contains("not all of disk, keys"),
        "{}",
        failed.out
    );
    assert!(failed.err.contains("problems found: 1"), "{}", failed.err);
    failed.bad("FINDINGS");

    bench.config("");
    fs::rename(bench.path("allowed_signers"), bench.path("other")).unwrap();
    let failed = bench.at(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(failed.out.lines().next().unwrap()).unwrap();
    assert_eq!(about(&report, "keys")[0].0, "problem");
    failed.bad("FINDINGS");
    bench.at(&["doctor", "--trust", "other"]).good();

    // A user that may write to the file of keys decides who signs: the remedy is the command that ends it.
    let mode = |mode| fs::set_permissions(bench.path("other"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    let failed = bench.at(&["doctor", "--trust", "other", "--json"]);
    let report: Value = serde_json::from_str(failed.out.lines().next().unwrap()).unwrap();
    let keys = report["findings"].as_array().unwrap().iter().find(|one| one["subject"] == "keys").unwrap();
    assert_eq!((&keys["verdict"], &keys["code"]), (&"problem".into(), &"UPGRADE_ERROR_TRUST_FILE".into()));
    let remedy = keys["remedy"].as_str().unwrap();
    failed.bad("FINDINGS");
    let (_, command) = remedy.split_once(": ").unwrap();
    assert_eq!(command, "chmod go-w other", "{keys}");
    tool("sh", &["-c", &format!("cd {} && {command}", bench.text(""))]);
    bench.at(&["doctor", "--trust", "other"]).good();

    // Both slots lose their flags, and one its end.
    tool("sgdisk", &["--attributes=1:set:2", "--attributes=1:clear:56", &bench.text("disk.img")]);
    let (at, len) = bench.extent("platform_a");
    bench.poke(at + len - 4096, &[7; 4096]);
    for bit in 48..56 {
        tool("sgdisk", &[&format!("--attributes=1:clear:{bit}"), &bench.text("disk.img")]);
    }
    let failed = bench.at(&["doctor", "--trust", "other"]);
    assert!(failed.out.contains("no platform slot is bootable"), "{}", failed.out);
    failed.bad("FINDINGS");
}

#[test]
fn the_archive_has_what_helps_and_no_secret() {
    let bench = Bench::installed();
    let secrets = "[container]\ncommand = [\"/app\", \"--password=s3cret\"]\nenvironment = [\"API=s3cret\"]\n\
                   [network]\nproxy = \"http://u:s3cret@proxy:1\"\n# s3cret\n";
    bench.config(secrets);
    // The disk has no software slots for the container.
    bench.at(&["doctor", "--bundle", "support.tar"]).bad("FINDINGS");
    let mode = fs::metadata(bench.path("support.tar")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let list = tool("tar", &["tf", &bench.text("support.tar")]);
    for file in [
        "report.json",
        "config.json",
        "allowed_signers",
        "disk/slots.json",
        "disk/first.bin",
        "kernel/version",
    ] {
        assert!(list.contains(&format!("qstage-support/{file}\n")), "{file}: {list}");
    }
    let all = fs::read(bench.path("support.tar")).unwrap();
    assert!(!all.windows(6).any(|window| window == b"s3cret"));
    assert!(!all.windows(7).any(|window| window == b"PRIVATE"));
    let config = tool("tar", &["xOf", &bench.text("support.tar"), "qstage-support/config.json"]);
    assert!(config.contains("API=(removed)"), "{config}");
    // The table in it is one that others read.
    let mut image = crate::harness::machine::tool_bytes(
        "tar",
        &["xOf", &bench.text("support.tar"), "qstage-support/disk/first.bin"],
    );
    assert_eq!(&image[512..520], b"EFI PART");
    image.truncate(512);
    bench.at(&["doctor", "--bundle", "support.tar"]).bad("OUTPUT_EXISTS");
}

#[test]
fn the_environment_says_what_the_command_line_leaves_out() {
    let bench = Bench::installed();
    let run = |args: &[&str], variables: &[(&str, &str)]| -> crate::harness::machine::Run {
        bench.command(args).envs(variables.iter().copied()).output().unwrap().into()
    };
    let slots = run(&["slots", "--json"], &[("QSTAGE_DISK", "disk.img")]).json();
    assert_eq!(slots["disk"], "disk.img");
    run(&["slots"], &[("QSTAGE_CONFIG", "config.toml")]).good();
    run(&["slots"], &[("QSTAGE_CONFIG", "none.toml")]).bad("CONFIG");
    // The command line comes first, then the environment, then the file.
    run(&["slots", "--disk", "disk.img"], &[("QSTAGE_DISK", "none.img")]).good();
    run(&["slots", "--config", "config.toml"], &[("QSTAGE_DISK", "none.img")]).bad("OPEN");
    run(&["slots", "--config", "config.toml"], &[("QSTAGE_DISK", "")]).good();
    bench.key("other", "ed25519");
    bench.trust("others", &["other"]);
    run(&["verify", "v1.qimg"], &[("QSTAGE_TRUST", "allowed_signers")]).good();
    run(&["verify", "v1.qimg"], &[("QSTAGE_TRUST", "others")]).bad("UNTRUSTED");
    run(&["verify", "v1.qimg", "--unsigned-for-development"], &[("QSTAGE_TRUST", "others")]).good();
    run(&["plan", "v2.qimg", "--config", "config.toml"], &[("QSTAGE_TRUST", "others")]).bad("UNTRUSTED");
    let shown = bench.run(&["help", "slots"]).good();
    for name in ["QSTAGE_DISK", "QSTAGE_CONFIG", "QSTAGE_STATE_DIR"] {
        assert!(shown.contains(&format!("[env: {name}]")), "{name}: {shown}");
    }
}

#[test]
fn details_are_said_on_standard_error() {
    let bench = Bench::installed();
    let plain = bench.at(&["slots", "--json"]);
    assert_eq!(plain.err, "");
    for args in
        [&["slots", "--json", "-v"][..], &["-v", "slots", "--json"], &["slots", "--verbose", "--json"]]
    {
        let told = bench.at(args);
        assert_eq!(told.out, plain.out);
        assert!(told.err.contains("qstage: detail: configuration config.toml: "), "{}", told.err);
        assert!(told.err.contains("qstage: detail: partition table of "), "{}", told.err);
    }
}
