//! Every combination of the nine bits of both slots, with every rank, against the algorithms as documented by
//! their projects.

use super::*;

const RANKS: [SlotRank; 5] =
    [SlotRank::Torn, SlotRank::Unknown, SlotRank::Failed, SlotRank::Whole, SlotRank::Good];

/// Foreign bits, which must be preserved.
const NOISE: u64 = 0x5a00_c3c3_3c3c_a5a5 & !(0x01ff << 48);

fn bits(priority: u8, tries: u8, successful: bool) -> Attributes {
    Attributes(NOISE).with_priority(priority).with_tries(tries).with_successful(successful)
}

fn every_bits() -> Vec<Attributes> {
    let nibbles = || 0..=15;
    nibbles().flat_map(|p| nibbles().flat_map(move |t| [false, true].map(|s| bits(p, t, s)))).collect()
}

/// ChromeOS (`GptNextKernelEntry`), Flatcar and Bottlerocket (`gptprio.next`): from priority 15 down, in the order
/// of the table, the first entry that is successful or has tries left.
fn loader(a: Attributes, b: Attributes) -> Option<Slot> {
    for priority in (1..=15).rev() {
        for (slot, bits) in [(Slot::A, a.0 >> 48), (Slot::B, b.0 >> 48)] {
            if bits & 15 == priority && (bits >> 8 & 1 == 1 || bits >> 4 & 15 > 0) {
                return Some(slot);
            }
        }
    }
    None
}

#[test]
fn the_flags_apply_as_in_other_loaders() {
    let all = every_bits();
    for &a in &all {
        for &b in &all {
            let candidate = |attributes| Some(Candidate { attributes, rank: SlotRank::Unknown });
            let choice = choose(candidate(a), candidate(b), Counting::Possible).unwrap();
            let Some(slot) = loader(a, b) else {
                assert_eq!((choice.why, choice.count), (SelectionReason::Rescue, None));
                continue;
            };
            let own = if slot == Slot::A { a } else { b };
            assert_eq!(choice.slot, slot, "{a:?} {b:?}");
            if own.successful() {
                assert_eq!(
                    (choice.why, choice.count),
                    (SelectionReason::Good, None),
                    "a good slot is not written"
                );
            } else {
                // One try less, and no other bit.
                assert_eq!(choice.why, SelectionReason::Trial);
                assert_eq!(choice.count.unwrap().0, own.0 - (1 << 52));
            }
        }
    }
}

/// All ranks, with the bits that behave differently.
#[test]
fn some_slot_is_started_whatever_the_flags() {
    let values: Vec<Candidate> = [0, 1, 2, 15]
        .into_iter()
        .flat_map(|p| [0, 1, 15].into_iter().flat_map(move |t| [false, true].map(|s| bits(p, t, s))))
        .flat_map(|attributes| RANKS.map(|rank| Candidate { attributes, rank }))
        .collect();
    let slots: Vec<Option<Candidate>> = values.iter().copied().map(Some).chain([None]).collect();
    for &a in &slots {
        for &b in &slots {
            for counting in [Counting::Possible, Counting::Impossible] {
                let Some(choice) = choose(a, b, counting) else {
                    assert!(a.is_none() && b.is_none());
                    continue;
                };
                check(a, b, counting, choice);
            }
        }
    }
}

fn check(a: Option<Candidate>, b: Option<Candidate>, counting: Counting, choice: Choice) {
    let of = |slot| if slot == Slot::A { a } else { b };
    let chosen = of(choice.slot).expect("a slot that exists");
    let can = |slot: Slot| of(slot).filter(Candidate::by_flags);
    let other = of(!choice.slot);
    assert_eq!(choice.count.is_some(), choice.why == SelectionReason::Trial);
    match choice.why {
        SelectionReason::Good => assert!(chosen.by_flags() && chosen.attributes.successful()),
        SelectionReason::Trial => assert!(counting == Counting::Possible && !chosen.attributes.successful()),
        SelectionReason::Uncounted => {
            assert!(counting == Counting::Impossible);
            let other = can(!choice.slot);
            assert!(other.is_none_or(|other| !other.attributes.successful()), "a good slot goes first");
        }
        SelectionReason::Rescue => {
            assert!(can(Slot::A).is_none() && can(Slot::B).is_none());
            assert!(other.is_none_or(|other| other.rank <= chosen.rank), "the best rank");
        }
    }
    // A slot that is known to be incomplete is the last choice.
    if chosen.rank == SlotRank::Torn {
        assert!(other.is_none_or(|other| other.rank == SlotRank::Torn));
    }
    // Of equals the higher priority, then slot a.
    if choice.why == SelectionReason::Rescue
        && let Some(other) = other.filter(|other| other.rank == chosen.rank)
    {
        let (own, its) = (chosen.attributes.priority(), other.attributes.priority());
        assert!(own > its || own == its && choice.slot == Slot::A);
    }
}

/// Trials run out, and then the good slot boots for ever: after as many boots as there are tries.
#[test]
fn the_old_slot_is_back_after_the_tries() {
    for tries in 1..=15 {
        let (a, mut b) = (bits(1, 0, true), bits(2, tries, false));
        let start = |b: Attributes| {
            let candidate = |attributes| Some(Candidate { attributes, rank: SlotRank::Whole });
            choose(candidate(a), candidate(b), Counting::Possible).unwrap()
        };
        for left in (0..tries).rev() {
            let choice = start(b);
            assert_eq!((choice.slot, choice.why), (Slot::B, SelectionReason::Trial));
            b = choice.count.unwrap();
            assert_eq!(b.tries(), left);
        }
        for _ in 0..3 {
            assert_eq!(start(b), Choice { slot: Slot::A, why: SelectionReason::Good, count: None });
        }
    }
}

#[test]
fn ranks_by_the_content_of_a_slot() {
    let torn = Content::Torn { origin: String::new(), manifest: crate::units::Blake3([0; 32]), epoch: 0 };
    let nothing = Content::Nothing { why: String::new(), traces: false, epoch: 0 };
    let rank = |attributes, content: Option<&Content>| Candidate::new(attributes, content).rank;
    for attributes in every_bits() {
        assert_eq!(rank(attributes, Some(&torn)), SlotRank::Torn);
        for unread in [None, Some(&nothing)] {
            let expected = if attributes.successful() { SlotRank::Good } else { SlotRank::Unknown };
            assert_eq!(rank(attributes, unread), expected);
        }
    }
}

/// Whatever the flags of the software: if the slot that came with the running platform may run, the pair matches.
#[test]
fn software_is_never_paired_with_another_platform() {
    let fits = [None, Some(false), Some(true)];
    for flagged in [None, Some(Slot::A), Some(Slot::B)] {
        for (a_fits, b_fits) in fits.into_iter().flat_map(|a| fits.map(|b| (a, b))) {
            for usable in 0..4 {
                let of = |slot| match slot {
                    Slot::A => Companion { fits: a_fits, usable: usable & 1 == 1 },
                    Slot::B => Companion { fits: b_fits, usable: usable & 2 == 2 },
                };
                let got = software_beside(flagged, of);
                let Some(flagged) = flagged else {
                    assert_eq!(got, None, "what no flag selects is not started");
                    continue;
                };
                let got = got.unwrap();
                let other = of(!got);
                assert!(
                    of(got).fits != Some(false) || other.fits != Some(true) || !other.usable,
                    "a matching pair was there"
                );
                // The flags are left only for a better reason.
                assert!(got == flagged || of(flagged).fits == Some(false) && of(got).usable);
            }
        }
    }
}
