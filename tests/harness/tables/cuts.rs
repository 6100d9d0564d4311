//! Every state that a power cut can leave of a table, and the findings of each kind of reader.

use std::collections::BTreeMap;

use qstage::boot::Slots;
use qstage::commit;
use qstage::gpt::{Method, Table};
use qstage::host::DiskLock;
use qstage::units::{Group, Slot};

use super::{Op, Reader, Selection, Spec, ops_of, selection, trial};

pub const OLD: Selection = (Some('a'), Some('a'));
pub const NEW: Selection = (Some('b'), Some('b'));
pub const EXHAUSTIVE: usize = 12;

/// Kind of a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Whole sectors only.
    Whole,
    /// One sector is half new and half old.
    Half,
    /// One sector has garbage, 0xa5.
    Rubbish,
}

/// Random numbers by splitmix64: the same in every run.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Calls `f` with every state that a cut during `ops` can leave of `image`. Returns their number.
pub fn each_state(image: &[u8], sector: usize, ops: &[Op], mut f: impl FnMut(&[u8], Cut)) -> usize {
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
                        // Within the header's fields, after the entries LBA, so that both halves matter.
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
        // A sector that is rewritten unchanged (the MBR beside the header in its physical block) cannot be half new; that a
        // medium loses it entirely does not depend on the order.
        for torn in (0..n).filter(|&i| flight[i].1 != &durable[flight[i].0..][..sector]) {
            for (i, set) in sets.iter().enumerate() {
                // With every subset if they are few; else with a sample of them.
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

/// Number of states, and number of violations: a reader finds neither the old nor the new selection; one that reads LBA 2
/// blindly finds no slot that boots; a byte that no table names has changed.
pub fn bad_states(spec: &Spec, image: &[u8], ops: &[Op]) -> (usize, BTreeMap<&'static str, usize>) {
    let names = ["fallback", "strict", "lenient", "blind", "foreign"];
    let mut bad = BTreeMap::from(names.map(|name| (name, 0)));
    let foreign = foreign_blocks(spec, image);
    let at_lba_2 = spec.entries_lba == 2;
    let states = each_state(image, spec.block as usize, ops, |state, cut| {
        let mut note = |name, is_bad: bool| *bad.get_mut(name).unwrap() += usize::from(is_bad);
        let finds = |reader| [Some(OLD), Some(NEW)].contains(&selection(state, spec.block, reader));
        note("fallback", !finds(Reader::Fallback));
        // A reader without fallback cannot cope with a medium that loses a sector.
        if cut == Cut::Whole {
            note("strict", !finds(Reader::Strict));
            note("lenient", !finds(Reader::Lenient));
            let blind = selection(state, spec.block, Reader::Blind);
            note("blind", at_lba_2 && !matches!(blind, Some((Some(_), Some(_)))));
        }
        note("foreign", foreign.iter().any(|bytes| state[bytes.clone()] != image[bytes.clone()]));
    });
    (states, bad)
}

/// Foreign bytes: blocks that are not zero, and that neither copy of the table names.
pub fn foreign_blocks(spec: &Spec, image: &[u8]) -> Vec<std::ops::Range<usize>> {
    let block = spec.block as usize;
    let last = image.len() / block - 1;
    let arrays = |lba: usize| lba..lba + spec.array_blocks() as usize;
    let header = |lba: usize| {
        let at = lba * block;
        u64::from_le_bytes(image[at + 72..at + 80].try_into().unwrap()) as usize
    };
    let named = [1..2, arrays(header(1)), arrays(header(last)), last..last + 1];
    let is_zero = |lba: usize| image[lba * block..(lba + 1) * block].iter().all(|byte| *byte == 0);
    let mut bytes: Vec<std::ops::Range<usize>> = Vec::new();
    for lba in (0..=last).filter(|lba| !named.iter().any(|named| named.contains(lba)) && !is_zero(*lba)) {
        match bytes.last_mut() {
            Some(run) if run.end == lba * block => run.end += block,
            _ => bytes.push(lba * block..(lba + 1) * block),
        }
    }
    bytes
}

/// A disk with noise in every block that no table names: in the gap, where boot loaders lie, except for the space of one
/// array before the first partition; in the partitions; after them; and in the boot code of the MBR.
pub fn sown(spec: &Spec, room: u64) -> Vec<u8> {
    let mut image = spec.image();
    let block = spec.block as usize;
    let owned = spec.array_blocks();
    let first = spec.parts.iter().map(|p| p.2).min().unwrap();
    let rear = spec.blocks - 1 - owned;
    let (gap, rest) = (spec.entries_lba + owned..first - room, first..rear);
    for (i, byte) in image.iter_mut().enumerate() {
        let lba = (i / block) as u64;
        if gap.contains(&lba) || rest.contains(&lba) || i < 440 {
            *byte = (i as u8).wrapping_mul(31).wrapping_add(i.wrapping_div(block) as u8) | 1;
        }
    }
    image
}

pub fn both_to(table: &Table, slot: Slot) -> Table {
    let slots = Slots::resolve(table, "disk").unwrap();
    let select = |table: &Table, group| trial(table, &slots, group, slot, 3);
    select(&select(table, Group::Platform), Group::Software)
}

pub fn lock() -> DiskLock {
    DiskLock::new(())
}

/// Runs a switch on a device; returns its content, the requests that reached it, and the method.
pub fn switch(spec: &Spec, image: &[u8], slot: Slot) -> (Vec<u8>, Vec<Op>, Method) {
    let device = spec.device(image.to_vec());
    let loaded = commit::load(&device, "disk").unwrap();
    let new = both_to(loaded.table().unwrap(), slot);
    let plan = commit::switch(&device, &lock(), &loaded, &new).unwrap();
    let planned: Vec<_> = ops_of(&plan).iter().map(|op| format!("{op:?}")).collect();
    let done: Vec<_> = device.ops().iter().map(|op| format!("{op:?}")).collect();
    assert_eq!(planned, done, "what is printed is what is done");
    (device.memory.snapshot(), device.ops(), plan.method)
}

/// Disks with space for a second array: the common one, one with 4 KiB physical blocks, one with 4 KiB logical blocks, one
/// with all entries used, one with few entries, one with large entries.
pub fn roomy() -> Vec<(&'static str, Spec)> {
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

pub fn tight() -> Spec {
    Spec::slots(512, 300, 34, 16)
}
