//! A verb that refuses has written nothing: not even the repair of the table that was due, nor a fallback that was not
//! written down yet. (The repair used to come first, so a `commit` of nothing rewrote a copy of the table.)

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;

use qstage::boot::BootFlag;
use qstage::commit;
use qstage::gpt::CopyState;
use qstage::units::Slot;

use crate::harness::proof::scenes::{play, releases};
use crate::harness::proof::{Site, Tape, Verb};
use crate::harness::tables::damages;

/// Every verb on every disk that a scene starts from, whole and with each part of the table lost, with either slot running.
#[test]
fn a_refusal_writes_nothing_and_a_success_repairs() {
    let r = releases();
    let verbs = [
        Verb::Prepare(r.v1.clone()),
        Verb::Prepare(r.v9.clone()),
        Verb::Commit,
        Verb::MarkGood,
        Verb::RollBack,
        Verb::Cancel,
        Verb::TrialFailed,
        Verb::Kexec,
        Verb::Start,
        Verb::SoftwareGood(Slot::A),
        Verb::SoftwareBack(Slot::B),
        Verb::Lend,
    ];
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let (mut repaired, mut wrong) = (0, Vec::new());
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        for take in play(&r, 512, flag, 1) {
            let whole = std::iter::once(("nothing", take.before.clone()));
            for (lost, image) in whole.chain(damages(&take.before, 512)) {
                for (verb, slot) in verbs.iter().flat_map(|verb| Slot::BOTH.map(|slot| (verb, slot))) {
                    // A prepare that succeeds takes long, and what it repairs does not depend on the part.
                    if matches!(verb, Verb::Prepare(_)) && !["nothing", "header"].contains(&lost) {
                        continue;
                    }
                    let disk = Tape::new(image.clone(), 512);
                    let about = format!("{flag:?}, {}, {lost} lost, {verb:?} in {slot}", take.scene.name);
                    let about: String = about.chars().filter(|c| !c.is_control()).take(120).collect();
                    match Site::new(slot, flag).run(disk.clone(), verb) {
                        Err(error) => {
                            if !disk.ops().is_empty() {
                                wrong.push(format!(
                                    "{about}: {} after {} writes",
                                    error.code(),
                                    disk.ops().len()
                                ));
                            }
                            *refused.entry(error.code().to_owned()).or_default() += 1;
                        }
                        Ok(()) if lost != "nothing" => {
                            let state = commit::load(&*disk, "disk").unwrap().state();
                            if state != CopyState::Equal {
                                wrong.push(format!("{about}: {state} afterwards"));
                            }
                            repaired += 1;
                        }
                        Ok(()) => {}
                    }
                }
            }
        }
    }
    println!("{repaired} repaired; refused: {refused:#?}");
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    assert!(repaired > 300 && refused.len() > 7, "{repaired}, {refused:?}");
}
