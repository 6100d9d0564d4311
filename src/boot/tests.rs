//! Every combination of the boot bits of both slots: after each operation exactly the intended slot boots, and no
//! other bit has changed.

use super::*;
use crate::gpt::testing::{table, table_of};

const OURS: u64 = 0x01ff << 48 | 1 << 2;
const FLAGS: [BootFlag; 2] = [BootFlag::Priority, BootFlag::Legacy];

/// Noise in every foreign bit.
const NOISE: u64 = 0xa5a5_5a5a_c3c3_3c3c & !OURS;

fn bits(priority: u64, tries: u64, successful: u64, legacy: u64) -> u64 {
    NOISE | priority << 48 | tries << 52 | successful << 56 | legacy << 2
}

/// All values that behave differently: priorities and tries around their limits, both values of the other bits.
fn values() -> Vec<u64> {
    let mut all = Vec::new();
    for priority in [0, 1, 2, 15] {
        for tries in [0, 1, 15] {
            for marks in 0..4 {
                all.push(bits(priority, tries, marks & 1, marks >> 1));
            }
        }
    }
    all
}

fn next_boot(table: &Table, slots: &Slots, group: Group, flag: BootFlag) -> Option<Slot> {
    Flags::new(table.clone(), slots, flag).next(group)
}

fn make_unbootable(t: &Table, slots: &Slots, group: Group, slot: Slot, flag: BootFlag) -> Result<Table> {
    Flags::new(t.clone(), slots, flag).make_unbootable(group, slot).map(Flags::into_table)
}

fn select_trial(t: &Table, s: &Slots, group: Group, slot: Slot, tries: u8, flag: BootFlag) -> Result<Table> {
    Flags::new(t.clone(), s, flag).select_trial(group, slot, tries).map(Flags::into_table)
}

fn mark_good(t: &Table, slots: &Slots, group: Group, slot: Slot, flag: BootFlag) -> Result<Table> {
    Flags::new(t.clone(), slots, flag).mark_good(group, slot).map(Flags::into_table)
}

fn roll_back(
    t: &Table,
    s: &Slots,
    group: Group,
    to: Slot,
    leave: RolledBackSlot,
    flag: BootFlag,
) -> Result<Table> {
    Flags::new(t.clone(), s, flag).roll_back(group, to, leave).map(Flags::into_table)
}

fn disk(a: u64, b: u64) -> (Table, Slots) {
    // Sixteen entries: these loops would spend their time on the CRC of a full array.
    let table = table_of(
        16,
        &[
            (1, "platform_a", 2048, 2999, a),
            (2, "data", 3000, 3999, u64::MAX),
            (4, "platform_b", 4000, 4999, b),
            (5, "software_b", 6000, 6999, b),
            (9, "software_a", 5000, 5999, a),
        ],
    );
    let slots = Slots::resolve(&table, "disk").unwrap();
    (table, slots)
}

/// The bits that `group` may change under `flag`.
fn allowed(group: Group, flag: BootFlag) -> u64 {
    match if group == Group::Platform { flag } else { BootFlag::Priority } {
        BootFlag::Priority => 0x01ff << 48,
        BootFlag::Legacy => 1 << 2,
        BootFlag::Efi => 0,
    }
}

fn assert_rest_untouched(before: &Table, after: &Table, slots: &Slots, group: Group, flag: BootFlag) {
    for partition in before.partitions() {
        let changed = before.attributes(partition.number).0 ^ after.attributes(partition.number).0;
        let may = if slots.slot_of(group, partition.number).is_some() { allowed(group, flag) } else { 0 };
        assert_eq!(changed & !may, 0, "partition {}", partition.number);
    }
    assert!(after.same_partitions(before));
}

/// Calls `f` for every pair of values, flag, group and slot.
fn every(mut f: impl FnMut(&Table, &Slots, Group, Slot, BootFlag)) {
    for &a in &values() {
        for &b in &values() {
            let (table, slots) = disk(a, b);
            for flag in FLAGS {
                for group in Group::BOTH {
                    for slot in Slot::BOTH {
                        f(&table, &slots, group, slot, flag);
                    }
                }
            }
        }
    }
}

#[test]
fn selection_equals_that_of_the_loaders() {
    // Written as a table, not as code: priority, tries, successful of a and b, and the slot that boots.
    let cases = [
        ((2, 0, 1), (1, 0, 1), Some(Slot::A)),
        ((1, 0, 1), (2, 0, 1), Some(Slot::B)),
        ((1, 0, 1), (1, 0, 1), Some(Slot::A)),
        ((2, 0, 0), (1, 0, 1), Some(Slot::B)),
        ((2, 1, 0), (1, 0, 1), Some(Slot::A)),
        ((0, 15, 1), (0, 0, 1), None),
        ((15, 0, 0), (0, 0, 0), None),
        ((0, 0, 0), (15, 15, 0), Some(Slot::B)),
    ];
    for ((pa, ta, sa), (pb, tb, sb), expected) in cases {
        let (table, slots) = disk(bits(pa, ta, sa, 0), bits(pb, tb, sb, 1));
        for group in Group::BOTH {
            assert_eq!(next_boot(&table, &slots, group, BootFlag::Priority), expected);
        }
        assert_eq!(next_boot(&table, &slots, Group::Platform, BootFlag::Legacy), Some(Slot::B));
        assert_eq!(next_boot(&table, &slots, Group::Software, BootFlag::Legacy), expected);
    }
    for both in [0, 1] {
        let (table, slots) = disk(bits(1, 1, 1, both), bits(1, 1, 1, both));
        assert_eq!(next_boot(&table, &slots, Group::Platform, BootFlag::Legacy), None);
    }
}

#[test]
fn a_trial_boots_next_and_has_its_tries() {
    every(|before, slots, group, slot, flag| {
        for tries in [0, 1, 7, 15, 200] {
            let after = select_trial(before, slots, group, slot, tries, flag).unwrap();
            assert_eq!(next_boot(&after, slots, group, flag), Some(slot));
            assert_rest_untouched(before, &after, slots, group, flag);
            if group == Group::Platform && flag == BootFlag::Legacy {
                continue;
            }
            let (now, other) =
                (attributes(&after, slots, group, slot), attributes(&after, slots, group, !slot));
            assert_eq!((now.priority(), now.successful()), (2, false));
            assert_eq!(now.tries(), tries.clamp(1, 15));
            // The fallback takes over exactly if it could boot before.
            let was = attributes(before, slots, group, !slot);
            assert_eq!(other.will_boot(), was.will_boot());
            let number = slots.get(group, slot).unwrap().number;
            let spent = after.with_attributes(number, now.with_tries(0));
            assert_eq!(next_boot(&spent, slots, group, flag), was.will_boot().then_some(!slot));
        }
    });
}

#[test]
fn a_good_slot_boots_for_ever() {
    every(|before, slots, group, slot, flag| {
        let after = mark_good(before, slots, group, slot, flag).unwrap();
        assert_eq!(next_boot(&after, slots, group, flag), Some(slot));
        assert_rest_untouched(before, &after, slots, group, flag);
        assert_eq!(mark_good(&after, slots, group, slot, flag).unwrap(), after, "twice is once");
        if group == Group::Software || flag == BootFlag::Priority {
            let now = attributes(&after, slots, group, slot);
            assert_eq!((now.priority(), now.tries(), now.successful()), (2, 0, true));
        }
    });
}

#[test]
fn a_roll_back_boots_the_other_slot() {
    every(|before, slots, group, to, flag| {
        for leave in [RolledBackSlot::Fallback, RolledBackSlot::Bad] {
            let after = roll_back(before, slots, group, to, leave, flag).unwrap();
            assert_eq!(next_boot(&after, slots, group, flag), Some(to));
            assert_rest_untouched(before, &after, slots, group, flag);
            if group == Group::Software || flag == BootFlag::Priority {
                let was = attributes(before, slots, group, !to).will_boot();
                let now = attributes(&after, slots, group, !to).will_boot();
                assert_eq!(now, was && leave == RolledBackSlot::Fallback);
            }
        }
    });
}

#[test]
fn an_unbootable_slot_is_never_taken() {
    every(|before, slots, group, slot, flag| {
        let was = next_boot(before, slots, group, flag);
        let only = group == Group::Platform && flag == BootFlag::Legacy && was == Some(slot);
        let result = make_unbootable(before, slots, group, slot, flag);
        if only {
            assert!(matches!(result, Err(Error::SlotInUse { .. })));
            return;
        }
        let after = result.unwrap();
        assert_ne!(next_boot(&after, slots, group, flag), Some(slot));
        if was == Some(!slot) {
            assert_eq!(next_boot(&after, slots, group, flag), was);
        }
        assert_rest_untouched(before, &after, slots, group, flag);
    });
}

/// Under EFI the table is left as it is for the platform; the software goes by its bits all the same.
#[test]
fn under_efi_the_platform_is_left_as_found() {
    let efi = BootFlag::Efi;
    for &value in &values() {
        let (before, slots) = disk(value, bits(2, 0, 1, 1));
        for slot in Slot::BOTH {
            let turns = |group| {
                [
                    make_unbootable(&before, &slots, group, slot, efi).unwrap(),
                    select_trial(&before, &slots, group, slot, 3, efi).unwrap(),
                    mark_good(&before, &slots, group, slot, efi).unwrap(),
                    roll_back(&before, &slots, group, slot, RolledBackSlot::Bad, efi).unwrap(),
                ]
            };
            assert!(turns(Group::Platform).iter().all(|after| *after == before));
            assert_eq!(next_boot(&before, &slots, Group::Platform, efi), None);
            for after in &turns(Group::Software)[1..] {
                assert_eq!(next_boot(after, &slots, Group::Software, efi), Some(slot));
            }
        }
    }
}

#[test]
fn slots_are_found_by_name_and_refused_with_facts() {
    let platform = [(1, "platform_a", 2048, 2999, 0), (3, "platform_b", 3000, 3999, 0)];
    let resolve = |more: &[(u32, &'static str, u64, u64, u64)]| {
        let rows: Vec<_> = platform.iter().chain(more).copied().collect();
        Slots::resolve(&table(&rows), "disk")
    };
    let slots = resolve(&[]).unwrap();
    assert_eq!(slots.get(Group::Platform, Slot::B).unwrap().number, 3);
    assert_eq!(slots.slot_of(Group::Platform, 1), Some(Slot::A));
    assert!(matches!(slots.require(Group::Software, Slot::A), Err(Error::SlotMissing { .. })));
    let half = resolve(&[(4, "software_a", 4000, 4001, 0)]);
    assert!(matches!(half, Err(Error::SlotMissing { name, .. }) if name == "software_b"));
    let twice = resolve(&[(9, "platform_a", 4000, 4001, 0)]);
    assert!(matches!(twice, Err(Error::SlotAmbiguous { numbers, .. }) if numbers == "1, 9"));
    for bad in [(8000, 8159), (2047, 2047), (9, 3), (u64::MAX, u64::MAX), (3999, 4001)] {
        let rows = [(4, "software_a", bad.0, bad.1, 0), (5, "software_b", 5000, 5001, 0)];
        assert!(matches!(resolve(&rows), Err(Error::GptUnsupported { .. })), "{bad:?}");
    }
    // Odd neighbours that overlap no slot do not matter.
    assert!(resolve(&[(7, "x", 9, 3, 0), (8, "y", 6000, 6010, 0), (9, "z", 6005, 9000, 0)]).is_ok());
}

fn attributes(table: &Table, slots: &Slots, group: Group, slot: Slot) -> Attributes {
    table.attributes(slots.get(group, slot).unwrap().number)
}
