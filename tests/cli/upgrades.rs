//! The course of an upgrade by the verbs: what each prints, what it changes on the disk, and the state that it leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::machine;

use std::fs;

use machine::{Bench, MIB, sfdisk, tool};
use serde_json::{Value, json};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The seven keys in their order, by the text: a parsed object has lost it.
pub(crate) fn status(bench: &Bench, more: &[&str]) -> Value {
    let text = bench.at(&[&["status"], more].concat()).good();
    assert_eq!(text.lines().count(), 1, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    let names =
        ["install_path", "state", "details", "error_message", "error_state", "is_blocked", "blocked_reason"];
    assert_eq!(value.as_object().unwrap().len(), names.len(), "{text}");
    let places =
        names.map(|name| text.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{name}: {text}")));
    assert!(places.is_sorted(), "{text}");
    value
}

/// Priority, tries, successful, bit 2 of a partition, as sgdisk reads its attributes.
pub(crate) fn bits(bench: &Bench, number: u32) -> (u64, u64, u64, u64) {
    let text = tool("sgdisk", &["-i", &number.to_string(), &bench.text("disk.img")]);
    let line = text.lines().find_map(|line| line.strip_prefix("Attribute flags: ")).unwrap();
    let all = u64::from_str_radix(line.trim(), 16).unwrap();
    (all >> 48 & 15, all >> 52 & 15, all >> 56 & 1, all >> 2 & 1)
}

#[test]
fn a_platform_upgrade_from_pack_to_good() {
    let bench = Bench::new();
    bench.image("v1.img", 3 * MIB + 4321, 1);
    bench.image("v2.img", 3 * MIB + 4321, 2);
    let pack = ["pack", "--product", "demo", "--platform", "v1.img", "--key", "key", "--json"];
    let report = bench.run(&[&pack[..], &["--version", "1.0", "-o", "v1.qimg"]].concat()).json();
    assert_eq!(report["signed"], true);
    assert_eq!(report["image_bytes"], 3 * MIB + 4321);
    assert_eq!(report["bundle_bytes"], fs::metadata(bench.path("v1.qimg")).unwrap().len());
    bench.pack("v2", "2.0", &["--platform", "v2.img"]);

    let summary = bench.run(&["inspect", "v2.qimg", "--json", "--trust", "allowed_signers"]).json();
    assert_eq!((&summary["product"], &summary["version"]), (&json!("demo"), &json!("2.0")));
    let human = bench.run(&["inspect", "v2.qimg", "--trust", "allowed_signers"]).good();
    assert!(human.contains("2.0") && human.contains(machine::SIGNER), "{human}");
    let report = bench.run(&["verify", "v2.qimg", "--json", "--trust", "allowed_signers"]).json();
    assert_eq!(report["image_bytes"], 3 * MIB + 4321);
    assert!(report["signed_by"].as_str().unwrap().contains(machine::SIGNER));

    let report = bench.at(&["init", "disk.img", "--slot-size", "8M", "--bundle", "v1.qimg", "--json"]).json();
    assert_eq!(report["partitions"], json!(["platform_a", "platform_b"]));
    assert_eq!(report["installed"], "1.0");
    assert_eq!(status(&bench, &[])["state"], "UPGRADE_IDLE");
    let people = bench.at(&["status", "--human", "--booted", "a"]).good();
    assert!(people.starts_with("runs   demo 1.0 (platform_a)\nstate  idle\n"), "{people}");
    assert!(bench.holds("platform_a", "v1.img"));

    let plan = bench.at(&["plan", "v2.qimg", "--json"]).plan();
    assert_eq!(plan["upgrade_type"], "SOFTWARE_AND_PLATFORM");
    assert_eq!(plan["payloads"][0]["target"], "platform_b");
    assert_eq!((&plan["booted"], &plan["already_prepared"]), (&json!("a"), &json!(false)));
    assert_eq!(plan["blocked_by"], json!([]));
    assert!(bench.at(&["plan", "v2.qimg"]).good().contains("Nothing forbids it."));

    let lines = bench.at(&["prepare", "v2.qimg", "--json"]).good();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (result, progress) = events.split_last().unwrap();
    assert!(progress.iter().all(|event| event["v"] == 1 && event["event"] == "progress"), "{lines}");
    assert_eq!((&result["v"], &result["event"]), (&json!(1), &json!("result")));
    assert_eq!((&result["targets"], &result["read_back"]), (&json!(["platform_b"]), &json!(true)));
    let bytes = ["written_bytes", "zeroed_bytes", "reused_bytes"].map(|key| result[key].as_u64().unwrap());
    assert_eq!(bytes.iter().sum::<u64>(), 3 * MIB + 4321);
    let now = status(&bench, &[]);
    assert_eq!(now["state"], "UPGRADE_PREPARED");
    assert_eq!(now["install_path"], bench.text("v2.qimg"));
    assert!(bench.at(&["plan", "v2.qimg", "--json"]).plan()["already_prepared"] == true);
    assert_eq!(bits(&bench, 2), (0, 0, 0, 0), "not selected before commit");

    let before = bench.hash();
    let dry = bench.at(&["commit", "--dry-run", "--json"]).json();
    assert_eq!((bench.hash(), &dry["dry_run"]), (before, &json!(true)), "a dry run wrote");
    assert!(bench.at(&["commit", "--dry-run"]).good().lines().count() > 5);
    assert_eq!(bench.hash(), before, "a dry run wrote");
    let real = bench.at(&["commit", "--json"]).json();
    assert_eq!(real["plan"], dry["plan"], "what was said is what was done");
    assert_eq!((&real["boots_next"], &real["next_step"]), (&json!("b"), &json!("reboot")));
    assert_eq!((bits(&bench, 1), bits(&bench, 2)), ((1, 0, 1, 1), (2, 3, 0, 0)));
    let now = status(&bench, &["--booted", "a"]);
    assert_eq!((&now["state"], &now["is_blocked"]), (&json!("UPGRADE_TRIAL"), &json!(true)));
    assert!(now["details"].as_str().unwrap().contains("reboot to start it"), "{now}");
    // The health check of the old system must not mark the new one good.
    let early = bench.at(&["mark-good", "--booted", "a"]).good();
    assert!(early.contains("not been started yet"), "{early}");
    assert_eq!(bits(&bench, 2), (2, 3, 0, 0));

    // Each verb says beforehand what it would write: marks, records and the table.
    let before = bench.hash();
    for (verb, booted, says) in [
        ("cancel", "a", "the footer of platform_b: void"),
        ("roll-back", "b", "the mark of platform_b: bad, rolled back while on trial"),
        ("mark-good", "b", "the mark of platform_b: good, marked good"),
    ] {
        let dry = bench.at(&[verb, "--dry-run", "--booted", booted, "--json"]).json();
        let plan: Vec<&str> =
            dry["plan"].as_array().unwrap().iter().filter_map(|line| line.as_str()).collect();
        assert!(plan.iter().any(|line| line.starts_with("write LBA") && line.ends_with(says)), "{plan:#?}");
        assert_eq!((bench.hash(), &dry["dry_run"]), (before, &json!(true)), "a dry run wrote");
    }
    let dry = bench.at(&["mark-good", "--dry-run", "--booted", "b", "--json"]).json();
    let real = bench.at(&["mark-good", "--booted", "b", "--json"]).json();
    assert_eq!(
        (&real["plan"], &real["done"]),
        (&dry["plan"], &dry["done"]),
        "what was said is what was done"
    );
    assert_eq!((bits(&bench, 1), bits(&bench, 2)), ((1, 0, 1, 1), (2, 0, 1, 0)));
    let before = bench.hash();
    for _ in 0..2 {
        let again = bench.at(&["mark-good", "--json"]).json();
        assert_eq!((&again["switch_method"], &again["plan"]), (&json!("nothing to write"), &json!([])));
    }
    assert_eq!(bench.hash(), before, "a health unit may call it at every boot");
    assert_eq!(status(&bench, &[])["state"], "UPGRADE_IDLE");
    let slots = bench.at(&["slots", "--json"]).json();
    assert_eq!(keys(&slots), ["boot_flag", "disk", "slots", "switch_method", "table"]);
    assert_eq!(slots["slots"][1]["version"], "2.0");
    let table = bench.at(&["slots"]).good();
    assert!(table.contains("platform b") && table.contains("next") && !table.contains("runs,"), "{table}");
    for slot in ["a", "b"] {
        let report = bench.at(&["verify", "--slot", slot, "--json"]).json();
        assert_eq!((&report["groups"], &report["bytes"]), (&json!(["platform"]), &json!(3 * MIB + 4321)));
    }
    assert!(bench.holds("platform_a", "v1.img") && bench.holds("platform_b", "v2.img"));
}

/// The proof that no platform byte is read: they are all destroyed, and the upgrade does not notice.
#[test]
fn a_software_upgrade_reads_no_platform_byte() {
    let bench = Bench::installed_with_software();
    let plan = bench.at(&["plan", "s2.qimg", "--json"]).plan();
    assert_eq!(plan["upgrade_type"], "SOFTWARE_ONLY");
    assert_eq!(plan["payloads"][0]["target"], Value::Null);
    assert_eq!(plan["payloads"][1]["target"], "software_b");

    let listing = tool("tar", &["tvRf", &bench.text("s2.qimg")]);
    let block = |name: &str| {
        let line = listing.lines().find(|line| line.ends_with(name)).unwrap();
        line.split(['k', ':'])
            .find_map(|word| word.trim_start_matches("bloc").trim().parse::<u64>().ok())
            .unwrap()
    };
    let mut bytes = fs::read(bench.path("s2.qimg")).unwrap();
    let (from, to) = ((block("platform.img.zst") + 1) * 512, block("software.img.zst") * 512);
    let members = machine::forge::Parts::of(&bench, "s2.qimg").members;
    let len = members.iter().find(|(name, _)| name == "platform.img.zst").unwrap().1.len();
    assert!(from + len as u64 <= to);
    bytes[from as usize..from as usize + len].fill(0xee);
    fs::write(bench.path("torn.qimg"), &bytes).unwrap();
    bench.run(&["verify", "torn.qimg", "--trust", "allowed_signers"]).bad("BUNDLE_FRAME");

    let platform = |bench: &Bench| {
        ["platform_a", "platform_b"].map(|name| bench.extent(name)).map(|(at, len)| bench.hash_of(at, len))
    };
    let before = platform(&bench);
    let report = bench.at(&["prepare", "torn.qimg", "--json"]).json();
    assert_eq!(report["upgrade_type"], "SOFTWARE_ONLY");
    assert_eq!((&report["targets"], &report["image_bytes"]), (&json!(["software_b"]), &json!(MIB + 3333)));
    let report = bench.at(&["commit", "--json"]).json();
    assert_eq!((&report["next_step"], &report["boots_next"]), (&json!("restart-software"), &json!("a")));
    assert_eq!(platform(&bench), before);
    assert!(bench.holds("software_b", "s2.img"));
    assert_eq!((bits(&bench, 3), bits(&bench, 4)), ((1, 0, 1, 0), (2, 3, 0, 0)));
    bench.at(&["roll-back"]).good();
    assert_eq!(
        (bench.state("software_a", &[]), bench.state("software_b", &[])),
        ("good".into(), "bad".into())
    );
    // Again, and this time it proves good; through a pipe, where the platform has to be passed over.
    bench.piped(&["prepare", "-"], &bytes).good();
    bench.at(&["commit"]).good();
    bench.at(&["mark-good"]).good();
    assert_eq!(bits(&bench, 4), (2, 0, 1, 0));
    bench.at(&["verify", "--slot", "b", "--group", "software"]).good();
}

/// Both groups in one switch, and back in one.
#[test]
fn platform_and_software_go_together() {
    let bench = Bench::installed_with_software();
    assert_eq!(bench.at(&["plan", "s3.qimg", "--json"]).plan()["upgrade_type"], "SOFTWARE_AND_PLATFORM");
    let report = bench.at(&["prepare", "s3.qimg", "--json"]).json();
    assert_eq!(report["targets"], json!(["platform_b", "software_b"]));
    let report = bench.at(&["commit", "--json"]).json();
    let headers = report["plan"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| line.as_str().unwrap().contains("the commit"));
    assert_eq!(headers.count(), 1, "one sector for both: {report}");
    assert_eq!([bits(&bench, 2).0, bits(&bench, 4).0], [2, 2]);
    bench.at(&["mark-good", "--booted", "b"]).good();
    assert_eq!([bits(&bench, 2), bits(&bench, 4)], [(2, 0, 1, 0); 2]);
    for group in ["platform", "software"] {
        let report = bench.at(&["verify", "--slot", "b", "--group", group, "--json"]).json();
        assert_eq!(report["groups"], json!([group]));
    }
    // From a slot that is good: the slot that is left stays a fallback.
    let report = bench.at(&["roll-back", "--json"]).json();
    assert_eq!((&report["boots_next"], &report["next_step"]), (&json!("a"), &json!("reboot")));
    assert_eq!(
        [bits(&bench, 1), bits(&bench, 2), bits(&bench, 3), bits(&bench, 4)],
        [(2, 0, 1, 1), (1, 0, 1, 0), (2, 0, 1, 0), (1, 0, 1, 0)]
    );
}

/// Under legacy exactly one slot carries bit 2 after every step, and the priority bits do not matter.
#[test]
fn the_legacy_boot_flag_is_on_one_slot_always() {
    let bench = Bench::installed_with_software();
    bench.config("boot_flag = \"legacy\"\n");
    let priorities = [1, 2].map(|n| bits(&bench, n)).map(|b| (b.0, b.1, b.2));
    let carrier = |step: &str| {
        let carry: Vec<u32> = (1..=4).filter(|n| bits(&bench, *n).3 == 1).collect();
        assert_eq!(carry.len(), 1, "{step}: {carry:?}");
        let attrs = sfdisk(&bench.disk())["partitions"].as_array().unwrap().clone();
        let named = |row: &&Value| row["attrs"].as_str().unwrap_or("").contains("LegacyBIOSBootable");
        assert_eq!(attrs.iter().filter(named).count(), 1, "{step}");
        assert_eq!([1, 2].map(|n| bits(&bench, n)).map(|b| (b.0, b.1, b.2)), priorities, "{step}");
        carry[0]
    };
    let step = |args: &[&str], expected: u32| {
        bench.at(args).good();
        assert_eq!(carrier(&args.join(" ")), expected, "{args:?}");
    };
    assert_eq!(carrier("init"), 1);
    step(&["prepare", "s3.qimg"], 1);
    step(&["commit"], 2);
    assert_eq!(bench.state("platform_b", &["--booted", "b"]), "trial");
    step(&["roll-back", "--booted", "b"], 1);
    assert_eq!(bench.state("platform_b", &[]), "bad");
    step(&["prepare", "s3.qimg"], 1);
    step(&["commit"], 2);
    step(&["cancel", "--booted", "a"], 1);
    step(&["prepare", "s3.qimg"], 1);
    step(&["cancel"], 1);
    step(&["prepare", "s3.qimg"], 1);
    step(&["commit"], 2);
    step(&["mark-good", "--booted", "b"], 2);
    assert_eq!(bench.state("platform_b", &[]), "good");
    step(&["mark-good"], 2);
    step(&["roll-back"], 1);
    step(&["mark-good", "--slot", "b"], 2);
}

#[test]
fn cancel_undoes_a_prepare_and_a_commit() {
    let bench = Bench::installed();
    for committed in [false, true] {
        bench.at(&["prepare", "v2.qimg"]).good();
        if committed {
            bench.at(&["commit"]).good();
            assert_eq!(bits(&bench, 2).0, 2);
        }
        let report = bench.at(&["cancel", "--booted", "a", "--json"]).json();
        assert_eq!((&report["boots_next"], &report["next_step"]), (&json!("a"), &json!("nothing")));
        assert_eq!(bench.state("platform_b", &[]), "empty");
        assert_eq!(
            (bits(&bench, 2), bench.slot("platform_a", &[])["boots_next"].clone()),
            ((0, 0, 0, 0), json!(true))
        );
        assert_eq!(status(&bench, &[])["state"], "UPGRADE_IDLE");
        bench.at(&["commit"]).bad("NOT_PREPARED");
    }
    // What was written is not lost: only the record is void, and the frames are recognised.
    let again = bench.at(&["prepare", "v2.qimg", "--json"]).json();
    assert_eq!(again["written_bytes"], 0, "{again}");
}

#[test]
fn roll_back_from_a_trial_makes_the_slot_bad() {
    let bench = Bench::installed();
    bench.at(&["prepare", "v2.qimg"]).good();
    bench.at(&["commit"]).good();
    let report = bench.at(&["roll-back", "--booted", "b", "--json"]).json();
    assert_eq!((&report["boots_next"], &report["next_step"]), (&json!("a"), &json!("reboot")));
    assert_eq!((bits(&bench, 1), bits(&bench, 2)), ((2, 0, 1, 1), (0, 0, 0, 0)));
    assert_eq!(bench.state("platform_b", &[]), "bad");
    // Bad is a verdict on what it holds; something else may be prepared there.
    bench.at(&["prepare", "v2.qimg"]).good();
    assert_eq!(bench.state("platform_b", &[]), "prepared");
}

/// Pairs of versions whose type is known. It depends on the content that runs, not on the numbers: one and the same bundle is
/// instant from one version, and a platform upgrade from another.
#[test]
fn the_type_of_known_pairs_of_versions() {
    const PLATFORM: &str = "SOFTWARE_AND_PLATFORM";
    const INSTANT: &str = "SOFTWARE_ONLY";
    let bench = Bench::new();
    // Versions in order, each with the number of its platform; the software is another one each time.
    let releases = [
        ("4.0.0", 1),
        ("4.0.6", 2),
        ("4.1.0", 2),
        ("7.1.1", 3),
        ("7.4.3", 3),
        ("7.7.0.1", 3),
        ("7.7.0.2", 4),
        ("7.7.0.3", 4),
    ];
    for (software, (version, platform)) in releases.into_iter().enumerate() {
        let (p, s) = (format!("p{platform}.img"), format!("s{software}.img"));
        bench.image(&p, 300_000, platform);
        bench.image(&s, 100_000, 10 + software as u64);
        bench.pack(version, version, &["--platform", &p, "--software", &s]);
    }
    for (from, to, wanted) in [
        ("4.0.0", "4.1.0", PLATFORM),
        ("4.0.6", "4.1.0", INSTANT),
        ("7.1.1", "7.4.3", INSTANT),
        ("7.7.0.1", "7.7.0.3", PLATFORM),
        ("7.7.0.2", "7.7.0.3", INSTANT),
    ] {
        let init = ["init", "disk.img", "--slot-size", "2M", "--software-size", "2M"];
        bench.at(&[&init[..], &["--bundle", &format!("{from}.qimg")]].concat()).good();
        let bundle = format!("{to}.qimg");
        let plan = bench.at(&["plan", &bundle, "--json"]).plan();
        assert_eq!(
            (&plan["upgrade_type"], &plan["blocked_by"]),
            (&json!(wanted), &json!([])),
            "{from} to {to}"
        );
        let report = bench.at(&["prepare", &bundle, "--json"]).json();
        let targets =
            if wanted == PLATFORM { json!(["platform_b", "software_b"]) } else { json!(["software_b"]) };
        assert_eq!(
            (&report["upgrade_type"], &report["targets"]),
            (&json!(wanted), &targets),
            "{from} to {to}"
        );
        fs::remove_file(bench.path("disk.img")).unwrap();
    }
}
