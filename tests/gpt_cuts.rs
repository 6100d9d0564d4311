//! Power cuts. Every state that a cut can leave is made and shown to three kinds of reader: whatever subset of
//! the sectors written since the last barrier has reached the medium, in whatever order, one of them torn.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod gpt_common;

use std::collections::BTreeMap;

use gpt_common::{Op, Reader, Selection, Spec, ops_of, selection};
use qstage::boot::{self, BootFlag, Slots};
use qstage::commit;
use qstage::device::BlockDevice;
use qstage::gpt::{CopyState, Method, Step, Table};
use qstage::host::DiskLock;
use qstage::units::{Group, Slot};

const OLD: Selection = (Some('a'), Some('a'));
const NEW: Selection = (Some('b'), Some('b'));
const EXHAUSTIVE: usize = 12;

/// How a state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Whole sectors only.
    Whole,
    /// One sector is half new and half old.
    Half,
    /// One sector holds rubbish.
    Rubbish,
}

/// splitmix64: the same states on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Calls `f` with every state that a cut during `ops` can leave of `image`. Returns how many there were.
fn each_state(image: &[u8], sector: usize, ops: &[Op], mut f: impl FnMut(&[u8], Cut)) -> usize {
    let mut durable = image.to_vec();
    let mut random = Random(0x1d5);
    let mut states = 0;
    for epoch in ops.split(|op| matches!(op, Op::Sync)) {
        // The sectors of this epoch in the order of their writes; a later write of a sector replaces an
        // earlier one, so both are candidates.
        let mut flight: Vec<(usize, &[u8])> = Vec::new();
        for op in epoch {
            if let Op::Write(at, bytes) = op {
                assert!((*at as usize).is_multiple_of(sector) && bytes.len().is_multiple_of(sector));
                flight.extend(bytes.chunks(sector).enumerate().map(|(i, b)| (*at as usize + i * sector, b)));
            }
        }
        let n = flight.len();
        let mut sets: Vec<Vec<bool>> = Vec::new();
        if n <= EXHAUSTIVE {
            sets.extend((0u32..1 << n).map(|mask| (0..n).map(|i| mask >> i & 1 == 1).collect()));
        } else {
            sets.extend((0..=n).map(|k| (0..n).map(|i| i < k).collect()));
            sets.extend((0..=n).map(|k| (0..n).map(|i| i >= k).collect()));
            sets.extend((0..n).map(|k| (0..n).map(|i| i == k).collect()));
            sets.extend((0..n).map(|k| (0..n).map(|i| i != k).collect()));
            sets.extend((0..600).map(|_| (0..n).map(|_| random.next() & 1 == 1).collect()));
        }
        let mut state = durable.clone();
        let mut show = |set: &[bool], torn: Option<usize>, cut: Cut| {
            let there = || flight.iter().enumerate().filter(|(i, _)| set[*i] || torn == Some(*i));
            for (i, (at, new)) in there() {
                let place = &mut state[*at..*at + sector];
                place.copy_from_slice(new);
                match cut {
                    Cut::Half if torn == Some(i) => {
                        // Within the header's fields, so that both halves matter: behind entries LBA.
                        place[80..].copy_from_slice(&durable[*at + 80..*at + sector]);
                    }
                    Cut::Rubbish if torn == Some(i) => place.fill(0xa5),
                    _ => {}
                }
            }
            f(&state, cut);
            states += 1;
            for (_, (at, _)) in there() {
                state[*at..*at + sector].copy_from_slice(&durable[*at..*at + sector]);
            }
        };
        for set in &sets {
            show(set, None, Cut::Whole);
        }
        // A sector that is written as it was (the MBR beside the header in its physical block) cannot be half
        // new; that a medium loses it altogether is no matter of order.
        for torn in (0..n).filter(|&i| flight[i].1 != &durable[flight[i].0..][..sector]) {
            for (i, set) in sets.iter().enumerate() {
                // With every subset where they are few; else with the first and the last sets of each kind.
                if n <= 6 || i % 97 == 0 || i == n {
                    show(set, Some(torn), Cut::Half);
                    show(set, Some(torn), Cut::Rubbish);
                }
            }
        }
        for (at, new) in flight {
            durable[at..at + sector].copy_from_slice(new);
        }
    }
    f(&durable, Cut::Whole);
    states + 1
}

/// How often each kind of reader finds neither the old nor the new selection.
fn bad_states(spec: &Spec, image: &[u8], ops: &[Op]) -> (usize, BTreeMap<&'static str, usize>) {
    let mut bad = BTreeMap::from([("fallback", 0), ("strict", 0), ("lenient", 0)]);
    let states = each_state(image, spec.block as usize, ops, |state, cut| {
        let mut judge = |name, reader| {
            if ![Some(OLD), Some(NEW)].contains(&selection(state, spec.block, reader)) {
                *bad.get_mut(name).unwrap() += 1;
            }
        };
        judge("fallback", Reader::Fallback);
        // A medium that loses a sector it was not asked to keep is beyond readers without fallback.
        if cut == Cut::Whole {
            judge("strict", Reader::Strict);
            judge("lenient", Reader::Lenient);
        }
    });
    (states, bad)
}

fn both_to(table: &Table, slot: Slot) -> Table {
    let slots = Slots::resolve(table, "disk").unwrap();
    let select =
        |table: &Table, group| boot::select_trial(table, &slots, group, slot, 3, BootFlag::Priority).unwrap();
    select(&select(table, Group::Platform), Group::Software)
}

fn lock() -> DiskLock {
    DiskLock::new(())
}

/// Switches on a device and returns what reached it.
fn switch(spec: &Spec, image: &[u8], slot: Slot) -> (Vec<u8>, Vec<Op>, Method) {
    let device = spec.device(image.to_vec());
    let loaded = commit::load(&device, "disk").unwrap();
    let new = both_to(loaded.table().unwrap(), slot);
    let plan = commit::switch(&device, &lock(), &loaded, &new).unwrap();
    let planned: Vec<_> = ops_of(&plan).iter().map(|op| format!("{op:?}")).collect();
    let done: Vec<_> = device.ops().iter().map(|op| format!("{op:?}")).collect();
    assert_eq!(planned, done, "what is printed is what is done");
    (device.memory.snapshot(), device.ops(), plan.method)
}

/// Disks with room for a second array: the usual one, one with 4 KiB physical blocks, one with 4 KiB logical
/// blocks, one with all entries used, one with few, one with large ones.
fn roomy() -> Vec<(&'static str, Spec)> {
    let plain = Spec::slots(512, 512, 128, 16);
    let advanced = Spec { physical: 4096, ..plain.clone() };
    let native = Spec::slots(4096, 64, 16, 4);
    let few = Spec { count: 12, ..plain.clone() };
    let full = Spec::slots(512, 512, 128, 16).full();
    let large = Spec { count: 32, entry_size: 512, ..plain.clone() };
    vec![
        ("512", plain),
        ("512, all entries used", full),
        ("512e", advanced),
        ("4Kn", native),
        ("12 entries", few),
        ("512-byte entries", large),
    ]
}

fn tight() -> Spec {
    Spec::slots(512, 300, 34, 16)
}

#[test]
fn a_cut_leaves_the_old_or_the_new_table_for_every_reader() {
    for (name, spec) in roomy() {
        let mut image = spec.image();
        // Three switches: away from LBA 2, to the other place, back over a former array.
        for (round, slot) in [Slot::B, Slot::A, Slot::B].into_iter().enumerate() {
            let (after, ops, method) = switch(&spec, &image, slot);
            assert_eq!(method, Method::SecondArray, "{name}");
            let (states, bad) = bad_states(&spec, &image, &ops);
            println!("{name}, switch {round}: {states} states, bad {bad:?}");
            assert!(bad.values().all(|&n| n == 0), "{name}, switch {round}: {bad:?}");
            assert!(states > 1000 || spec.block == 4096 || spec.count == 12);
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
    // 0 array, 1 barrier, 2 header, 3 barrier, 4 backup array, 5 barrier, 6 backup header, 7 barrier
    assert!(matches!(
        good.as_slice(),
        [Op::Write(..), Op::Sync, Op::Write(..), Op::Sync, Op::Write(..), Op::Sync, Op::Write(..), Op::Sync]
    ));
    let mutant = |order: &[usize]| -> Vec<Op> { order.iter().map(|&i| good[i].clone()).collect() };
    let over_current = |mut ops: Vec<Op>| {
        // The array goes where the current one is, the header goes on to name it there.
        if let Op::Write(at, _) = &mut ops[0] {
            *at = 1024;
        }
        ops
    };
    let mutants = [
        ("header before array", mutant(&[2, 1, 0, 3, 4, 5, 6, 7])),
        ("no barrier between array and header", mutant(&[0, 2, 3, 4, 5, 6, 7])),
        ("no barrier between header and backup", mutant(&[0, 1, 2, 4, 5, 6, 7])),
        ("backup header before its array, no barrier to the primary", mutant(&[0, 1, 6, 2, 3, 4, 5])),
        ("no barriers", mutant(&[0, 2, 4, 6])),
        ("array over the current one", over_current(good.clone())),
        ("array missing", mutant(&[1, 2, 3, 4, 5, 6, 7])),
    ];
    assert!(bad_states(&spec, &image, &good).1.values().all(|&n| n == 0));
    for (name, ops) in mutants {
        let (states, bad) = bad_states(&spec, &image, &ops);
        println!("mutant '{name}': {states} states, bad {bad:?}");
        assert!(bad.values().any(|&n| n > 0), "'{name}' was not noticed");
    }
    // And a header that names the new array while clearing only one of the groups' old slots.
    let half = boot::select_trial(
        loaded.table().unwrap(),
        &Slots::resolve(loaded.table().unwrap(), "disk").unwrap(),
        Group::Platform,
        Slot::B,
        3,
        BootFlag::Priority,
    );
    let ops = ops_of(&commit::plan(&loaded, &half.unwrap()).unwrap());
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
    commit::repair(&device, &lock(), &loaded).unwrap();
    let after = device.memory.snapshot();
    for reader in [Reader::Fallback, Reader::Strict, Reader::Lenient] {
        assert_eq!(selection(&after, spec.block, reader), before);
    }
    let again = commit::load(&device, "disk").unwrap();
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
            commit::repair(&device, &lock(), &loaded).unwrap().unwrap();
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
    assert_eq!(code(&|image| image[450] = 0x83).code(), "UPGRADE_ERROR_NOT_GPT", "an MBR over an old GPT");
    let lost = code(&|image| {
        image[512 + 60] ^= 1;
        let last = image.len() - 512;
        image[last..].fill(0);
    });
    assert_eq!(lost.code(), "UPGRADE_ERROR_GPT_DAMAGED");
    assert!(lost.to_string().contains("header CRC") && lost.to_string().contains("no header signature"));
}

/// A primary header whose alternate is itself, or a block within the partitions: never a place to write to.
#[test]
fn an_alternate_within_the_disk_is_no_backup() {
    let spec = Spec::slots(512, 512, 128, 16);
    for alternate in [0u64, 1, 2, 128, 478] {
        let mut image = spec.image();
        image[512 + 32..512 + 40].copy_from_slice(&alternate.to_le_bytes());
        image[512 + 16..512 + 20].fill(0);
        let crc = crc32fast::hash(&image[512..512 + 92]);
        image[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
        let device = spec.device(image);
        let loaded = commit::load(&device, "disk").unwrap();
        assert_eq!(loaded.state(), CopyState::BackupOnly, "alternate {alternate}");
        commit::repair(&device, &lock(), &loaded).unwrap().unwrap();
        assert!(device.memory.snapshot() == spec.image(), "alternate {alternate}: back to the very bytes");
    }
}

/// The steps of a dry run name every sector.
#[test]
fn a_plan_reads_like_what_it_does() {
    let spec = Spec::slots(512, 512, 128, 16);
    let device = spec.device(spec.image());
    let loaded = commit::load(&device, "disk").unwrap();
    let plan = commit::plan(&loaded, &both_to(loaded.table().unwrap(), Slot::B)).unwrap();
    let lines = plan.describe();
    assert_eq!(lines[0], "write LBA 40-71 (32 x 512 bytes): new primary array");
    assert_eq!(lines[1], "barrier");
    assert_eq!(lines[3], "write LBA 1-1 (1 x 512 bytes): primary header: the commit");
    assert_eq!(plan.steps.iter().filter(|step| **step == Step::Barrier).count(), 4);
    assert_eq!(plan.primary.header().first_usable.0, 72);
    assert!(device.ops().is_empty(), "a plan writes nothing");
    assert_eq!(device.len(), 512 * 512);
}
