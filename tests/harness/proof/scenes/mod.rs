//! The scenes of a whole upgrade: each verb on the disk that another one left, the slots that may boot after a cut, the
//! versions that may be reported as prepared, and the next steps.

pub mod list;

use std::collections::HashMap;
use std::sync::Arc;

use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::units::ByteOffset;

pub use list::scenes;

use super::cuts::{Choice, Report, Rules, judge};
use super::{Release, Site, Tape, Verb, boots, factory, noise};
use crate::harness::tables::{Op, Reader};

pub const AA: Choice = (Some('a'), Some('a'));
pub const AB: Choice = (Some('a'), Some('b'));
pub const BA: Choice = (Some('b'), Some('a'));
pub const BB: Choice = (Some('b'), Some('b'));
/// Number of frames of a platform image.
pub const FRAMES: usize = 64;

/// The releases of the proofs, packed once.
pub struct Releases {
    pub v1: Arc<Vec<u8>>,
    pub v2: Arc<Vec<u8>>,
    /// The platform of 2.0 with other software.
    pub v21: Arc<Vec<u8>>,
    pub v3: Arc<Vec<u8>>,
    /// A small release with a higher epoch.
    pub v9: Arc<Vec<u8>>,
}

pub fn releases() -> Releases {
    let v2 = Release::new("2.0", 20, FRAMES);
    let v21 = Release { version: "2.1", software: Some(noise(77, 40_000)), ..v2.clone() };
    Releases {
        v1: Release::new("1.0", 10, FRAMES).pack(),
        v2: v2.pack(),
        v21: v21.pack(),
        v3: Release::new("3.0", 30, FRAMES + 9).pack(),
        v9: Release::new("9.0", 90, 9).pack(),
    }
}

/// Runs a verb on a disk; returns its new content, and the requests that reached it.
pub fn recorded(image: &[u8], block: u32, site: Site, verb: &Verb) -> (Vec<u8>, Vec<Op>) {
    let tape = Tape::new(image.to_vec(), block);
    site.run(tape.clone(), verb).unwrap_or_else(|error| panic!("{verb:?}: {error}"));
    (tape.memory.snapshot(), tape.ops())
}

/// Runs verbs one after another on a disk; an error that nothing is left to do is accepted.
pub fn follow(
    disk: Arc<dyn BlockDevice>,
    block: u32,
    steps: &[(Site, Verb)],
    end: Choice,
) -> Result<(), String> {
    for (site, verb) in steps {
        // A second roll-back would undo the first: before a repetition check whether it was done.
        if matches!(verb, Verb::RollBack)
            && boots(&bytes_of(&*disk), block, site.flag, Reader::Strict) == Some(end)
        {
            continue;
        }
        match site.run(Arc::clone(&disk), verb) {
            Ok(()) => {}
            Err(error) => {
                let done = match verb {
                    Verb::Commit => error.to_string().contains("already committed"),
                    Verb::Cancel => error.code() == "UPGRADE_ERROR_NOTHING_TO_CANCEL",
                    Verb::TrialFailed => error.code() == "UPGRADE_ERROR_NO_TRIAL",
                    _ => false,
                };
                if !done {
                    let verb = format!("{verb:?}");
                    return Err(format!("{} fails: {error}", verb.split('(').next().unwrap_or("")));
                }
            }
        }
    }
    Ok(())
}

pub fn bytes_of(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, ByteOffset(0)).unwrap();
    bytes
}

/// Runs the steps, and checks at the end which slot boots, and that both copies of the table are equal.
pub fn to_the_end(
    disk: Arc<Tape>,
    block: u32,
    steps: &[(Site, Verb)],
    back: Choice,
    end: Choice,
) -> Result<(), String> {
    follow(disk.clone(), block, steps, back)?;
    let image = disk.memory.snapshot();
    for reader in [Reader::Fallback, Reader::Strict, Reader::Lenient] {
        let got = boots(&image, block, steps[0].0.flag, reader);
        if got != Some(end) {
            return Err(format!("{reader:?} boots {got:?} in the end, not {end:?}"));
        }
    }
    Ok(())
}

/// One verb of the whole upgrade, and the conditions after a cut of it.
pub struct Scene {
    pub name: &'static str,
    pub site: Site,
    pub verb: Verb,
    pub choices: Vec<Choice>,
    pub prepared: Vec<&'static str>,
    pub targets: Vec<&'static str>,
    pub marked: Vec<&'static str>,
    pub next: Vec<(Site, Verb)>,
    pub end: Choice,
    /// Name of the scene before it; empty for the first, which starts from the factory.
    pub from: &'static str,
}

/// A recorded scene, with the disk before it.
pub struct Recording {
    pub scene: Scene,
    pub before: Vec<u8>,
    pub ops: Vec<Op>,
}

/// Plays all scenes.
pub fn play(r: &Releases, block: u32, flag: BootFlag, jobs: usize) -> Vec<Recording> {
    let mut after = HashMap::from([("", factory(block, flag, &r.v1))]);
    let at = |booted| Site { jobs, ..Site::new(booted, flag) };
    let mut takes = Vec::new();
    for scene in scenes(r, at) {
        let before = after[scene.from].clone();
        let (image, ops) = recorded(&before, block, scene.site, &scene.verb);
        after.insert(scene.name, image);
        takes.push(Recording { scene, before, ops });
    }
    takes
}

impl Recording {
    /// Judges every state that a cut of `ops` leaves; with `resume` the next steps run from a sample of them.
    pub fn judge(&self, block: u32, ops: &[Op], resume: bool) -> Report {
        let next = |disk: Arc<Tape>| {
            let back = self.scene.choices.last().copied().unwrap_or(self.scene.end);
            to_the_end(disk, block, &self.scene.next, back, self.scene.end)
        };
        let rules = Rules {
            block,
            site: self.scene.site,
            choices: self.scene.choices.clone(),
            prepared: self.scene.prepared.clone(),
            targets: self.scene.targets.clone(),
            marked: self.scene.marked.clone(),
            readers: vec![Reader::Fallback, Reader::Strict, Reader::Lenient],
            thorough: std::env::var_os("QSTAGE_PROOF").is_some(),
            next: if resume { Some(&next) } else { None },
        };
        judge(&self.before, ops, &rules)
    }
}
