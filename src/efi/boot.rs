//! Which slot boots by the EFI variables, for a pair of slots.

use super::{HardDrive, LoadOption, Nvram};
use crate::units::Slot;

/// The EFI variables together with the partitions of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EfiBoot {
    pub(super) nvram: Nvram,
    drives: [HardDrive; 2],
    loader: String,
}

impl EfiBoot {
    /// `drives` are the platform slots a and b; `loader` is the file in them that newly made entries start.
    pub fn new(nvram: Nvram, drives: [HardDrive; 2], loader: &str) -> Self {
        Self { nvram, drives, loader: loader.to_owned() }
    }

    /// The variables.
    pub const fn nvram(&self) -> &Nvram {
        &self.nvram
    }

    const fn drive(&self, slot: Slot) -> &HardDrive {
        match slot {
            Slot::A => &self.drives[0],
            Slot::B => &self.drives[1],
        }
    }

    /// The slot that an entry boots. An entry of category application in a slot's partition, such as a memory test,
    /// is not an entry of the slot: the firmware does not boot it on its own.
    fn slot_of(&self, option: &LoadOption) -> Option<Slot> {
        self.starts_in(option).filter(|_| option.is_boot())
    }

    fn starts_in(&self, option: &LoadOption) -> Option<Slot> {
        let partition = option.partition()?;
        Slot::BOTH.into_iter().find(|slot| self.drive(*slot).guid == partition)
    }

    /// The slot that the entry with this number starts; `None` for foreign and missing entries.
    pub fn slot(&self, number: u16) -> Option<Slot> {
        self.slot_of(&self.nvram.entry(number)?)
    }

    /// The entries of a slot, by number.
    pub fn entries(&self, slot: Slot) -> Vec<(u16, LoadOption)> {
        self.nvram.entries().filter(|(_, option)| self.slot_of(option) == Some(slot)).collect()
    }

    /// The effective entry of a slot: of several the first one in `BootOrder`, else the one with the lowest number.
    pub fn entry(&self, slot: Slot) -> Option<(u16, LoadOption)> {
        let (order, entries) = (self.nvram.order(), self.entries(slot));
        let place = |number: u16| order.iter().position(|other| *other == number).unwrap_or(usize::MAX);
        entries.into_iter().min_by_key(|(number, _)| (place(*number), *number))
    }

    /// A new entry for a slot that has none.
    pub(super) fn new_entry(&self, slot: Slot) -> LoadOption {
        LoadOption::build(&format!("qstage {slot}"), self.drive(slot), &self.loader)
    }

    /// The slot on trial whose reboot is pending: the one that `BootNext` names. `None` if it names none of ours.
    pub fn pending(&self) -> Option<Slot> {
        self.starts_in(&self.nvram.entry(self.nvram.next()?)?)
    }

    /// The slot that boots whenever there is no trial: the first active one of ours in `BootOrder`. A foreign entry
    /// before it may boot instead; [`foreign_before`](Self::foreign_before) returns it.
    pub fn first(&self) -> Option<Slot> {
        self.first_of(&self.nvram.order())
    }

    /// [`first`](Self::first) for another order.
    pub(super) fn first_of(&self, order: &[u16]) -> Option<Slot> {
        let ours = |number: &u16| {
            let option = self.nvram.entry(*number).filter(LoadOption::boots)?;
            self.slot_of(&option)
        };
        order.iter().find_map(ours)
    }

    /// The slot that boots next; `None` if none of ours does.
    pub fn next(&self) -> Option<Slot> {
        self.pending().or_else(|| self.first())
    }

    /// The running slot: that of the partition from which the kernel image was loaded, else that of the entry that
    /// was started.
    pub fn booted(&self) -> Option<Slot> {
        let from = self.nvram.loaded_from();
        let loaded = Slot::BOTH.into_iter().find(|slot| Some(self.drive(*slot).guid) == from);
        // A foreign partition there refutes an entry of ours: the entry started a program that started another one.
        loaded.or_else(|| if from.is_none() { self.slot(self.nvram.current()?) } else { None })
    }

    /// Foreign entries that the firmware tries before any of ours.
    pub fn foreign_before(&self) -> Vec<(u16, LoadOption)> {
        let found =
            self.nvram.order().into_iter().filter_map(|number| Some((number, self.nvram.entry(number)?)));
        let bootable = found.filter(|(_, option)| option.boots());
        bootable.take_while(|(_, option)| self.slot_of(option).is_none()).collect()
    }
}
