//! Reading a view: the table, the slots, and what the machine knows beside the disk.

use super::{Seen, SlotView, View, is_spent};
use crate::boot::{BootFlag, Slots};
use crate::commit;
use crate::efi::{EfiBoot, HardDrive};
use crate::engine::Policy;
use crate::error::{Error, Result};
use crate::gpt::{Attributes, Table};
use crate::host::{Access, Booted, Machine};
use crate::slot::Content;
use crate::state::{KnownBy, SlotState};
use crate::units::{Group, Slot};

impl View {
    /// Reads all of it.
    ///
    /// # Errors
    /// Class Disk and Io; [`Error::NoEfi`] where EFI variables rule and there are none.
    pub(in crate::engine) fn read(machine: &dyn Machine, policy: &Policy) -> Result<Self> {
        let name = machine.name().to_owned();
        let loaded = commit::load(&*machine.disk(), &name)?.with_method(policy.table);
        let table = loaded.table()?.clone();
        let slots = Slots::resolve(&table, &name)?;
        let efi = efi(machine, policy, &table, &slots)?;
        let (evident, why) = match booted(machine, policy, &table, &slots)? {
            Ok(evident) => (Some(evident), None),
            Err(why) => {
                let started = efi.as_ref().and_then(EfiBoot::booted);
                (started.map(|slot| (slot, KnownBy::Firmware)), Some(why))
            }
        };
        let used = software_used(machine, &table, &slots);
        let seen = Seen {
            name,
            booted: evident,
            unknown: why.filter(|_| evident.is_none() && !machine.is_image()),
            is_image: machine.is_image(),
            kexec: policy.boot_flag == BootFlag::Legacy && machine.kexec_is_loaded(),
            last_try: last_try(&table, &slots, used),
            used_alone: used_alone(&table, &slots, used),
            software_used: used,
        };
        let mut holds = Vec::new();
        for group in Group::BOTH {
            for slot in Slot::BOTH {
                let Some(partition) = slots.get(group, slot).cloned() else { continue };
                let device = machine.open_partition(&partition, Access::Read)?;
                let content = Content::read(&*device, group, &partition.name)?;
                let (attributes, state) = (table.attributes(partition.number), SlotState::Empty);
                holds.push(SlotView { group, slot, partition, content, attributes, state, fell: false });
            }
        }
        let view = Self {
            loaded,
            table,
            slots,
            efi,
            policy: policy.clone(),
            machine: seen,
            booted: None,
            last_try: None,
            beside: None,
            holds,
        };
        Ok(view.concluded())
    }
}

/// What the firmware chooses, where the policy says that it rules.
fn efi(machine: &dyn Machine, policy: &Policy, table: &Table, slots: &Slots) -> Result<Option<EfiBoot>> {
    if policy.boot_flag != BootFlag::Efi {
        return Ok(None);
    }
    let block = u64::from(table.header().block().bytes());
    let drive = |slot: Slot| {
        let partition = slots.require(Group::Platform, slot)?;
        let (start, blocks) = (partition.extent.at.0 / block, partition.extent.len / block);
        Ok::<_, Error>(HardDrive { number: partition.number, start, blocks, guid: partition.guid })
    };
    let drives = [drive(Slot::A)?, drive(Slot::B)?];
    Ok(Some(EfiBoot::new(machine.firmware()?.read()?, drives, &policy.efi_loader)))
}

/// Whether software slots a and b are in use; `None`: unknown. Looked for while one of them is on trial.
fn software_used(machine: &dyn Machine, table: &Table, slots: &Slots) -> [Option<bool>; 2] {
    let tried = |slot: Slot| attributes(table, slots, slot).is_some_and(is_tried);
    let used = |slot: Slot| {
        let partition = slots.get(Group::Software, slot)?;
        machine.in_use(partition).ok().map(|user| user.is_some())
    };
    if Slot::BOTH.into_iter().any(tried) { Slot::BOTH.map(used) } else { [None; 2] }
}

/// The software slot on trial whose last try was spent on the container that runs from it now. No loader counts these
/// tries but `container start`, before it starts; that it runs is seen by its mount.
fn last_try(table: &Table, slots: &Slots, used: [Option<bool>; 2]) -> Option<Slot> {
    let spent = |slot: Slot| attributes(table, slots, slot).is_some_and(is_spent);
    let pairs = Slot::BOTH.into_iter().zip(used);
    pairs.filter(|(slot, used)| spent(*slot) && *used == Some(true)).map(|(slot, _)| slot).next()
}

/// The software slot on trial that is in use while the other one is not. Both are while a swap arranges the new container
/// beside the old one; that shows nothing.
fn used_alone(table: &Table, slots: &Slots, used: [Option<bool>; 2]) -> Option<Slot> {
    let alone = match used {
        [Some(true), Some(true)] => None,
        [Some(true), _] => Some(Slot::A),
        [_, Some(true)] => Some(Slot::B),
        _ => None,
    };
    alone.filter(|slot| attributes(table, slots, *slot).is_some_and(is_tried))
}

fn attributes(table: &Table, slots: &Slots, slot: Slot) -> Option<Attributes> {
    slots.get(Group::Software, slot).map(|partition| table.attributes(partition.number))
}

/// Whether the flags of a software slot select it on trial.
fn is_tried(bits: Attributes) -> bool {
    bits.priority() > 0 && !bits.successful()
}

/// What the caller says, else what is evident; else why nothing is.
fn booted(
    machine: &dyn Machine,
    policy: &Policy,
    table: &Table,
    slots: &Slots,
) -> Result<std::result::Result<(Slot, KnownBy), String>> {
    if let Some(slot) = policy.booted {
        return Ok(Ok((slot, KnownBy::Caller)));
    }
    let candidates = [Slot::A, Slot::B].map(|slot| slots.require(Group::Platform, slot).cloned());
    let [a, b] = candidates;
    Ok(match machine.booted_from(&[a?, b?], &table.partitions())? {
        Booted::Known { index: 0, .. } => Ok((Slot::A, KnownBy::Kernel)),
        Booted::Known { .. } => Ok((Slot::B, KnownBy::Kernel)),
        Booted::Unknown { why } => Err(why),
    })
}
