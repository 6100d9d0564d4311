//! The order of every verb, as golden files: what is written in which order is the product, so a change of it is a change
//! of these files, and is looked at. They are read from the operations that reach the device (see proof_common/acts.rs).
//!
//! `QSTAGE_RECORD=1 cargo test --test orders` writes them anew.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod efi_common;
mod gpt_common;
mod proof_common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use efi_common::Event;
use efi_common::scenes::play as play_efi;
use gpt_common::Op;
use proof_common::Verb;
use proof_common::acts::{Did, acts};
use proof_common::scenes::{play, recorded, releases};
use qstage::boot::BootFlag;
use qstage::efi::{Name, Variable};

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

fn disk(ops: &[Op]) -> Vec<Did> {
    ops.iter().cloned().map(Did::Disk).collect()
}

fn by_flags(name: &str, flag: BootFlag) {
    let mut text = String::new();
    let takes = play(&releases(), 512, flag, 1);
    for take in &takes {
        paragraph(&mut text, take.scene.name, take.scene.from, &acts(&take.before, 512, &disk(&take.ops)));
    }
    // A verb on a disk of which one part of the table is lost repairs that first.
    let take = takes.iter().find(|take| take.scene.name == "mark good").unwrap();
    let last = take.before.len() - 512;
    let array = u64::from_le_bytes(take.before[512 + 72..512 + 80].try_into().unwrap()) as usize * 512;
    // Of the backup to zeroes: what else lies there might be somebody's.
    let parts = [
        ("header", 512, 0x5a),
        ("array", array, 0x5a),
        ("backup header", last, 0),
        ("backup array", last - 16384, 0),
    ];
    for (what, at, rot) in parts {
        let mut before = take.before.clone();
        before[at..at + 512].fill(rot);
        let (_, ops) = recorded(&before, 512, take.scene.site, &Verb::MarkGood);
        paragraph(
            &mut text,
            &format!("mark good with {what} lost"),
            take.scene.from,
            &acts(&before, 512, &disk(&ops)),
        );
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
        let did = take.events.iter().map(|event| match event {
            Event::Disk(op) => Did::Disk(op.clone()),
            Event::Set(name, value) => Did::Variable(variable(name, value.as_ref())),
        });
        let did: Vec<Did> = did.collect();
        paragraph(&mut text, take.scene.name, take.scene.from, &acts(&take.before.0, 512, &did));
    }
    golden("efi", &text);
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
