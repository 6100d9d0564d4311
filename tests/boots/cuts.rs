//! Power cuts against real readers. U-Boot, gptmbr and Linux read the disks that a cut of a commit leaves: exactly the old or
//! the new slot boots, and the partitions exist. The same with two unsafe procedures, whose faults the readers must find. And
//! each real reader behaves as its model in tests/harness/tables does, on which the 65,000 states of tests/power/cuts.rs
//! rest.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::procedures::{self, Cut, cuts};
use crate::guests::{readers, ready};
use crate::harness::proof::scenes::recorded;
use crate::harness::proof::{Release, Site, Verb, boots, extent, factory, noise, spec};
use crate::harness::tables::{Reader, entries};
use qstage::boot::BootFlag;
use qstage::units::Slot;

const BLOCK: u32 = 512;

/// A release whose slot answers with `word`.
fn release(version: &'static str, word: &str) -> Arc<Vec<u8>> {
    let platform = readers::slot_image(word, 900 << 10);
    Release { version, platform, software: Some(noise(7, 20_000)), firmware: None }.pack()
}

/// What the readers say of a disk.
#[derive(Debug)]
struct Verdict {
    name: String,
    torn: bool,
    u_boot: Option<String>,
    gptmbr: Result<String, String>,
    linux: BTreeSet<String>,
    linux_gpt: BTreeSet<String>,
}

/// Asks all readers about all disks, and compares each with its model.
fn ask(cuts: &[Cut]) -> Vec<Verdict> {
    let inputs = ready().unwrap();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let paths: Vec<PathBuf> = (0..cuts.len()).map(|i| dir.path().join(format!("{i}.img"))).collect();
    for (cut, path) in cuts.iter().zip(&paths) {
        std::fs::write(path, &cut.image).unwrap();
    }
    let ((u_boot, linux, linux_gpt), gptmbr) = std::thread::scope(|scope| {
        let bios = scope.spawn(|| paths.iter().map(|path| readers::gptmbr(path)).collect::<Vec<_>>());
        let others = scope.spawn(|| {
            (
                readers::u_boot(&paths),
                readers::linux(inputs, &paths, false),
                readers::linux(inputs, &paths, true),
            )
        });
        (others.join().unwrap(), bios.join().unwrap())
    });
    let answers = u_boot.into_iter().zip(gptmbr).zip(linux.into_iter().zip(linux_gpt));
    let verdicts = cuts.iter().zip(answers).map(|(cut, ((u_boot, gptmbr), (linux, linux_gpt)))| Verdict {
        name: cut.name.clone(),
        torn: cut.torn,
        u_boot,
        gptmbr,
        linux,
        linux_gpt,
    });
    let verdicts: Vec<Verdict> = verdicts.collect();
    for (cut, verdict) in cuts.iter().zip(&verdicts) {
        compare(&cut.image, verdict);
    }
    verdicts
}

/// Each reader does what its model does.
fn compare(image: &[u8], verdict: &Verdict) {
    let model = |reader| {
        let (platform, _) = boots(image, BLOCK, BootFlag::Legacy, reader)?;
        // What the slot would answer: the word is in its boot sector.
        let slot = &image[extent(image, BLOCK, &format!("platform_{}", platform?))];
        let word = slot[0x20..].strip_prefix(b"took ")?.split(|byte| *byte == b'\r').next()?;
        Some(String::from_utf8_lossy(word).into_owned())
    };
    let Verdict { name, u_boot, gptmbr, linux, linux_gpt, .. } = verdict;
    // Where none carries the flag U-Boot tries the first partition: the model knows no default.
    if boots(image, BLOCK, BootFlag::Legacy, Reader::Fallback).is_none_or(|(platform, _)| platform.is_some())
    {
        assert_eq!(*u_boot, model(Reader::Fallback), "U-Boot: {name}");
    }
    assert_eq!(gptmbr.clone().ok(), model(Reader::Lenient), "gptmbr: {name}: {gptmbr:?}");
    assert_eq!(linux.is_empty(), entries(image, BLOCK, Reader::Strict).is_none(), "Linux: {name}: {linux:?}");
    let fallback = entries(image, BLOCK, Reader::Fallback).is_none();
    assert_eq!(linux_gpt.is_empty(), fallback, "Linux with 'gpt': {name}: {linux_gpt:?}");
}

/// What all readers must find of a commit: the old or the new slot, and all partitions.
fn wrong(verdict: &Verdict) -> Vec<String> {
    let all: BTreeSet<String> =
        spec(BLOCK).parts.iter().map(|(_, name, first, ..)| format!("{name}@{first}")).collect();
    let mut wrong = Vec::new();
    if !matches!(verdict.u_boot.as_deref(), Some("old" | "new")) {
        wrong.push(format!("U-Boot takes {:?}", verdict.u_boot));
    }
    if !matches!(verdict.gptmbr.as_deref(), Ok("old" | "new")) {
        wrong.push(format!("gptmbr says {:?}", verdict.gptmbr));
    }
    if verdict.linux_gpt != all {
        wrong.push(format!("Linux with 'gpt' finds {:?}", verdict.linux_gpt));
    }
    if verdict.linux != all {
        wrong.push(format!("Linux finds {:?}", verdict.linux));
    }
    wrong
}

/// The disk with "old" in slot a, which runs, and "new" prepared in slot b. The entries of both slots are in different
/// sectors of the table, as on disks with many partitions: so that an array can be torn between them.
fn prepared() -> (Site, Vec<u8>) {
    let site = Site::new(Slot::A, BootFlag::Legacy);
    let mut image = factory(BLOCK, BootFlag::Legacy, &release("1.0", "old"));
    procedures::move_entry(&mut image, 2, 21);
    let code = std::fs::read("/usr/lib/syslinux/mbr/gptmbr.bin").unwrap();
    image[..code.len()].copy_from_slice(&code);
    let (image, _) = recorded(&image, BLOCK, site, &Verb::Prepare(release("2.0", "new")));
    (site, image)
}

fn report(verdicts: &[Verdict]) {
    for verdict in verdicts {
        let linux = |found: &BTreeSet<String>| found.len();
        println!(
            "{:70} U-Boot {:6} gptmbr {:6} Linux {} with 'gpt' {}",
            verdict.name,
            verdict.u_boot.as_deref().unwrap_or("-"),
            verdict.gptmbr.as_deref().unwrap_or("-"),
            linux(&verdict.linux),
            linux(&verdict.linux_gpt),
        );
    }
}

/// The names of the procedures, with the disks that their cuts leave.
fn all_cuts() -> Vec<(&'static str, Vec<Cut>)> {
    let (site, before) = prepared();
    let (after, commit) = recorded(&before, BLOCK, site, &Verb::Commit);
    let there = Site::new(Slot::B, BootFlag::Legacy);
    let (good, _) = recorded(&after, BLOCK, there, &Verb::MarkGood);
    let (_, back) = recorded(&good, BLOCK, there, &Verb::RollBack);
    vec![
        ("commit", cuts(&before, &commit)),
        ("roll-back", cuts(&good, &back)),
        ("in place", cuts(&before, &procedures::in_place(&before, &after))),
        ("gpt crate", cuts(&before, &procedures::gpt_crate(&before))),
    ]
}

/// Puts the cuts of some procedures before the readers; prints and returns what they say, by procedure.
fn show(procedures: &[&str]) -> Vec<(&'static str, Vec<Verdict>)> {
    let mut chosen = all_cuts();
    chosen.retain(|(name, _)| procedures.contains(name));
    let sizes: Vec<_> = chosen.iter().map(|(name, cuts)| (*name, cuts.len())).collect();
    let mut verdicts = ask(&chosen.into_iter().flat_map(|(_, cuts)| cuts).collect::<Vec<_>>()).into_iter();
    let mut shown = Vec::new();
    for (name, n) in sizes {
        let verdicts: Vec<Verdict> = verdicts.by_ref().take(n).collect();
        println!("{name}:");
        report(&verdicts);
        shown.push((name, verdicts));
    }
    shown
}

/// All readers boot the old or the new slot, and find all partitions.
fn is_safe(procedure: &str, verdicts: &[Verdict], least: usize) {
    assert!(verdicts.len() >= least, "{procedure}: {} disks only", verdicts.len());
    for verdict in verdicts {
        let mut wrong = wrong(verdict);
        if verdict.torn && verdict.name.contains("LBA 1,") {
            // A header sector that is neither old nor new is no power cut of a disk with whole sectors; U-Boot and a
            // kernel with 'gpt' survive even that. gptmbr checks no CRC, and a kernel without 'gpt' reads no backup.
            wrong.retain(|what| what.starts_with("U-Boot") || what.starts_with("Linux with"));
        }
        assert!(wrong.is_empty(), "{procedure}, {}: {wrong:?}", verdict.name);
    }
    for word in ["old", "new"] {
        assert!(
            verdicts.iter().any(|verdict| verdict.u_boot.as_deref() == Some(word)),
            "{word} boots nowhere"
        );
    }
}

/// Some reader boots neither slot or loses the partitions, although all sectors are whole.
fn is_dangerous(procedure: &str, verdicts: &[Verdict]) {
    let bad = verdicts.iter().filter(|verdict| !verdict.torn && !wrong(verdict).is_empty()).count();
    println!("{procedure}: of {} disks {bad} show a reader something else", verdicts.len());
    assert!(bad > 0, "{procedure}: the readers cannot tell");
}

/// A safe procedure with a minimum number of cuts, and an unsafe one.
fn tell(safe: &str, least: usize, dangerous: &str) {
    if ready().is_none() {
        return;
    }
    let shown = show(&[safe, dangerous]);
    is_safe(shown[0].0, &shown[0].1, least);
    is_dangerous(shown[1].0, &shown[1].1);
}

#[test]
fn every_kind_of_cut_boots_the_old_or_the_new_slot() {
    tell("commit", 15, "in place");
}

#[test]
#[ignore = "full: a minute more of the same; the way back, and the gpt crate"]
fn every_kind_of_cut_of_the_way_back_and_of_the_gpt_crate() {
    // Fewer: the place of the new array still holds the table that it goes back to.
    tell("roll-back", 10, "gpt crate");
}
