//! The scenes of an upgrade on a machine where EFI variables decide what boots.

use std::collections::HashMap;

use qstage::boot::BootFlag;
use qstage::units::Slot::{self, A, B};

use super::{Event, Store, Uefi, boot, new_machine};
use crate::harness::proof::cuts::Choice;
use crate::harness::proof::scenes::{AA, BA, BB, Releases};
use crate::harness::proof::{Verb, factory};

/// A verb, and the conditions after a cut of it.
pub struct Scene {
    pub name: &'static str,
    pub from: &'static str,
    pub booted: Slot,
    pub verb: Verb,
    pub choices: Vec<Choice>,
    pub prepared: Vec<&'static str>,
    /// Whether the trial boot is over, and the machine has fallen back.
    pub fallen: bool,
}

fn scenes(r: &Releases) -> Vec<Scene> {
    let (v2, v3) = (|| Verb::Prepare(r.v2.clone()), || Verb::Prepare(r.v3.clone()));
    let v21 = || Verb::Prepare(r.v21.clone());
    let scene = |name, from, booted, verb, choices: &[Choice], prepared: &[&'static str]| Scene {
        name,
        from,
        booted,
        verb,
        choices: choices.to_vec(),
        prepared: prepared.to_vec(),
        fallen: false,
    };
    vec![
        scene("prepare", "", A, v2(), &[AA], &["2.0"]),
        scene("prepare another", "prepare", A, v3(), &[AA], &["2.0", "3.0"]),
        scene("commit", "prepare", A, Verb::Commit, &[AA, BB], &["2.0"]),
        scene("cancel committed", "commit", A, Verb::Cancel, &[BB, AA], &["2.0"]),
        // On trial: without mark-good the old slot boots next.
        scene("mark good", "commit", B, Verb::MarkGood, &[AA, BB], &[]),
        scene("roll back a trial", "commit", B, Verb::RollBack, &[AA], &[]),
        scene("prepare over a bad slot", "roll back a trial", A, v3(), &[AA], &["3.0"]),
        scene("prepare over a formerly good slot", "mark good", B, v3(), &[BB], &["3.0"]),
        scene("roll back a good slot", "mark good", B, Verb::RollBack, &[BB, AA], &[]),
        scene("stay after all", "roll back a good slot", B, Verb::Cancel, &[AA, BB], &[]),
        scene("a trial fails", "commit", B, Verb::TrialFailed, &[AA], &[]),
        Scene { fallen: true, ..scene("settle a fallback", "commit", A, Verb::MarkGood, &[AA], &[]) },
        Scene { fallen: true, ..scene("prepare after a fallback", "commit", A, v3(), &[AA], &["3.0"]) },
        scene("prepare software", "mark good", B, v21(), &[BB], &["2.1"]),
        scene("commit software", "prepare software", B, Verb::Commit, &[BB, BA], &["2.1"]),
        scene("start a container", "commit software", B, Verb::Start, &[BA], &[]),
        scene("a container is healthy", "start a container", B, Verb::SoftwareGood(A), &[BA], &[]),
        scene("a container is not healthy", "start a container", B, Verb::SoftwareBack(A), &[BA, BB], &[]),
        scene("lend a formerly good slot", "mark good", B, Verb::Lend, &[BB], &[]),
    ]
}

pub struct Recording {
    pub scene: Scene,
    pub before: (Vec<u8>, Store),
    pub events: Vec<Event>,
}

pub fn play(r: &Releases) -> Vec<Recording> {
    let mut after = HashMap::from([("", (factory(512, BootFlag::Efi, &r.v1), new_machine()))]);
    let mut takes = Vec::new();
    for scene in scenes(r) {
        let mut before = after[scene.from].clone();
        // If the scene runs in the other slot, there was a reboot before.
        if scene.fallen || boot(&before.1).0.first() == Some(&scene.booted) {
            before.1 = boot(&before.1).1;
        }
        let machine = Uefi::new(before.0.clone(), &before.1);
        machine.run(scene.booted, &scene.verb).unwrap_or_else(|error| panic!("{}: {error}", scene.name));
        after.insert(scene.name, (machine.tape.memory.snapshot(), machine.store()));
        takes.push(Recording { before, events: machine.events(), scene });
    }
    takes
}
