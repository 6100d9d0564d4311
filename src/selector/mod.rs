//! `qstage select`: selects the slot that an initramfs starts. The one verb that may not fail: if a disk can be
//! read at all it returns a slot, and reports faults as notes.
//!
//! The decision is pure and lies in [`boot::choose`]; here the disk is found, a damaged copy of the table is
//! repaired, the try is counted in the same transaction as every switch, and the choice is reported.

mod disks;
mod report;

pub use disks::{BootOrigin, find_disk, locate};
pub use report::{PartitionLocation, Selection};

use crate::boot::{self, Candidate, Choice, Companion, Counting};
use crate::commit;
use crate::device::{BlockDevice, Region};
use crate::error::{Error, Result};
use crate::gpt::{CopyState, Partition, Table};
use crate::host::{DiskLock, Machine, MountSource};
use crate::slot::Content;
use crate::units::{Group, Slot};

/// Chooses a slot, counts the try if it is on trial, and returns its location. `writable`: whether the disk was
/// opened for writing. `note` receives each fault as a sentence.
///
/// # Errors
/// Only if there is nothing to start: [`Error::NotGpt`], [`Error::GptDamaged`] (neither copy of the table is
/// whole), [`Error::SlotMissing`] (no partition has the name of a platform slot), [`Error::Read`].
pub fn select(machine: &dyn Machine, writable: bool, note: &dyn Fn(&str)) -> Result<Selection> {
    let mut writing = if writable { Writing::Done } else { Writing::Impossible };
    choose(machine, &mut writing, note)
}

/// What [`select`] would do on a disk that can be written: the selection, and the writes and barriers, one line each.
/// Writes nothing.
///
/// # Errors
/// As [`select`].
pub fn dry_run(machine: &dyn Machine, note: &dyn Fn(&str)) -> Result<(Selection, Vec<String>)> {
    let mut writing = Writing::Planned(Vec::new());
    let selection = choose(machine, &mut writing, note)?;
    let Writing::Planned(lines) = writing else { return Ok((selection, Vec::new())) };
    Ok((selection, lines))
}

/// What becomes of the writes.
enum Writing {
    /// They are made.
    Done,
    /// The disk refuses them.
    Impossible,
    /// They are recorded here, one line each.
    Planned(Vec<String>),
}

fn choose(machine: &dyn Machine, writing: &mut Writing, note: &dyn Fn(&str)) -> Result<Selection> {
    let told = |what: &str, error: &Error| note(&format!("{what}: {}", crate::error::sentence(error)));
    let disk = machine.disk();
    let lock = match matches!(writing, Writing::Done).then(|| machine.lock()) {
        Some(Ok(lock)) => Some(lock),
        Some(Err(error)) => {
            told("nothing can be written", &error);
            None
        }
        None => None,
    };
    let mut loaded = commit::load(&*disk, machine.name())?;
    // Refused before any repair: the disk may not be ours.
    let found = Found::of(loaded.table()?, &*disk, &|_| {});
    if Slot::BOTH.into_iter().all(|slot| found.get(Group::Platform, slot).is_none()) {
        return Err(missing(loaded.table()?, machine));
    }
    if let (Some(lock), true) = (&lock, !matches!(loaded.state(), CopyState::Equal | CopyState::NoBackup)) {
        note(&format!(
            "{}: the copies of the partition table are not both sound ({})",
            machine.name(),
            loaded.state()
        ));
        match commit::repair(&*disk, lock, &loaded) {
            Ok(_) => note("repaired"),
            Err(error) => told("not repaired", &error),
        }
        loaded = commit::load(&*disk, machine.name())?;
    }
    if let (Writing::Planned(lines), Ok(Some(repair))) = (&mut *writing, commit::repair_plan(&loaded)) {
        lines.extend(repair.describe());
        loaded = loaded.after(&repair);
    }
    let table = loaded.table()?;
    let slots = Found::of(table, &*disk, note);
    let contents = Group::BOTH.map(|group| Slot::BOTH.map(|slot| slots.read(&disk, group, slot)));
    let content = |group: Group, slot: Slot| {
        contents[usize::from(group == Group::Software)][usize::from(slot == Slot::B)].as_ref()
    };
    let candidate = |slot| {
        let partition = slots.get(Group::Platform, slot)?;
        Some(Candidate::new(table.attributes(partition.number), content(Group::Platform, slot)))
    };
    let decide = |counting| boot::choose(candidate(Slot::A), candidate(Slot::B), counting);
    let none = || missing(table, machine);
    let mut choice = decide(Counting::Possible).ok_or_else(none)?;
    if let Some(attributes) = choice.count {
        let counted = slots.get(Group::Platform, choice.slot).map_or(Ok(()), |partition| {
            let new = table.with_attributes(partition.number, attributes);
            match writing {
                Writing::Planned(lines) => {
                    commit::plan(&loaded, &new).map(|plan| lines.extend(plan.describe()))
                }
                Writing::Done | Writing::Impossible => {
                    count(&*disk, lock.as_ref(), &loaded, &new, machine.name())
                }
            }
        });
        if let Err(error) = counted {
            told("the try cannot be counted", &error);
            choice = decide(Counting::Impossible).ok_or_else(none)?;
        }
    }
    let platform = slots.get(Group::Platform, choice.slot).ok_or_else(none)?;
    let software = software(table, &slots, &content, choice);
    let place = |partition: &Partition| {
        // If kernel and table disagree, the node would be another partition: better none.
        let node = match machine.mount_source(partition) {
            Ok(MountSource::Node(path)) => Some(path),
            Ok(MountSource::Window(..)) => None,
            Err(error) => {
                told(&partition.name, &error);
                None
            }
        };
        PartitionLocation::new(partition, node)
    };
    Ok(Selection {
        slot: choice.slot,
        reason: choice.why,
        tries_left: choice.count.map(|attributes| attributes.tries()),
        disk: machine.name().to_owned(),
        platform: place(platform),
        software: software.and_then(|slot| slots.get(Group::Software, slot)).map(place),
    })
}

fn missing(table: &Table, machine: &dyn Machine) -> Error {
    Error::SlotMissing {
        disk: machine.name().to_owned(),
        name: "platform_a' or 'platform_b".to_owned(),
        found: boot::listing(table),
    }
}

fn count(
    disk: &dyn BlockDevice,
    lock: Option<&DiskLock>,
    loaded: &commit::Loaded,
    new: &Table,
    name: &str,
) -> Result<()> {
    let lock = lock.ok_or_else(|| Error::ReadOnly { path: name.into() })?;
    commit::switch(disk, lock, loaded, new).map(drop)
}

/// The software slot to run with the chosen platform. Its tries are counted by the program that starts it.
fn software<'c>(
    table: &Table,
    slots: &Found,
    content: &impl Fn(Group, Slot) -> Option<&'c Content>,
    choice: Choice,
) -> Option<Slot> {
    let flags = |slot| slots.get(Group::Software, slot).map(|found| table.attributes(found.number));
    let (a, b) = (flags(Slot::A).unwrap_or_default(), flags(Slot::B).unwrap_or_default());
    let flagged = match (a.will_boot(), b.will_boot()) {
        (true, true) if a.priority() >= b.priority() => Some(Slot::A),
        (_, true) => Some(Slot::B),
        (true, false) => Some(Slot::A),
        (false, false) => None,
    };
    let record = |group, slot| content(group, slot).and_then(Content::record);
    let platform = record(Group::Platform, choice.slot);
    boot::software_beside(flagged, |slot| Companion {
        fits: platform
            .zip(record(Group::Software, slot))
            .map(|(platform, software)| software.manifest.runs_on(&platform.manifest)),
        usable: flags(slot).is_some_and(|bits| bits.successful()),
    })
}

/// The partitions of the slots, each found separately: a fault of one must not affect the other.
struct Found([[Option<Partition>; 2]; 2]);

impl Found {
    fn of(table: &Table, disk: &dyn BlockDevice, note: &dyn Fn(&str)) -> Self {
        Self(Group::BOTH.map(|group| {
            Slot::BOTH.map(|slot| {
                let name = group.partition_name(slot);
                let mut found = table.find(name);
                let inside = |p: &Partition| {
                    p.extent.len > 0
                        && p.extent.at.0.checked_add(p.extent.len).is_some_and(|end| end <= disk.len())
                };
                found.retain(inside);
                if found.len() > 1 {
                    note(&format!("{} partitions are named '{name}'; none of them is taken", found.len()));
                    return None;
                }
                let partition = found.pop()?;
                let twins = table.partitions().iter().filter(|p| p.guid == partition.guid).count();
                if twins > 1 {
                    note(&format!(
                        "{twins} partitions have the PARTUUID {} of '{name}'; mount it by its node",
                        partition.guid
                    ));
                }
                Some(partition)
            })
        }))
    }

    fn get(&self, group: Group, slot: Slot) -> Option<&Partition> {
        self.0[usize::from(group == Group::Software)][usize::from(slot == Slot::B)].as_ref()
    }

    /// The content of a slot by its record, read through the disk: the kernel's nodes may be missing. `None` if
    /// there is no such slot, or it cannot be read.
    fn read(&self, disk: &std::sync::Arc<dyn BlockDevice>, group: Group, slot: Slot) -> Option<Content> {
        let partition = self.get(group, slot)?;
        let region = Region::new(std::sync::Arc::clone(disk), partition.extent)?;
        Content::read(&region, group, &partition.name).ok()
    }
}
