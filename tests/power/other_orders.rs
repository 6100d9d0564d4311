//! Other orders of our own acts, made by rule: each act of each scene left out, and each pair of neighbours swapped. The checks
//! of the cuts see it, or it is known why it does not matter. By priority, by the legacy flag and by EFI variables.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use qstage::boot::BootFlag;
use qstage::state::SlotReport;
use qstage::units::Slot;

use crate::harness::proof::acts::spans;
use crate::harness::proof::scenes::{Recording, Releases, play, releases};
use crate::harness::proof::{Tape, Verb};
use crate::harness::tables::Op;
use crate::harness::uefi::scenes::{Recording as EfiRecording, play as play_efi};
use crate::harness::uefi::{Event, Uefi, boot};
use crate::orders::did;

type Judge<'a> = dyn Fn(&[Event], bool) -> bool + 'a;
type End<'a> = dyn Fn(&[Event]) -> Vec<String> + 'a;

/// A scene whose acts are taken apart.
struct Case<'a> {
    scene: &'static str,
    verb: &'a Verb,
    before: &'a [u8],
    events: Vec<Event>,
    /// Whether the checks of the cuts find a wrong state; with `true` also whether the next steps end well.
    wrong: Box<Judge<'a>>,
    /// What is there once all of it is done.
    end: Box<End<'a>>,
}

fn by_flag<'a>(takes: &'a [Recording]) -> Vec<Case<'a>> {
    let case = |take: &'a Recording| -> Case<'a> {
        Case {
            scene: take.scene.name,
            verb: &take.scene.verb,
            before: &take.before,
            events: take.ops.iter().cloned().map(Event::Disk).collect(),
            wrong: Box::new(move |events, resume| !take.judge(512, &ops(events), resume).wrong.is_empty()),
            end: Box::new(move |events| {
                let disk = Tape::new(written(&take.before, events), 512);
                let slots = take.scene.site.engine(disk, |engine| engine.slots()).unwrap();
                slots.slots.iter().map(line).collect()
            }),
        }
    };
    takes.iter().map(case).collect()
}

fn by_variables<'a>(takes: &'a [EfiRecording], r: &'a Releases) -> Vec<Case<'a>> {
    let case = |take: &'a EfiRecording| -> Case<'a> {
        Case {
            scene: take.scene.name,
            verb: &take.scene.verb,
            before: &take.before.0,
            events: take.events.clone(),
            wrong: Box::new(move |events, resume| !take.judge(r, events, resume).wrong.is_empty()),
            end: Box::new(move |events| {
                let mut store = take.before.1.clone();
                for event in events {
                    match event {
                        Event::Set(name, Some(value)) => drop(store.insert(name.clone(), value.clone())),
                        Event::Set(name, None) => drop(store.remove(name)),
                        Event::Disk(_) => {}
                    }
                }
                // As it is, and after the next two boots, without a mark-good: a trial that fails and what it leaves.
                let disk = written(&take.before.0, events);
                let (first, once) = boot(&store);
                let (second, twice) = boot(&once);
                let mut lines = vec![format!("{first:?}, then {second:?}")];
                let then = |tried: &[Slot]| tried.first().copied().unwrap_or(take.scene.booted);
                for (booted, store) in
                    [(take.scene.booted, &store), (then(&first), &once), (then(&second), &twice)]
                {
                    let machine = Uefi::new(disk.clone(), store);
                    let slots = machine.engine(booted, |engine| engine.slots()).unwrap();
                    lines.extend(slots.slots.iter().map(line));
                }
                lines
            }),
        }
    };
    takes.iter().map(case).collect()
}

fn ops(events: &[Event]) -> Vec<Op> {
    let op = |event: &Event| match event {
        Event::Disk(op) => Some(op.clone()),
        Event::Set(..) => None,
    };
    events.iter().filter_map(op).collect()
}

/// The disk once all of it is on the medium.
fn written(before: &[u8], events: &[Event]) -> Vec<u8> {
    let mut image = before.to_vec();
    for op in ops(events) {
        if let Op::Write(at, bytes) = op {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
    }
    image
}

/// The state of a slot, and whether it boots next.
fn line(slot: &SlotReport) -> String {
    format!(
        "{} {} {:?} {} {} {:?}",
        slot.group, slot.slot, slot.state, slot.boots_next, slot.tries, slot.reason
    )
}

const OVER: &str = "prepare over a formerly good slot";

/// Runs the mutants of these scenes. Each is noticed, or listed: (scene, mutant, reason).
#[track_caller]
fn caught_or_harmless(cases: Vec<Case<'_>>, list: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    let mut known: Vec<bool> = vec![false; list.len()];
    let (mut caught, mut harmless) = (0, 0);
    for case in cases {
        let prepares = matches!(case.verb, Verb::Prepare(_));
        if prepares && case.scene != OVER {
            continue;
        }
        let mut events = case.events;
        if prepares {
            // Up to its first frames; what comes after them is mutated by hand, in mutants.rs.
            let all = spans(case.before, 512, &did(&events));
            let images = all.iter().find(|(line, _)| line.starts_with("images")).unwrap();
            events.truncate(images.1.start + 6);
        }
        let acts = spans(case.before, 512, &did(&events));
        let name = |i: usize| acts[i].0.split([':', '|']).next().unwrap_or("").trim().to_owned();
        let of = |order: &[usize]| -> Vec<Event> {
            order.iter().flat_map(|&i| events[acts[i].1.clone()].to_vec()).collect()
        };
        let right: Vec<usize> = (0..acts.len()).collect();
        let mut mutants: Vec<(String, Vec<usize>)> = Vec::new();
        for i in 0..acts.len() {
            mutants.push((format!("without {}", name(i)), [&right[..i], &right[i + 1..]].concat()));
            if i > 0 {
                let mut swapped = right.clone();
                swapped.swap(i - 1, i);
                mutants.push((format!("{} before {}", name(i), name(i - 1)), swapped));
            }
        }
        let end = (case.end)(&events);
        for (what, order) in mutants {
            let events = of(&order);
            let is = |known: &(&str, &str, &str)| known.1 == what && ["*", case.scene].contains(&known.0);
            let listed = list.iter().position(is);
            let seen = (case.end)(&events) != end
                || (case.wrong)(&events, false)
                || !prepares && (case.wrong)(&events, true);
            match (seen, listed) {
                (true, None) => caught += 1,
                (false, Some(at)) => (harmless, known[at]) = (harmless + 1, true),
                (true, Some(at)) if list[at].0 == "*" => caught += 1,
                (true, Some(_)) => {
                    wrong.push(format!("listed as harmless, but caught: {} / {what}", case.scene))
                }
                (false, None) => wrong.push(format!("not noticed: {} / {what}", case.scene)),
            }
        }
    }
    println!("{caught} orders caught, {harmless} harmless");
    let stale = list.iter().zip(known).filter(|(_, known)| !known);
    wrong.extend(stale.map(|((scene, mutant, _), _)| format!("there is no such mutant: {scene} / {mutant}")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Orders by priority that could be others, and why that is harmless.
const BY_PRIORITY: &[(&str, &str, &str)] = &[
    ("*", "footer of software_b before footer of platform_b", HALF),
    (OVER, "footer of software_a before footer of platform_a", HALF),
    (OVER, "without images of platform_a and software_a", ZEROES),
    (OVER, "images of platform_a and software_a before footer of software_a", ZEROES),
    ("*", "mark of software_b before mark of platform_b", BOTH),
    ("raise the floor", "without mark of platform_b", FLOOR),
    ("raise the floor", "without mark of software_b", FLOOR),
    ("raise the floor", "without mark of platform_a", FLOOR),
    ("raise the floor", "without mark of software_a", FLOOR),
    ("raise the floor", "mark of platform_a before mark of software_b", FLOOR),
    ("raise the floor", "mark of software_a before mark of platform_a", FLOOR),
    ("raise the floor", "table before mark of software_a", FLOOR),
    (OVER, "mark of software_a before mark of platform_a", BOTH),
    ("mark good", "without mark of platform_b", FLAG),
    ("mark good", "without mark of software_b", FLAG),
    ("mark good", "table before mark of software_b", FLAG),
    ("good on the last try", "without mark of platform_b", FLAG),
    ("good on the last try", "without mark of software_b", FLAG),
    ("good on the last try", "table before mark of software_b", FLAG),
    ("mark software good", "without mark of software_a", FLAG),
    ("mark software good", "table before mark of software_a", FLAG),
    ("a container is healthy", "without mark of software_a", FLAG),
    ("a container is healthy", "table before mark of software_a", FLAG),
    ("a container fails its last try", "without table", SPENT),
    ("lend a prepared slot", "without images of platform_b", MEASURED),
    ("lend a formerly good slot", "without images of platform_a", MEASURED),
];

const ZEROES: &str = "what comes first is zeroes between and behind the images, which no record vouches for";
const FLOOR: &str = "it says good, as its flag does, and the epoch, of which the highest of all marks counts";
const HALF: &str = "one of a pair without the other is not committed";
const BOTH: &str = "what both marks stand for comes after both, in one transaction";
const FLAG: &str = "by priority a flag says that it is good; the mark says it to loaders and selectors that know no such flag";

/// The same by the legacy flag.
const BY_LEGACY_FLAG: &[(&str, &str, &str)] = &[
    ("*", "footer of software_b before footer of platform_b", HALF),
    ("*", "mark of software_b before mark of platform_b", BOTH),
    ("mark good", "without mark of software_b", SOFTWARE),
    ("mark good", "table before mark of software_b", SOFTWARE),
    ("raise the floor", "without mark of software_b", FLOOR),
    ("raise the floor", "without mark of platform_a", FLOOR),
    ("raise the floor", "without mark of software_a", FLOOR),
    ("raise the floor", "mark of platform_a before mark of software_b", FLOOR),
    ("raise the floor", "mark of software_a before mark of platform_a", FLOOR),
    ("raise the floor", "table before mark of software_a", FLOOR),
    (OVER, "without mark of platform_a", STILL_GOOD),
    (OVER, "mark of software_a before mark of platform_a", BOTH),
    (OVER, "footer of platform_a before table", NOT_FLAGGED),
    (OVER, "footer of software_a before footer of platform_a", HALF),
    (OVER, "without images of platform_a and software_a", ZEROES),
    (OVER, "images of platform_a and software_a before footer of software_a", ZEROES),
    ("mark software good", "without mark of software_a", SOFTWARE),
    ("mark software good", "table before mark of software_a", SOFTWARE),
    ("a container is healthy", "without mark of software_a", SOFTWARE),
    ("a container is healthy", "table before mark of software_a", SOFTWARE),
    ("a container fails its last try", "without table", SPENT),
    ("lend a prepared slot", "without images of platform_b", MEASURED),
    ("lend a formerly good slot", "without mark of platform_a", STILL_GOOD),
    ("lend a formerly good slot", "footer of platform_a before mark of platform_a", NOT_FLAGGED),
    ("lend a formerly good slot", "without images of platform_a", MEASURED),
    ("try by kexec", "mark of platform_b before mark of software_b", NOT_BEGUN),
    ("good after a kexec", "without mark of software_b", SOFTWARE),
];

const SOFTWARE: &str = "software goes by priority, and a flag says that it is good";
const STILL_GOOD: &str =
    "its mark says good, which it is until its footer goes; what looks prepared has no mark";
const NOT_FLAGGED: &str =
    "no flag and no variable selects the platform slot by then; what is left concerns the software";
const SPENT: &str = "its flags let it boot no more; the next prepare settles the rest";
const MEASURED: &str = "a measurement is no act";
const NOT_BEGUN: &str = "the kernel is started after both marks; one alone is a trial that did not begin";

/// The same by EFI variables.
const BY_VARIABLES: &[(&str, &str, &str)] = &[
    ("*", "footer of software_b before footer of platform_b", HALF),
    ("*", "mark of software_b before mark of platform_b", BOTH),
    ("commit", "Boot0003 before table", UNNAMED),
    ("cancel committed", "without Boot0003", UNNAMED),
    ("cancel committed", "Boot0003 before BootNext", UNNAMED),
    ("cancel committed", "table before Boot0003", UNNAMED),
    ("cancel committed", "footer of platform_b before table", NOT_FLAGGED),
    ("mark good", "table before BootOrder", FOLLOWS),
    ("mark good", "mark of platform_b before table", FOLLOWS),
    ("mark good", "without mark of software_b", SOFTWARE),
    ("roll back a trial", "without Boot0003", UNNAMED),
    ("roll back a trial", "Boot0003 before mark of software_b", UNNAMED),
    ("roll back a trial", "table before Boot0003", UNNAMED),
    (OVER, "without mark of platform_a", STILL_GOOD),
    (OVER, "mark of software_a before mark of platform_a", BOTH),
    (OVER, "without BootOrder", EITHER),
    (OVER, "BootOrder before mark of software_a", STILL_GOOD),
    (OVER, "without Boot0002", EITHER),
    (OVER, "Boot0002 before BootOrder", EITHER),
    (OVER, "table before Boot0002", FOLLOWS),
    (OVER, "footer of platform_a before table", NOT_FLAGGED),
    (OVER, "footer of software_a before footer of platform_a", HALF),
    (OVER, "without images of platform_a and software_a", ZEROES),
    (OVER, "images of platform_a and software_a before footer of software_a", ZEROES),
    ("roll back a good slot", "without table", FOLLOWS),
    ("roll back a good slot", "table before BootOrder", FOLLOWS),
    ("stay after all", "without table", FOLLOWS),
    ("stay after all", "table before BootOrder", FOLLOWS),
    ("settle a fallback", "without mark of platform_b", TRYING),
    ("settle a fallback", "without Boot0003", UNNAMED),
    ("settle a fallback", "Boot0003 before mark of software_b", UNNAMED),
    ("settle a fallback", "table before Boot0003", UNNAMED),
    ("a container is healthy", "without mark of software_a", SOFTWARE),
    ("a container is healthy", "table before mark of software_a", SOFTWARE),
    ("lend a formerly good slot", "without mark of platform_a", STILL_GOOD),
    ("lend a formerly good slot", "without BootOrder", EITHER),
    ("lend a formerly good slot", "BootOrder before mark of platform_a", STILL_GOOD),
    ("lend a formerly good slot", "without Boot0002", EITHER),
    ("lend a formerly good slot", "Boot0002 before BootOrder", EITHER),
    ("lend a formerly good slot", "footer of platform_a before Boot0002", EITHER),
    ("lend a formerly good slot", "without images of platform_a", MEASURED),
    ("lend a formerly good slot", "images of platform_a before footer of platform_a", MEASURED),
];

const UNNAMED: &str = "BootOrder does not name the entry, so the UEFI does not start it; that it is inactive is a second safeguard";
const EITHER: &str =
    "an entry is started if it is active and BootOrder names it; either of both acts rules it out";
const FOLLOWS: &str = "the table has the flags of the software alone, and software follows its platform";
const TRYING: &str = "the mark of its trial rules it out already, with the same reason";

#[test]
fn every_other_order_by_priority() {
    let takes = play(&releases(), 512, BootFlag::Priority, 1);
    caught_or_harmless(by_flag(&takes), BY_PRIORITY);
}

#[test]
fn every_other_order_by_legacy_flag() {
    let takes = play(&releases(), 512, BootFlag::Legacy, 1);
    caught_or_harmless(by_flag(&takes), BY_LEGACY_FLAG);
}

#[test]
fn every_other_order_by_efi_variables() {
    let r = releases();
    let takes = play_efi(&r);
    caught_or_harmless(by_variables(&takes, &r), BY_VARIABLES);
}
