//! Tests of the proof itself: wrong orders of our own writes must fail the checks of cuts.rs, and other programs must read
//! its states as our reader does.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;

use std::process::Command;

use proof::cuts::each_state;
use proof::scenes::{Recording, play, releases};
use qstage::boot::BootFlag;
use tables::{Op, Reader};

/// The judge must see what it is for: the same checks over wrong orders of our own writes.
#[test]
fn mutants_are_caught() {
    let takes = play(&releases(), 512, BootFlag::Priority, 1);
    let find = |name: &str| takes.iter().find(|take| take.scene.name == name).unwrap();
    let footer = |take: &Recording, name: &str| proof::extent(&take.before, 512, name).end as u64 - 4096;
    let is_at = |op: &Op, at: u64| matches!(op, Op::Write(to, _) if *to == at);
    let tail = takes[0].before.len() as u64 - 65536;
    let in_table = |op: &Op| matches!(op, Op::Write(at, _) if *at < 65536 || *at >= tail);
    // Positions of the writes to the footer of a slot: torn, then whole.
    let footers = |take: &Recording, name: &str| -> Vec<usize> {
        let at = footer(take, name);
        (0..take.ops.len()).filter(|&i| is_at(&take.ops[i], at)).collect()
    };
    let without = |take: &Recording, drop: &dyn Fn(usize, &Op) -> bool| -> Vec<Op> {
        take.ops.iter().enumerate().filter(|(i, op)| !drop(*i, op)).map(|(_, op)| op.clone()).collect()
    };
    // Body and footer of the record to the front, after the void. The footer alone would be harmless: the CRC of the
    // body, which is not there yet, binds both.
    let early = |take: &Recording, torn: usize, whole: usize| {
        let mut ops = take.ops.clone();
        let footer = ops.remove(whole);
        let body = ops.remove(whole - 3);
        ops.splice(torn + 2..torn + 2, [body, footer]);
        ops
    };
    let (again, over, commit) =
        (find("prepare another"), find("prepare over a formerly good slot"), find("commit"));
    let settle = find("settle a fallback");
    let (cancel, back) = (find("cancel committed"), find("roll back a trial"));
    let (b, a) = (footers(again, "platform_b"), footers(over, "platform_a"));
    assert_eq!((b.len(), a.len()), (2, 2));
    let sync = |op: &Op| matches!(op, Op::Sync);
    let mutants: Vec<(&str, &Recording, Vec<Op>)> = vec![
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
        // It is not what boots, but what would boot if the running slot did not.
        ("the target stays bootable", over, without(over, &|_, op| in_table(op))),
        ("header before array", commit, {
            let mut ops = commit.ops.clone();
            ops.swap(0, 2);
            ops
        }),
        ("no flush between array and header", commit, without(commit, &|i, _| i == 1)),
        // Between header and backup a flush is needed only where a cut can tear a sector; gpt_cuts.rs shows that.
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
        ("a fallback is settled before its mark", settle, {
            let split = settle.ops.iter().position(in_table).unwrap();
            [&settle.ops[split..], &settle.ops[..split]].concat()
        }),
        ("flags before the mark", back, {
            let split = back.ops.iter().position(in_table).unwrap();
            [&back.ops[split..], &back.ops[..split]].concat()
        }),
    ];
    for take in [again, over, commit, settle, cancel, back] {
        assert!(take.judge(512, &take.ops, false).wrong.is_empty());
    }
    for (name, take, ops) in mutants {
        let report = take.judge(512, &ops, false);
        println!("mutant '{name}': {} states, wrong {:?}", report.states, report.wrong);
        assert!(!report.wrong.is_empty(), "'{name}' was not noticed");
    }
}

/// A selector and a commit without claims, which see zeroes where others have their bytes: it is noticed that they write
/// over those. With claims they leave them alone, and the selector starts a slot all the same.
#[test]
fn verbs_without_claims_are_caught() {
    let takes = play(&releases(), 512, BootFlag::Priority, 1);
    let before = |name: &str| {
        let take = takes.iter().find(|take| take.scene.name == name).unwrap();
        (take.before.clone(), take.scene.site)
    };
    // On trial: the selector counts a try by the same transaction as every switch.
    let (trial, site) = before("mark good");
    let last = trial.len() - 512;
    let spare = 65536 - 16384..65536;
    let cases = [
        ("select", proof::Verb::Select, &trial, site, spare.clone()),
        (
            "select, a stranger in place of the backup header",
            proof::Verb::Select,
            &trial,
            site,
            last..last + 512,
        ),
        ("mark good", proof::Verb::MarkGood, &trial, site, spare),
    ];
    for (name, verb, disk, site, strangers) in cases {
        let ops = |byte: u8| {
            let mut image = disk.clone();
            image[strangers.clone()].fill(byte);
            let tape = proof::Tape::new(image, 512);
            (site.run(tape.clone(), &verb), tape.ops())
        };
        let touched = |ops: &[Op]| {
            let inside =
                |at: u64, len: usize| (at as usize) < strangers.end && strangers.start < at as usize + len;
            ops.iter().any(|op| matches!(op, Op::Write(at, bytes) if inside(*at, bytes.len())))
        };
        let (done, ours) = ops(0x5c);
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!touched(&ours), "{name} writes over a stranger");
        assert!(touched(&ops(0).1), "'{name}' without claims was not noticed");
    }
}

/// What others see in the states of a cut switch: every reader that finds a table finds the flags that our reader finds.
#[test]
fn other_programs_see_the_same_table_in_every_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let file = path.to_str().unwrap();
    let judge = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error}; see scripts/test for its package"));
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let numbers = [("platform_a", "1"), ("platform_b", "2"), ("software_a", "5"), ("software_b", "6")];
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        let (mut seen, mut clean) = (std::collections::HashSet::new(), 0);
        for take in play(&releases(), 512, flag, 1) {
            if !["commit", "roll back a trial"].contains(&take.scene.name) {
                continue;
            }
            each_state(&take.before, 512, &take.ops, |state| {
                let ours = tables::flags(state, 512, Reader::Fallback).unwrap();
                // One state for each table and each way in which a copy is torn, as far as the readers care.
                let copies =
                    [Reader::Strict, Reader::Lenient].map(|r| tables::flags(state, 512, r).is_some());
                let backup = crc32fast::hash(&state[state.len() - 512..]);
                let mut key: Vec<_> = ours.iter().map(|(name, bits)| format!("{name} {bits}")).collect();
                key.sort();
                if !seen.insert((key, copies, backup, take.scene.name)) {
                    return;
                }
                std::fs::write(&path, state).unwrap();
                let (_, sfdisk) = judge("/usr/sbin/sfdisk", &["--json", file]);
                let json = &sfdisk[sfdisk.find('{').unwrap()..=sfdisk.rfind('}').unwrap()];
                let json: serde_json::Value = serde_json::from_str(json).unwrap();
                for (name, number) in numbers {
                    let bits = ours[name];
                    let (ok, text) = judge("/usr/sbin/sgdisk", &["-i", number, file]);
                    assert!(
                        ok && text.contains(&format!("Attribute flags: {bits:016X}")),
                        "{bits:x}: {text}"
                    );
                    let rows = json["partitiontable"]["partitions"].as_array().unwrap();
                    let row = rows.iter().find(|row| row["name"] == name).unwrap();
                    assert_eq!(sfdisk_bits(row["attrs"].as_str().unwrap_or("")), bits, "{row}");
                    for (field, shift, mask) in [("-P", 48, 15), ("-T", 52, 15), ("-S", 56, 1)] {
                        let (ok, text) = judge("/usr/bin/cgpt", &["show", "-i", number, field, file]);
                        // It also says where a copy is torn.
                        let got = text.lines().find_map(|line| line.trim().parse::<u64>().ok());
                        assert!(ok && got == Some(bits >> shift & mask), "cgpt {field}: {text}");
                    }
                }
                let open = gpt::GptConfig::new().writable(false).only_valid_headers(false);
                let crate_sees = open.open(&path).unwrap();
                for part in crate_sees.partitions().values() {
                    assert_eq!(ours.get(&part.name), Some(&part.flags), "the gpt crate");
                }
                let (ok, text) = judge("/usr/sbin/sgdisk", &["--verify", file]);
                if ok && text.contains("No problems found") {
                    clean += 1;
                    let (ok, text) = judge("/usr/sbin/sfdisk", &["--verify", file]);
                    assert!(ok && text.contains("No errors detected"), "{text}");
                }
            });
        }
        println!(
            "{flag:?}: {} states shown to sgdisk, sfdisk, cgpt and the gpt crate, {clean} without a remark",
            seen.len()
        );
        // While the array is at the spare place sgdisk remarks that it ends after the first usable block, which stays as found.
        assert!(seen.len() >= 6 && clean >= 2);
    }
}

/// "LegacyBIOSBootable GUID:49,56" as a number.
fn sfdisk_bits(text: &str) -> u64 {
    let legacy = u64::from(text.contains("LegacyBIOSBootable")) << 2;
    let listed = text.split("GUID:").nth(1).unwrap_or("").split(',');
    legacy + listed.filter_map(|bit| bit.trim().parse::<u32>().ok()).map(|bit| 1 << bit).sum::<u64>()
}
