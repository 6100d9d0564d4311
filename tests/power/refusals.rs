//! A verb that refuses has written nothing: neither a due repair of the table, nor a fallback that was not recorded yet. (The
//! repair used to come first, so a `commit` of nothing rewrote a copy of the table.)

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use qstage::boot::BootFlag;
use qstage::commit;
use qstage::device::BlockDevice;
use qstage::error::{Error, Result};
use qstage::gpt::{Attributes, CopyState, Partition};
use qstage::host::{Access, Booted, DiskLock, Machine, MountSource};
use qstage::units::{ByteOffset, Slot};

use crate::harness::proof::scenes::{Releases, play, releases};
use crate::harness::proof::{Bench, SLOTS, Site, Tape, Verb};
use crate::harness::tables::{damages, ops_of};

/// All that a caller can ask of the engine.
fn verbs(r: &Releases) -> Vec<Verb> {
    let mut verbs = vec![
        Verb::Prepare(r.v1.clone()),
        Verb::Prepare(r.v9.clone()),
        Verb::Commit,
        Verb::MarkGood,
        Verb::RollBack,
        Verb::Cancel,
        Verb::TrialFailed,
        Verb::Kexec,
        Verb::KexecRefused,
        Verb::Start,
        Verb::Lend,
    ];
    for slot in Slot::BOTH {
        verbs.extend([Verb::MakeGood(slot), Verb::SoftwareGood(slot), Verb::SoftwareBack(slot)]);
    }
    verbs
}

/// Every verb on every disk that a scene starts from, whole and with each part of the table lost, with either slot running.
#[test]
fn a_refusal_writes_nothing_and_a_success_repairs() {
    let r = releases();
    let verbs = verbs(&r);
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let (mut repaired, mut wrong) = (0, Vec::new());
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        for take in play(&r, 512, flag, 1) {
            let whole = [("nothing", take.before.clone()), (FLAGS, without_flags(&take.before))];
            for (lost, image) in whole.into_iter().chain(damages(&take.before, 512)) {
                for (verb, slot) in verbs.iter().flat_map(|verb| Slot::BOTH.map(|slot| (verb, slot))) {
                    // A prepare that succeeds takes long, and what it repairs does not depend on the part.
                    if matches!(verb, Verb::Prepare(_)) && !["nothing", "header"].contains(&lost) {
                        continue;
                    }
                    let disk = Tape::new(image.clone(), 512);
                    let about = format!("{flag:?}, {}, {lost} lost, {verb:?} in {slot}", take.scene.name);
                    let about: String = about.chars().filter(|c| !c.is_control()).take(120).collect();
                    match Site::new(slot, flag).run(disk.clone(), verb) {
                        Err(error) => {
                            if !disk.ops().is_empty() {
                                wrong.push(format!(
                                    "{about}: {} after {} writes",
                                    error.code(),
                                    disk.ops().len()
                                ));
                            }
                            *refused.entry(error.code().to_owned()).or_default() += 1;
                        }
                        Ok(()) if lost != "nothing" => {
                            let state = commit::load(&*disk, "disk").unwrap().state();
                            if state != CopyState::Equal {
                                wrong.push(format!("{about}: {state} afterwards"));
                            }
                            repaired += 1;
                        }
                        Ok(()) => {}
                    }
                }
            }
        }
    }
    println!("{repaired} repaired; refused: {refused:#?}");
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    assert!(repaired > 300 && refused.len() > 8, "{repaired}, {refused:?}");
    // Where no flag lets a platform boot, what would leave it so is refused before its acts.
    let nothing_boots = refused.get("UPGRADE_ERROR_NOTHING_BOOTS");
    assert!(nothing_boots.is_some_and(|times| *times > 20), "{refused:?}");
}

/// The platform slots have lost their flags: the running one was started by hand, or by a selector that names the best one.
const FLAGS: &str = "flags";

fn without_flags(before: &[u8]) -> Vec<u8> {
    let tape = Tape::new(before.to_vec(), 512);
    change(&tape, &["platform_a", "platform_b"], |bits| {
        bits.with_priority(0).with_tries(0).with_successful(false).with_legacy_bootable(false)
    });
    tape.memory.snapshot()
}

/// What stands beside the engine.
enum Neighbour {
    /// Uses the partition of this name.
    Uses(&'static str),
    /// Writes another table at the moment at which the engine opens the first slot that it will write to: after the engine
    /// has read the table, and before it writes.
    ChangesTable(Arc<Tape>),
}

struct Beside {
    bench: Bench,
    neighbour: Neighbour,
}

impl Machine for Beside {
    fn is_image(&self) -> bool {
        self.bench.is_image()
    }
    fn name(&self) -> &str {
        self.bench.name()
    }
    fn disk(&self) -> Arc<dyn BlockDevice> {
        self.bench.disk()
    }
    fn lock(&self) -> Result<DiskLock> {
        self.bench.lock()
    }
    fn is_locked(&self) -> Result<bool> {
        self.bench.is_locked()
    }
    fn open_partition(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>> {
        match (&self.neighbour, access) {
            (Neighbour::Uses(name), Access::Exclusive) if partition.name == *name => {
                Err(Error::SlotInUse { partition: partition.name.clone(), by: "a neighbour".to_owned() })
            }
            (Neighbour::ChangesTable(tape), Access::Exclusive | Access::Record) => {
                change_table(tape);
                self.bench.open_partition(partition, access)
            }
            _ => self.bench.open_partition(partition, access),
        }
    }
    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        self.bench.mount_source(partition)
    }
    fn in_use(&self, partition: &Partition) -> Result<Option<String>> {
        let uses = matches!(self.neighbour, Neighbour::Uses(name) if partition.name == name);
        Ok(uses.then(|| "a neighbour".to_owned()))
    }
    fn booted_from(&self, candidates: &[Partition], table: &[Partition]) -> Result<Booted> {
        self.bench.booted_from(candidates, table)
    }
}

/// Another program gives the foreign partition another attribute. The log of the tape does not hold it.
fn change_table(tape: &Tape) {
    change(tape, &["data"], |bits| bits.with_priority(bits.priority() ^ 1));
}

/// Gives these partitions other attributes, without a line in the log of the tape.
fn change(tape: &Tape, names: &[&str], to: impl Fn(Attributes) -> Attributes) {
    let loaded = commit::load(tape, "disk").unwrap();
    let table = loaded.table().unwrap();
    let parts = table.partitions();
    let numbers = parts.iter().filter(|part| names.contains(&part.name.as_str())).map(|part| part.number);
    let changed = numbers
        .fold(table.clone(), |table, number| table.with_attributes(number, to(table.attributes(number))));
    for op in ops_of(&commit::plan(&loaded, &changed).unwrap()) {
        if let crate::harness::tables::Op::Write(at, bytes) = op {
            tape.memory.write_at(&bytes, ByteOffset(at)).unwrap();
        }
    }
}

/// A slot that is in use, and a table that another program changes meanwhile: refused before the first write.
#[test]
fn neighbours_are_met_before_the_first_write() {
    let r = releases();
    let verbs = verbs(&r);
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        for take in play(&r, 512, flag, 1) {
            for (verb, slot) in verbs.iter().flat_map(|verb| Slot::BOTH.map(|slot| (verb, slot))) {
                for name in SLOTS.map(Some).into_iter().chain([None]) {
                    let disk = Tape::new(take.before.clone(), 512);
                    let neighbour =
                        name.map_or_else(|| Neighbour::ChangesTable(disk.clone()), Neighbour::Uses);
                    let beside = Beside { bench: Bench(disk.clone()), neighbour };
                    let site = Site::new(slot, flag);
                    let done = site.engine_of(&beside, |engine| verb.run(engine, &site.options()));
                    let Err(error) = done else { continue };
                    *refused.entry(error.code().to_owned()).or_default() += 1;
                    if !disk.ops().is_empty() {
                        let about = format!("{flag:?}, {}, {name:?}, {verb:.40?} in {slot}", take.scene.name);
                        wrong.push(format!("{about}: {} after {} writes", error.code(), disk.ops().len()));
                    }
                }
            }
        }
    }
    println!("refused: {refused:#?}");
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    for code in ["UPGRADE_ERROR_SLOT_IN_USE", "UPGRADE_ERROR_GPT_UNSUPPORTED"] {
        assert!(refused.get(code).is_some_and(|times| *times > 20), "{code}: {refused:?}");
    }
}
