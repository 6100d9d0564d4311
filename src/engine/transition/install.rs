//! The factory install: what `init` writes beside the layout and the images.

use super::{Act, Effect, Transition};
use crate::boot::{BootFlag, Flags, Slots};
use crate::error::Result;
use crate::gpt::Table;
use crate::slot::{Content, Mark, Verdict};
use crate::units::{Group, Slot};

/// Clears the flags of the slots that a factory install is about to overwrite. A machine without another slot has none that
/// boots until the end, which is better than half a release. A slot that was whole is marked bad before that: without its
/// flags it would look prepared.
pub(crate) fn vacate(table: &Table, slots: &Slots, targets: &[(Group, Slot, Content)]) -> Result<Transition> {
    let mut new = table.clone();
    let mut marks = Vec::new();
    for (group, slot, content) in targets {
        let number = slots.require(*group, *slot)?.number;
        let old = table.attributes(number);
        let none = old.with_priority(0).with_tries(0).with_successful(false).with_legacy_bootable(false);
        new = new.with_attributes(number, none);
        if content.record().is_some() {
            let mark = Mark { epoch: content.epoch(), ..Mark::new(Verdict::Bad, "being replaced") };
            marks.push(Act::Mark(*group, *slot, Some(mark)));
        }
    }
    let switch = (new != *table).then_some(Act::Table(new));
    Ok(Transition::nothing(Effect::Nothing, String::new()).then(marks).then(switch))
}

/// The slots that have been staged with a release of `epoch` are good; of each group the first one is selected, and another
/// one is its fallback.
pub(crate) fn install(
    table: &Table,
    slots: &Slots,
    places: &[(Group, Slot)],
    flag: BootFlag,
    epoch: u64,
) -> Result<Transition> {
    let mut new = table.clone();
    // The last one that is marked is the one that is selected.
    for (group, slot) in places.iter().rev() {
        // Both ways of marking, so that the factory does not decide which loader the machine will have.
        let flags = if *group == Group::Platform { vec![BootFlag::Legacy, flag] } else { vec![flag] };
        for flag in flags {
            new = Flags::new(new, slots, flag).mark_good(*group, *slot)?.into_table();
        }
    }
    let good = Mark { epoch, ..Mark::new(Verdict::Good, "factory install") };
    let mark = |(group, slot): &(Group, Slot)| Act::Mark(*group, *slot, Some(good.clone()));
    let switch = (new != *table).then_some(Act::Table(new));
    Ok(Transition::nothing(Effect::Nothing, String::new()).then(places.iter().map(mark)).then(switch))
}

/// Voids the records that slots of an earlier layout left at the same places: the slots would look prepared, and were not
/// prepared on this disk.
pub(crate) fn forget(slots: &Slots) -> Transition {
    let all = Group::BOTH.into_iter().flat_map(|group| Slot::BOTH.map(|slot| (group, slot)));
    let there = all.filter(|(group, slot)| slots.get(*group, *slot).is_some());
    Transition::nothing(Effect::Nothing, String::new())
        .then(there.map(|(group, slot)| Act::Void(group, slot)))
}
