//! The order of every verb's writes, as golden files: this order is the core of the product, so its change shows as a change
//! of these files, and is reviewed. It is derived from the requests that reach the device (see tests/harness/proof/acts.rs).
//!
//! `QSTAGE_RECORD=1 cargo test --test power orders::` writes them anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;
use crate::harness::uefi;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use proof::acts::{MachineEvent, acts};
use proof::scenes::{play, recorded, releases};
use proof::{Site, Tape, Verb, open};
use qstage::boot::BootFlag;
use qstage::efi::{Name, Variable};
use qstage::engine::{Change, Engine};
use qstage::gpt::Copy;
use qstage::progress::Silent;
use qstage::units::{Group, Slot};
use tables::{Op, damages};
use uefi::scenes::play as play_efi;
use uefi::{Event, Uefi};

/// Compares with `fixtures/orders/NAME.txt`.
#[track_caller]
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/orders").join(name).with_extension("txt");
    if std::env::var_os("QSTAGE_RECORD").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differ = text.lines().zip(expected.lines()).position(|(got, expected)| got != expected);
    let line = differ.unwrap_or_else(|| text.lines().count().min(expected.lines().count()));
    assert!(
        text == expected,
        "{} differs from line {}:\n  got      {:?}\n  expected {:?}",
        path.display(),
        line + 1,
        text.lines().nth(line),
        expected.lines().nth(line)
    );
}

/// A scene as a paragraph.
fn paragraph(text: &mut String, title: &str, from: &str, lines: &[String]) {
    let from = if from.is_empty() { "from the factory".to_owned() } else { format!("after '{from}'") };
    writeln!(text, "{title} ({from})").unwrap();
    if lines.is_empty() {
        writeln!(text, "  nothing").unwrap();
    }
    lines.iter().for_each(|line| writeln!(text, "  {line}").unwrap());
    text.push('\n');
}

fn disk(ops: &[Op]) -> Vec<MachineEvent> {
    ops.iter().cloned().map(MachineEvent::Disk).collect()
}

fn by_flags(name: &str, flag: BootFlag) {
    let mut text = String::new();
    let takes = play(&releases(), 512, flag, 1);
    for take in &takes {
        paragraph(&mut text, take.scene.name, take.scene.from, &acts(&take.before, 512, &disk(&take.ops)));
    }
    // A verb on a disk of which one part of the table is lost repairs that first.
    let take = takes.iter().find(|take| take.scene.name == "mark good").unwrap();
    for (lost, before) in damages(&take.before, 512) {
        let (_, ops) = recorded(&before, 512, take.scene.site, &Verb::MarkGood);
        paragraph(
            &mut text,
            &format!("mark good with {lost} lost"),
            take.scene.from,
            &acts(&before, 512, &disk(&ops)),
        );
    }
    // The repair that a user requests: what is beyond doubt, and by name. Its dry run says what is done.
    for (lost, before) in damages(&take.before, 512) {
        for from in [None, Some(Copy::Primary), Some(Copy::Backup)] {
            let repair = |dry: bool| {
                let tape = Tape::new(before.clone(), 512);
                let report = take.scene.site.engine(tape.clone(), |engine| engine.repair_table(from, dry));
                (report.ok(), tape.ops())
            };
            let ((dry, nothing), (done, ops)) = (repair(true), repair(false));
            assert!(nothing.is_empty() && dry.is_some() == done.is_some());
            let Some(report) = dry else { continue };
            covers("repair", &report.plan, &ops);
            let title = match from {
                None => format!("repair with {lost} lost"),
                Some(Copy::Primary) => format!("repair from the primary copy with {lost} lost"),
                Some(Copy::Backup) => format!("repair from the backup copy with {lost} lost"),
            };
            paragraph(&mut text, &title, take.scene.from, &acts(&before, 512, &disk(&ops)));
        }
    }
    golden(name, &text);
}

#[test]
fn the_orders_by_priority() {
    by_flags("priority", BootFlag::Priority);
}

#[test]
fn the_orders_by_legacy_flag() {
    by_flags("legacy", BootFlag::Legacy);
}

#[test]
fn the_orders_by_efi_variables() {
    let mut text = String::new();
    for take in play_efi(&releases()) {
        let lines = acts(&take.before.0, 512, &did(&take.events));
        paragraph(&mut text, take.scene.name, take.scene.from, &lines);
    }
    golden("efi", &text);
}

pub(super) fn did(events: &[Event]) -> Vec<MachineEvent> {
    let did = |event: &Event| match event {
        Event::Disk(op) => MachineEvent::Disk(op.clone()),
        Event::Set(name, value) => MachineEvent::Variable(variable(name, value.as_ref())),
    };
    events.iter().map(did).collect()
}

/// What a variable becomes, read from its bytes.
fn variable(name: &Name, value: Option<&Variable>) -> String {
    let Some(Variable { data, .. }) = value else { return format!("{name}: deleted") };
    if *name == Name::order() || *name == Name::next() {
        let numbers: Vec<String> =
            data.chunks_exact(2).map(|pair| format!("{:02X}{:02X}", pair[1], pair[0])).collect();
        return format!("{name}: {}", numbers.join(","));
    }
    let active = if data[0] & 1 == 1 { "active" } else { "not active" };
    let hard_drive = data.windows(4).position(|four| four == [4, 1, 42, 0]).unwrap();
    format!("{name}: {active}, partition GUID {:02x}", data[hard_drive + 24])
}

/// A scene as a value: the acts of its transition, and the writes that a dry run prints.
struct Planned {
    name: &'static str,
    acts: Vec<String>,
    writes: Vec<(u64, u64)>,
}

const OVER: &str = "prepare over a formerly good slot";

fn planned(name: &'static str, booted: Slot, verb: &Verb, engine: &Engine<'_>) -> Option<Planned> {
    let targets = [(Group::Platform, !booted), (Group::Software, !booted)];
    let change = verb.change().or_else(|| (name == OVER).then_some(Change::Withdraw(&targets)))?;
    let transition = engine.transition(&change).unwrap_or_else(|error| panic!("{name}: {error}"));
    let acts = transition.acts().iter().flat_map(|act| {
        let text = act.to_string();
        text.split(", ").map(str::to_owned).collect::<Vec<_>>()
    });
    let dry = engine.dry_run(&change).unwrap_or_else(|error| panic!("{name}: {error}"));
    let writes = dry.plan.iter().filter_map(|line| {
        let (range, rest) = line.strip_prefix("write LBA ")?.split_once(" (")?;
        let (first, last) = range.split_once('-')?;
        assert!(rest.contains("x 512 bytes"), "{line}");
        Some((first.parse().unwrap(), last.parse().unwrap()))
    });
    Some(Planned { name, acts: acts.collect(), writes: writes.collect() })
}

/// What a line of the reader says, without values and reasons.
fn brief(line: &str) -> String {
    let line = line.trim_end_matches(" |");
    match line.split_once(": ") {
        Some(("table", _)) => "table".to_owned(),
        Some((variable, _)) if variable.starts_with("Boot") => variable.to_owned(),
        _ => line.split(", '").next().unwrap_or(line).to_owned(),
    }
}

/// What is planned is a beginning of what was done: the whole of it, but for images.
#[track_caller]
fn done_is(planned: &Planned, acts: &[String], ops: &[Op]) {
    let mut did: Vec<String> = acts.iter().map(|line| brief(line)).collect();
    let end = did.iter().position(|line| line.contains("images") || line.contains("torn"));
    did.truncate(end.unwrap_or(did.len()));
    assert_eq!(planned.acts, did, "{}", planned.name);
    let writes: Vec<(u64, u64)> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Write(at, bytes) => Some((at / 512, (at + bytes.len() as u64) / 512 - 1)),
            Op::Sync => None,
        })
        .collect();
    let there = &writes[..planned.writes.len().min(writes.len())];
    assert!(end.is_some() || writes.len() == planned.writes.len(), "{}: {writes:?}", planned.name);
    assert_eq!(planned.writes, there, "{}", planned.name);
}

/// All scenes that are values, under each flag; each is compared with what reached the device when it was run.
fn all_planned() -> [Vec<Planned>; 3] {
    let by_flag = |flag| {
        let takes = play(&releases(), 512, flag, 1);
        let plan = takes.iter().filter_map(|take| {
            let (scene, disk_before) = (&take.scene, Tape::new(take.before.clone(), 512));
            let plan = scene
                .site
                .engine(disk_before, |engine| planned(scene.name, scene.site.booted, &scene.verb, engine))?;
            done_is(&plan, &acts(&take.before, 512, &disk(&take.ops)), &take.ops);
            Some(plan)
        });
        plan.collect()
    };
    let efi = play_efi(&releases()).into_iter().filter_map(|take| {
        let machine = Uefi::new(take.before.0.clone(), &take.before.1);
        let (name, booted) = (take.scene.name, take.scene.booted);
        let plan = machine.engine(booted, |engine| planned(name, booted, &take.scene.verb, engine))?;
        let ops = disk_ops(&take.events);
        done_is(&plan, &acts(&take.before.0, 512, &did(&take.events)), &ops);
        Some(plan)
    });
    [by_flag(BootFlag::Priority), by_flag(BootFlag::Legacy), efi.collect()]
}

/// What a dry run says is what is done, act by act and sector by sector; and SAFETY.md shows those very values.
#[test]
fn dry_runs_and_the_manual_say_what_is_done() {
    let all = all_planned();
    let mut names: Vec<&str> = all[0].iter().map(|planned| planned.name).collect();
    names.extend(all[1].iter().map(|planned| planned.name).filter(|name| name.contains("kexec")));
    let mut table =
        String::from("| scene | by priority | by legacy flag | by EFI variables |\n|---|---|---|---|\n");
    for name in names {
        let cell = |plans: &[Planned]| match plans.iter().find(|planned| planned.name == name) {
            Some(planned) if planned.acts.is_empty() => "nothing".to_owned(),
            Some(planned) => planned.acts.join(" → "),
            None => "-".to_owned(),
        };
        writeln!(table, "| {name} | {} | {} | {} |", cell(&all[0]), cell(&all[1]), cell(&all[2])).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/SAFETY.md");
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- printed by tests/power/orders.rs -->\n\n", "\n<!-- end of what is printed -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (shown, after) = rest.split_once(end).unwrap();
    if std::env::var_os("QSTAGE_RECORD").is_some() {
        fs::write(&path, [before, begin, &table, end, after].concat()).unwrap();
    } else {
        assert!(shown == table, "SAFETY.md shows other orders; QSTAGE_RECORD=1 prints them:\n{table}");
    }
}

/// The dry run of a prepare names every write, between the barriers at which it comes, and no act that is not done.
#[test]
fn a_dry_run_of_prepare_names_every_write() {
    let r = releases();
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        for take in play(&r, 512, flag, 1) {
            let (Verb::Prepare(bundle), site) = (&take.scene.verb, take.scene.site) else { continue };
            let tape = Tape::new(take.before.clone(), 512);
            let dry = |engine: &Engine<'_>| {
                engine.prepare_dry_run(&open(bundle).unwrap(), &site.options(), &Silent).unwrap()
            };
            let report = site.engine(tape.clone(), dry);
            assert!(tape.ops().is_empty() && report.dry_run, "{} writes", take.scene.name);
            covers(take.scene.name, &report.plan, &take.ops);
        }
    }
    for take in play_efi(&r) {
        let Verb::Prepare(bundle) = &take.scene.verb else { continue };
        let machine = Uefi::new(take.before.0.clone(), &take.before.1);
        let options = Site::new(take.scene.booted, BootFlag::Efi).options();
        let report = machine.engine(take.scene.booted, |engine| {
            engine.prepare_dry_run(&open(bundle).unwrap(), &options, &Silent).unwrap()
        });
        assert!(machine.events().is_empty(), "{} writes", take.scene.name);
        covers(take.scene.name, &report.plan, &disk_ops(&take.events));
        for event in &take.events {
            let Event::Set(name, _) = event else { continue };
            let named = report.plan.iter().any(|line| line.contains(&name.to_string()));
            assert!(named, "{}: {name} is set: {:#?}", take.scene.name, report.plan);
        }
    }
}

fn disk_ops(events: &[Event]) -> Vec<Op> {
    let op = |event: &Event| match event {
        Event::Disk(op) => Some(op.clone()),
        Event::Set(..) => None,
    };
    events.iter().filter_map(op).collect()
}

/// Each write lies in a range that is planned, not before an earlier barrier of the plan; and each planned range is written,
/// but for images and zeroes, which may be in place.
#[track_caller]
fn covers(name: &str, plan: &[String], ops: &[Op]) {
    let mut stages = vec![Vec::new()];
    for line in plan {
        if line == "barrier" {
            stages.push(Vec::new());
        } else if let Some((range, what)) =
            line.strip_prefix("write LBA ").and_then(|rest| rest.split_once(" ("))
        {
            let (first, last) = range.split_once('-').unwrap();
            let range: (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let optional = what.contains("not in place") || what.contains("zeroes");
            stages.last_mut().unwrap().push((range, optional, false));
        }
    }
    let mut at = 0;
    for op in ops {
        let Op::Write(from, bytes) = op else { continue };
        let (first, last) = (from / 512, (from + bytes.len() as u64) / 512 - 1);
        loop {
            let stage = stages.get_mut(at).unwrap_or_else(|| {
                panic!("{name}: the write of LBA {first}-{last} is not planned: {plan:#?}")
            });
            let found = stage.iter_mut().find(|((a, b), ..)| *a <= first && last <= *b);
            if let Some((_, _, written)) = found {
                *written = true;
                break;
            }
            at += 1;
        }
    }
    for (range, optional, written) in stages.into_iter().flatten() {
        assert!(written || optional, "{name}: {range:?} is planned and not written: {plan:#?}");
    }
}

/// The reader itself: it sees order, place and durability.
#[test]
fn another_order_is_another_text() {
    let takes = play(&releases(), 512, BootFlag::Priority, 1);
    let take = takes.iter().find(|take| take.scene.name == "prepare over a formerly good slot").unwrap();
    let read = |ops: &[Op]| acts(&take.before, 512, &disk(ops));
    let right = read(&take.ops);
    assert!(right.iter().all(|line| line.ends_with('|') || line.contains("record body")), "{right:#?}");
    for i in 1..take.ops.len() {
        let mut ops = take.ops.clone();
        ops.swap(i - 1, i);
        let both_flush = matches!((&take.ops[i - 1], &take.ops[i]), (Op::Sync, Op::Sync));
        let in_table = |op: &Op| {
            matches!(op, Op::Sync)
                || matches!(op, Op::Write(at, _) if *at < 65536 || *at >= take.before.len() as u64 - 65536)
        };
        // How the table is written is not in the text; nor is where in the images a flush comes.
        let inner = in_table(&ops[i - 1]) && in_table(&ops[i])
            || [&ops[i - 1], &ops[i]].iter().any(|op| matches!(op, Op::Sync));
        assert!(both_flush || inner || read(&ops) != right, "{i}: {:?}", &take.ops[i - 1..=i].len());
    }
}
