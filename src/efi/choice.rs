//! What the variables choose, for a pair of slots.

use super::{HardDrive, LoadOption, Nvram};
use crate::units::Slot;

/// The variables together with the partitions of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub(super) nvram: Nvram,
    drives: [HardDrive; 2],
    loader: String,
}

impl Choice {
    /// `drives` are the platform slots a and b; `loader` is the file in them that entries start which have to be made.
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

    /// The slot that an entry boots. A tool of the firmware's kind (category application) in a slot's partition, such as a
    /// memory test, is no entry of the slot: the firmware does not take it by itself.
    fn slot_of(&self, option: &LoadOption) -> Option<Slot> {
        self.starts_in(option).filter(|_| option.is_boot())
    }

    fn starts_in(&self, option: &LoadOption) -> Option<Slot> {
        let partition = option.partition()?;
        Slot::BOTH.into_iter().find(|slot| self.drive(*slot).guid == partition)
    }

    /// The slot that the entry of a number starts; `None` for foreign and missing ones.
    pub fn slot(&self, number: u16) -> Option<Slot> {
        self.slot_of(&self.nvram.entry(number)?)
    }

    /// The entries of a slot, by number.
    pub fn entries(&self, slot: Slot) -> Vec<(u16, LoadOption)> {
        self.nvram.entries().filter(|(_, option)| self.slot_of(option) == Some(slot)).collect()
    }

    /// The entry of a slot that rules: of several the one that stands first in `BootOrder`, else the lowest.
    pub fn entry(&self, slot: Slot) -> Option<(u16, LoadOption)> {
        let (order, entries) = (self.nvram.order(), self.entries(slot));
        let place = |number: u16| order.iter().position(|other| *other == number).unwrap_or(usize::MAX);
        entries.into_iter().min_by_key(|(number, _)| (place(*number), *number))
    }

    /// An entry for a slot that has none.
    pub(super) fn new_entry(&self, slot: Slot) -> LoadOption {
        LoadOption::build(&format!("qstage {slot}"), self.drive(slot), &self.loader)
    }

    /// The slot that `BootNext` names: on trial, and its reboot is ahead.
    pub fn pending(&self) -> Option<Slot> {
        self.starts_in(&self.nvram.entry(self.nvram.next()?)?)
    }

    /// The slot that boots whenever there is no trial: the first of ours in `BootOrder` that is active. A foreign
    /// entry before it may boot instead; [`before`](Self::before) names it.
    pub fn first(&self) -> Option<Slot> {
        self.first_of(&self.nvram.order())
    }

    /// The same for another order.
    pub(super) fn first_of(&self, order: &[u16]) -> Option<Slot> {
        let ours = |number: &u16| {
            let option = self.nvram.entry(*number).filter(LoadOption::boots)?;
            self.slot_of(&option)
        };
        order.iter().find_map(ours)
    }

    /// The slot that boots next.
    pub fn next(&self) -> Option<Slot> {
        self.pending().or_else(|| self.first())
    }

    /// The slot that runs: that of the partition from which the kernel image came, else of the entry that was started.
    pub fn booted(&self) -> Option<Slot> {
        let from = self.nvram.loaded_from();
        let loaded = Slot::BOTH.into_iter().find(|slot| Some(self.drive(*slot).guid) == from);
        // A foreign partition there refutes an entry of ours: it started something that started something else.
        loaded.or_else(|| if from.is_none() { self.slot(self.nvram.current()?) } else { None })
    }

    /// Foreign entries that the firmware takes before any of ours.
    pub fn before(&self) -> Vec<(u16, LoadOption)> {
        let found =
            self.nvram.order().into_iter().filter_map(|number| Some((number, self.nvram.entry(number)?)));
        let bootable = found.filter(|(_, option)| option.boots());
        bootable.take_while(|(_, option)| self.slot_of(option).is_none()).collect()
    }
}
