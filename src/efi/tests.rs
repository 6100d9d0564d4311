//! Every combination of entries, orders and BootNext; every operation; every cut between two steps. Checked by
//! models of firmware that are written from UEFI 2.10, 3.1.1, without the code under test.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::boot::RolledBackSlot;
use crate::units::{Guid, Slot};

const A: u16 = 1;
const B: u16 = 2;
/// A second entry for slot a, as a person makes it.
const TWIN: u16 = 3;
/// Another system on another disk.
const FOREIGN: u16 = 4;
/// The firmware's setup: in BootOrder, but never started on its own.
const SETUP: u16 = 5;
/// Named by lists, but the variable does not exist.
const MISSING: u16 = 9;

fn drive(slot: Slot) -> HardDrive {
    let guid = Guid([if slot == Slot::A { 0xa1 } else { 0xb2 }; 16]);
    HardDrive { number: 1 + u32::from(slot == Slot::B), start: 2048, blocks: 4096, guid }
}

fn option(number: u16) -> LoadOption {
    let other = HardDrive { guid: Guid([0xcc; 16]), ..drive(Slot::A) };
    match number {
        A | TWIN => LoadOption::build("Linux", &drive(Slot::A), default_loader()),
        B => LoadOption::build("B", &drive(Slot::B), default_loader()),
        _ => {
            let mut bytes = LoadOption::build("other", &other, "\\x").bytes().to_vec();
            // CATEGORY_APP and HIDDEN, as OVMF's setup has them.
            bytes[..4].copy_from_slice(&(if number == SETUP { 0x109u32 } else { 1 }).to_le_bytes());
            LoadOption::parse(bytes).unwrap()
        }
    }
}

fn variable(data: Vec<u8>) -> Variable {
    Variable { attributes: 7, data }
}

fn choice(entries: &[(u16, bool)], order: &[u16], next: Option<u16>) -> EfiBoot {
    let mut all: Vec<(Name, Variable)> = entries
        .iter()
        .map(|&(number, active)| {
            (Name::entry(number), variable(option(number).with_active(active).bytes().to_vec()))
        })
        .collect();
    all.push((Name::order(), variable(order.iter().flat_map(|n| n.to_le_bytes()).collect())));
    all.extend(next.map(|next| (Name::next(), variable(next.to_le_bytes().to_vec()))));
    EfiBoot::new(Nvram::new(all), [drive(Slot::A), drive(Slot::B)], default_loader())
}

/// How a firmware treats the variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    /// EDK2: BootNext is started, active or not.
    Edk2,
    /// A firmware that requires ACTIVE there too.
    Strict,
    /// One that puts every active entry that is not in BootOrder at its end.
    Collects,
}

const MODELS: [Model; 3] = [Model::Edk2, Model::Strict, Model::Collects];

/// One boot: returns one of the slots, a foreign entry, or nothing; and the variables afterwards. Entries of
/// `broken` slots cannot be loaded, and the next in order is tried.
fn boot(choice: &EfiBoot, model: Model, broken: Option<Slot>) -> (Option<Option<Slot>>, EfiBoot) {
    let nvram = choice.nvram();
    let starts = |number: u16, ignore_active: bool| {
        let option = nvram.entry(number).filter(|option| ignore_active || option.is_active())?;
        let slot = Slot::BOTH.into_iter().find(|slot| option.partition() == Some(drive(*slot).guid));
        (slot.is_none() || slot != broken).then_some(slot)
    };
    let mut after = choice.clone();
    after.nvram.put(Name::next(), None);
    if let Some(started) = nvram.next().and_then(|number| starts(number, model == Model::Edk2)) {
        return (Some(started), after);
    }
    let mut order = nvram.order();
    if model == Model::Collects {
        let more: Vec<u16> =
            nvram.entries().map(|(number, _)| number).filter(|n| !order.contains(n)).collect();
        order.extend(more);
    }
    let automatic = |number: &u16| nvram.entry(*number).is_some_and(|option| option.boots());
    (order.into_iter().filter(automatic).find_map(|number| starts(number, false)), after)
}

/// Every start: existing and active entries, orders, BootNext.
fn starts() -> Vec<EfiBoot> {
    let mut all = Vec::new();
    let lists: [&[u16]; 10] = [
        &[],
        &[A],
        &[B, A],
        &[B, TWIN, A],
        &[FOREIGN, A, B],
        &[SETUP, B, FOREIGN, A],
        &[MISSING, A, SETUP],
        &[MISSING, FOREIGN],
        &[A, B, A],
        &[SETUP, FOREIGN, TWIN, B, MISSING],
    ];
    // For each of ours: absent, inactive, active; the twin is never inactive.
    let states = |mask: &u16| (0..3).all(|pair| mask >> (2 * pair) & 3 != 2) && mask >> 4 & 3 != 1;
    for mask in (0..64u16).filter(states) {
        let mut entries = vec![(FOREIGN, true), (SETUP, true)];
        for (bit, number) in [(0, A), (2, B), (4, TWIN)] {
            if mask >> bit & 1 == 1 {
                entries.push((number, mask >> (bit + 1) & 1 == 1));
            }
        }
        for order in lists {
            for next in [None, Some(A), Some(B), Some(TWIN), Some(FOREIGN), Some(MISSING)] {
                all.push(choice(&entries, order, next));
            }
        }
    }
    all
}

/// The choices before the first step, between all steps, and after the last.
fn cuts(start: &EfiBoot, plan: &VariablePlan) -> Vec<EfiBoot> {
    let mut now = start.clone();
    let mut all = vec![now.clone()];
    for step in &plan.steps {
        now.nvram.put(step.name.clone(), step.value.clone());
        all.push(now.clone());
    }
    assert_eq!(now, plan.after, "the steps do what they promise");
    all
}

/// Everything foreign is unchanged: variables, and the foreign numbers in their order.
fn foreign_untouched(before: &EfiBoot, after: &EfiBoot) {
    let foreign = |choice: &EfiBoot| {
        let entries: Vec<_> =
            choice.nvram.entries().filter(|(number, _)| choice.slot(*number).is_none()).collect();
        let order: Vec<_> = choice.nvram.order().into_iter().filter(|n| choice.slot(*n).is_none()).collect();
        (entries, order)
    };
    // A number that was dangling and is now an entry of ours would have vanished from the second.
    assert_eq!(foreign(before), foreign(after));
    for (number, option) in before.nvram.entries() {
        let now = after.nvram.entry(number).unwrap();
        assert_eq!(option.bytes()[1..], now.bytes()[1..]);
        assert_eq!(option.bytes()[0] | 1, now.bytes()[0] | 1);
    }
}

/// A machine that boots one of its slots without a trial does so, or as intended, after every cut.
fn never_nothing(start: &EfiBoot, plan: &VariablePlan, intended: &[Slot]) {
    for model in MODELS {
        let before = boot(start, model, None).0;
        for cut in cuts(start, plan) {
            let now = boot(&cut, model, None).0;
            assert!(now.is_some() || before.is_none(), "{model:?} boots nothing: {start:?} -> {cut:?}");
            let mine =
                now == before || intended.iter().any(|slot| now == Some(Some(*slot))) || before.is_none();
            // If none of ours was in the list, the other slot is added first.
            let another = start.first().is_none() && [Some(None), Some(Some(!intended[0]))].contains(&now);
            let trial_dropped =
                start.nvram.next().is_some() && now == boot(&boot(start, model, None).1, model, None).0;
            assert!(mine || another || trial_dropped, "{model:?} boots {now:?}: {start:?} -> {cut:?}");
        }
    }
}

#[test]
fn a_withdrawn_slot_is_booted_by_no_firmware() {
    for start in starts() {
        for target in Slot::BOTH {
            let plan = start.withdraw(target);
            foreign_untouched(&start, &plan.after);
            for model in MODELS {
                assert_ne!(boot(&plan.after, model, None).0, Some(Some(target)), "{model:?} {start:?}");
                assert_ne!(
                    boot(&plan.after, model, Some(!target)).0,
                    Some(Some(target)),
                    "{model:?} {start:?}"
                );
            }
            assert_eq!(plan.after.first(), Some(!target));
            assert!(plan.after.entries(target).iter().all(|(_, option)| !option.is_active()));
            assert!(plan.after.withdraw(target).steps.is_empty(), "twice is once");
            never_nothing(&start, &plan, &[!target]);
        }
    }
}

#[test]
fn a_trial_is_one_boot_and_falls_back_by_itself() {
    for start in starts() {
        for slot in Slot::BOTH {
            let plan = start.try_once(slot);
            foreign_untouched(&start, &plan.after);
            assert_eq!((plan.after.next(), plan.after.first()), (Some(slot), Some(!slot)));
            assert!(plan.after.try_once(slot).steps.is_empty());
            // The last step is the commit: before it nothing tries the slot.
            let all = cuts(&start, &plan);
            for cut in &all[..all.len() - 1] {
                assert!(cut.pending() != Some(slot) || start.pending() == Some(slot));
            }
            for model in MODELS {
                let (first, then) = boot(&plan.after, model, None);
                assert_eq!(first, Some(Some(slot)), "{model:?} {start:?}");
                assert_ne!(
                    boot(&then, model, None).0,
                    Some(Some(slot)),
                    "{model:?}: tried for ever, {start:?}"
                );
                // A kernel image that cannot even be loaded: the same boot falls back.
                assert_ne!(boot(&plan.after, model, Some(slot)).0, None);
            }
            // A slot that boots already is not tried; if it is, the other one comes first meanwhile.
            let both = [slot, !slot];
            let among = if start.first() == Some(slot) { &both[..] } else { &both[..1] };
            never_nothing(&start, &plan, among);
        }
    }
}

#[test]
fn a_kept_slot_boots_before_everything_else() {
    for start in starts() {
        for slot in Slot::BOTH {
            let plan = start.keep(slot);
            foreign_untouched(&start, &plan.after);
            assert!(plan.after.keep(slot).steps.is_empty());
            let foreign_once = start.nvram.next() == Some(FOREIGN);
            for model in MODELS {
                let (first, then) = boot(&plan.after, model, None);
                assert!(
                    first == Some(Some(slot)) || foreign_once && first == Some(None),
                    "{model:?} {start:?}"
                );
                assert_eq!(boot(&then, model, None).0, Some(Some(slot)));
            }
            never_nothing(&start, &plan, &[slot]);
        }
    }
}

#[test]
fn the_way_back_leads_to_the_other_slot() {
    for start in starts() {
        for to in Slot::BOTH {
            for leave in [RolledBackSlot::Fallback, RolledBackSlot::Bad] {
                let plan = start.back(to, leave);
                foreign_untouched(&start, &plan.after);
                assert_eq!(plan.after.next(), Some(to));
                assert!(plan.after.back(to, leave).steps.is_empty());
                never_nothing(&start, &plan, &[to]);
                for model in MODELS {
                    let broken = boot(&plan.after, model, Some(to)).0;
                    assert!(
                        leave == RolledBackSlot::Fallback || broken != Some(Some(!to)),
                        "{model:?} {start:?}"
                    );
                }
            }
        }
    }
}

/// The check must detect the faults it exists for.
#[test]
fn wrong_orders_are_detected() {
    let start = choice(&[(A, true), (B, true), (FOREIGN, true)], &[A, FOREIGN], None);
    let fails = |check: fn(&EfiBoot, VariablePlan), plan: VariablePlan| {
        let start = start.clone();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let failed = std::panic::catch_unwind(move || check(&start, plan)).is_err();
        std::panic::set_hook(hook);
        failed
    };
    // Good before its trial: it is tried for ever.
    let early: fn(&EfiBoot, VariablePlan) = |_, plan| {
        let (first, then) = boot(&plan.after, Model::Edk2, None);
        assert_eq!(first, Some(Some(Slot::B)));
        assert_ne!(boot(&then, Model::Edk2, None).0, Some(Some(Slot::B)));
    };
    assert!(!fails(early, start.try_once(Slot::B)));
    assert!(fails(early, start.keep(Slot::B)));
    // BootOrder names an entry that is made afterwards.
    let safe: fn(&EfiBoot, VariablePlan) = |_, plan| {
        let bare = choice(&[], &[], None);
        let whole = cuts(&bare, &plan);
        assert!(whole[1..].iter().all(|cut| cut.nvram.order().iter().all(|n| cut.nvram.entry(*n).is_some())));
    };
    let bare = choice(&[], &[], None).keep(Slot::A);
    let mut reversed = bare.clone();
    reversed.steps.reverse();
    assert!(!fails(safe, bare));
    assert!(fails(safe, reversed));
    // The target stays in BootOrder while it is written.
    let written: fn(&EfiBoot, VariablePlan) = |_, plan| {
        assert_ne!(boot(&plan.after, Model::Edk2, Some(Slot::B)).0, Some(Some(Slot::A)));
    };
    assert!(!fails(written, start.withdraw(Slot::A)));
    assert!(fails(written, VariablePlan::none(start.clone())));
}

#[test]
fn a_new_entry_takes_a_number_without_references() {
    let start = choice(&[(0, true), (A, true)], &[A, B, TWIN], Some(FOREIGN));
    // 2 to 4 dangle in the lists, and a lower-case name is no entry to the firmware, but 5 is free.
    let plan = start.try_once(Slot::B);
    assert_eq!(plan.after.entry(Slot::B).unwrap().0, 5);
    let (_, entry) = plan.after.entry(Slot::B).unwrap();
    assert_eq!((entry.description().as_str(), entry.file().as_deref()), ("qstage b", Some(default_loader())));
}

#[test]
fn the_stub_identifies_the_running_slot_before_the_entry() {
    let base = choice(&[(A, true), (B, true)], &[A, B], None);
    let with = |current: Option<u16>, partition: Option<&str>| {
        let mut choice = base.clone();
        let global =
            |name: &str| Name::relevant(&format!("{name}-8be4df61-93ca-11d2-aa0d-00e098032b8c")).unwrap();
        let loader = Name::relevant("LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f").unwrap();
        choice.nvram.put(global("BootCurrent"), current.map(|n| variable(n.to_le_bytes().to_vec())));
        let text = |text: &str| text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        choice.nvram.put(loader, partition.map(|partition| variable(text(partition))));
        choice.booted()
    };
    let (a, b) = (drive(Slot::A).guid.to_string().to_uppercase(), drive(Slot::B).guid.to_string());
    assert_eq!(with(Some(B), None), Some(Slot::B));
    assert_eq!(with(Some(B), Some(&a)), Some(Slot::A));
    assert_eq!(with(None, Some(&b)), Some(Slot::B));
    assert_eq!(with(Some(A), Some("cccccccc-cccc-cccc-cccc-cccccccccccc")), None);
    assert_eq!(with(Some(A), Some("nonsense")), Some(Slot::A));
    assert_eq!(with(Some(MISSING), None), None);
    assert_eq!(with(None, None), None);
}

#[test]
fn names_are_those_of_the_specification() {
    let vendor = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
    for good in ["Boot0000", "BootFFFF", "BootOrder", "BootNext", "BootCurrent"] {
        assert_eq!(Name::relevant(&format!("{good}-{vendor}")).unwrap().to_string(), good);
    }
    for bad in ["Boot00ff", "Boot000", "Boot00000", "Boot+001", "BootOptionSupport", "Timeout", "Boot0001x"] {
        assert!(Name::relevant(&format!("{bad}-{vendor}")).is_none(), "{bad}");
    }
    assert!(Name::relevant("Boot0001-00000000-0000-0000-0000-000000000000").is_none());
    assert_eq!(Name::entry(0xab).as_str(), format!("Boot00AB-{vendor}"));
}

/// What OVMF 2022.11 made by itself, read from its efivarfs: a hidden application, and a disk by its hardware path.
#[test]
fn entries_of_real_firmware() {
    let setup = "090100002c00550069004100700070000000\
                 04071400c9bdb87cebf8344faaea3ee4af6516a10406140021aa2c4614760345836e8ab6f46623317fff0400";
    let bytes = |text: &str| -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let setup = LoadOption::parse(bytes(setup)).unwrap();
    assert_eq!((setup.description().as_str(), setup.is_active(), setup.boots()), ("UiApp", true, false));
    assert_eq!((setup.partition(), setup.file()), (None, None));
}

#[test]
fn a_built_entry_is_parsed_again() {
    let option = LoadOption::build("qstage b", &drive(Slot::B), "\\EFI\\Größe\\🚀.efi");
    assert_eq!(LoadOption::parse(option.bytes().to_vec()), Some(option.clone()));
    assert_eq!(option.description(), "qstage b");
    assert_eq!(option.partition(), Some(drive(Slot::B).guid));
    assert_eq!(option.file().as_deref(), Some("\\EFI\\Größe\\🚀.efi"));
    assert!(option.boots() && !option.with_active(false).boots());
    assert_eq!(option.with_active(false).with_active(true), option);
    // After the end of the first path there may be more paths, and data for the loader.
    let mut more = option.bytes().to_vec();
    more.extend(b"quiet");
    let more = LoadOption::parse(more).unwrap();
    assert_eq!(
        (more.partition(), more.with_active(false).bytes().len()),
        (option.partition(), option.bytes().len() + 5)
    );
    // An MBR disk's signature, or a node of another length, is no GUID of ours.
    for at in [32 + 20, 32 + 20 + 1] {
        let mut other = option.bytes().to_vec();
        let node = other.windows(4).position(|four| four == [4, 1, 42, 0]).unwrap();
        other[node + at - 12] ^= 1;
        assert_eq!(LoadOption::parse(other).unwrap().partition(), None);
    }
}

proptest! {
    /// Nothing that firmware may hold ends the program, and what is read is kept to the byte.
    #[test]
    fn any_bytes_are_parsed_and_preserved(mut bytes in prop::collection::vec(any::<u8>(), 0..200), real in any::<bool>(), at in 0usize..120, value in any::<u8>()) {
        if real {
            bytes = LoadOption::build("b", &drive(Slot::B), "\\x").bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(option) = LoadOption::parse(bytes.clone()) {
            prop_assert_eq!(option.bytes(), &bytes[..]);
            let _ = (option.description(), option.file(), option.partition(), option.boots());
            let off = option.with_active(false);
            prop_assert!(!off.is_active());
            prop_assert_eq!(&off.bytes()[4..], &bytes[4..]);
        }
        let names = [Name::order(), Name::next(), Name::entry(0), Name::entry(1)];
        let all = names.into_iter().map(|name| (name, variable(bytes.clone())));
        let choice = EfiBoot::new(Nvram::new(all), [drive(Slot::A), drive(Slot::B)], default_loader());
        let numbers: BTreeSet<u16> = [choice.withdraw(Slot::A), choice.try_once(Slot::B), choice.keep(Slot::A)]
            .iter()
            .filter_map(|plan| Some(plan.after.entry(Slot::A)?.0))
            .collect();
        prop_assert!(numbers.len() <= 3);
        prop_assert_eq!(choice.keep(Slot::B).after.next(), Some(Slot::B));
    }
}
