//! Trust decisions persist: after a roll-back, a lost state directory, a rewritten slot, a damaged record.

use std::fs;

use crate::harness::machine::{Bench, MIB};

/// A machine on which epoch 1 was installed in a and epoch 2 has been good in b, with `key` and `other` trusted.
fn upgraded(config: &str) -> Bench {
    let bench = Bench::new();
    bench.key("other", "ed25519");
    bench.trust("allowed_signers", &["key", "other"]);
    bench.config(config);
    for (version, epoch) in [(1, "1"), (2, "2"), (3, "2"), (4, "1")] {
        let image = format!("v{version}.img");
        bench.image(&image, MIB, version);
        bench.pack(
            &format!("v{version}"),
            &format!("{version}.0"),
            &["--platform", &image, "--epoch", epoch],
        );
    }
    bench
        .run(&["init", "disk.img", "--slot-size", "8M", "--bundle", "v1.qimg", "--trust", "allowed_signers"])
        .good();
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    bench.at(&["commit", "--booted", "a"]).good();
    bench.at(&["mark-good", "--booted", "b"]).good();
    bench
}

#[test]
fn a_release_with_a_known_hole_does_not_come_back() {
    for config in ["", "boot_flag = \"legacy\"\n"] {
        let bench = upgraded(config);
        let before = bench.hash();
        for verb in [&["roll-back", "--booted", "b"][..], &["mark-good", "--slot", "a", "--booted", "b"]] {
            let text = bench.at(verb).bad("EPOCH");
            assert!(text.contains("1.0 has epoch 1, lower than 2"), "{text}");
        }
        assert_eq!(bench.hash(), before, "a refusal wrote something");
        // Permitted by its flag; and the floor stays, with only the marks as its record.
        bench.at(&["roll-back", "--booted", "b", "--allow-epoch-rollback"]).good();
        fs::remove_dir_all(bench.path("state")).unwrap_or_default();
        bench.at(&["prepare", "v4.qimg", "--booted", "a", "--retry"]).bad("EPOCH");
        // Slot b is written anew, torn, and emptied: the mark of a holds it.
        bench.at(&["prepare", "v3.qimg", "--booted", "a"]).good();
        bench.at(&["prepare", "v4.qimg", "--booted", "a"]).bad("EPOCH");
        bench.at(&["cancel", "--booted", "a"]).good();
        bench.blank("platform_b");
        bench.at(&["prepare", "v4.qimg", "--booted", "a"]).bad("EPOCH");
        // Prepared with the flag it still takes the flag to be committed.
        bench.at(&["prepare", "v4.qimg", "--booted", "a", "--allow-epoch-rollback"]).good();
        bench.at(&["commit", "--booted", "a"]).bad("EPOCH");
        bench.at(&["commit", "--booted", "a", "--allow-epoch-rollback"]).good();
    }
}

/// Of the records of both slots each bit may be lost: what is unknown is not allowed.
#[test]
fn what_runs_and_cannot_be_read_is_an_obstacle() {
    let bench = Bench::installed();
    let (at, len) = bench.extent("platform_a");
    let footer = at + len / 4096 * 4096 - 4096;
    let whole = fs::read(bench.disk()).unwrap();
    let plan = || bench.at(&["plan", "v2.qimg", "--booted", "a", "--json"]).plan()["blocked_by"].to_string();
    for damage in [footer, footer + 1000, footer - 4096 - 4096] {
        bench.poke(damage, b"\xff\xff\xff\xff");
        assert!(plan().contains("RUNNING_UNKNOWN"), "{damage}");
        let text = bench.at(&["prepare", "v2.qimg", "--booted", "a"]).bad("RUNNING_UNKNOWN");
        assert!(text.contains("platform_a") && text.contains("--allow-epoch-rollback"), "{text}");
        bench.at(&["prepare", "v2.qimg", "--booted", "a", "--allow-epoch-rollback"]).good();
        bench.at(&["commit", "--booted", "a"]).bad("RUNNING_UNKNOWN");
        fs::write(bench.disk(), &whole).unwrap();
    }
    // A slot whose end was never written was installed by other means.
    bench.blank("platform_a");
    assert_eq!(plan(), "[]");
}

/// A key was withdrawn after the bundle had been prepared.
#[test]
fn a_stored_signature_is_judged_by_the_keys_of_now() {
    let bench = upgraded("");
    bench.config(&format!("trust = \"{}\"\n", bench.text("allowed_signers")));
    bench.at(&["prepare", "v3.qimg", "--booted", "b"]).good();
    let report = bench.at(&["verify", "--slot", "a", "--json"]).json();
    assert!(report["signed_by"].as_str().unwrap().contains("SHA256:"), "{report}");
    bench.trust("allowed_signers", &["other"]);
    let before = bench.hash();
    for verb in [
        &["commit", "--booted", "b"][..],
        &["commit", "--dry-run", "--booted", "b"],
        &["verify", "--slot", "a"],
    ] {
        let text = bench.at(verb).bad("UNTRUSTED");
        assert!(text.contains("not listed"), "{text}");
    }
    assert_eq!(bench.hash(), before);
    fs::remove_file(bench.path("allowed_signers")).unwrap();
    bench.at(&["commit", "--booted", "b"]).bad("TRUST_FILE");
    bench.trust("allowed_signers", &["other", "key"]);
    bench.at(&["commit", "--booted", "b"]).good();
}

#[test]
fn what_nobody_vouches_for_is_called_so() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg", "--booted", "a", "--unsigned-for-development"]).good();
    let shown = |args: &[&str]| {
        let text = bench.at(args).good();
        assert!(text.contains("unsigned"), "{text}");
    };
    shown(&["slots", "--booted", "a"]);
    shown(&["status", "--booted", "a"]);
    shown(&["verify", "--slot", "b"]);
    shown(&["commit", "--booted", "a"]);
    assert_eq!(bench.slot("platform_b", &["--booted", "a"])["unsigned"], true);
    assert_eq!(bench.slot("platform_a", &["--booted", "a"])["unsigned"], serde_json::Value::Null);
}

/// As an option: what has been replaced for good is no fallback, and nothing that could be committed either.
#[test]
fn a_late_fallback_can_be_prevented() {
    for flag in ["priority", "legacy"] {
        let bench = upgraded(&format!("prevent_late_fallback = true\nboot_flag = \"{flag}\"\n"));
        assert_eq!(bench.state("platform_a", &["--booted", "b"]), "bad", "{flag}");
        let a = bench.slot("platform_a", &["--booted", "b"]);
        assert!(a["reason"].as_str().unwrap().contains("prevent_late_fallback"), "{a}");
        bench.at(&["roll-back", "--booted", "b", "--allow-epoch-rollback"]).bad("NO_FALLBACK");
        bench.at(&["commit", "--booted", "b", "--allow-epoch-rollback"]).bad("NOT_PREPARED");
        bench.at(&["prepare", "v3.qimg", "--booted", "b"]).good();
    }
}

/// Any user can put a link where root is about to write; and untrusted text has no control characters for a terminal.
#[test]
fn output_follows_no_link_and_shows_no_orders() {
    let bench = Bench::new();
    bench.image("nic.bin", 5000, 9);
    bench.image("v1.img", MIB, 1);
    bench.pack("v1", "1.0", &["--platform", "v1.img", "--firmware", "nic=nic.bin"]);
    bench.at(&["init", "disk.img", "--slot-size", "8M", "--bundle", "v1.qimg"]).good();
    fs::write(bench.path("victim"), "root's").unwrap();
    for link in ["out", "out.part"] {
        std::os::unix::fs::symlink("victim", bench.path(link)).unwrap();
    }
    bench.at(&["firmware", "extract", "nic", "--slot", "a", "-o", "out"]).good();
    assert_eq!(fs::read(bench.path("victim")).unwrap(), b"root's");
    assert_eq!(fs::read(bench.path("out")).unwrap(), fs::read(bench.path("nic.bin")).unwrap());

    let mut stranger = fs::read(bench.path("v1.qimg")).unwrap();
    stranger[..25].copy_from_slice(b"\x1b[2J\x1b[32mall is well\x1b[0m\r");
    for field in [124..124, 124..136, 136..148] {
        stranger[field].fill(b'Z');
        fs::write(bench.path("stranger.qimg"), &stranger).unwrap();
        let text = bench.run(&["inspect", "stranger.qimg"]).bad("BUNDLE_TAR_HEADER");
        assert!(!text.contains("well") && !text.contains("ZZ") && !text.contains('\x1b'), "{text}");
    }
    let reason = "\x1b[2Jfine\u{202e}\nfine";
    bench.pack("v2", "2.0", &["--platform", "nic.bin"]);
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    bench.at(&["commit", "--booted", "a"]).good();
    bench.at(&["roll-back", "--booted", "b", "--reason", reason]).good();
    for verb in [
        &["slots", "--booted", "a"][..],
        &["slots", "--booted", "a", "--json"],
        &["status", "--booted", "a"],
        &["history"],
    ] {
        let text = bench.at(verb).good();
        assert!(!text.contains(['\x1b', '\u{202e}']), "{verb:?}: {text:?}");
    }
}
