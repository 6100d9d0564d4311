//! Every cut of a whole upgrade. The writes and flushes of each verb are recorded on a small but complete disk; the disk is
//! rebuilt as every possible cut leaves it. For each such state: a table can be read; exactly the old or exactly the new slot
//! boots and matches its record; nothing else has changed; the engine reports as prepared only what is; and the next step
//! succeeds.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;

use std::sync::Arc;

use proof::cuts::{Rules, each_state, judge};
use proof::scenes::{AA, BB, play, recorded, releases, to_the_end};
use proof::{RecordState, SLOTS, Tape, Verb, boots, holds, record};
use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::gpt::Attributes;
use qstage::gpt::layout::{self, NewPartition};
use qstage::host::DiskLock;
use qstage::progress::{Cancel, Silent};
use qstage::slot::{Mark, Verdict};
use qstage::units::{Guid, MIB};
use qstage::{commit, init};
use tables::{Op, Reader};

/// Judges every scene and prints the counts.
fn every_cut(block: u32, flag: BootFlag, jobs: usize) {
    let mut bad = Vec::new();
    let (mut states, mut resumed) = (0, 0);
    for take in play(&releases(), block, flag, jobs) {
        let report = take.judge(block, &take.ops, true);
        let writes = take.ops.iter().filter(|op| matches!(op, Op::Write(..))).count();
        let flushes = take.ops.len() - writes;
        println!(
            "{flag:?}, {block}, {}: {writes} writes, {flushes} flushes, {} states, {} distinct tables and records, {} resumed",
            take.scene.name, report.states, report.distinct, report.resumed
        );
        states += report.states;
        resumed += report.resumed;
        if !report.wrong.is_empty() {
            bad.push(format!("{}: {:#?}", take.scene.name, report.wrong));
        }
    }
    println!("{flag:?}, {block}: {states} states, {resumed} resumed");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn every_cut_of_an_upgrade_by_priority() {
    every_cut(512, BootFlag::Priority, 1);
}

#[test]
fn every_cut_of_an_upgrade_by_legacy_flag() {
    every_cut(512, BootFlag::Legacy, 1);
}

/// With 4 KiB sectors, and with several workers, whose order is another on each run.
#[test]
fn every_cut_with_large_sectors_and_several_workers() {
    let r = releases();
    for take in play(&r, 4096, BootFlag::Priority, 3) {
        if ["prepare", "commit", "prepare over a formerly good slot", "roll back a trial"]
            .contains(&take.scene.name)
        {
            let report = take.judge(4096, &take.ops, true);
            println!(
                "4Kn, 3 workers, {}: {} states, {} resumed",
                take.scene.name, report.states, report.resumed
            );
            assert!(report.wrong.is_empty(), "{}: {:#?}", take.scene.name, report.wrong);
        }
    }
}

/// A verb on a disk with one copy of the table lost repairs that first. Whatever is cut, the other copy holds.
#[test]
fn every_cut_of_a_repair() {
    let r = releases();
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        let takes = play(&r, 512, flag, 1);
        let take = takes.iter().find(|take| take.scene.name == "mark good").unwrap();
        for (what, before) in tables::damages(&take.before, 512) {
            let (_, ops) = recorded(&before, 512, take.scene.site, &Verb::MarkGood);
            let next = |disk: Arc<Tape>| to_the_end(disk, 512, &take.scene.next, BB, BB);
            let rules = Rules {
                block: 512,
                site: take.scene.site,
                choices: vec![BB],
                prepared: vec![],
                targets: vec![],
                marked: take.scene.marked.clone(),
                readers: vec![Reader::Fallback],
                thorough: false,
                next: Some(&next),
            };
            let report = judge(&before, &ops, &rules);
            println!("{flag:?}, {what} lost, repaired: {} states, {} resumed", report.states, report.resumed);
            assert!(report.wrong.is_empty(), "{what}: {:#?}", report.wrong);
        }
    }
}

/// A factory install: nothing boots, or what was installed does; and a layout is there or is not.
#[test]
fn every_cut_of_an_installation() {
    let r = releases();
    let blank = proof::spec(512).image();
    let tape = Tape::new(blank.clone(), 512);
    let machine = proof::Bench(tape.clone());
    let (lock, flag) = (DiskLock::new(()), BootFlag::Priority);
    let bundle = proof::open(&r.v1).unwrap();
    init::install(&machine, &lock, &bundle, flag, &Silent, &Cancel::default()).unwrap();
    let mut ops = tape.ops();
    // Bit 2 is set too at the factory, which foreign_intact takes for foreign under `priority`; it is not judged here.
    let states = each_state(&blank, 512, &ops, |state| {
        let choice = boots(state, 512, flag, Reader::Strict);
        assert!(matches!(choice, Some((None, None) | AA)), "{choice:?}");
        for (name, group) in [("platform_a", "platform"), ("software_a", "software")] {
            let slot = &state[proof::extent(state, 512, name)];
            let RecordState::Whole(manifest) = record(slot) else {
                assert_ne!(choice, Some(AA), "{name} boots without a record");
                continue;
            };
            assert!(holds(slot, group, &manifest), "{name}");
        }
    });
    let parts = SLOTS.map(|name| NewPartition {
        name: name.to_owned(),
        type_guid: Guid::NIL,
        guid: None,
        size: MIB,
        attributes: Attributes::default(),
    });
    let mut parts = parts.to_vec();
    parts.iter_mut().for_each(|part| part.type_guid = Guid([1; 16]));
    let blank = vec![0; 6 * MIB as usize];
    let tape = Tape::new(blank.clone(), 512);
    let plan = layout::create("disk", 6 * MIB, tape.block_size(), &parts, None).unwrap();
    commit::lay_out(&*tape, "disk", &lock, &plan).unwrap();
    ops = tape.ops();
    let layouts = each_state(&blank, 512, &ops, |state| {
        let device = Tape::new(state.to_vec(), 512);
        match commit::load(&*device, "disk") {
            Ok(loaded) => assert_eq!(loaded.table().unwrap().partitions().len(), 4),
            Err(error) => assert_eq!(error.code(), "UPGRADE_ERROR_NOT_GPT"),
        }
    });
    println!("installation: {states} states; layout: {layouts} states");
}

/// A factory install over a release that is there (`init --keep-table --force`): the old one boots whole, or nothing, or the
/// new one whole; what is no longer selected is not called prepared; what is not ours stays.
#[test]
fn every_cut_of_an_installation_over_a_release() {
    let r = releases();
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        let before = proof::factory(512, flag, &r.v1);
        let tape = Tape::new(before.clone(), 512);
        let machine = proof::Bench(tape.clone());
        let bundle = proof::open(&r.v2).unwrap();
        init::install(&machine, &DiskLock::new(()), &bundle, flag, &Silent, &Cancel::default()).unwrap();
        let mut seen = [0; 3];
        let states = each_state(&before, 512, &tape.ops(), |state| {
            let choice = boots(state, 512, flag, Reader::Strict);
            assert!(matches!(choice, Some((None, None) | AA)), "{choice:?}");
            let data = proof::extent(state, 512, "data");
            assert!(state[data.clone()] == before[data], "the foreign partition");
            let mut news = 0;
            for (name, group) in [("platform_a", "platform"), ("software_a", "software")] {
                let slot = &state[proof::extent(state, 512, name)];
                let RecordState::Whole(manifest) = record(slot) else {
                    assert_ne!(choice, Some(AA), "{name} boots without a record");
                    continue;
                };
                assert!(holds(slot, group, &manifest), "{name}");
                let is_new = manifest["version"] == "2.0";
                news += usize::from(is_new);
                let mark = Mark::decode(&slot[slot.len() - 8192..slot.len() - 4096]);
                let bad = mark.is_some_and(|mark| mark.verdict == Verdict::Bad);
                assert!(is_new || bad || choice == Some(AA), "{name}: the old release looks prepared");
            }
            match choice {
                Some(AA) => {
                    assert!(news != 1, "one slot of each release boots");
                    seen[news] += 1;
                }
                _ => seen[1] += 1,
            }
        });
        println!("{flag:?}: {states} states, old {}, none {}, new {}", seen[0], seen[1], seen[2]);
        assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
    }
}
