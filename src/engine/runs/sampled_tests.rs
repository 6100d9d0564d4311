//! What runs over views of every kind, sensible or not: no slot is called bad and next, and no guess is shown as a fact.

use super::super::checks::blocked;
use super::super::remedy::remedy;
use super::super::view::{SlotView, View};
use super::tests::{Memory, fixtures};
use crate::boot::{BootFlag, RolledBackSlot};
use crate::efi::EfiBoot;
use crate::engine::Policy;
use crate::error::Remedy;
use crate::gpt::Attributes;
use crate::slot::{Content, Verdict};
use crate::state::{KnownBy, RunningSlot, SlotState};
use crate::units::{Blake3, Group, Slot};

use Group::{Platform, Software};
use Slot::{A, B};

/// splitmix64.
struct Random(u64);

impl Random {
    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        &all[(z ^ (z >> 31)) as usize % all.len()]
    }
}

/// What the firmware may choose after two of our steps, from a machine whose variables name neither slot.
fn choices(new: EfiBoot) -> Vec<EfiBoot> {
    let mut all = vec![new];
    for _ in 0..2 {
        for choice in all.clone() {
            for slot in Slot::BOTH {
                let back = |leave| choice.back(slot, leave);
                let plans = [
                    choice.try_once(slot),
                    choice.keep(slot),
                    choice.withdraw(slot),
                    back(RolledBackSlot::Bad),
                    back(RolledBackSlot::Fallback),
                ];
                all.extend(plans.map(|plan| plan.after));
            }
        }
    }
    all
}

/// Views of every kind, sensible or not: flags, records, marks, what runs and what is in use, in random combinations.
#[test]
fn no_view_calls_a_slot_bad_and_next_or_shows_a_guess() {
    let nothing = || Content::Nothing { why: "nothing".to_owned(), traces: false, epoch: 0 };
    let torn = || Content::Torn { origin: String::new(), manifest: Blake3([0; 32]), epoch: 0 };
    let verdicts =
        [None, Some(Verdict::Good), Some(Verdict::Bad), Some(Verdict::Failed), Some(Verdict::Trying)];
    let contents = |group: Group, versions: &[&str]| -> Vec<Content> {
        let whole =
            versions.iter().flat_map(|version| verdicts.map(|mark| fixtures().content(version, group, mark)));
        whole.chain([nothing(), torn()]).collect()
    };
    let contents = [contents(Platform, &["1.0", "2.0"]), contents(Software, &["1.0", "1.5", "2.0"])];
    let none = Attributes::default();
    let bits: Vec<Attributes> =
        [(0, 0, false), (2, 3, false), (1, 1, false), (2, 0, false), (2, 0, true), (1, 0, true)]
            .iter()
            .flat_map(|(priority, tries, good)| {
                let bits = none.with_priority(*priority).with_tries(*tries).with_successful(*good);
                [bits, bits.with_legacy_bootable(true)]
            })
            .collect();
    let slots = [None, Some(A), Some(B)];
    let releases: Vec<Option<Blake3>> = [None, Some("1.5"), Some("2.0")]
        .map(|v| v.map(|v| fixtures().bundle(v).manifest().digest()))
        .to_vec();
    let mut random = Random(14);
    let memory = Memory::new(&fixtures().disk, None);
    let mut shown = [0; 4];
    for flag in [BootFlag::Priority, BootFlag::Legacy, BootFlag::Efi] {
        let policy = Policy { boot_flag: flag, ..Policy::default() };
        let mut view = View::read(&memory, &policy).unwrap();
        let firmware = view.efi.clone().map(choices).unwrap_or_default();
        let numbers: Vec<(Group, u32)> =
            view.all().iter().map(|held| (held.group, held.partition.number)).collect();
        for turn in 0..60_000 {
            view.policy.software_started = *random.of(&releases);
            if !firmware.is_empty() {
                view.efi = Some(random.of(&firmware).clone());
            }
            for (group, number) in &numbers {
                view.table = view.table.with_attributes(*number, *random.of(&bits));
                let all = &contents[usize::from(*group == Software)];
                let held = view.holds_mut().iter_mut().find(|held| held.partition.number == *number).unwrap();
                held.content.clone_from(random.of(all));
            }
            let is_image = *random.of(&[false, true]);
            view.imagine(*random.of(&slots), is_image, *random.of(&slots));
            view = view.concluded();
            check(&view, &mut shown);
            if turn % 8 == 0 {
                advised(&view);
            }
        }
    }
    assert!(shown.iter().all(|count| *count > 1000), "not each kind was seen: {shown:?}");
}

/// What blocks every upgrade advises what ends that, and nothing else does; also in views that no order of verbs reaches.
fn advised(view: &View) {
    let free = matches!(remedy(view), Remedy::Prepare | Remedy::PrepareOrRetry);
    assert_eq!(blocked(view).is_none(), free, "{:?}", remedy(view));
}

fn check(view: &View, shown: &mut [usize; 4]) {
    let runs = view.runs();
    let what = || {
        let slot = |held: &SlotView| {
            format!("{} {:?} {:?} {:?}", held.partition.name, held.state, held.attributes, held.mark())
        };
        format!("{runs:?} {:?}", view.all().iter().map(slot).collect::<Vec<_>>())
    };
    for held in view.all() {
        let next = view.boots_next(held.group) == Some(held.slot);
        assert!(
            !(next && held.state == SlotState::Bad),
            "{} is bad and next: {}",
            held.partition.name,
            what()
        );
        let Some(version) =
            view.running_version(held.group).filter(|_| runs.of(held.group).slot() == Some(held.slot))
        else {
            continue;
        };
        let RunningSlot::Known(_, by) = runs.of(held.group) else { unreachable!("it has a slot") };
        match (held.group, held.state) {
            (Platform, SlotState::Good) => shown[0] += 1,
            (Software, SlotState::Good) => shown[1] += 1,
            (Platform, SlotState::Trial) => {
                shown[2] += 1;
                assert!(
                    matches!(by, KnownBy::Caller | KnownBy::Kernel | KnownBy::Firmware),
                    "{version} {}",
                    what()
                );
            }
            (Software, SlotState::Trial) => {
                shown[3] += 1;
                let platform = runs.platform.slot().and_then(|slot| view.held(Platform, slot));
                let started = match by {
                    KnownBy::Use => view.in_use_alone() == Some(held.slot),
                    KnownBy::Caller => view.is_started(held),
                    KnownBy::Platform => platform.is_some_and(|platform| platform.state == SlotState::Trial),
                    _ => false,
                };
                assert!(started, "{version} {}", what());
            }
            (_, state) => panic!("{version} is {state:?} and shown as running: {}", what()),
        }
    }
    assert!(
        runs.platform.slot().is_some()
            || matches!(runs.software, RunningSlot::Unknown(_) | RunningSlot::Known(_, KnownBy::Use))
    );
}
