//! Every state that a power cut can leave, and the judge of each state.
//!
//! The disk has one write cache. A flush empties it; after a cut the medium has any subset of the sectors that were written
//! since the last flush, in any order. If they are few, all subsets are made. If they are many: every prefix, every suffix,
//! each write alone, each write missing, and random subsets with a fixed seed. Sectors are written atomically: torn
//! *sectors* are the subject of gpt_cuts.rs, where a CRC covers every byte of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use qstage::boot::BootFlag;
use qstage::state::{SlotState, UpgradeState};

use super::{Random, RecordState, SLOTS, Site, Tape, boots, extent, foreign_intact, holds, record};
use crate::harness::tables::{Op, Reader, flags};

/// Largest number of sectors in flight for which all subsets are made.
const EXHAUSTIVE: usize = 12;
/// Number of random subsets of sectors, and of writes, per epoch with more sectors.
const RANDOM: usize = 100;

/// The platform slot and the software slot that boot; `None`: none.
pub type Choice = (Option<char>, Option<char>);

/// Calls `f` with every state that a cut during `ops` can leave of `image`. Returns their number.
pub fn each_state(image: &[u8], sector: usize, ops: &[Op], mut f: impl FnMut(&[u8])) -> usize {
    let mut durable = image.to_vec();
    let mut random = Random(0x1d5);
    let mut states = 0;
    for epoch in ops.split(|op| matches!(op, Op::Sync)) {
        // Sectors in the order of their writes, and the index at which each write begins.
        let (mut flight, mut starts): (Vec<(usize, &[u8])>, Vec<usize>) = (Vec::new(), Vec::new());
        for op in epoch {
            if let Op::Write(at, bytes) = op {
                assert!((*at as usize).is_multiple_of(sector) && bytes.len().is_multiple_of(sector));
                starts.push(flight.len());
                flight.extend(bytes.chunks(sector).enumerate().map(|(i, b)| (*at as usize + i * sector, b)));
            }
        }
        let n = flight.len();
        if n == 0 {
            continue;
        }
        let writes: Vec<_> =
            starts.iter().zip(starts.iter().skip(1).chain([&n])).map(|(from, to)| *from..*to).collect();
        let mut state = durable.clone();
        let mut show = |set: &dyn Fn(usize) -> bool| {
            let there = || flight.iter().enumerate().filter(|(i, _)| set(*i)).map(|(_, sector)| sector);
            for (at, new) in there() {
                state[*at..*at + sector].copy_from_slice(new);
            }
            f(&state);
            states += 1;
            for (at, _) in there() {
                state[*at..*at + sector].copy_from_slice(&durable[*at..*at + sector]);
            }
        };
        if n <= EXHAUSTIVE {
            (0u32..1 << n).for_each(|mask| show(&|i| mask >> i & 1 == 1));
        } else {
            // Every sector at the start and end of a write; a sample within megabytes of zeroes.
            let stride = n.div_ceil(400);
            let edges: Vec<usize> = writes.iter().flat_map(|w| [w.start, w.start + 1, w.end - 1]).collect();
            let mut cuts: Vec<usize> = (0..=n).step_by(stride).chain(edges).chain([n]).collect();
            cuts.sort_unstable();
            cuts.dedup();
            cuts.iter().for_each(|&k| show(&|i| i < k));
            writes.iter().for_each(|w| show(&|i| i >= w.start));
            writes.iter().for_each(|w| show(&|i| w.contains(&i)));
            writes.iter().for_each(|w| show(&|i| !w.contains(&i)));
            (0..n).step_by(n.div_ceil(40)).for_each(|k| show(&|i| i == k));
            (0..n).step_by(n.div_ceil(40)).for_each(|k| show(&|i| i != k));
            for _ in 0..RANDOM {
                let set: Vec<bool> = (0..n).map(|_| random.next() & 1 == 1).collect();
                show(&|i| set[i]);
                let set: Vec<bool> = writes.iter().map(|_| random.next() & 1 == 1).collect();
                let of = |i: usize| writes.partition_point(|w| w.start <= i) - 1;
                show(&|i| set[of(i)]);
            }
        }
        for (at, new) in flight {
            durable[at..at + sector].copy_from_slice(new);
        }
    }
    f(&durable);
    states + 1
}

/// Continuation from a state.
pub type Next<'a> = dyn Fn(Arc<Tape>) -> Result<(), String> + 'a;

/// Conditions that each state must satisfy.
pub struct Rules<'a> {
    pub block: u32,
    pub site: Site,
    /// Slots that may boot.
    pub choices: Vec<Choice>,
    /// Versions that may be reported as prepared.
    pub prepared: Vec<&'static str>,
    /// Slots that may be written.
    pub targets: Vec<&'static str>,
    /// Slots of which only the record may be written: the mark of the running slot.
    pub marked: Vec<&'static str>,
    /// Readers that must find one of `choices`: all, unless the disk was damaged beforehand.
    pub readers: Vec<Reader>,
    /// Whether the next step runs from every state that differs in table or records, not from a sample.
    pub thorough: bool,
    /// The next step, which must succeed; `None`: not run.
    pub next: Option<&'a Next<'a>>,
}

/// Findings over all states.
#[derive(Debug, Default)]
pub struct Report {
    pub states: usize,
    /// Number of states that differ in table or records.
    pub distinct: usize,
    /// Number of states from which the next step was run.
    pub resumed: usize,
    /// Violations, with their number.
    pub wrong: BTreeMap<String, usize>,
}

/// Judges every state that a cut of `ops` leaves of `image`.
pub fn judge(image: &[u8], ops: &[Op], rules: &Rules<'_>) -> Report {
    let mut report = Report::default();
    if let Err(stray) = stays_inside(image, ops, rules) {
        report.wrong.insert(stray, 1);
    }
    let written = |name: &str| {
        let slot = extent(image, rules.block, name);
        ops.iter().any(|op| matches!(op, Op::Write(at, _) if slot.contains(&(*at as usize))))
    };
    let (dirty, clean): (Vec<_>, Vec<_>) = SLOTS.into_iter().partition(|name| written(name));
    // Slots that are not written are checked once for all states.
    let sound: BTreeMap<_, _> =
        clean.into_iter().map(|name| (name, whole(image, rules.block, name))).collect();
    let mut tables = HashMap::new();
    let mut seen = HashSet::new();
    let mut wrong = BTreeMap::new();
    let mut note = |what: String| *wrong.entry(what).or_default() += 1;
    let (mut count, mut resumed) = (0, 0);
    report.states = each_state(image, rules.block as usize, ops, |state| {
        count += 1;
        // Each distinct table is evaluated once.
        let key = [&state[..65536], &state[state.len() - 65536..]].map(crc32fast::hash);
        let (choice, able, faults) = tables.entry(key).or_insert_with(|| table_of(image, state, rules));
        faults.iter().for_each(|fault| note(fault.clone()));
        for name in SLOTS {
            let (selected, able) = (chosen(choice, name), able.contains(&name));
            let is_whole = || whole(state, rules.block, name);
            if (selected || able) && !sound.get(name).copied().unwrap_or_else(is_whole) {
                let what = if selected { "is selected" } else { "could be fallen back to" };
                note(format!("{name} {what} and does not hold what its record says"));
            }
        }
        let mut essence = key.to_vec();
        for name in &dirty {
            let slot = &state[extent(state, rules.block, name)];
            essence.push(crc32fast::hash(&slot[slot.len() - 32768..]));
            if matches!(record(slot), RecordState::Whole(_)) && !whole(state, rules.block, name) {
                note(format!("the record of {name} vouches for something else than it holds"));
            }
        }
        let new = seen.insert(essence);
        if new {
            for what in shown(state, rules) {
                note(what);
            }
        }
        let sampled = rules.thorough || seen.len() < 40 || seen.len().is_multiple_of(8);
        if let (Some(next), true) = (rules.next, new && sampled || count % 97 == 0) {
            resumed += 1;
            if let Err(what) = next(Tape::new(state.to_vec(), rules.block)) {
                note(format!("the next step: {what}"));
            }
        }
    });
    (report.distinct, report.resumed) = (seen.len(), resumed);
    report.wrong.append(&mut wrong);
    report
}

/// The slots that boot, those that could boot if they fail, and violations in the table.
fn table_of(
    image: &[u8],
    state: &[u8],
    rules: &Rules<'_>,
) -> (Option<Choice>, Vec<&'static str>, Vec<String>) {
    let choice = |reader| boots(state, rules.block, rules.site.flag, reader);
    let mut faults = Vec::new();
    for reader in &rules.readers {
        let got = choice(*reader);
        if !got.is_some_and(|choice| rules.choices.contains(&choice)) {
            faults.push(format!("{reader:?} boots {got:?}"));
        }
    }
    faults.extend(foreign_intact(image, state, rules.block, rules.site.flag).err());
    // By priority, successful and tries: the slot after the one that boots. By the legacy flag there is none.
    let bits = flags(state, rules.block, Reader::Fallback).unwrap_or_default();
    let by_priority = |name: &&str| rules.site.flag == BootFlag::Priority || name.starts_with("software");
    let can = |bits: u64| bits >> 48 & 15 > 0 && bits >> 52 & 0x1f > 0;
    let able =
        SLOTS.into_iter().filter(by_priority).filter(|name| bits.get(*name).is_some_and(|bits| can(*bits)));
    (choice(Reader::Fallback), able.collect(), faults)
}

/// Whether a slot is among those that boot.
fn chosen(choice: &Option<Choice>, name: &str) -> bool {
    choice.is_some_and(|(platform, software)| {
        let is = |group: &str, slot: Option<char>| slot.is_some_and(|slot| name == format!("{group}_{slot}"));
        is("platform", platform) || is("software", software)
    })
}

/// Whether the record of a slot is whole, and its content matches.
fn whole(state: &[u8], block: u32, name: &str) -> bool {
    let slot = &state[extent(state, block, name)];
    let RecordState::Whole(manifest) = record(slot) else { return false };
    holds(slot, name.split('_').next().unwrap_or(name), &manifest)
}

/// Checks that the engine's reports about a state are true; returns violations.
fn shown(state: &[u8], rules: &Rules<'_>) -> Vec<String> {
    let disk = Tape::new(state.to_vec(), rules.block);
    let mut wrong = Vec::new();
    rules.site.engine(disk, |engine| {
        match engine.slots() {
            Ok(report) => {
                for slot in report.slots.iter().filter(|slot| slot.state == SlotState::Prepared) {
                    let name = slot.group.partition_name(slot.slot);
                    let version = slot.version.clone().unwrap_or_default();
                    if !rules.prepared.contains(&version.as_str()) {
                        wrong.push(format!(
                            "{name} with {version} is called prepared, which was not requested"
                        ));
                    }
                    if !whole(state, rules.block, name) {
                        wrong.push(format!("{name} is called prepared and is not whole"));
                    }
                }
            }
            Err(error) => wrong.push(format!("slots: {error}")),
        }
        match engine.status() {
            Ok(status) if status.state == UpgradeState::UpgradePrepared && rules.prepared.is_empty() => {
                wrong.push("status is PREPARED".to_owned());
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("status: {error}")),
        }
        // A commit now would select one of the versions that were requested.
        if let Ok(report) = engine.commit(true)
            && !rules.prepared.iter().any(|version| report.done.starts_with(&format!("{version} ")))
        {
            wrong.push(format!("commit would do: {}", report.done));
        }
    });
    wrong
}

/// Checks that every write lies within the target slots, the records of marked slots, or the places of the table.
fn stays_inside(image: &[u8], ops: &[Op], rules: &Rules<'_>) -> Result<(), String> {
    let block = rules.block as usize;
    // The header with its physical block, the array at its home, the spare place; both parts of the backup.
    let mut allowed =
        vec![block..2 * block + 16384, 65536 - 16384..65536, image.len() - block - 16384..image.len()];
    allowed.extend(rules.targets.iter().map(|name| extent(image, rules.block, name)));
    allowed.extend(rules.marked.iter().map(|name| {
        let end = extent(image, rules.block, name).end;
        end - 8192..end - 4096
    }));
    for op in ops {
        if let Op::Write(at, bytes) = op {
            let (from, to) = (*at as usize, *at as usize + bytes.len());
            // A physical block with the header may include block 0; foreign_intact checks its bytes.
            if !allowed.iter().any(|place| place.start <= from && to <= place.end) {
                return Err(format!("{} bytes at {at} are outside of what may be written", bytes.len()));
            }
        }
    }
    Ok(())
}
