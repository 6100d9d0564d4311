//! What boots next by the flags in the table, and how to change that: [`Flags`], from a table to a table. Nothing
//! here writes to the disk.
//!
//! Under [`BootFlag::Priority`] the loader takes the slot with the highest priority among those that are successful
//! or have tries left, slot `a` if two are equal. The priorities of a pair are 2 and 1, as update_engine of
//! ChromeOS sets them. Under [`BootFlag::Legacy`] exactly one platform slot carries bit 2, and the priority bits
//! are left as found. The software group always goes by priority: no loader reads it, and syslinux' gptmbr refuses
//! a disk on which two partitions carry bit 2. Under [`BootFlag::Efi`] all these verbs leave the platform's entries
//! as they are: [`efi`](crate::efi) has its own, from variables to variables.
//!
//! | operation       | slot (priority/tries/successful) | the other one                | legacy platform |
//! |-----------------|----------------------------------|------------------------------|-----------------|
//! | make_unbootable | 0 / 0 / 0                        | unchanged                    | bit 2 not on it |
//! | select_trial    | 2 / n / 0                        | priority 1 if it was above 0 | bit 2 on it     |
//! | mark_good       | 2 / 0 / 1                        | priority 1 if it was above 0 | bit 2 on it     |
//! | roll_back       | to: 2 / unchanged, made good if it could not boot | fallback: 1, bad: 0/0/0 | bit 2 on `to` |
//! | count_try       | unchanged / one less / unchanged | unchanged                    | unchanged       |

mod choose;

pub use choose::{
    Candidate, Choice, Companion, Counting, SelectionReason, SlotRank, choose, software_beside,
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpt::{Attributes, Partition, Table};
use crate::units::{Group, Slot};

/// Which bits of a partition entry determine what boots; see [`crate::manual::boot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BootFlag {
    /// Bits 48-51 priority, 52-55 tries left, 56 successful: ChromeOS, Flatcar, Bottlerocket.
    #[default]
    Priority,
    /// Bit 2, "legacy BIOS bootable": syslinux, U-Boot and others. Exactly one platform slot carries it.
    Legacy,
    /// No bits: the EFI variables BootNext and BootOrder determine it.
    Efi,
}

impl BootFlag {
    /// The word on the command line and in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Priority => "priority",
            Self::Legacy => "legacy",
            Self::Efi => "efi",
        }
    }
}

/// What happens to the slot that is rolled back from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RolledBackSlot {
    /// Unchanged and second in order: a fallback if it was bootable.
    Fallback,
    /// It may not boot again until another release is installed.
    Bad,
}

/// The partitions of the slots, found by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    disk: String,
    /// The partitions of the table, as a sentence for errors.
    found: String,
    platform: [Partition; 2],
    software: Option<[Partition; 2]>,
}

impl Slots {
    /// Finds them in `table`. The platform pair is required; of the software pair both or neither. `disk` is the
    /// name in errors. A slot that leaves the usable area or overlaps another partition is refused: writing it
    /// would destroy foreign data.
    pub fn resolve(table: &Table, disk: &str) -> Result<Self> {
        let pair = |group: Group| -> Result<[Partition; 2]> {
            Ok([one(table, disk, group, Slot::A)?, one(table, disk, group, Slot::B)?])
        };
        let any = Slot::BOTH.iter().any(|&slot| !table.find(Group::Software.partition_name(slot)).is_empty());
        let software = if any { Some(pair(Group::Software)?) } else { None };
        Ok(Self { disk: disk.to_owned(), found: listing(table), platform: pair(Group::Platform)?, software })
    }

    /// The partition of a slot; `None` if the disk has no software slots.
    pub fn get(&self, group: Group, slot: Slot) -> Option<&Partition> {
        let pair = match group {
            Group::Platform => &self.platform,
            Group::Software => self.software.as_ref()?,
        };
        Some(&pair[usize::from(slot == Slot::B)])
    }

    /// The partition of a slot, or [`Error::SlotMissing`].
    pub fn require(&self, group: Group, slot: Slot) -> Result<&Partition> {
        let name = || group.partition_name(slot).to_owned();
        self.get(group, slot).ok_or_else(|| Error::SlotMissing {
            disk: self.disk.clone(),
            name: name(),
            found: self.found.clone(),
        })
    }

    /// The slot with this partition number; `None` if it is not a slot of the group.
    pub fn slot_of(&self, group: Group, number: u32) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|&slot| self.get(group, slot).is_some_and(|p| p.number == number))
    }

    /// Refuses a foreign partition that carries the boot flag: under [`BootFlag::Legacy`] gptmbr then stops with
    /// "Multiple active partitions", whatever the slots carry.
    ///
    /// # Errors
    /// [`Error::ForeignBootFlag`].
    pub fn check_foreign_flags(&self, table: &Table, flag: BootFlag, disk: &str) -> Result<()> {
        let carries = |p: &Partition| table.attributes(p.number).legacy_bootable();
        let ours = |p: &Partition| self.slot_of(Group::Platform, p.number).is_some();
        match table.partitions().into_iter().find(|p| carries(p) && !ours(p)) {
            Some(p) if flag == BootFlag::Legacy => {
                Err(Error::ForeignBootFlag { disk: disk.to_owned(), number: p.number, name: p.name })
            }
            _ => Ok(()),
        }
    }
}

/// Maximum number of partitions listed in a message.
const MOST_LISTED: usize = 32;

/// The partitions of a table by number and name: shows a user a different name or spelling.
pub fn listing(table: &Table) -> String {
    let partitions = table.partitions();
    let mut listed: Vec<String> = partitions
        .iter()
        .take(MOST_LISTED)
        .map(|p| format!("{} '{}'", p.number, p.name.escape_debug()))
        .collect();
    if partitions.len() > MOST_LISTED {
        listed.push(format!("{} more", partitions.len() - MOST_LISTED));
    }
    if listed.is_empty() { "it has none".to_owned() } else { format!("it has {}", listed.join(", ")) }
}

fn one(table: &Table, disk: &str, group: Group, slot: Slot) -> Result<Partition> {
    let name = group.partition_name(slot);
    let found = table.find(name);
    let disk = disk.to_owned();
    let [partition] = found.as_slice() else {
        let name = name.to_owned();
        let numbers: Vec<String> = found.iter().map(|p| p.number.to_string()).collect();
        return Err(match numbers.as_slice() {
            [] => Error::SlotMissing { disk, name, found: listing(table) },
            _ => Error::SlotAmbiguous { disk, name, numbers: numbers.join(", ") },
        });
    };
    let twins = table.partitions().into_iter().filter(|p| p.guid == partition.guid);
    let twins: Vec<String> = twins.map(|p| p.number.to_string()).collect();
    if twins.len() > 1 {
        return Err(Error::PartuuidAmbiguous { disk, partuuid: partition.guid, numbers: twins.join(", ") });
    }
    let (header, at) = (table.header(), partition.extent);
    let block = u64::from(header.block().bytes());
    let usable = header.first_usable.0.saturating_mul(block)..=header.last_usable.0.saturating_mul(block);
    let last = at.at.0.saturating_add(at.len).saturating_sub(block);
    if at.len == 0 || !usable.contains(&at.at.0) || !usable.contains(&last) {
        let problem = format!("partition {} ({name}) is not within the usable area", partition.number);
        return Err(Error::GptUnsupported { disk, problem });
    }
    let overlaps = |p: &Partition| {
        p.number != partition.number
            && p.extent.at.0 < at.at.0 + at.len
            && at.at.0 < p.extent.at.0 + p.extent.len
    };
    if let Some(other) = table.partitions().iter().find(|p| overlaps(p)) {
        let problem = format!("partition {} ({name}) overlaps partition {}", partition.number, other.number);
        return Err(Error::GptUnsupported { disk, problem });
    }
    Ok(partition.clone())
}

/// A table and the boot flag that applies to it. Each verb returns the changed table; nothing here writes to the
/// disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags<'s> {
    table: Table,
    slots: &'s Slots,
    flag: BootFlag,
}

impl<'s> Flags<'s> {
    /// The flags of a table whose slots have been found.
    pub const fn new(table: Table, slots: &'s Slots, flag: BootFlag) -> Self {
        Self { table, slots, flag }
    }

    /// The table in its current state.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Consumes the flags and returns the table to write.
    pub fn into_table(self) -> Table {
        self.table
    }

    /// The boot flag of a group.
    const fn flag_of(&self, group: Group) -> BootFlag {
        match group {
            Group::Platform => self.flag,
            Group::Software => BootFlag::Priority,
        }
    }

    /// The attributes of a slot; `None` if the disk has no such slot.
    pub fn of(&self, group: Group, slot: Slot) -> Option<Attributes> {
        self.slots.get(group, slot).map(|partition| self.table.attributes(partition.number))
    }

    /// The slot that boots next by these flags. `None` if none does (legacy: also if both carry bit 2, which gptmbr
    /// refuses; efi: the table does not determine it).
    pub fn next(&self, group: Group) -> Option<Slot> {
        let (a, b) = (self.of(group, Slot::A)?, self.of(group, Slot::B)?);
        let pick = |a_can: bool, b_can: bool, a_first: bool| match (a_can, b_can) {
            (true, true) => Some(if a_first { Slot::A } else { Slot::B }),
            (true, false) => Some(Slot::A),
            (false, true) => Some(Slot::B),
            (false, false) => None,
        };
        match self.flag_of(group) {
            BootFlag::Priority => pick(a.will_boot(), b.will_boot(), a.priority() >= b.priority()),
            BootFlag::Legacy if a.legacy_bootable() && b.legacy_bootable() => None,
            BootFlag::Legacy => pick(a.legacy_bootable(), b.legacy_bootable(), true),
            BootFlag::Efi => None,
        }
    }

    /// Makes `slot` unbootable, before it is overwritten. Under legacy it is unbootable when it does not carry bit
    /// 2.
    ///
    /// # Errors
    /// [`Error::SlotInUse`] if only this slot carries bit 2: the disk would not boot at all.
    pub fn make_unbootable(self, group: Group, slot: Slot) -> Result<Self> {
        let target = self.slots.require(group, slot)?;
        let other = self.slots.require(group, !slot)?;
        match self.flag_of(group) {
            BootFlag::Priority => Ok(self.edit(target, unbootable)),
            BootFlag::Legacy => {
                let carries = |p: &Partition| self.table.attributes(p.number).legacy_bootable();
                if carries(target) && !carries(other) {
                    let by = "its legacy boot flag is the only one, it boots next".to_owned();
                    return Err(Error::SlotInUse { partition: target.name.clone(), by });
                }
                Ok(self.edit(target, |a| a.with_legacy_bootable(false)))
            }
            BootFlag::Efi => Ok(self),
        }
    }

    /// Makes `slot` boot next, on trial: `tries` times (clamped to 1 to 15) unless it is marked good. The other
    /// slot stays a fallback if it was bootable.
    ///
    /// # Errors
    /// [`Error::SlotMissing`].
    pub fn select_trial(self, group: Group, slot: Slot, tries: u8) -> Result<Self> {
        let tries = tries.clamp(1, Attributes::MAX_NIBBLE);
        self.select(group, slot, |a| a.with_tries(tries).with_successful(false))
    }

    /// Marks `slot` good and makes it boot next.
    ///
    /// # Errors
    /// [`Error::SlotMissing`].
    pub fn mark_good(self, group: Group, slot: Slot) -> Result<Self> {
        self.select(group, slot, |a| a.with_tries(0).with_successful(true))
    }

    /// Makes `to` boot next; `leave` determines the state of the other slot. `to` keeps its bits. If they do not
    /// allow it to boot it is made good, so the caller must have checked that its content is whole.
    ///
    /// # Errors
    /// [`Error::SlotMissing`].
    pub fn roll_back(self, group: Group, to: Slot, leave: RolledBackSlot) -> Result<Self> {
        let revive =
            |a: Attributes| if a.successful() || a.tries() > 0 { a } else { a.with_successful(true) };
        let other = self.slots.require(group, !to)?;
        let flag = self.flag_of(group);
        let flags = self.select(group, to, revive)?;
        match (leave, flag) {
            (RolledBackSlot::Bad, BootFlag::Priority) => Ok(flags.edit(other, unbootable)),
            (RolledBackSlot::Fallback, _) | (RolledBackSlot::Bad, BootFlag::Legacy | BootFlag::Efi) => {
                Ok(flags)
            }
        }
    }

    /// Takes one try off `slot`, whatever its priority.
    ///
    /// # Errors
    /// [`Error::SlotMissing`].
    pub fn count_try(self, group: Group, slot: Slot) -> Result<Self> {
        let partition = self.slots.require(group, slot)?;
        Ok(self.edit(partition, |a| a.with_tries(a.tries().saturating_sub(1))))
    }

    /// Puts `slot` first. `marks` sets its tries and successful bits if priority applies.
    fn select(self, group: Group, slot: Slot, marks: impl Fn(Attributes) -> Attributes) -> Result<Self> {
        let (first, second) = (self.slots.require(group, slot)?, self.slots.require(group, !slot)?);
        Ok(match self.flag_of(group) {
            // Priority 0 means never: raising it could bring back a slot that was marked bad.
            BootFlag::Priority => self
                .edit(first, |a| marks(a).with_priority(2))
                .edit(second, |a| a.with_priority(a.priority().min(1))),
            BootFlag::Legacy => self
                .edit(first, |a| a.with_legacy_bootable(true))
                .edit(second, |a| a.with_legacy_bootable(false)),
            BootFlag::Efi => self,
        })
    }

    fn edit(self, partition: &Partition, change: impl Fn(Attributes) -> Attributes) -> Self {
        let changed = change(self.table.attributes(partition.number));
        Self { table: self.table.with_attributes(partition.number, changed), ..self }
    }
}

fn unbootable(attributes: Attributes) -> Attributes {
    attributes.with_priority(0).with_tries(0).with_successful(false)
}

#[cfg(test)]
mod tests;
