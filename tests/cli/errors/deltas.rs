//! Deltas that are damaged, or do not fit this machine.

use super::{recovers, refused};
use crate::harness::loops::{Loop, Mount, is_root, run, text};
use crate::harness::machine::forge::Parts;
use crate::harness::machine::{Bench, MIB, Noise};

/// A machine as all have it, and `d.qdelta` from what it runs to a release that shares most of it.
fn with_delta() -> Bench {
    let bench = Bench::installed();
    let mut image = std::fs::read(bench.path("v1.img")).unwrap();
    image[300_000..300_100].fill(b'x');
    image[900_000..900_100].fill(b'x');
    image.splice(2_000_000..2_000_000, Noise(7).bytes(5000));
    std::fs::write(bench.path("v3.img"), image).unwrap();
    bench.pack("v3", "3.0", &["--platform", "v3.img", "--frame-size", "256K"]);
    bench.run(&["delta", "v1.qimg", "v3.qimg", "-o", "d.qdelta"]).good();
    bench
}

#[test]
fn a_delta_that_makes_no_sense_is_refused_before_the_first_write() {
    let bench = with_delta();
    let mut bad = Parts::of(&bench, "d.qdelta");
    bad.member("delta.bin")[0] ^= 1;
    bad.save(&bench, "bad.qdelta");
    let text = refused(&bench, "bad.qdelta", "DELTA");
    assert!(text.contains("delta.bin"), "{text}");
    recovers(&bench);
}

#[test]
fn a_delta_that_saves_little_is_not_made_unless_forced() {
    let bench = with_delta();
    let make = ["delta", "v1.qimg", "v2.qimg", "-o", "little.qdelta"];
    let text = bench.run(&make).bad("DELTA_GAIN");
    assert!(text.contains("--force"), "{text}");
    assert!(!bench.path("little.qdelta").exists());
    bench.run(&[&make[..], &["--force"]].concat()).good();
    let (delta, bundle) = (bench.path("little.qdelta"), bench.path("v2.qimg"));
    let len = |path| std::fs::metadata(path).unwrap().len();
    assert!(len(delta) * 100 < len(bundle) * 102, "never more than the bundle but for its own header");
    // From an image, or from its bundle: the same.
    bench.run(&["delta", "v1.img", "v3.qimg", "-o", "e.qdelta", "--jobs", "1"]).good();
    assert_eq!(
        std::fs::read(bench.path("e.qdelta")).unwrap(),
        std::fs::read(bench.path("d.qdelta")).unwrap()
    );
    assert!(len(bench.path("d.qdelta")) < 100_000);
    // What needs every byte of the images takes no delta, and says so.
    for verb in
        [&["verify", "d.qdelta", "--config", "config.toml"][..], &["sign", "d.qdelta", "--key", "key"]]
    {
        bench.run(verb).bad("DELTA");
    }
}

/// Machines that run several releases each find their delta beside the bundle.
#[test]
fn one_call_makes_the_deltas_from_several_releases() {
    let bench = with_delta();
    std::fs::create_dir(bench.path("out")).unwrap();
    let name = |image: &str| {
        let hash = blake3::hash(&std::fs::read(bench.path(image)).unwrap()).to_string();
        format!("v3.qimg.from-{}.qdelta", &hash[..16])
    };
    let make = ["delta", "v2.qimg", "v1.img", "v3.qimg", "-o", "out"];
    // Of a release that shares too little no delta is made; of the others one is.
    let some = bench.run(&make);
    assert!(some.err.contains("note: v2.qimg: the delta has"), "{}", some.err);
    some.bad("DELTA_GAIN");
    let made = |image| bench.path(&format!("out/{}", name(image)));
    assert!(!made("v2.img").exists());
    let same = |one, other| assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap());
    same(made("v1.img"), bench.path("d.qdelta"));
    bench.run(&make).bad("OUTPUT_EXISTS");
    bench.run(&[&make[..], &["--force"]].concat()).good();
    bench.run(&["delta", "v2.img", "v3.qimg", "-o", "single.qdelta", "--force"]).good();
    same(made("v2.img"), bench.path("single.qdelta"));
    // Nothing is made where one of the names is wrong.
    for (old, out, why) in
        [(["v1.img", "v2.img"], "some.qdelta", "directory"), (["v1.img", "v1.qimg"], "out", "another")]
    {
        let text = bench.run(&["delta", old[0], old[1], "v3.qimg", "-o", out, "--force"]).bad("ARGUMENT");
        assert!(text.contains(why), "{text}");
        assert!(!bench.path("some.qdelta").exists());
    }
}

#[test]
fn a_delta_is_verified_with_its_base() {
    let bench = with_delta();
    let verify =
        |delta, base| bench.run(&["verify", delta, "--base", base, "--config", "config.toml", "--json"]);
    for base in ["v1.qimg", "v1.img"] {
        let report = verify("d.qdelta", base).json();
        let len = std::fs::metadata(bench.path("v3.img")).unwrap().len();
        assert_eq!(
            (&report["image_bytes"], &report["from_bundle_bytes"]),
            (&len.into(), &0.into()),
            "{report}"
        );
        assert!(
            report["signed_by"].is_string() && report["frames"]["patched"].as_u64() > Some(0),
            "{report}"
        );
    }
    bench.run(&["delta", "v1.qimg", "v2.qimg", "-o", "lean.qdelta", "--lean"]).good();
    assert!(verify("lean.qdelta", "v1.qimg").json()["from_bundle_bytes"].as_u64() > Some(0));
    let text = verify("d.qdelta", "v2.qimg").bad("DELTA_BASE");
    assert!(text.contains("v2.qimg has"), "{text}");
    let text = verify("v3.qimg", "v1.qimg").bad("DELTA");
    assert!(text.contains("whole bundle"), "{text}");
    let mut bad = Parts::of(&bench, "d.qdelta");
    let member = bad.member("platform.img.delta");
    let middle = member.len() / 2;
    member[middle] ^= 1;
    bad.save(&bench, "bad.qdelta");
    let text = verify("bad.qdelta", "v1.qimg").bad("DELTA");
    assert!(text.contains("frame") && text.contains("offset"), "{text}");
}

#[test]
fn a_delta_is_prepared_like_its_bundle() {
    let bench = with_delta();
    let before = bench.vital();
    let inspected = bench.run(&["inspect", "d.qdelta", "--json"]).json();
    assert_eq!(inspected["version"], "3.0");
    assert!(inspected["delta"]["frames"]["patched"].as_u64() > Some(0), "{inspected}");
    let plan = bench.at(&["plan", "d.qdelta", "--json"]).plan();
    assert_eq!(plan["blocked_by"].as_array().unwrap().len(), 0, "{plan}");
    let len = std::fs::metadata(bench.path("d.qdelta")).unwrap().len();
    assert!(plan["transfer_bytes"].as_u64().unwrap() <= len, "{plan}");
    let bytes = std::fs::read(bench.path("d.qdelta")).unwrap();
    for piped in [false, true] {
        let report = if piped {
            bench.piped(&["prepare", "-", "--json"], &bytes).json()
        } else {
            bench.at(&["prepare", "d.qdelta", "--json"]).json()
        };
        let delta = &report["delta"];
        let sum = |keys: &[&str], of: &serde_json::Value| {
            keys.iter().map(|key| of[*key].as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(delta["fallen_back_bytes"], 0, "{report}");
        assert!(delta["downloaded_bytes"].as_u64().unwrap() < len, "{report}");
        let made = sum(&["copied_bytes", "patched_bytes"], delta);
        assert!(made > 0 && made <= sum(&["written_bytes"], &report), "{report}");
        assert!(bench.holds("platform_b", "v3.img"));
        assert_eq!(bench.state("platform_b", &[]), "prepared");
        assert_eq!(bench.vital(), before, "what runs was touched");
        bench.at(&["verify", "--slot", "b"]).good();
        bench.at(&["cancel"]).good();
        bench.blank("platform_b");
    }
}

#[test]
fn only_what_runs_is_a_base() {
    let bench = with_delta();
    bench.run(&["delta", "v2.qimg", "v3.qimg", "-o", "other.qdelta", "--force"]).good();
    let text = refused(&bench, "other.qdelta", "DELTA_BASE");
    assert!(text.contains("1.0 runs"), "{text}");
    let plan = bench.at(&["plan", "other.qdelta", "--json"]).plan();
    assert_eq!(plan["blocked_by"][0]["code"], "UPGRADE_ERROR_DELTA_BASE");
    recovers(&bench);
}

/// What runs was written by another tool, or its record is gone.
#[test]
fn a_base_without_a_record_is_refused_before_the_first_write() {
    let bench = with_delta();
    let (start, len) = bench.extent("platform_a");
    bench.poke(start + len - 4096, &[0; 4096]);
    let before = bench.hash();
    let prepare = ["prepare", "d.qdelta", "--bundle", "v3.qimg", "--allow-epoch-rollback"];
    let text = bench.at(&prepare).bad("DELTA_BASE");
    assert!(text.contains("no record says which platform image runs"), "{text}");
    assert_eq!(bench.hash(), before, "the disk was written");
}

#[test]
fn what_a_delta_cannot_make_comes_from_the_whole_bundle() {
    let bench = with_delta();
    bench.run(&["delta", "v1.qimg", "v2.qimg", "-o", "lean.qdelta", "--lean"]).good();
    let text = refused(&bench, "lean.qdelta", "DELTA_FRAME");
    assert!(text.contains("--bundle"), "{text}");
    let report = bench.at(&["prepare", "lean.qdelta", "--bundle", "v2.qimg", "--json"]).json();
    assert!(report["delta"]["fallen_back_bytes"].as_u64() > Some(0), "{report}");
    assert!(bench.holds("platform_b", "v2.img"));
    bench.at(&["cancel"]).good();
    // The bundle of another release is none to take frames from.
    let text = bench.at(&["prepare", "lean.qdelta", "--bundle", "v3.qimg"]).bad("DELTA");
    assert!(text.contains("another release"), "{text}");

    // A bit of a frame: seen before it is written.
    let mut bad = Parts::of(&bench, "d.qdelta");
    let member = bad.member("platform.img.delta");
    let middle = member.len() / 2;
    member[middle] ^= 1;
    bad.save(&bench, "bad.qdelta");
    bench.blank("platform_b");
    bench.at(&["prepare", "bad.qdelta"]).bad("DELTA_FRAME");
    let report = bench.at(&["prepare", "bad.qdelta", "--bundle", "v3.qimg", "--json"]).json();
    assert!(report["delta"]["fallen_back_bytes"].as_u64() > Some(0), "{report}");
    assert_eq!(report["delta"]["base_damaged"], serde_json::Value::Null, "{report}");
    assert!(bench.holds("platform_b", "v3.img"));
}

#[test]
fn a_damaged_base_costs_only_what_is_made_of_it() {
    let bench = with_delta();
    let (start, _) = bench.extent("platform_a");
    // A frame of noise before the first bytes that moved: it is in place in both.
    let frame = 4 * (256 << 10);
    let at = start + frame + 70_000;
    bench.poke(at, b"damage");
    let text = bench.at(&["prepare", "d.qdelta"]).bad("BASE_DAMAGED");
    assert!(text.contains("platform_a") && text.contains(&format!("offset {frame}")), "{text}");
    let report = bench.at(&["prepare", "d.qdelta", "--bundle", "v3.qimg", "--json"]).json();
    assert_eq!(report["delta"]["base_damaged"], frame, "{report}");
    let lost = report["delta"]["fallen_back_bytes"].as_u64().unwrap();
    assert!((1..=2 * (256 << 10)).contains(&lost), "{report}");
    assert!(bench.holds("platform_b", "v3.img"));
}

/// A file system that is mounted to be written is no longer what was installed, and changes while it is read.
#[test]
fn a_base_that_can_change_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    std::fs::File::create(bench.path("w1.img")).unwrap().set_len(4 * MIB).unwrap();
    run("mkfs.ext4", &["-q", text(&bench.path("w1.img"))]);
    let mut image = std::fs::read(bench.path("w1.img")).unwrap();
    image[3_000_000..3_010_000].copy_from_slice(&Noise(3).bytes(10_000));
    std::fs::write(bench.path("w2.img"), image).unwrap();
    for (name, version) in [("w1", "1.0"), ("w2", "2.0")] {
        bench.pack(name, version, &["--platform", &format!("{name}.img")]);
    }
    bench.at(&["init", "disk.img", "--slot-size", "8M", "--bundle", "w1.qimg"]).good();
    bench.run(&["delta", "w1.qimg", "w2.qimg", "-o", "w.qdelta", "--force"]).good();
    let disk = Loop::new(&bench.disk(), 512, &[]);
    disk.nodes();
    let on = ["--disk", text(&disk.0), "--booted", "a"];
    let mounted = Mount::new(&disk.node(1), &bench.path("mnt"), "rw");
    let message = bench.at(&[&["prepare", "w.qdelta"], &on[..]].concat()).bad("BASE_WRITABLE");
    assert!(message.contains("platform_a") && message.contains("mnt"), "{message}");
    drop(mounted);
    // Read-only it is a base, but no longer what was installed: some frames come from the bundle.
    let _mounted = Mount::new(&disk.node(1), &bench.path("mnt"), "ro");
    bench.at(&[&["prepare", "w.qdelta", "--bundle", "w2.qimg"], &on[..]].concat()).good();
}
