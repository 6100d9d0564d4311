//! Bundles that are damaged, forged, or signed by another key.

use std::fs;

use super::{recovers, refused};
use crate::harness::machine::forge::Parts;
use crate::harness::machine::{Bench, MIB, Noise};

#[test]
fn nobody_we_trust_vouches_for_it() {
    let bench = Bench::installed();
    bench.key("other", "ed25519");
    let good = Parts::of(&bench, "v2.qimg");

    good.clone().sign(&bench, "other").save(&bench, "other.qimg");
    let text = refused(&bench, "other.qimg", "UNTRUSTED");
    assert!(text.contains("SHA256:") && text.contains("allowed_signers"), "{text}");

    let mut unsigned = good.clone();
    unsigned.member("manifest.json.sig").clear();
    unsigned.save(&bench, "unsigned.qimg");
    refused(&bench, "unsigned.qimg", "UNSIGNED");

    let mut tampered = good.clone();
    let bytes = String::from_utf8(tampered.member("manifest.json").clone()).unwrap();
    *tampered.member("manifest.json") = bytes.replace("\"2.0\"", "\"2.9\"").into_bytes();
    tampered.save(&bench, "tampered.qimg");
    refused(&bench, "tampered.qimg", "BAD_SIGNATURE");

    let mut garbled = good.clone();
    garbled.member("manifest.json.sig").truncate(100);
    garbled.save(&bench, "garbled.qimg");
    refused(&bench, "garbled.qimg", "SIGNATURE_FORMAT");

    bench.config("threshold = 2\n");
    let text = refused(&bench, "v2.qimg", "TOO_FEW_SIGNERS");
    assert!(text.contains("1 of 2") && text.contains("SHA256:"), "{text}");
    bench.config("principal = \"nobody\"\n");
    refused(&bench, "v2.qimg", "UNTRUSTED");

    fs::write(bench.path("nobody"), "# no key\n").unwrap();
    for trust in ["nobody", "missing"] {
        bench.config(&format!("trust = \"{}\"\n", bench.text(trust)));
        refused(&bench, "v2.qimg", "TRUST_FILE");
    }
    bench.config("");
    recovers(&bench);
}

/// A trusted signer signs nonsense: the manifest is refused all the same.
#[test]
fn a_signed_manifest_that_makes_no_sense() {
    let bench = Bench::installed();
    let good = Parts::of(&bench, "v2.qimg");
    let case = |code: &str, change: &dyn Fn(&mut serde_json::Value)| {
        good.clone().edit(&bench, "key", change).save(&bench, "forged.qimg");
        refused(&bench, "forged.qimg", code)
    };
    case("BUNDLE_FORMAT_VERSION", &|m| m["format"] = 3.into());
    // Two is that of software-only bundles.
    case("BUNDLE_MANIFEST", &|m| m["format"] = 2.into());
    case("BUNDLE_MANIFEST", &|m| m["surprise"] = 1.into());
    case("BUNDLE_MANIFEST", &|m| m["payloads"][0]["size"] = 0.into());
    case("BUNDLE_MANIFEST", &|m| m["payloads"][0]["size"] = u64::MAX.into());
    case("BUNDLE_MANIFEST", &|m| m["payloads"][0]["frame_size"] = (1u64 << 31).into());
    case("BUNDLE_MANIFEST", &|m| m["payloads"] = serde_json::json!([]));
    case("BUNDLE_MANIFEST", &|m| m["version"] = "../../etc".into());
    case("BUNDLE_LIMIT", &|m| m["index"]["size"] = (17 * MIB).into());
    case("BUNDLE_TAR_HEADER", &|m| m["created"] = 12345.into());
    case("BUNDLE_INDEX_DIGEST", &|m| m["index"]["blake3"] = "0".repeat(64).into());
    case("BUNDLE_INDEX", &|m| m["payloads"][0]["blake3"] = "0".repeat(64).into());
    recovers(&bench);

    // What the packer itself refuses.
    fs::write(bench.path("empty"), "").unwrap();
    let pack = ["pack", "--product", "demo", "--version", "1", "-o", "x.qimg", "--platform", "empty"];
    bench.run(&pack).bad("ARGUMENT");
    assert!(!bench.path("x.qimg").exists());
}

#[test]
fn members_are_not_what_the_manifest_says() {
    let bench = Bench::installed();
    let good = Parts::of(&bench, "v2.qimg");

    let mut index = good.clone();
    index.member("index.bin")[40] ^= 1;
    index.save(&bench, "index.qimg");
    refused(&bench, "index.qimg", "BUNDLE_INDEX_DIGEST");

    let mut renamed = good.clone();
    renamed.members[3].0 = "platform.img.xz".to_owned();
    renamed.save(&bench, "renamed.qimg");
    refused(&bench, "renamed.qimg", "BUNDLE_TAR_HEADER");

    let mut swapped = good.clone();
    swapped.members.swap(0, 1);
    swapped.save(&bench, "swapped.qimg");
    refused(&bench, "swapped.qimg", "BUNDLE_TAR_HEADER");

    // A member that is too long, and bytes after the last one.
    let mut long = good.clone();
    long.member("manifest.json").resize(300 << 10, b' ');
    long.save(&bench, "long.qimg");
    refused(&bench, "long.qimg", "BUNDLE_LIMIT");
    let mut more = good.bytes();
    more.extend([0; 512]);
    fs::write(bench.path("more.qimg"), &more).unwrap();
    refused(&bench, "more.qimg", "BUNDLE_TRAILING_BYTES");
    recovers(&bench);

    // A stream shows its end only when it is there: all is written, but not called whole.
    let vital = bench.vital();
    bench.piped(&["prepare", "-"], &more).bad("BUNDLE_TRAILING_BYTES");
    assert_eq!((bench.vital(), bench.state("platform_b", &[]).as_str()), (vital, "torn"));
    recovers(&bench);
}

/// A frame that is damaged is found when its turn comes: the slot is torn then, and the running one untouched.
#[test]
fn frames_are_damaged() {
    let bench = Bench::installed();
    let vital = bench.vital();
    let good = Parts::of(&bench, "v2.qimg");
    let len = good.clone().member("platform.img.zst").len();

    // The magic number of the first frame, a byte of noise that zstd stores as it is, the last byte.
    // Each on a blank slot: of a frame that is in place already, the bundle's copy is not even read.
    for (at, code) in [(0, "BUNDLE_FRAME"), (100_000, "BUNDLE_FRAME_DIGEST")] {
        bench.blank("platform_b");
        let mut bad = good.clone();
        bad.member("platform.img.zst")[at] ^= 0x10;
        bad.save(&bench, "bad.qimg");
        bench.run(&["verify", "bad.qimg", "--trust", "allowed_signers"]).bad(code);
        for piped in [false, true] {
            let run = if piped {
                bench.piped(&["prepare", "-"], &bad.bytes())
            } else {
                bench.at(&["prepare", "bad.qimg"])
            };
            let text = run.bad(code);
            assert!(text.contains("frame 0") && text.contains("transfer"), "{text}");
            assert_eq!(bench.vital(), vital, "at {at}");
            assert_eq!(bench.state("platform_b", &[]), "torn");
        }
        recovers(&bench);
    }
    // Anywhere: some failure of the bundle, never a success, and never more than a torn slot.
    let mut noise = Noise(7);
    for _ in 0..12 {
        let mut bad = good.clone();
        let at = noise.below(len as u64) as usize;
        bad.member("platform.img.zst")[at] ^= 1 << noise.below(8);
        bad.save(&bench, "bad.qimg");
        bench.blank("platform_b");
        let run = bench.at(&["prepare", "bad.qimg"]);
        assert_eq!(run.code, Some(3), "byte {at}: {}", run.err);
        assert_eq!(bench.vital(), vital, "byte {at}");
    }
    recovers(&bench);

    // Every frame is right, but the manifest's SHA-256 is not: a packer that lies.
    let lie = |m: &mut serde_json::Value| m["payloads"][0]["sha256"] = "0".repeat(64).into();
    good.edit(&bench, "key", lie).save(&bench, "lie.qimg");
    bench.at(&["prepare", "lie.qimg", "--sha256"]).bad("BUNDLE_IMAGE_DIGEST");
    assert_eq!(bench.vital(), vital);
    assert_eq!(bench.state("platform_b", &[]), "torn");
    recovers(&bench);
}

/// 1 GiB of zeroes in a frame of some ten KiB, declared honestly and not: neither is decompressed.
#[test]
fn decompression_bombs() {
    let bench = Bench::installed();
    let good = Parts::of(&bench, "v2.qimg");
    let script = "head -c 1073741824 /dev/zero | zstd -q -c $0 > bomb.zst";
    for (flags, told) in [("--stream-size=1073741824", "declares"), ("-1", "does not declare")] {
        let made =
            std::process::Command::new("sh").args(["-c", script, flags]).current_dir(bench.path("")).status();
        assert!(made.unwrap().success());
        let bomb = fs::read(bench.path("bomb.zst")).unwrap();
        // One frame of 256 KiB, whose index entry admits the bomb's length where that is possible at all.
        let mut parts = good.clone();
        let mut index = parts.member("index.bin").clone();
        index[..4].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
        let old = u32::from_le_bytes(parts.member("index.bin")[..4].try_into().unwrap()) as usize;
        let rest = parts.member("platform.img.zst").split_off(old);
        *parts.member("platform.img.zst") = [bomb, rest].concat();
        parts.with_index(index).sign(&bench, "key").save(&bench, "bomb.qimg");
        let vital = bench.vital();
        let text = bench.at(&["prepare", "bomb.qimg"]).bad("BUNDLE_FRAME");
        assert!(text.contains(told), "{text}");
        assert_eq!(bench.vital(), vital);
    }
    recovers(&bench);
}

/// Cut off at any byte: of a file that is seen before the first write, of a stream at the latest at its end.
#[test]
fn truncated_at_any_byte() {
    let bench = Bench::installed();
    let whole = fs::read(bench.path("v2.qimg")).unwrap();
    let mut noise = Noise(11);
    let mut cuts =
        vec![0, 1, 511, 512, 513, 1024, 2047, 2048, whole.len() - 1, whole.len() - 512, whole.len() - 1024];
    cuts.extend((0..10).map(|_| noise.below(whole.len() as u64) as usize));
    for &cut in &cuts {
        fs::write(bench.path("cut.qimg"), &whole[..cut]).unwrap();
        let text = refused(&bench, "cut.qimg", "BUNDLE_TRUNCATED");
        assert!(text.contains("transfer it again"), "{text}");
    }
    recovers(&bench);
    let vital = bench.vital();
    for &cut in &cuts {
        let text = bench.piped(&["prepare", "-"], &whole[..cut]).bad("BUNDLE_TRUNCATED");
        assert!(text.contains(&format!("byte {cut}")), "cut at {cut}: {text}");
        assert_eq!(bench.vital(), vital, "cut at {cut}");
    }
    recovers(&bench);
}

/// The wrong file, or the wrong URL: the message says what it looks like, from a file and from a pipe.
#[test]
fn a_file_of_another_kind_is_named() {
    let bench = Bench::new();
    let mut disk = vec![0; 4096];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let page = b"<!doctype html>\n<title>404</title>";
    for (start, code, kind) in [
        (&b"hsqs"[..], "BUNDLE_TAR_HEADER", "squashfs: an image, or a RAUC bundle"),
        (b"\x1f\x8b\x08", "BUNDLE_TAR_HEADER", "gzip"),
        (b"070701", "BUNDLE_TAR_HEADER", "cpio archive"),
        (b"\x7fELF", "BUNDLE_TAR_HEADER", "an ELF program"),
        (b"PK\x03\x04", "BUNDLE_TAR_HEADER", "a zip archive"),
        (&disk, "BUNDLE_TAR_HEADER", "a raw disk image"),
        (page, "BUNDLE_TRUNCATED", "HTML: the page of a web server"),
    ] {
        let mut file = start.to_vec();
        if code == "BUNDLE_TAR_HEADER" {
            file.resize(4096, 7);
        }
        fs::write(bench.path("other"), &file).unwrap();
        for text in
            [bench.run(&["inspect", "other"]).bad(code), bench.piped(&["inspect", "-"], &file).bad(code)]
        {
            assert!(
                text.contains("it is no bundle, it looks like ") && text.contains(kind),
                "{kind}: {text}"
            );
        }
    }
    fs::write(bench.path("other"), [7; 4096]).unwrap();
    assert!(!bench.run(&["inspect", "other"]).bad("BUNDLE_TAR_HEADER").contains("looks like"));
}
