//! The factory: what `init` does beside the layout and the images.

use super::{Act, Effect, Transition};
use crate::boot::{BootFlag, Flags, Slots};
use crate::error::Result;
use crate::gpt::Table;
use crate::slot::{Mark, Verdict};
use crate::units::{Group, Slot};

/// The slots a that have been staged with a release of `epoch` are good and selected.
pub(crate) fn install(
    table: &Table,
    slots: &Slots,
    groups: &[Group],
    flag: BootFlag,
    epoch: u64,
) -> Result<Transition> {
    let mut new = table.clone();
    for group in groups {
        // Both ways of marking, so that the factory does not decide which loader the machine will have.
        let flags = if *group == Group::Platform { vec![BootFlag::Legacy, flag] } else { vec![flag] };
        for flag in flags {
            new = Flags::new(new, slots, flag).mark_good(*group, Slot::A)?.into_table();
        }
    }
    let good = Mark { epoch, ..Mark::new(Verdict::Good, "factory install") };
    let mark = |group: &Group| Act::Mark(*group, Slot::A, Some(good.clone()));
    let switch = (new != *table).then_some(Act::Table(new));
    Ok(Transition::nothing(Effect::Nothing, String::new()).then(groups.iter().map(mark)).then(switch))
}

/// The records that slots of an earlier layout left at the same places are void: they would say "prepared" of what nobody
/// prepared on this disk.
pub(crate) fn forget(slots: &Slots) -> Transition {
    let all = Group::BOTH.into_iter().flat_map(|group| Slot::BOTH.map(|slot| (group, slot)));
    let there = all.filter(|(group, slot)| slots.get(*group, *slot).is_some());
    Transition::nothing(Effect::Nothing, String::new())
        .then(there.map(|(group, slot)| Act::Void(group, slot)))
}
