//! Every cut of a whole upgrade where EFI variables decide what boots. A variable is written atomically, and is durable at
//! once; the sectors between two of them are cut as in cuts.rs. A model of the UEFI boot manager, written from UEFI 2.10,
//! 3.1.1, reads each state: the slot that it starts, and the next one if that fails, must be whole; after a failed trial the
//! old system boots; and from each state an upgrade succeeds.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;
use crate::harness::uefi;

use std::collections::{BTreeMap, HashSet};

use proof::cuts::each_state;
use proof::scenes::{Releases, releases};
use proof::{RecordState, SLOTS, Verb, extent, holds, record};
use qstage::efi::{Name, Variable};
use qstage::state::{SlotReport, SlotState};
use qstage::units::Slot::{self, A, B};
use tables::Op;
use uefi::scenes::{Recording, play};
use uefi::{Event, Store, Uefi, boot};

fn whole(image: &[u8], name: &str) -> bool {
    let slot = &image[extent(image, 512, name)];
    matches!(record(slot), RecordState::Whole(manifest) if holds(slot, name.split('_').next().unwrap(), &manifest))
}

fn letter(slot: Slot) -> Option<char> {
    Some(if slot == A { 'a' } else { 'b' })
}

#[derive(Default, Debug)]
pub(super) struct Report {
    states: usize,
    distinct: usize,
    resumed: usize,
    pub(super) wrong: BTreeMap<String, usize>,
}

impl Recording {
    /// Judges every state; with `resume` an upgrade is run from a sample of those that differ.
    pub(super) fn judge(&self, r: &Releases, events: &[Event], resume: bool) -> Report {
        let mut report = Report::default();
        let mut seen = HashSet::new();
        let (mut disk, mut store) = self.before.clone();
        let dirty: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Disk(Op::Write(at, _)) => Some(*at as usize),
                _ => None,
            })
            .collect();
        let clean: BTreeMap<_, _> = SLOTS
            .into_iter()
            .filter(|name| !dirty.iter().any(|at| extent(&disk, 512, name).contains(at)))
            .map(|name| (name, whole(&disk, name)))
            .collect();
        let mut ops = Vec::new();
        let ends = events.iter().map(Some).chain([None]);
        for event in ends {
            let set = match event {
                Some(Event::Disk(op)) => {
                    ops.push(op.clone());
                    continue;
                }
                Some(Event::Set(name, value)) => Some((name, value)),
                None => None,
            };
            report.states += each_state(&disk, 512, &ops, |state| {
                let is_whole = |name: &str| clean.get(name).copied().unwrap_or_else(|| whole(state, name));
                let mut note = |what: String| *report.wrong.entry(what).or_default() += 1;
                // Whatever the firmware may come to must be whole. The factory has no entries yet.
                let (tried, _) = boot(&store);
                for slot in &tried {
                    let name = if *slot == A { "platform_a" } else { "platform_b" };
                    if !is_whole(name) {
                        note(format!("the firmware may start {name}, which is not whole"));
                    }
                }
                let mut key =
                    vec![crc32fast::hash(&state[..65536]), crc32fast::hash(&state[state.len() - 65536..])];
                key.extend(SLOTS.iter().map(|name| {
                    let slot = &state[extent(state, 512, name)];
                    crc32fast::hash(&slot[slot.len() - 32768..])
                }));
                if seen.insert((key, format!("{store:?}"))) {
                    // No firmware reads these flags, but a start of the software does.
                    let flags = tables::flags(state, 512, tables::Reader::Fallback).unwrap_or_default();
                    for (name, bits) in flags.iter().filter(|(name, _)| name.starts_with("software")) {
                        let bootable = bits >> 48 & 15 > 0 && (bits >> 52 & 15 > 0 || bits >> 56 & 1 == 1);
                        if bootable && !is_whole(name) {
                            note(format!("the flags may start {name}, which is not whole"));
                        }
                    }
                    self.look(state, &store, &mut note);
                    let sampled = seen.len() < 30 || seen.len().is_multiple_of(16);
                    if resume && sampled {
                        report.resumed += 1;
                        if let Err(what) = self.resume(r, state, &store) {
                            note(format!("the next upgrade: {what}"));
                        }
                    }
                }
            });
            for op in ops.drain(..) {
                if let Op::Write(at, bytes) = op {
                    disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                }
            }
            match set {
                Some((name, Some(value))) => drop(store.insert(name.clone(), value.clone())),
                Some((name, None)) => drop(store.remove(name)),
                None => {}
            }
        }
        report.distinct = seen.len();
        report
    }

    /// What runs after a cut, and after that; and what is said of it.
    fn look(&self, state: &[u8], store: &Store, note: &mut impl FnMut(String)) {
        let (tried, then) = boot(store);
        let first = tried.first().copied().unwrap_or(A);
        if store.contains_key(&Name::next()) {
            let fallback = boot(&then).0.first().copied();
            if fallback == Some(first) {
                note("a trial is not one boot".to_owned());
            }
            if fallback.is_none_or(|slot| !whole(state, if slot == A { "platform_a" } else { "platform_b" }))
            {
                note(format!("the trial falls back to {fallback:?}, which is not whole"));
            }
        }
        let machine = Uefi::new(state.to_vec(), &then);
        machine.engine(first, |engine| {
            let software = engine.software_selected().map(|image| image.slot);
            let choice = (letter(first), software.as_ref().ok().copied().and_then(letter));
            if !self.scene.choices.contains(&choice) {
                note(format!("{choice:?} runs ({software:?})"));
            }
            match engine.slots() {
                Ok(report) => {
                    // Without BootNext there was no trial that could have failed.
                    let failed = |slot: &SlotReport| slot.slot == B && slot.state == SlotState::Bad;
                    let tried = first == B;
                    if self.scene.name == "commit" && !tried && report.slots.iter().any(failed) {
                        note("a release that was never tried is called failed".to_owned());
                    }
                    for slot in report.slots.iter().filter(|slot| slot.state == SlotState::Prepared) {
                        let version = slot.version.clone().unwrap_or_default();
                        if !self.scene.prepared.contains(&version.as_str()) {
                            note(format!("{version} in {} is called prepared", slot.slot));
                        }
                    }
                }
                Err(error) => note(format!("slots: {error}")),
            }
        });
    }

    /// The power comes back: the booted system completes the transaction, and upgrades to 3.0, which stays.
    fn resume(&self, r: &Releases, state: &[u8], store: &Store) -> Result<(), String> {
        let (tried, store) = boot(store);
        let runs = tried.first().copied().unwrap_or(A);
        let machine = Uefi::new(state.to_vec(), &store);
        let step = |booted: Slot, verb: Verb, unless: &[&str]| match machine.run(booted, &verb) {
            Err(error) if !unless.contains(&error.code()) => {
                Err(format!("{} from {booted}: {error}", format!("{verb:?}").split('(').next().unwrap_or("")))
            }
            _ => Ok(()),
        };
        step(runs, Verb::MarkGood, &[])?;
        step(runs, Verb::Cancel, &["UPGRADE_ERROR_NOTHING_TO_CANCEL"])?;
        let prepared = machine.run(runs, &Verb::Prepare(r.v3.clone()));
        let waits = prepared.is_err_and(|error| error.code() == "UPGRADE_ERROR_SWITCH_PENDING");
        if waits && boot(&machine.store()).0.first() == Some(&!runs) {
            // The mark of the trial was torn, and counts as bad: its boot leads back, and from there it goes on.
            return self.resume(r, &machine.tape.memory.snapshot(), &machine.store());
        }
        step(runs, Verb::Prepare(r.v3.clone()), &["UPGRADE_ERROR_ALREADY_INSTALLED"])?;
        if machine.engine(runs, |engine| engine.commit(true)).is_err() {
            return Ok(());
        }
        step(runs, Verb::Commit, &[])?;
        let (tried, after) = boot(&machine.store());
        if tried.first() != Some(&!runs) || boot(&after).0.first() != Some(&runs) {
            return Err(format!("it is not tried once: {tried:?}"));
        }
        let machine = Uefi::new(machine.tape.memory.snapshot(), &after);
        machine.run(!runs, &Verb::MarkGood).map_err(|error| error.to_string())?;
        let (tried, after) = boot(&machine.store());
        let stays = tried.first() == Some(&!runs) && boot(&after).0.first() == Some(&!runs);
        if !stays
            || !whole(&machine.tape.memory.snapshot(), if runs == B { "platform_a" } else { "platform_b" })
        {
            return Err(format!("3.0 does not stay: {tried:?}"));
        }
        Ok(())
    }
}

#[test]
fn every_cut_of_an_upgrade_by_efi_variables() {
    let r = releases();
    let mut bad = Vec::new();
    for take in play(&r) {
        let report = take.judge(&r, &take.events, true);
        let sets = take.events.iter().filter(|event| matches!(event, Event::Set(..))).count();
        println!(
            "efi, {}: {sets} variables, {} states, {} distinct, {} resumed",
            take.scene.name, report.states, report.distinct, report.resumed
        );
        if !report.wrong.is_empty() {
            bad.push(format!("{}: {:#?}", take.scene.name, report.wrong));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// A commit that was cut is run again in the same boot, without a reboot between: it ends as if it had not been.
#[test]
fn a_commit_that_was_cut_is_run_again() {
    let r = releases();
    let take = play(&r).into_iter().find(|take| take.scene.name == "commit").unwrap();
    let (mut disk, mut store) = take.before.clone();
    for event in &take.events {
        let machine = Uefi::new(disk.clone(), &store);
        let again = machine.run(A, &Verb::Commit);
        let done = again.as_ref().is_err_and(|error| error.to_string().contains("already committed"));
        assert!(again.is_ok() || done, "{again:?}");
        let (tried, after) = boot(&machine.store());
        assert_eq!((tried[0], boot(&after).0[0]), (B, A));
        let machine = Uefi::new(machine.tape.memory.snapshot(), &after);
        assert_eq!(machine.engine(B, |engine| engine.software_selected()).unwrap().slot, B);
        machine.run(B, &Verb::MarkGood).unwrap();
        assert_eq!(boot(&machine.store()).0[0], B);
        match event {
            Event::Disk(Op::Write(at, bytes)) => {
                disk[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
            }
            Event::Disk(Op::Sync) => {}
            Event::Set(name, Some(value)) => drop(store.insert(name.clone(), value.clone())),
            Event::Set(name, None) => drop(store.remove(name)),
        }
    }
}

/// The judge must see what it is for: the same checks over wrong orders of our own writes.
#[test]
fn mutants_are_caught() {
    let r = releases();
    let takes = play(&r);
    let find = |name: &str| takes.iter().find(|take| take.scene.name == name).unwrap();
    let (commit, over, settle) =
        (find("commit"), find("prepare over a formerly good slot"), find("settle a fallback"));
    let is_set = |event: &Event| matches!(event, Event::Set(..));
    let split =
        |take: &Recording| -> (Vec<Event>, Vec<Event>) { take.events.iter().cloned().partition(is_set) };
    let last = |take: &Recording| {
        let (sets, disk) = split(take);
        [disk, sets].concat()
    };
    let number = commit.events.iter().find_map(|event| match event {
        Event::Set(name, Some(value)) if *name == Name::next() => Some(value.data.clone()),
        _ => None,
    });
    let number = number.unwrap();
    // BootOrder in place of BootNext: good before it was tried.
    let early = commit.events.iter().map(|event| match event {
        Event::Set(name, Some(value)) if *name == Name::next() => {
            let data = [&number[..], &commit.before.1[&Name::order()].data].concat();
            Event::Set(Name::order(), Some(Variable { data, ..value.clone() }))
        }
        event => event.clone(),
    });
    // The factory's own order, with the trial first: nothing to fall back to but the trial.
    let both = commit
        .events
        .iter()
        .cloned()
        .chain([Event::Set(Name::order(), Some(Variable { attributes: 7, data: number.clone() }))]);
    let mutants: Vec<(&str, &Recording, Vec<Event>)> = vec![
        ("the target is not withdrawn", over, split(over).1),
        ("the target is withdrawn when it is written", over, last(over)),
        ("a fallback is settled before its marks", settle, {
            let in_table = |event: &Event| matches!(event, Event::Disk(Op::Write(at, _)) if *at < 65536);
            let split = settle.events.iter().position(in_table).unwrap();
            [&settle.events[split..], &settle.events[..split]].concat()
        }),
        ("BootNext before the table", commit, {
            let (sets, disk) = split(commit);
            [sets, disk].concat()
        }),
        ("BootOrder too, before the trial", commit, both.collect()),
    ];
    for (name, take, events) in mutants {
        let report = take.judge(&r, &events, false);
        println!("mutant '{name}': {} states, wrong {:?}", report.states, report.wrong);
        assert!(!report.wrong.is_empty(), "'{name}' was not noticed");
    }
    // This one is not a question of one state, but of the boot after the trial.
    let mut store = commit.before.1.clone();
    for event in early {
        if let Event::Set(name, Some(value)) = event {
            store.insert(name, value);
        }
    }
    let (tried, after) = boot(&store);
    assert_eq!((tried[0], boot(&after).0[0]), (B, B), "good before its trial: it is tried for ever");
}
