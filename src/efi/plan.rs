//! Changes of the boot choice, each as a list of steps that are safe to stop between.

use std::fmt;

use super::{EfiBoot, Name, Variable};
use crate::boot::RolledBackSlot;
use crate::units::Slot;

/// One call of SetVariable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetVariable {
    /// The variable.
    pub name: Name,
    /// Its new content; `None` to delete it.
    pub value: Option<Variable>,
    /// Its meaning, for people.
    pub what: String,
}

impl fmt::Display for SetVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.value.is_some() { "set" } else { "delete" };
        write!(f, "{verb} EFI variable {}: {}", self.name, self.what)
    }
}

/// A change: the steps in order, and the resulting choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariablePlan {
    /// Steps to run. Empty if nothing changes.
    pub steps: Vec<SetVariable>,
    /// The choice after the steps.
    pub after: EfiBoot,
}

impl VariablePlan {
    /// No change.
    pub const fn none(choice: EfiBoot) -> Self {
        Self { steps: Vec::new(), after: choice }
    }

    fn step(&mut self, name: Name, data: Option<Vec<u8>>, what: String) {
        let nvram = &mut self.after.nvram;
        let value = data.map(|data| nvram.with_data(&name, data));
        if nvram.get(&name) != value.as_ref() {
            nvram.put(name.clone(), value.clone());
            self.steps.push(SetVariable { name, value, what });
        }
    }

    /// Adds the step that stores `epoch` as marked good on this machine; no step if the variable has that value or
    /// a higher one.
    #[must_use]
    pub fn store_epoch(mut self, epoch: u64) -> Self {
        if epoch > self.after.nvram.epoch() {
            let what = format!("epoch {epoch} has been good");
            self.step(Name::epoch(), Some(epoch.to_le_bytes().to_vec()), what);
        }
        self
    }

    /// Makes the slot's entry if it is missing, and activates it. Returns its number.
    fn active(&mut self, slot: Slot) -> u16 {
        let (number, option, what) = match self.after.entry(slot) {
            Some((number, option)) => (number, option.with_active(true), "active"),
            None => (self.after.nvram.free_number(), self.after.new_entry(slot), "made"),
        };
        self.step(
            Name::entry(number),
            Some(option.bytes().to_vec()),
            format!("entry of slot {slot}, {what}"),
        );
        number
    }

    fn inactive(&mut self, slot: Slot) {
        for (number, option) in self.after.entries(slot) {
            let bytes = option.with_active(false).bytes().to_vec();
            self.step(Name::entry(number), Some(bytes), format!("entry of slot {slot}, not active"));
        }
    }

    /// Puts `slot` first among ours in `BootOrder`: at the place of the first of ours, or at the very start if
    /// there was none or `lead` is set. With `without` the entries of the other slot are removed from it.
    fn order(&mut self, slot: Slot, lead: bool, without: bool) {
        let own = self.active(slot);
        let before = self.after.nvram.order();
        let mut order = before.clone();
        if without {
            order.retain(|number| self.after.slot(*number) != Some(!slot));
        }
        if lead || self.after.first() != Some(slot) {
            // Foreign entries after ours stay after them.
            let ahead = |number: &&u16| self.after.slot(**number).is_none();
            let at = before.iter().take_while(ahead).count();
            order.retain(|number| *number != own);
            order.insert(if lead || self.after.first().is_none() { 0 } else { at.min(order.len()) }, own);
        }
        let data = order.iter().flat_map(|number| number.to_le_bytes()).collect();
        let numbers: Vec<String> = order.iter().map(|number| format!("{number:04X}")).collect();
        // An odd trailing byte is not an entry, but rewriting it would be a needless change.
        if order != before {
            self.step(
                Name::order(),
                Some(data),
                format!("slot {slot} is the first of ours ({})", numbers.join(",")),
            );
        }
    }

    /// Makes sure that `BootNext` does not name `slot`.
    fn not_next(&mut self, slot: Slot) {
        if self.after.pending() == Some(slot) {
            self.step(Name::next(), None, format!("slot {slot} is not tried"));
        }
    }
}

impl EfiBoot {
    /// Before `target` is written: the firmware cannot boot it, and boots the other one.
    #[must_use]
    pub fn withdraw(&self, target: Slot) -> VariablePlan {
        let mut plan = VariablePlan::none(self.clone());
        plan.order(!target, false, true);
        plan.not_next(target);
        plan.inactive(target);
        plan
    }

    /// `slot` is booted once; whatever the result, the next boot takes the other slot.
    #[must_use]
    pub fn try_once(&self, slot: Slot) -> VariablePlan {
        let mut plan = VariablePlan::none(self.clone());
        plan.order(!slot, false, true);
        let number = plan.active(slot);
        plan.step(Name::next(), Some(number.to_le_bytes().to_vec()), format!("slot {slot} boots once"));
        plan
    }

    /// `slot` is good: it boots from now on, before everything else.
    #[must_use]
    pub fn keep(&self, slot: Slot) -> VariablePlan {
        let mut plan = VariablePlan::none(self.clone());
        plan.order(slot, true, false);
        plan.not_next(!slot);
        plan
    }

    /// Returns to slot `to`; the other one stays a fallback or may not boot again.
    #[must_use]
    pub fn back(&self, to: Slot, leave: RolledBackSlot) -> VariablePlan {
        let mut plan = VariablePlan::none(self.clone());
        plan.order(to, false, leave == RolledBackSlot::Bad);
        plan.not_next(!to);
        if leave == RolledBackSlot::Bad {
            plan.inactive(!to);
        }
        plan
    }
}
