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
        let seen = Seen {
            name,
            booted: evident,
            unknown: why.filter(|_| evident.is_none() && !machine.is_image()),
            is_image: machine.is_image(),
            kexec: policy.boot_flag == BootFlag::Legacy && machine.kexec_is_loaded(),
            last_try: last_try(machine, &table, &slots),
            used_alone: used_alone(machine, &table, &slots),
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

/// The software slot on trial whose last try was spent on the container that runs from it now. No loader counts these
/// tries but `container start`, before it starts; that it runs is seen by its mount.
fn last_try(machine: &dyn Machine, table: &Table, slots: &Slots) -> Option<Slot> {
    let spent = |slot: &Slot| attributes(table, slots, *slot).is_some_and(is_spent);
    Slot::BOTH.into_iter().find(|slot| spent(slot) && is_used(machine, slots, *slot))
}

/// The software slot on trial that is in use while the other one is not. Both are while a swap arranges the new container
/// beside the old one; that tells nothing.
fn used_alone(machine: &dyn Machine, table: &Table, slots: &Slots) -> Option<Slot> {
    let on_trial = |bits: Attributes| bits.priority() > 0 && !bits.successful();
    let used = |slot: Slot| is_used(machine, slots, slot);
    let tried = |slot: &Slot| attributes(table, slots, *slot).is_some_and(on_trial);
    Slot::BOTH.into_iter().find(|slot| tried(slot) && used(*slot) && !used(!*slot))
}

fn attributes(table: &Table, slots: &Slots, slot: Slot) -> Option<Attributes> {
    slots.get(Group::Software, slot).map(|partition| table.attributes(partition.number))
}

/// Whether a software slot is known to be in use.
fn is_used(machine: &dyn Machine, slots: &Slots, slot: Slot) -> bool {
    let partition = slots.get(Group::Software, slot);
    partition.is_some_and(|partition| machine.in_use(partition).is_ok_and(|user| user.is_some()))
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
