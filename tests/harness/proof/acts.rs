//! Acts of a verb, reconstructed from the requests that reached the device: marks, records and boot flags, in their order,
//! and what was durable when the next act began. Written from the documentation of the formats, not with the code under test.
//!
//! For the partition table only the result is recorded that a reader sees; the number of writes is the subject of
//! gpt_cuts.rs. For the images: the number of writes and flushes, and one CRC over offsets and bytes.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{RecordState, SLOTS, extent, record};
use crate::harness::tables::{Op, Reader, entries, flags};

/// An event that reached the machine.
#[derive(Clone, Debug)]
pub enum MachineEvent {
    Disk(Op),
    /// A variable was set: its name and value.
    Variable(String),
}

enum Kind {
    /// Writes of the table: the change for its reader, and whether both copies are equal again.
    Table {
        changed: Vec<String>,
        repaired: bool,
        equal: bool,
    },
    /// Writes of images and of zeroes around them.
    Image {
        slots: BTreeSet<&'static str>,
        writes: usize,
        flushes: usize,
        sum: crc32fast::Hasher,
    },
    Line(String),
}

struct Act {
    kind: Kind,
    /// Indices of the events that it consists of.
    events: Range<usize>,
    /// Whether a flush came after its last write.
    durable: bool,
}

fn push(acts: &mut Vec<Act>, kind: Kind) {
    acts.push(Act { kind, events: 0..0, durable: true });
}

/// The acts as lines; `|` if an act is durable before the next begins. Acts without an effect for any reader are left out.
pub fn acts(before: &[u8], block: u32, events: &[MachineEvent]) -> Vec<String> {
    spans(before, block, events).into_iter().map(|(line, _)| line).collect()
}

/// The acts, each with the indices of its events.
pub fn spans(before: &[u8], block: u32, events: &[MachineEvent]) -> Vec<(String, Range<usize>)> {
    let mut image = before.to_vec();
    let mut acts: Vec<Act> = Vec::new();
    for (i, event) in events.iter().enumerate() {
        let known = acts.len();
        match event {
            MachineEvent::Variable(text) => push(&mut acts, Kind::Line(text.clone())),
            MachineEvent::Disk(Op::Sync) => {
                if let Some(Act { kind: Kind::Image { flushes, .. }, .. }) = acts.last_mut() {
                    *flushes += 1;
                }
            }
            MachineEvent::Disk(Op::Write(at, bytes)) => {
                let at = *at as usize;
                if at < 65536 || at >= image.len() - 65536 {
                    table(&mut acts, &mut image, block, at, bytes);
                } else {
                    image[at..at + bytes.len()].copy_from_slice(bytes);
                    slot(&mut acts, &image, block, at, bytes);
                }
            }
        }
        let count = acts.len();
        if let Some(act) = acts.last_mut() {
            act.durable = !matches!(event, MachineEvent::Disk(Op::Write(..)));
            let begins = if known < count { i } else { act.events.start };
            act.events = begins..i + 1;
        }
    }
    acts.iter().filter_map(|act| Some((act.line()?, act.events.clone()))).collect()
}

impl Act {
    fn line(&self) -> Option<String> {
        let text = match &self.kind {
            Kind::Table { changed, repaired, .. } => match (changed.is_empty(), repaired) {
                (true, false) => return None,
                (true, true) => "table: the bad copy from the good one".to_owned(),
                (false, _) => format!("table: {}", changed.join(", ")),
            },
            Kind::Image { slots, writes, flushes, sum } => {
                let slots: Vec<&str> = slots.iter().copied().collect();
                let sum = sum.clone().finalize();
                format!(
                    "images of {}: {writes} writes, {flushes} flushes, CRC {sum:08x}",
                    slots.join(" and ")
                )
            }
            Kind::Line(text) => text.clone(),
        };
        Some(if self.durable { format!("{text} |") } else { text })
    }
}

/// Whether both copies of the table are valid and equal.
fn sound(image: &[u8], block: u32) -> bool {
    // Without the primary header a reader finds the backup alone.
    let mut without = image.to_vec();
    without[block as usize..2 * block as usize].fill(0);
    let copies = [entries(image, block, Reader::Strict), entries(&without, block, Reader::Fallback)];
    copies[0].is_some() && copies[0] == copies[1]
}

fn table(acts: &mut Vec<Act>, image: &mut [u8], block: u32, at: usize, bytes: &[u8]) {
    let (was, ill) = (flags(image, block, Reader::Fallback).unwrap_or_default(), !sound(image, block));
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let (is, equal) = (flags(image, block, Reader::Fallback).unwrap_or_default(), sound(image, block));
    let shown = |bits: u64| {
        let legacy = if bits & 4 != 0 { " legacy" } else { "" };
        format!("{}/{}/{}{legacy}", bits >> 48 & 15, bits >> 52 & 15, bits >> 56 & 1)
    };
    let mut names: Vec<&String> = is.keys().chain(was.keys()).collect();
    names.sort();
    names.dedup();
    let differ = names.into_iter().filter(|name| was.get(*name) != is.get(*name));
    let text = |bits: Option<&u64>| bits.map_or("none".to_owned(), |bits| shown(*bits));
    let now: Vec<String> =
        differ.map(|name| format!("{name} {} -> {}", text(was.get(name)), text(is.get(name)))).collect();
    // Writes after a change that both copies already hold belong to that change if they change nothing.
    let open = match acts.last() {
        Some(Act { kind: Kind::Table { changed, equal, repaired }, .. }) => {
            now.is_empty() || !(*equal && (*repaired || !changed.is_empty()))
        }
        _ => false,
    };
    if !open {
        let kind = Kind::Table { changed: Vec::new(), repaired: false, equal: false };
        push(acts, kind);
    }
    if let Some(Act { kind: Kind::Table { changed, repaired, equal: both }, .. }) = acts.last_mut() {
        *repaired |= ill && equal && changed.is_empty() && now.is_empty();
        changed.extend(now);
        *both = equal;
    }
}

fn slot(acts: &mut Vec<Act>, image: &[u8], block: u32, at: usize, bytes: &[u8]) {
    let inside = |name: &&str| extent(image, block, name).contains(&at);
    let Some(name) = SLOTS.into_iter().find(inside) else {
        let text = format!("STRAY: {} bytes at {at}", bytes.len());
        return push(acts, Kind::Line(text));
    };
    let place = extent(image, block, name);
    let end = place.start + place.len() / 4096 * 4096;
    let line = if at == end - 4096 {
        Some(format!("footer of {name}: {}", footer(&image[place])))
    } else if at == end - 8192 {
        Some(format!("mark of {name}: {}", mark(bytes)))
    } else if at + bytes.len() == end - 8192 && bytes[0] == b'{' {
        Some(format!("record body of {name}"))
    } else {
        None
    };
    if let Some(text) = line {
        return push(acts, Kind::Line(text));
    }
    if !matches!(acts.last(), Some(Act { kind: Kind::Image { .. }, .. })) {
        let (slots, sum) = (BTreeSet::new(), crc32fast::Hasher::new());
        push(acts, Kind::Image { slots, writes: 0, flushes: 0, sum });
    }
    if let Some(Act { kind: Kind::Image { slots, writes, sum, .. }, .. }) = acts.last_mut() {
        slots.insert(name);
        *writes += 1;
        sum.update(&(at as u64).to_le_bytes());
        sum.update(bytes);
    }
}

/// The state of a slot by its footer, with its version if it is whole.
fn footer(slot: &[u8]) -> String {
    match record(slot) {
        RecordState::Nothing => "void".to_owned(),
        RecordState::Torn => "torn".to_owned(),
        RecordState::Whole(manifest) => format!("whole, {}", manifest["version"].as_str().unwrap_or("?")),
    }
}

/// The verdict of a mark, by the offsets that slot/mark.rs documents.
fn mark(block: &[u8]) -> String {
    if block.iter().all(|byte| *byte == 0) {
        return "void".to_owned();
    }
    let number = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
    if &block[..8] != b"QSTGMARK" || number(8) != 1 || number(4092) != crc32fast::hash(&block[..4092]) {
        return "UNREADABLE".to_owned();
    }
    let verdict = ["?", "good", "bad", "failed", "trying"][number(12) as usize % 5];
    let len = usize::from(u16::from_le_bytes([block[16], block[17]]));
    format!("{verdict}, '{}', tries {}", String::from_utf8_lossy(&block[18..18 + len]), number(2068))
}
