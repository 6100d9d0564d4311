//! Every cut of a whole upgrade. The writes and flushes of each verb are recorded on a small but complete disk; the
//! disk is rebuilt as every possible cut leaves it; and for each such state: a table can be read, exactly the old or
//! exactly the new slot boots and holds what its record says, nothing else changed, the engine calls prepared only what
//! is, and the next step runs to its end.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod gpt_common;
mod proof_common;

use std::sync::Arc;

use gpt_common::{Op, Reader};
use proof_common::cuts::{Choice, Report, Rules, each_state, judge};
use proof_common::{Release, SLOTS, Says, Site, Tape, Verb, boots, factory, holds, record};
use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::gpt::Attributes;
use qstage::gpt::layout::{self, NewPartition};
use qstage::host::DiskLock;
use qstage::progress::{Cancel, Silent};
use qstage::units::Slot::{self, A, B};
use qstage::units::{Guid, MIB};
use qstage::{commit, init};

const AA: Choice = (Some('a'), Some('a'));
const AB: Choice = (Some('a'), Some('b'));
const BA: Choice = (Some('b'), Some('a'));
const BB: Choice = (Some('b'), Some('b'));
/// Frames of a platform image.
const FRAMES: usize = 96;

/// The releases of the proofs, packed once.
struct Releases {
    v1: Arc<Vec<u8>>,
    v2: Arc<Vec<u8>>,
    /// The platform of 2.0 with other software.
    v21: Arc<Vec<u8>>,
    v3: Arc<Vec<u8>>,
}

fn releases() -> Releases {
    let v2 = Release::new("2.0", 20, FRAMES);
    let v21 = Release { version: "2.1", software: Some(proof_common::noise(77, 40_000)), ..v2.clone() };
    Releases {
        v1: Release::new("1.0", 10, FRAMES).pack(),
        v2: v2.pack(),
        v21: v21.pack(),
        v3: Release::new("3.0", 30, FRAMES + 9).pack(),
    }
}

/// Runs a verb on a disk; what the disk holds then, and what reached it.
fn recorded(image: &[u8], block: u32, site: Site, verb: &Verb) -> (Vec<u8>, Vec<Op>) {
    let tape = Tape::new(image.to_vec(), block);
    site.run(tape.clone(), verb).unwrap_or_else(|error| panic!("{verb:?}: {error}"));
    (tape.memory.snapshot(), tape.ops())
}

/// Runs verbs one after another on a disk; those that say that there is nothing left to do are content.
fn follow(disk: Arc<dyn BlockDevice>, block: u32, steps: &[(Site, Verb)], end: Choice) -> Result<(), String> {
    for (site, verb) in steps {
        // Going back twice is going forth again: who repeats it looks first whether it was done.
        if matches!(verb, Verb::RollBack)
            && boots(&bytes_of(&*disk), block, site.flag, Reader::Strict) == Some(end)
        {
            continue;
        }
        match site.run(Arc::clone(&disk), verb) {
            Ok(()) => {}
            Err(error) => {
                let done = match verb {
                    Verb::Commit => error.to_string().contains("already committed"),
                    Verb::Cancel => error.code() == "UPGRADE_ERROR_NOTHING_TO_CANCEL",
                    Verb::RollBack | Verb::MarkGood | Verb::Prepare(_) => false,
                };
                if !done {
                    let verb = format!("{verb:?}");
                    return Err(format!("{} fails: {error}", verb.split('(').next().unwrap_or("")));
                }
            }
        }
    }
    Ok(())
}

fn bytes_of(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, qstage::units::ByteOffset(0)).unwrap();
    bytes
}

/// Follows the steps and looks at the end: what boots, and that both copies of the table say it.
fn to_the_end(
    disk: Arc<Tape>,
    block: u32,
    steps: &[(Site, Verb)],
    back: Choice,
    end: Choice,
) -> Result<(), String> {
    follow(disk.clone(), block, steps, back)?;
    let image = disk.memory.snapshot();
    for reader in [Reader::Fallback, Reader::Strict, Reader::Lenient] {
        let got = boots(&image, block, steps[0].0.flag, reader);
        if got != Some(end) {
            return Err(format!("{reader:?} boots {got:?} in the end, not {end:?}"));
        }
    }
    Ok(())
}

/// One verb of the whole upgrade, and what must hold while it is cut.
struct Scene {
    name: &'static str,
    site: Site,
    verb: Verb,
    choices: Vec<Choice>,
    prepared: Vec<&'static str>,
    targets: Vec<&'static str>,
    marked: Vec<&'static str>,
    next: Vec<(Site, Verb)>,
    end: Choice,
    /// The names of the scene before it; the first has none and starts from the factory.
    from: &'static str,
}

/// All scenes, each after the one that it starts from.
fn scenes(r: &Releases, at: impl Fn(Slot) -> Site) -> Vec<Scene> {
    let (v2, v21, v3) =
        (|| Verb::Prepare(r.v2.clone()), || Verb::Prepare(r.v21.clone()), || Verb::Prepare(r.v3.clone()));
    let (a, b) = (at(A), at(B));
    let scene = |name, from, site, verb, choices: &[Choice], next: &[(Site, Verb)], end| Scene {
        name,
        from,
        site,
        verb,
        choices: choices.to_vec(),
        prepared: vec![],
        targets: vec![],
        marked: vec![],
        next: next.to_vec(),
        end,
    };
    use Verb::{Cancel, Commit, MarkGood, RollBack};
    let good_b = [(a, Commit), (b, MarkGood)];
    vec![
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene("prepare", "", a, v2(), &[AA], &[(a, v2()), (a, Commit), (b, MarkGood)], BB)
        },
        Scene {
            prepared: vec!["2.0", "3.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "prepare another",
                "prepare",
                a,
                v3(),
                &[AA],
                &[(a, v3()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "cancel prepared",
                "prepare",
                a,
                Cancel,
                &[AA],
                &[(a, Cancel), (a, v2()), (a, Commit)],
                BB,
            )
        },
        Scene { prepared: vec!["2.0"], ..scene("commit", "prepare", a, Commit, &[AA, BB], &good_b, BB) },
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "cancel committed",
                "commit",
                a,
                Cancel,
                &[BB, AA],
                &[(a, Cancel), (a, v2()), (a, Commit)],
                BB,
            )
        },
        Scene {
            marked: vec!["platform_b", "software_b"],
            ..scene("mark good", "commit", b, MarkGood, &[BB], &[(b, MarkGood)], BB)
        },
        Scene {
            marked: vec!["platform_b", "software_b"],
            ..scene(
                "roll back a trial",
                "commit",
                b,
                RollBack,
                &[BB, AA],
                &[(b, RollBack), (a, v3()), (a, Commit)],
                BB,
            )
        },
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "prepare over a bad slot",
                "roll back a trial",
                a,
                v3(),
                &[AA],
                &[(a, v3()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_a", "software_a"],
            ..scene(
                "prepare over a formerly good slot",
                "mark good",
                b,
                v3(),
                &[BB],
                &[(b, v3()), (b, Commit), (a, MarkGood)],
                AA,
            )
        },
        scene("roll back a good slot", "mark good", b, RollBack, &[BB, AA], &[(b, RollBack)], AA),
        // The platform slot that the next boot would have taken is the target: its flags must go first.
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_a", "software_b"],
            ..scene(
                WAITING,
                "roll back a good slot",
                b,
                v3(),
                &[AA, BA],
                &[(b, v3()), (b, Commit), (a, MarkGood)],
                AB,
            )
        },
        Scene {
            prepared: vec!["2.1"],
            targets: vec!["software_a"],
            ..scene(
                "prepare software",
                "mark good",
                b,
                v21(),
                &[BB],
                &[(b, v21()), (b, Commit), (b, MarkGood)],
                BA,
            )
        },
        Scene {
            prepared: vec!["2.1"],
            ..scene(
                "commit software",
                "prepare software",
                b,
                Commit,
                &[BB, BA],
                &[(b, Commit), (b, MarkGood)],
                BA,
            )
        },
        Scene {
            marked: vec!["software_a"],
            ..scene("mark software good", "commit software", b, MarkGood, &[BA], &[(b, MarkGood)], BA)
        },
        Scene {
            marked: vec!["software_a"],
            ..scene("roll back software", "commit software", b, RollBack, &[BA, BB], &[(b, RollBack)], BB)
        },
    ]
}

/// Not possible under the legacy flag: the only slot that boots is refused as a target.
const WAITING: &str = "prepare into the slot that waits for its reboot";

/// A scene that is recorded, with the disk before it.
struct Take {
    scene: Scene,
    before: Vec<u8>,
    ops: Vec<Op>,
}

/// Plays all scenes.
fn play(r: &Releases, block: u32, flag: BootFlag, jobs: usize) -> Vec<Take> {
    let mut after = std::collections::HashMap::from([("", factory(block, flag, &r.v1))]);
    let at = |booted| Site { jobs, ..Site::new(booted, flag) };
    let mut takes = Vec::new();
    for scene in scenes(r, at) {
        if scene.name == WAITING && flag == BootFlag::Legacy {
            continue;
        }
        let before = after[scene.from].clone();
        let (image, ops) = recorded(&before, block, scene.site, &scene.verb);
        after.insert(scene.name, image);
        takes.push(Take { scene, before, ops });
    }
    takes
}

impl Take {
    fn judge(&self, block: u32, ops: &[Op], resume: bool) -> Report {
        let next = |disk: Arc<Tape>| {
            let back = self.scene.choices.last().copied().unwrap_or(self.scene.end);
            to_the_end(disk, block, &self.scene.next, back, self.scene.end)
        };
        let rules = Rules {
            block,
            site: self.scene.site,
            choices: self.scene.choices.clone(),
            prepared: self.scene.prepared.clone(),
            targets: self.scene.targets.clone(),
            marked: self.scene.marked.clone(),
            readers: vec![Reader::Fallback, Reader::Strict, Reader::Lenient],
            thorough: std::env::var_os("QSTAGE_PROOF").is_some(),
            next: if resume { Some(&next) } else { None },
        };
        judge(&self.before, ops, &rules)
    }
}

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
        let last = take.before.len() - 512;
        // The header, the array that it names, the backup header, the backup array.
        let array = u64::from_le_bytes(take.before[512 + 72..512 + 80].try_into().unwrap()) as usize * 512;
        for (what, at) in
            [("header", 512), ("array", array), ("backup header", last), ("backup array", last - 16384)]
        {
            let mut before = take.before.clone();
            before[at..at + 512].fill(0x5a);
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
    let blank = proof_common::spec(512).image();
    let tape = Tape::new(blank.clone(), 512);
    let machine = proof_common::Bench(tape.clone());
    let (lock, flag) = (DiskLock::new(()), BootFlag::Priority);
    let bundle = proof_common::open(&r.v1).unwrap();
    init::install(&machine, &lock, &bundle, flag, &Silent, &Cancel::default()).unwrap();
    let mut ops = tape.ops();
    // Bit 2 is set too at the factory, which foreign_intact takes for foreign under `priority`; it is not judged here.
    let states = each_state(&blank, 512, &ops, |state| {
        let choice = boots(state, 512, flag, Reader::Strict);
        assert!(matches!(choice, Some((None, None) | AA)), "{choice:?}");
        for (name, group) in [("platform_a", "platform"), ("software_a", "software")] {
            let slot = &state[proof_common::extent(state, 512, name)];
            let Says::Whole(manifest) = record(slot) else {
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

/// The judge must see what it is for: the same checks over wrong orders of our own writes.
#[test]
fn mutants_are_caught() {
    let takes = play(&releases(), 512, BootFlag::Priority, 1);
    let find = |name: &str| takes.iter().find(|take| take.scene.name == name).unwrap();
    let footer = |take: &Take, name: &str| proof_common::extent(&take.before, 512, name).end as u64 - 4096;
    let is_at = |op: &Op, at: u64| matches!(op, Op::Write(to, _) if *to == at);
    let in_table = |op: &Op| matches!(op, Op::Write(at, _) if *at < 65536 || *at > 5 * 1_200_000);
    // Positions of the writes to the footer of a slot: torn, then whole.
    let footers = |take: &Take, name: &str| -> Vec<usize> {
        let at = footer(take, name);
        (0..take.ops.len()).filter(|&i| is_at(&take.ops[i], at)).collect()
    };
    let without = |take: &Take, drop: &dyn Fn(usize, &Op) -> bool| -> Vec<Op> {
        take.ops.iter().enumerate().filter(|(i, op)| !drop(*i, op)).map(|(_, op)| op.clone()).collect()
    };
    // Body and footer of the record to the front, behind the void. The footer alone would be harmless: the CRC of the
    // body, which is not there yet, binds both.
    let early = |take: &Take, torn: usize, whole: usize| {
        let mut ops = take.ops.clone();
        let footer = ops.remove(whole);
        let body = ops.remove(whole - 3);
        ops.splice(torn + 2..torn + 2, [body, footer]);
        ops
    };
    let (again, over, commit, waiting) =
        (find("prepare another"), find("prepare over a formerly good slot"), find("commit"), find(WAITING));
    let (cancel, back) = (find("cancel committed"), find("roll back a trial"));
    let (b, a) = (footers(again, "platform_b"), footers(over, "platform_a"));
    assert_eq!((b.len(), a.len()), (2, 2));
    let sync = |op: &Op| matches!(op, Op::Sync);
    let mutants: Vec<(&str, &Take, Vec<Op>)> = vec![
        ("the void is skipped", again, without(again, &|i, _| i == b[0])),
        ("no flush after the void", again, without(again, &|i, op| i > b[0] && i < b[0] + 4 && sync(op))),
        ("the record comes early", again, early(again, b[0], b[1])),
        (
            "no flush between frames and footer",
            again,
            without(again, &|i, op| i > b[0] + 4 && i < b[1] && sync(op)),
        ),
        ("no flush at all", again, without(again, &|_, op| sync(op))),
        ("the old slot is not marked", over, without(over, &|i, _| i < 4)),
        ("the record comes early, over a good slot", over, early(over, a[0], a[1])),
        ("the target stays bootable", waiting, without(waiting, &|_, op| in_table(op))),
        ("header before array", commit, {
            let mut ops = commit.ops.clone();
            ops.swap(0, 2);
            ops
        }),
        ("no flush between array and header", commit, without(commit, &|i, _| i == 1)),
        ("no flush between header and backup", commit, without(commit, &|i, op| i > 1 && sync(op))),
        ("the array over the current one", commit, {
            let mut ops = commit.ops.clone();
            let current = u64::from_le_bytes(commit.before[512 + 72..512 + 80].try_into().unwrap()) * 512;
            if let Op::Write(at, _) = &mut ops[0] {
                *at = current;
            }
            ops
        }),
        ("records discarded before the flags", cancel, {
            let split = cancel.ops.iter().rposition(in_table).unwrap() + 2;
            [&cancel.ops[split..], &cancel.ops[..split]].concat()
        }),
        ("flags before the mark", back, {
            let split = back.ops.iter().position(in_table).unwrap();
            [&back.ops[split..], &back.ops[..split]].concat()
        }),
    ];
    for take in [again, over, commit, waiting, cancel, back] {
        assert!(take.judge(512, &take.ops, false).wrong.is_empty());
    }
    for (name, take, ops) in mutants {
        let report = take.judge(512, &ops, false);
        println!("mutant '{name}': {} states, wrong {:?}", report.states, report.wrong);
        assert!(!report.wrong.is_empty(), "'{name}' was not noticed");
    }
}
