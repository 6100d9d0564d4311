//! Power cuts. Three kinds of reader read every state that a cut can leave: any subset of the sectors written since the last
//! barrier has reached the medium, in any order, one of them torn.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::tables;

use std::collections::BTreeMap;

use qstage::boot::Slots;
use qstage::commit;
use qstage::device::BlockDevice;
use qstage::gpt::{Copy, CopyState, Method, Step};
use qstage::units::{Group, Slot};
use tables::cuts::{NEW, bad_states, both_to, each_state, lock, roomy, sown, switch, tight};
use tables::{Op, Reader, Recorder, Spec, ops_of, selection, trial};

#[test]
fn a_cut_leaves_the_old_or_the_new_table_for_every_reader() {
    for ((name, spec), noise) in roomy().into_iter().flat_map(|spec| [(spec.clone(), false), (spec, true)]) {
        let first = spec.parts.iter().map(|p| p.2).min().unwrap() as usize * spec.block as usize;
        let room = spec.array_blocks().next_multiple_of(u64::from(4096 / spec.block));
        let mut image = if noise { sown(&spec, room) } else { spec.image() };
        let name = if noise { format!("{name}, sown") } else { name.to_owned() };
        for (round, slot) in [Slot::B, Slot::A, Slot::B].into_iter().enumerate() {
            let (after, ops, method) = switch(&spec, &image, slot);
            assert_eq!(method, Method::SecondArray, "{name}");
            let (states, bad) = bad_states(&spec, &image, &ops);
            println!("{name}, switch {round}: {states} states, bad {bad:?}");
            assert!(bad.values().all(|&n| n == 0), "{name}, switch {round}: {bad:?}");
            assert!(states > 100 || spec.block == 4096, "{states}");
            // At rest the table lies where its maker put it, and nothing of it anywhere else.
            let at_rest = |image: &[u8]| image[2 * spec.block as usize..first].to_vec();
            let array = spec.array_blocks() as usize * spec.block as usize;
            assert!(at_rest(&after)[array..] == at_rest(&image)[array..], "{name}: the gap is as it was");
            assert_eq!(
                selection(&after, spec.block, Reader::Blind),
                selection(&after, spec.block, Reader::Strict)
            );
            image = after;
        }
        assert_eq!(selection(&image, spec.block, Reader::Fallback), Some(NEW));
    }
}

/// The harness must see what it is for: wrong orders and missing barriers.
#[test]
fn mutants_are_caught() {
    let spec = Spec::slots(512, 512, 128, 16);
    let image = spec.image();
    let device = spec.device(image.clone());
    let loaded = commit::load(&device, "disk").unwrap();
    let plan = commit::plan(&loaded, &both_to(loaded.table().unwrap(), Slot::B)).unwrap();
    let good = ops_of(&plan);
    // 0 spare array, 1 barrier, 2 header, 3 barrier, 4 backup array, 5 barrier, 6 backup header, 7 and 8 array at home,
    // 9 barrier, 10 header, 11 barrier, 12 spare place cleared, 13 barrier
    let kinds: String = good.iter().map(|op| if let Op::Write(..) = op { 'w' } else { '|' }).collect();
    assert_eq!(kinds, "w|w|w|www|w|w|");
    let mutant = |order: &[usize]| -> Vec<Op> { order.iter().map(|&i| good[i].clone()).collect() };
    let over_current = |mut ops: Vec<Op>| {
        // The array goes where the current one is, the header goes on to name it there.
        if let Op::Write(at, _) = &mut ops[0] {
            *at = 1024;
        }
        ops
    };
    let mutants = [
        ("header before array", mutant(&[2, 1, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])),
        ("no barrier between array and header", mutant(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])),
        ("no barrier between header and backup", mutant(&[0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12])),
        ("backup header before its array, no barrier to the primary", mutant(&[0, 1, 6, 2, 3, 4, 5])),
        ("no barriers", mutant(&[0, 2, 4, 6, 7, 8, 10, 12])),
        ("array over the current one", over_current(good.clone())),
        ("array missing", mutant(&[1, 2, 3, 4, 5, 6, 7, 8, 9])),
        (
            "home before the header that names the spare place",
            mutant(&[0, 1, 7, 8, 9, 2, 3, 4, 5, 6, 10, 11, 12]),
        ),
        ("home and the header that names it at once", mutant(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12])),
        ("spare place cleared at once with that header", mutant(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12])),
    ];
    assert!(bad_states(&spec, &image, &good).1.values().all(|&n| n == 0));
    for (name, ops) in mutants {
        let (states, bad) = bad_states(&spec, &image, &ops);
        println!("mutant '{name}': {states} states, bad {bad:?}");
        assert!(bad.values().any(|&n| n > 0), "'{name}' was not noticed");
    }
    // And a header that names the new array while clearing only one of the groups' old slots.
    let half = trial(
        loaded.table().unwrap(),
        &Slots::resolve(loaded.table().unwrap(), "disk").unwrap(),
        Group::Platform,
        Slot::B,
        3,
    );
    let ops = ops_of(&commit::plan(&loaded, &half).unwrap());
    assert!(bad_states(&spec, &image, &ops).1["fallback"] > 0, "groups that do not flip together");
}

/// What the fallback costs, in figures: readers that know the backup are safe, Linux as it is shipped is not.
#[test]
fn in_place_is_safe_only_for_readers_with_fallback() {
    let spec = tight();
    let image = spec.image();
    let (after, ops, method) = switch(&spec, &image, Slot::B);
    assert!(matches!(method, Method::InPlace { .. }));
    assert!(method.to_string().contains("no room for a second entry array"), "{method}");
    assert_eq!(selection(&after, 512, Reader::Strict), Some(NEW));
    let (states, bad) = bad_states(&spec, &image, &ops);
    println!("in place: {states} states, bad {bad:?}");
    assert_eq!(bad["fallback"], 0);
    assert!(bad["strict"] > 0, "if this is 0 the documentation of Method::InPlace is wrong");
    // The wrong order loses both copies.
    let mut wrong = ops.clone();
    wrong.retain(|op| !matches!(op, Op::Sync));
    assert!(bad_states(&spec, &image, &wrong).1["fallback"] > 0);
    // Only the changed sectors of each array are written: those with entries 1, 2 and 5, 6.
    let written: usize = ops.iter().map(|op| if let Op::Write(_, b) = op { b.len() / 512 } else { 0 }).sum();
    assert_eq!(written, 2 * (2 + 1));
}

/// From every state the next run finds a table, repairs it to two equal copies and keeps the selection.
#[test]
fn repair_converges_from_every_cut() {
    let mut specs = roomy();
    specs.push(("in place", tight()));
    for (name, spec) in specs {
        let image = spec.image();
        let (_, ops, _) = switch(&spec, &image, Slot::B);
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        let mut seen = std::collections::HashSet::new();
        each_state(&image, spec.block as usize, &ops, |state, _| {
            if seen.insert(crc32fast::hash(state)) {
                *found.entry(converge(&spec, state).to_string()).or_default() += 1;
            }
        });
        println!("{name}: distinct states by what repair found: {found:?}");
        assert!(found.contains_key("equal") && found.contains_key("primary only"), "{found:?}");
        assert!(found.contains_key("backup only") && found.contains_key("differ"), "{found:?}");
    }
}

/// Repairs a copy of `state` and checks the outcome; returns what was found.
fn converge(spec: &Spec, state: &[u8]) -> CopyState {
    let before = selection(state, spec.block, Reader::Fallback);
    let device = spec.device(state.to_vec());
    let loaded = commit::load(&device, "disk").unwrap();
    let found = loaded.state();
    if let Err(refusal) = commit::repair(&device, &lock(), &loaded) {
        // In place, with rubbish in the array: as the refusal says, this needs an explicit order.
        assert_eq!(refusal.code(), "UPGRADE_ERROR_TABLE_UNSAFE");
        assert!(refusal.to_string().contains("qstage repair --from backup"));
        commit::restore(&device, &lock(), &loaded, Copy::Backup).unwrap();
    }
    let after = device.memory.snapshot();
    for reader in [Reader::Fallback, Reader::Strict, Reader::Lenient] {
        assert_eq!(selection(&after, spec.block, reader), before);
    }
    let mut again = commit::load(&device, "disk").unwrap();
    if again.state() == CopyState::NoBackup {
        // A sector of the backup that a tear filled with rubbish may be of any origin: it is replaced by an explicit order only.
        commit::restore(&device, &lock(), &again, Copy::Primary).unwrap();
        again = commit::load(&device, "disk").unwrap();
    }
    assert_eq!(again.state(), CopyState::Equal);
    let writes = device.ops().len();
    assert!(commit::repair(&device, &lock(), &again).unwrap().is_none());
    assert_eq!(device.ops().len(), writes, "nothing to do, nothing written");
    found
}

/// A repair is cut as well: the copy that holds is never touched before the other is whole.
#[test]
fn a_cut_repair_loses_nothing() {
    for (name, spec) in roomy() {
        let (after, _, _) = switch(&spec, &spec.image(), Slot::B);
        let block = spec.block as usize;
        let last = after.len() - block;
        let array_at = {
            let device = spec.device(after.clone());
            let loaded = commit::load(&device, "disk").unwrap();
            loaded.table().unwrap().header().entries_lba.0 as usize * block
        };
        let backup_array = last - spec.array_blocks() as usize * block;
        let damage = [
            ("primary header", block, Some(NEW)),
            ("primary array", array_at, Some(NEW)),
            ("backup header", last, Some(NEW)),
            ("backup array", backup_array, Some(NEW)),
        ];
        for (what, at, expected) in damage {
            let mut image = after.clone();
            image[at..at + block].fill(0x5a);
            let device = spec.device(image.clone());
            let loaded = commit::load(&device, "disk").unwrap();
            assert_ne!(loaded.state(), CopyState::Equal, "{name}, {what}");
            if commit::repair(&device, &lock(), &loaded).unwrap().is_none() {
                assert_eq!(loaded.state(), CopyState::NoBackup, "{name}, {what}");
                commit::restore(&device, &lock(), &loaded, Copy::Primary).unwrap();
            }
            let mut seen = std::collections::HashSet::new();
            let states = each_state(&image, block, &device.ops(), |state, _| {
                assert_eq!(selection(state, spec.block, Reader::Fallback), expected, "{name}, {what}");
                if seen.insert(crc32fast::hash(state)) {
                    converge(&spec, state);
                }
            });
            println!("{name}, {what} repaired: {states} states");
        }
    }
}

/// Everything that is not an array, a header or the gap stays as it is, and foreign bits too.
#[test]
fn nothing_else_on_the_disk_changes() {
    for (name, spec) in roomy() {
        let mut image = spec.image();
        let block = spec.block as usize;
        let first = spec.parts.iter().map(|p| p.2).min().unwrap() as usize * block;
        let last = spec.parts.iter().map(|p| p.3).max().unwrap() as usize * block + block;
        for (i, byte) in image[first..last].iter_mut().enumerate() {
            *byte = (i * 31) as u8;
        }
        image[..440].fill(0xeb);
        let (after, _, _) = switch(&spec, &image, Slot::B);
        assert!(image[..block] == after[..block], "{name}: the MBR");
        assert!(image[first..last] == after[first..last], "{name}: partitions");
        let data = |image: &[u8]| {
            let device = spec.device(image.to_vec());
            commit::load(&device, "disk").unwrap().table().unwrap().attributes(4)
        };
        assert_eq!(data(&image), data(&after));
    }
}

#[test]
fn a_raw_boot_loader_in_the_gap_survives_and_forces_in_place() {
    let spec = Spec::slots(512, 512, 128, 16);
    let mut image = spec.image();
    image[34 * 512..128 * 512].fill(0x5c);
    let (after, _, method) = switch(&spec, &image, Slot::B);
    assert!(matches!(method, Method::InPlace { .. }), "{method}");
    assert!(method.to_string().contains("not ours"), "{method}");
    assert!(after[34 * 512..128 * 512].iter().all(|&byte| byte == 0x5c));
}

#[test]
fn an_unchanged_table_is_not_written_and_a_stale_one_is_refused() {
    let spec = Spec::slots(512, 512, 128, 16);
    let device = spec.device(spec.image());
    let loaded = commit::load(&device, "disk").unwrap();
    let table = loaded.table().unwrap().clone();
    assert!(commit::switch(&device, &lock(), &loaded, &table).unwrap().is_empty());
    assert!(device.ops().is_empty());
    commit::switch(&device, &lock(), &loaded, &both_to(&table, Slot::B)).unwrap();
    let stale = commit::switch(&device, &lock(), &loaded, &both_to(&table, Slot::A)).unwrap_err();
    assert_eq!(stale.code(), "UPGRADE_ERROR_GPT_UNSUPPORTED");
    assert!(stale.to_string().contains("another program"), "{stale}");
}

#[test]
fn what_is_no_gpt_is_told_apart_from_a_lost_one() {
    let spec = Spec::slots(512, 512, 128, 16);
    let code = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut image = spec.image();
        edit(&mut image);
        let device = spec.device(image);
        let loaded = commit::load(&device, "disk");
        loaded.and_then(|loaded| loaded.table().cloned()).unwrap_err()
    };
    assert_eq!(code(&|image| image.fill(0)).code(), "UPGRADE_ERROR_NOT_GPT");
    assert_eq!(code(&|image| image[450] = 0x83).code(), "UPGRADE_ERROR_MBR_DISK", "an MBR over an old GPT");
    let lost = code(&|image| {
        image[512 + 60] ^= 1;
        let last = image.len() - 512;
        image[last..].fill(0);
    });
    assert_eq!(lost.code(), "UPGRADE_ERROR_GPT_DAMAGED");
    assert!(lost.to_string().contains("header CRC") && lost.to_string().contains("no header signature"));
}

/// The steps of a dry run name every sector.
#[test]
fn a_plan_reads_like_what_it_does() {
    let spec = Spec::slots(512, 512, 128, 16);
    let device = spec.device(spec.image());
    let loaded = commit::load(&device, "disk").unwrap();
    let plan = commit::plan(&loaded, &both_to(loaded.table().unwrap(), Slot::B)).unwrap();
    let lines = plan.describe();
    assert_eq!(lines[0], "write LBA 96-97 (2 x 512 bytes): spare array");
    assert_eq!(lines[1], "barrier");
    assert_eq!(lines[3], "write LBA 1-1 (1 x 512 bytes): primary header: the commit");
    assert_eq!(plan.steps.iter().filter(|step| **step == Step::Barrier).count(), 6);
    assert_eq!(plan.primary.header().first_usable.0, 34, "as found");
    assert!(device.ops().is_empty(), "a plan writes nothing");
    assert_eq!(device.len(), 512 * 512);
}

/// The harness must see a claim that is left out, in the switch and in repair: a planner that claims nothing plans as if
/// zeroes lay where others have their bytes. Its plans reach those, and it is noticed; ours are refused or go elsewhere.
#[test]
fn a_planner_without_claims_is_caught() {
    let spec = Spec::slots(512, 512, 128, 16);
    let (plain, last) = (spec.image(), (spec.blocks - 1) as usize * 512);
    let to_b = |device: &Recorder, loaded: &commit::Loaded| {
        let new = both_to(loaded.table().unwrap(), Slot::B);
        commit::switch(device, &lock(), loaded, &new).map(drop)
    };
    let repair =
        |device: &Recorder, loaded: &commit::Loaded| commit::repair(device, &lock(), loaded).map(drop);
    type Act<'a> = &'a dyn Fn(&Recorder, &commit::Loaded) -> qstage::error::Result<()>;
    // What is done, where foreign blocks are, whether the primary header is torn.
    let cases: [(&str, Act<'_>, std::ops::Range<usize>, bool); 4] = [
        ("switch over a loader at the spare place", &to_b, 96 * 512..128 * 512, false),
        ("repair over a stranger in place of the backup header", &repair, last..last + 512, false),
        ("repair over a stranger in the backup array", &repair, last - 16384..last - 15872, false),
        ("repair over a loader in place of the primary array", &repair, 1024..1024 + 16384, true),
    ];
    for (name, act, strangers, torn) in cases {
        let with = |byte: &dyn Fn(usize) -> u8| {
            let mut image = plain.clone();
            image[strangers.clone()].iter_mut().enumerate().for_each(|(i, at)| *at = byte(i));
            if torn {
                image[512 + 80] ^= 0xff;
            }
            image
        };
        let image = with(&|i| (i * 31) as u8 | 1);
        let ops = |image: &[u8]| {
            let device = spec.device(image.to_vec());
            let done = act(&device, &commit::load(&device, "disk").unwrap());
            (device.ops(), done)
        };
        let touched = |ops: &[Op]| {
            let mut touched = 0;
            each_state(&image, 512, ops, |state, _| {
                touched += usize::from(state[strangers.clone()] != image[strangers.clone()]);
            });
            touched
        };
        let (ours, done) = ops(&image);
        assert_eq!(touched(&ours), 0, "{name}: {done:?}");
        let (blind, _) = ops(&with(&|_| 0));
        let caught = touched(&blind);
        println!("{name}: without claims {caught} states with changed bytes of others; ours: {done:?}");
        assert!(caught > 0, "'{name}' was not noticed");
    }
}
