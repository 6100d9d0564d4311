//! Truncated, damaged and malicious bundles. Each is refused with its own code before anything unverified is written: the
//! bytes that reach the slot are compared with the genuine image.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

#[path = "attacks.rs"]
mod attacks;
#[path = "delta_attacks.rs"]
mod delta_attacks;
#[path = "hostile_deltas.rs"]
mod deltas;
#[path = "../fuzz/src/lib.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    reason = "shared with the fuzz targets"
)]
mod fuzz;
use crate::harness::proof;
use crate::harness::tables;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use attacks::Attack;
use delta_attacks::HARMLESS;
use proof::{Random, RecordState, Release, Tape, extent, factory, noise, record};
use qstage::boot::BootFlag;
use qstage::bundle::{Bundle, Source, Trust};
use qstage::device::{BlockDevice, Region};
use qstage::error::{Class, Error};
use qstage::progress::{Cancel, Silent};
use qstage::slot::{Layout, Record};
use qstage::stage::{self, Target};
use qstage::units::{ByteOffset, Extent, Group, MIB, Slot};
use tables::Op;

/// A bundle of a few KiB with every kind of frame: compressed, raw, and of one repeated byte.
fn small() -> Release {
    let text: Vec<u8> =
        b"the quick brown fox jumps over the lazy dog; ".iter().copied().cycle().take(4096).collect();
    let mixed: Vec<u8> =
        text.iter().zip(noise(5, 4096)).map(|(t, n)| if n % 9 == 0 { n } else { *t }).collect();
    let platform = [text, vec![0xcc; 4096], mixed[..700].to_vec()].concat();
    Release { version: "2.0", platform, software: Some(noise(3, 150)), firmware: Some(noise(4, 90)) }
}

/// Where the parts of a bundle lie: name, from, to.
fn parts(bundle: &[u8]) -> Vec<(String, usize, usize)> {
    let (mut at, mut parts) = (0, Vec::new());
    while at < bundle.len() - 1024 {
        let header = tar::Header::from_byte_slice(bundle[at..at + 512].try_into().unwrap());
        let name = header.path().unwrap().display().to_string();
        let len = header.size().unwrap() as usize;
        parts.push((format!("header of {name}"), at, at + 512));
        parts.push((name.clone(), at + 512, at + 512 + len));
        let end = (at + 512 + len).next_multiple_of(512);
        parts.push((format!("padding of {name}"), at + 512 + len, end));
        at = end;
    }
    parts.push(("end".to_owned(), at, bundle.len()));
    parts
}

/// As a file or as a stream.
fn sources(bytes: &[u8]) -> [(&'static str, Source); 2] {
    let stream = std::io::Cursor::new(bytes.to_vec());
    [("file", Source::File(Arc::new(bytes.to_vec()))), ("stream", Source::Stream(Box::new(stream)))]
}

/// Slots in memory.
type Tapes = Vec<(Arc<Tape>, Group)>;

/// Stages a bundle into two slots in memory; what came of it and what reached them.
fn staged(source: Source, trust: &Trust) -> (Result<(), Error>, Tapes) {
    let bundle = match Bundle::open(source, trust) {
        Ok(bundle) => bundle,
        Err(error) => return (Err(error), Vec::new()),
    };
    let (mut targets, mut tapes) = (Vec::new(), Vec::new());
    for (group, len) in [(Group::Platform, MIB + 64 * 1024), (Group::Software, 64 * 1024)] {
        if bundle.manifest().group(group).next().is_none() {
            continue;
        }
        let tape = Tape::blank(len);
        let body_len = bundle.release().record_len();
        let layout = match Layout::new(bundle.manifest(), group, body_len, len, "slot") {
            Ok(layout) => layout,
            Err(error) => return (Err(error), tapes),
        };
        let extent = Extent { at: ByteOffset(0), len };
        targets.push(Target {
            group,
            partition: "slot".to_owned(),
            device: Box::new(Region::new(tape.clone(), extent).unwrap()),
            record: Record {
                release: bundle.release().clone(),
                layout,
                origin: String::new(),
                unsigned: false,
            },
        });
        tapes.push((tape, group));
    }
    let options = stage::StageOptions {
        jobs: NonZeroUsize::MIN,
        read_back: true,
        // The one attack that only this finds is among them.
        sha256: true,
        cancel: &Cancel::default(),
        sources: None,
        look: false,
        pace: &|_| Ok(()),
    };
    (stage::stage(&bundle, &targets, &options, &Silent).map(drop), tapes)
}

/// Everything that reached a slot before its record is the genuine image, and the record is not whole.
fn nothing_unverified(tapes: &[(Arc<Tape>, Group)], genuine: &Release) {
    for (tape, group) in tapes {
        let blob = genuine.firmware.as_deref().unwrap_or_default();
        let images: [(usize, &[u8]); 2] = match group {
            Group::Platform => [(0, &genuine.platform), (MIB as usize, blob)],
            Group::Software => [(0, genuine.software.as_deref().unwrap_or_default()), (0, &[])],
        };
        // What is not of an image is zero.
        let good = |at: usize| {
            let of = |(from, image): &(usize, &[u8])| image.get(at.checked_sub(*from)?).copied();
            images.iter().find_map(of).unwrap_or(0)
        };
        let record_at = tape.len() as usize - 4096;
        for op in tape.ops() {
            let Op::Write(at, bytes) = op else { continue };
            let at = at as usize;
            if at == record_at {
                assert!(
                    !matches!(record(&[vec![0; 4096], bytes].concat()), RecordState::Whole(_)),
                    "the record is whole"
                );
            } else {
                let wrong = (0..bytes.len()).find(|&i| bytes[i] != good(at + i));
                assert_eq!(wrong, None, "unverified bytes at {at}");
            }
        }
    }
}

/// The class that damage of a part must have.
fn expected(part: &str) -> &'static [Class] {
    match part {
        "manifest.json" | "manifest.json.sig" => &[Class::Trust],
        _ => &[Class::Bundle],
    }
}

#[test]
fn every_truncation_is_refused() {
    let genuine = small();
    let bundle = genuine.pack();
    let unsigned = Trust::dangerously_unsigned();
    for len in 0..bundle.len() {
        for (kind, source) in sources(&bundle[..len]) {
            // The signature is checked at every 16th length, to spare the time of it at the others.
            let trust = if len % 16 == 0 { proof::trust() } else { &unsigned };
            let (result, tapes) = staged(source, trust);
            let error = result.unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_BUNDLE_TRUNCATED", "{kind} of {len} bytes: {error}");
            assert!(kind == "stream" || tapes.is_empty(), "a file is refused before anything is written");
            nothing_unverified(&tapes, &genuine);
        }
    }
    println!("{} lengths, as a file and as a stream", bundle.len());
}

#[test]
fn every_flipped_bit_is_refused_or_has_no_meaning() {
    let genuine = small();
    let bundle = genuine.pack();
    let unsigned = Trust::dangerously_unsigned();
    let payloads = parts(&bundle).iter().find(|(name, ..)| name == "header of platform.img.zst").unwrap().1;
    let images = |tapes: &[(Arc<Tape>, Group)]| -> Vec<Vec<u8>> {
        tapes.iter().map(|(tape, _)| tape.memory.snapshot()).collect()
    };
    let (sound, tapes) = staged(sources(&bundle).into_iter().next().unwrap().1, proof::trust());
    sound.unwrap();
    let sound = images(&tapes);
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    let mut idle: Vec<(String, usize, u8)> = Vec::new();
    let mut bytes = bundle.to_vec();
    for (part, from, to) in parts(&bundle) {
        let signed = part.contains("manifest.json");
        let frames = part.ends_with(".zst") && !part.contains(' ');
        for bit in from * 8..to * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let trust = if signed || bit % 64 == 0 { proof::trust() } else { &unsigned };
            for (kind, source) in sources(&bytes) {
                // But for frames both kinds are read by the same lines: a stream now and then.
                let plain = part.contains(' ') || part == "end";
                if kind == "stream" && (from < payloads || plain) && bit % 7 != 0 {
                    continue;
                }
                let (result, tapes) = staged(source, trust);
                match result {
                    Err(error) => {
                        let class = error.class();
                        assert!(expected(&part).contains(&class), "{part}, bit {bit}, {kind}: {error}");
                        assert!(
                            frames || kind == "stream" || tapes.is_empty(),
                            "{part}, bit {bit}, {kind}: written"
                        );
                        nothing_unverified(&tapes, &genuine);
                        *counts.entry((part.clone(), error.code())).or_default() += 1;
                    }
                    Ok(()) => {
                        // No meaning: both slots hold, byte for byte, what they would have held.
                        assert!(images(&tapes) == sound, "{part}, bit {bit}, {kind}");
                        idle.push((part.clone(), bit / 8 - from, (bit % 8) as u8));
                    }
                }
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    for ((part, code), count) in &counts {
        println!("{part}: {count} x {code}");
    }
    println!("without meaning: {idle:?}");
    // What is signed and hashed is the image, not its compression. So a bit has no meaning where two spellings of a frame
    // decompress to the same bytes, and only in frames: bit 4 of the byte after each magic number, which a decoder
    // shall not interpret (RFC 8878, 3.1.1.1.1); and in compressed blocks the padding of a Huffman or FSE table, and
    // offsets of matches into text that repeats itself.
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let (mut unused, mut spellings) = (0, 0);
    for (part, byte, bit) in &idle {
        assert!(
            part.ends_with(".zst") && !part.contains(' '),
            "{part}, byte {byte}, bit {bit} has no meaning; why?"
        );
        let from = parts(&bundle).iter().find(|(name, ..)| name == part).unwrap().1;
        let at = from + byte;
        if bundle[at - 4..at] == magic && *bit == 4 { unused += 1 } else { spellings += 1 }
    }
    assert_eq!(unused, 2 * 5, "one for each of five frames, as a file and as a stream");
    assert!(spellings < 40, "{spellings} other spellings");
}

/// The same through the engine, on a whole disk, for a sample: the old slot is untouched and still selected.
#[test]
fn a_hostile_bundle_costs_the_old_system_nothing() {
    let genuine = small();
    let bundle = genuine.pack();
    let before = factory(512, BootFlag::Priority, &Release::new("1.0", 10, 9).pack());
    let site = proof::Site::new(Slot::A, BootFlag::Priority);
    let mut random = Random(42);
    let payloads = parts(&bundle).iter().find(|(name, ..)| name == "header of platform.img.zst").unwrap().1;
    let span = (bundle.len() - payloads) as u64;
    for round in 0..300 {
        let mut bytes = bundle.to_vec();
        bytes[payloads + (random.next() % span) as usize] ^= 1 << (random.next() % 8);
        let Ok(opened) = proof::open_stream(&Arc::new(bytes)) else { panic!("the front is intact") };
        let disk = Tape::new(before.clone(), 512);
        let result = site.engine(disk.clone(), |engine| engine.prepare(opened, &site.options(), &Silent));
        let after = disk.memory.snapshot();
        for name in ["platform_a", "software_a", "data"] {
            let slot = extent(&before, 512, name);
            assert!(before[slot.clone()] == after[slot], "{round}: {name}");
        }
        let selected = tables::selection(&after, 512, tables::Reader::Strict);
        assert_eq!(selected, Some((Some('a'), Some('a'))), "{round}");
        let platform = record(&after[extent(&after, 512, "platform_b")]);
        assert_eq!(result.is_ok(), matches!(platform, RecordState::Whole(_)), "{round}: {result:?}");
    }
}

/// All fixtures in fixtures/attacks. A delta is applied to the release of `delta-base.qimg`.
fn attacks() -> Vec<Attack> {
    let base = Attack {
        file: "delta-base.qimg".to_owned(),
        codes: [HARMLESS; 2],
        what: "no attack: the release that the deltas start from",
        bytes: delta_attacks::base().pack().to_vec(),
    };
    attacks::attacks().into_iter().chain([base]).chain(delta_attacks::attacks()).collect()
}

/// Each attack reaches its own code, from the bytes that are kept in fixtures.
#[test]
fn every_attack_reaches_its_code() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/attacks");
    let regenerate = std::env::var_os("QSTAGE_REGENERATE").is_some();
    let mut index = String::from(
        "# Hostile bundles and deltas: file, code as a file, code as a stream, what is wrong with it. Of '-' only genuine bytes come.\n\
         # Made by tests/bundle/attacks.rs; QSTAGE_REGENERATE=1 cargo test --test bundle attack writes them anew.\n",
    );
    let machine = deltas::Machine::new();
    let selected = machine.selected();
    let mut wrong = Vec::new();
    for attack in attacks() {
        let (path, file) = (dir.join(&attack.file), &attack.file);
        index += &format!("{file}\t{}\t{}\t{}\n", attack.codes[0], attack.codes[1], attack.what);
        if regenerate {
            std::fs::write(&path, &attack.bytes).unwrap();
        }
        let kept = std::fs::read(&path).unwrap();
        assert!(kept == attack.bytes, "{file}: not what its generator makes");
        for ((kind, source), code) in sources(&kept).into_iter().zip(attack.codes) {
            let (result, tapes) = if file.ends_with(".qdelta") {
                (machine.prepare(source, false).map(drop), Vec::new())
            } else {
                staged(source, proof::trust())
            };
            let got = result.as_ref().err().map_or(HARMLESS, |error| &error.code()["UPGRADE_ERROR_".len()..]);
            if got != code {
                wrong.push(format!("{file}, {kind}: {code}, not {result:?}"));
            }
            // Attacks on the last check of all are noticed when all is written; the record still is not whole.
            for (tape, _) in tapes {
                let whole = matches!(record(&tape.memory.snapshot()), RecordState::Whole(_));
                assert_eq!(whole, result.is_ok(), "{file}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(machine.selected(), selected);
    if regenerate {
        std::fs::write(dir.join("INDEX"), &index).unwrap();
    }
    assert_eq!(std::fs::read_to_string(dir.join("INDEX")).unwrap(), index);
    let files = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(files, attacks().len() + 1, "every file has a line");
}

/// The program refuses each attack with the exit code of its class, in bounded memory and time.
#[test]
fn attacks_are_refused_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let line = format!("release@example.org {}\n", proof::key().public_key().to_openssh().unwrap());
    std::fs::write(path("allowed_signers"), line).unwrap();
    let disk = factory(512, BootFlag::Priority, &delta_attacks::base().pack());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/attacks");
    for attack in attacks() {
        let begun = std::time::Instant::now();
        // What is written to memory counts, not what is reserved: 16 MiB of index and two frames at most.
        let mut command = Command::new("prlimit");
        command.args(["--data=67108864", env!("CARGO_BIN_EXE_qstage")]);
        if attack.file.ends_with(".qdelta") {
            std::fs::write(path("disk"), &disk).unwrap();
            command.args(["prepare", "--booted", "a", "--disk"]).arg(path("disk"));
            command.arg("--state-dir").arg(path("state"));
        } else {
            command.arg("verify");
        }
        command.args(["--jobs", "2", "--trust"]).arg(path("allowed_signers"));
        let output = command.arg(fixtures.join(&attack.file)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let known = |code: &str| Error::ALL.iter().find(|(known, _)| *known == code).unwrap().1;
        let code = format!("UPGRADE_ERROR_{}", attack.codes[0]);
        let exit = if attack.codes[0] == HARMLESS { 0 } else { known(&code).exit_code() };
        assert_eq!(output.status.code(), Some(i32::from(exit)), "{}: {text}", attack.file);
        assert!(exit == 0 || text.contains(&code), "{}: {text}", attack.file);
        assert!(begun.elapsed().as_secs() < 20, "{}", attack.file);
    }
}

/// The corpus of the fuzzers and mutations of it, through the same functions, without nightly and the same every time.
#[test]
fn the_fuzz_targets_hold_on_their_corpus() {
    type Run = fn(&[u8]);
    let targets: [(&str, Run); 7] = [
        ("bundle", fuzz::bundle),
        ("manifest", fuzz::manifest),
        ("index", fuzz::index),
        ("delta", fuzz::delta),
        ("aligned", fuzz::aligned),
        ("gpt", fuzz::gpt),
        ("record", fuzz::record),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    if std::env::var_os("QSTAGE_REGENERATE").is_some() {
        seeds(&root.join("corpus"));
    }
    for (name, run) in targets {
        let mut inputs: Vec<_> = std::fs::read_dir(root.join("corpus").join(name)).unwrap().collect();
        if name == "bundle" {
            inputs.extend(std::fs::read_dir(root.join("attacks")).unwrap());
        }
        let mut inputs: Vec<_> = inputs.into_iter().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        let mut random = Random(7);
        let mut runs = 0;
        for path in &inputs {
            let bytes = std::fs::read(path).unwrap();
            run(&bytes);
            for _ in 0..2000 / inputs.len() {
                let mut bytes = bytes.clone();
                for _ in 0..=random.next() % 4 {
                    let at = random.next() as usize % bytes.len().max(1);
                    match random.next() % 5 {
                        0 => bytes.truncate(at),
                        1 => bytes.insert(at.min(bytes.len()), random.next() as u8),
                        2 if at + 8 <= bytes.len() => {
                            let value = [0, 1, u64::MAX, u64::MAX / 512, 1 << 31, 1 << 32]
                                [random.next() as usize % 6];
                            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                        }
                        _ if at < bytes.len() => bytes[at] ^= 1 << (random.next() % 8),
                        _ => {}
                    }
                }
                run(&bytes);
                runs += 1;
            }
        }
        println!("{name}: {} inputs, {runs} mutations", inputs.len());
    }
}

/// Sound inputs, one for each target, from which the fuzzers start.
fn seeds(dir: &Path) {
    let bundle = small().pack();
    let part = |wanted: &str| {
        let (_, from, to) = parts(&bundle).into_iter().find(|(name, ..)| name == wanted).unwrap();
        bundle[from..to].to_vec()
    };
    let write = |path: &str, bytes: &[u8]| std::fs::write(dir.join(path), bytes).unwrap();
    write("bundle/sound", &bundle);
    write("manifest/sound", &part("manifest.json"));
    let sizes = [[0xff, 0x1f, 0, 0], [0xff, 0x0f, 0, 0], [0; 4]].concat();
    write("index/sound", &[sizes, part("index.bin")].concat());
    write("delta/sound", &recipes());
    // A whole one, as one zstd frame.
    let mut table =
        [&b"qdelta\0\x01"[..], blake3::hash(&part("manifest.json")).as_bytes(), &recipes()].concat();
    (0..3).for_each(|payload| table[40 + 44 * payload..][..4].copy_from_slice(&4096_u32.to_le_bytes()));
    write("delta/packed", &zstd::bulk::compress(&table, 19).unwrap());
    // A literal, a copy with one changed byte, literals to the end.
    let literals = vec![b'x'; 4096 - 5];
    write(
        "aligned/sound",
        &[&[3, 0, 2, 0, 1, 0, 1, 0][..], &[1, 5, 4], &[1, 3], &[1], &[1], &literals].concat(),
    );
    // A mode byte in front: which checksums are made right.
    let mut spec = tables::Spec::slots(512, 48, 20, 2);
    (spec.count, spec.first_usable) = (8, 4);
    write("gpt/sound", &[&[3], &spec.image()[..]].concat());
    let (result, tapes) = staged(sources(&bundle).into_iter().next().unwrap().1, proof::trust());
    result.unwrap();
    let image = tapes[1].0.memory.snapshot();
    write("record/sound", &[&[7], &image[image.len() - 16384..]].concat());
    write("record/torn", &[&[1], &[0; 8192][..], &torn()].concat());
}

/// `delta.bin` for the bundle of the seeds, after magic and hash: five frames, one of each kind.
fn recipes() -> Vec<u8> {
    let base = |size: u64| [&[0; 4], &size.to_le_bytes()[..], &[u8::from(size > 0); 32]].concat();
    let entry = |kind: u8, packed: u32, ranges: &[(u64, u32)]| {
        let ranges = ranges.iter().flat_map(|(at, len)| [&at.to_le_bytes()[..], &len.to_le_bytes()].concat());
        let ranges: Vec<u8> = ranges.collect();
        [&[kind, (ranges.len() / 12) as u8, 0, 0], &packed.to_le_bytes()[..], &ranges].concat()
    };
    let bases = [base(20_000), base(0), base(0)].concat();
    let platform =
        [entry(3, 9, &[(0, 500), (600, 700)]), entry(2, 0, &[(77, 4096)]), entry(1, 0, &[])].concat();
    [bases, platform, entry(3, 20, &[]), entry(4, 0, &[])].concat()
}

/// A footer that says torn.
fn torn() -> Vec<u8> {
    let mut footer = vec![0; 4096];
    footer[..8].copy_from_slice(b"QSTGSLOT");
    footer[8] = 1;
    footer[12] = 2;
    footer
}
