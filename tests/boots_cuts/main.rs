//! Power cuts against real readers. The writes of a commit are cut, the disks that this leaves are put before U-Boot,
//! gptmbr and Linux: exactly the old or the new slot boots, and the partitions are there. The same with two procedures
//! that are not safe, which the readers must notice. And in all of them each real reader does what its model in
//! gpt_common does, on which the 65,000 states of power_cuts.rs rest.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod boots_common;
mod gpt_common;
mod proof_common;
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use boots_common::{readers, ready};
use gpt_common::{Op, Reader, entries};
use proof_common::scenes::recorded;
use proof_common::{Release, Site, Verb, boots, extent, factory, noise, spec};
use qstage::boot::BootFlag;
use qstage::units::Slot;

const BLOCK: u32 = 512;
const SECTOR: usize = BLOCK as usize;

/// A disk that a cut left.
struct Cut {
    name: String,
    image: Vec<u8>,
    /// A sector is neither old nor new: more than a disk with whole sectors can do.
    torn: bool,
}

/// A release whose slot answers with `word`.
fn release(version: &'static str, word: &str) -> Arc<Vec<u8>> {
    let platform = readers::slot_image(word, 900 << 10);
    Release { version, platform, software: Some(noise(7, 20_000)), firmware: None }.pack()
}

/// The disks that cuts of `ops` leave: for each stretch between two flushes a prefix, a suffix, the changed sectors alone,
/// all but the changed ones, every second sector, and its first changed sector torn in two ways; then all of it.
fn cuts(procedure: &str, image: &[u8], ops: &[Op]) -> Vec<Cut> {
    let mut durable = image.to_vec();
    let mut found: Vec<Cut> = Vec::new();
    let mut add = |name: String, image: Vec<u8>, torn| {
        if found.iter().all(|cut| cut.image != image) {
            found.push(Cut { name: format!("{procedure}, {name}"), image, torn });
        }
    };
    add("nothing written".to_owned(), durable.clone(), false);
    for (step, epoch) in ops.split(|op| matches!(op, Op::Sync)).filter(|epoch| !epoch.is_empty()).enumerate()
    {
        let mut flight: Vec<(usize, &[u8])> = Vec::new();
        for op in epoch {
            if let Op::Write(at, bytes) = op {
                flight.extend(bytes.chunks(SECTOR).enumerate().map(|(i, b)| (*at as usize + i * SECTOR, b)));
            }
        }
        let n = flight.len();
        let changed = |i: usize| flight[i].1 != &durable[flight[i].0..flight[i].0 + SECTOR];
        let state = |set: &dyn Fn(usize) -> bool| {
            let mut state = durable.clone();
            for (_, (at, new)) in flight.iter().enumerate().filter(|(i, _)| set(*i)) {
                state[*at..at + SECTOR].copy_from_slice(new);
            }
            state
        };
        let at = flight[0].0 / SECTOR;
        let sets: Vec<(&str, Box<dyn Fn(usize) -> bool>)> = vec![
            ("first half", Box::new(move |i| i < n.div_ceil(2))),
            ("second half", Box::new(move |i| i >= n.div_ceil(2))),
            ("changed sectors alone", Box::new(changed)),
            ("all but the changed sectors", Box::new(move |i| !changed(i))),
            ("every second sector", Box::new(|i| i % 2 == 1)),
            ("all but the first sector", Box::new(|i| i > 0)),
        ];
        for (what, set) in sets {
            add(format!("step {step} at LBA {at}, {what}"), state(&*set), false);
        }
        if let Some(first) = (0..n).find(|&i| changed(i)) {
            for (what, rubbish) in [("half new", false), ("rubbish", true)] {
                let mut state = state(&|i| i <= first);
                let sector = &mut state[flight[first].0..flight[first].0 + SECTOR];
                if rubbish {
                    sector.fill(0xa5);
                } else {
                    sector[80..].copy_from_slice(&durable[flight[first].0 + 80..flight[first].0 + SECTOR]);
                }
                add(format!("step {step} at LBA {at}, its first changed sector {what}"), state, true);
            }
        }
        durable = state(&|_| true);
        add(format!("step {step} at LBA {at}, all"), durable.clone(), false);
    }
    found
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

/// The disk with "old" in slot a, which runs, and "new" prepared in slot b.
fn prepared() -> (Site, Vec<u8>) {
    let site = Site::new(Slot::A, BootFlag::Legacy);
    let mut image = factory(BLOCK, BootFlag::Legacy, &release("1.0", "old"));
    let code = std::fs::read("/usr/lib/syslinux/mbr/gptmbr.bin").unwrap();
    image[..code.len()].copy_from_slice(&code);
    let (image, _) = recorded(&image, BLOCK, site, &Verb::Prepare(release("2.0", "new")));
    (site, image)
}

/// The same switch, the table written over the current one as most programs do it: each copy array first, with flushes.
fn in_place(before: &[u8], after: &[u8]) -> Vec<Op> {
    // The table after the switch, with the array where it was.
    let (array, _) = entries(after, BLOCK, Reader::Strict).unwrap();
    let header = |lba: usize| {
        let mut header = before[lba * SECTOR..(lba + 1) * SECTOR].to_vec();
        header[88..92].copy_from_slice(&crc32fast::hash(array).to_le_bytes());
        header[16..20].fill(0);
        let crc = crc32fast::hash(&header[..92]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header
    };
    let last = before.len() / SECTOR - 1;
    let parts = [
        (2, array.to_vec()),
        (1, header(1)),
        (last - array.len() / SECTOR, array.to_vec()),
        (last, header(last)),
    ];
    parts.into_iter().flat_map(|(lba, bytes)| [Op::Write((lba * SECTOR) as u64, bytes), Op::Sync]).collect()
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

#[test]
fn every_kind_of_cut_boots_the_old_or_the_new_slot() {
    if ready().is_none() {
        return;
    }
    let (site, before) = prepared();
    let (after, ops) = recorded(&before, BLOCK, site, &Verb::Commit);
    let verdicts = ask(&cuts("commit", &before, &ops));
    report(&verdicts);
    for verdict in &verdicts {
        let mut wrong = wrong(verdict);
        if verdict.torn && verdict.name.contains("at LBA 1,") {
            // A header sector that is neither old nor new is no power cut of a disk with whole sectors; U-Boot and a
            // kernel with 'gpt' survive even that. gptmbr checks no CRC and a kernel without 'gpt' no backup.
            wrong.retain(|what| what.starts_with("U-Boot") || what.starts_with("Linux with"));
        }
        assert!(wrong.is_empty(), "{}: {wrong:?}", verdict.name);
    }
    assert!(verdicts.len() >= 15, "{}", verdicts.len());

    let ops = in_place(&before, &after);
    let verdicts = ask(&cuts("in place", &before, &ops));
    report(&verdicts);
    let bad = verdicts.iter().filter(|verdict| !verdict.torn && !wrong(verdict).is_empty()).count();
    println!("in place: {bad} of {} disks show a reader something else", verdicts.len());
    assert!(bad > 0, "the readers cannot tell a dangerous procedure");
}
