//! The scenes of a whole upgrade: each verb on the disk that another one left, the slots that may boot after a cut, the
//! versions that may be reported as prepared, and the next steps.

use std::collections::HashMap;
use std::sync::Arc;

use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::units::ByteOffset;
use qstage::units::Slot::{self, A, B};

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

/// All scenes, each after the one that it starts from.
pub fn scenes(r: &Releases, at: impl Fn(Slot) -> Site) -> Vec<Scene> {
    let (v2, v21, v3) =
        (|| Verb::Prepare(r.v2.clone()), || Verb::Prepare(r.v21.clone()), || Verb::Prepare(r.v3.clone()));
    let v9 = || Verb::Prepare(r.v9.clone());
    let (a, b) = (at(A), at(B));
    let scene = |name, from, site, verb, choices: &[Choice], next: &[(Site, Verb)], end| Scene {
        name,
        from,
        site,
        verb,
        choices: choices.to_vec(),
        prepared: vec![],
        targets: vec![],
        marked: vec![],
        next: next.to_vec(),
        end,
    };
    use Verb::{
        Cancel, Commit, Kexec, Lend, MarkGood, RollBack, Select, SoftwareBack, SoftwareGood, Start,
        TrialFailed,
    };
    let good_b = [(a, Commit), (b, MarkGood)];
    // With the legacy flag no loader counts tries: the health check that finds the failure rolls back.
    let (fails, failed) = if a.flag == BootFlag::Priority { (vec![BB], BB) } else { (vec![BB, AA], AA) };
    let by_flag = if a.flag == BootFlag::Priority { MarkGood } else { TrialFailed };
    let mut all = vec![
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene("prepare", "", a, v2(), &[AA], &[(a, v2()), (a, Commit), (b, MarkGood)], BB)
        },
        Scene {
            prepared: vec!["2.0", "3.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "prepare another",
                "prepare",
                a,
                v3(),
                &[AA],
                &[(a, v3()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "cancel prepared",
                "prepare",
                a,
                Cancel,
                &[AA],
                &[(a, Cancel), (a, v2()), (a, Commit)],
                BB,
            )
        },
        Scene { prepared: vec!["2.0"], ..scene("commit", "prepare", a, Commit, &[AA, BB], &good_b, BB) },
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "cancel committed",
                "commit",
                a,
                Cancel,
                &[BB, AA],
                &[(a, Cancel), (a, v2()), (a, Commit)],
                BB,
            )
        },
        Scene {
            marked: vec!["platform_b", "software_b"],
            ..scene("mark good", "commit", b, MarkGood, &[BB], &[(b, MarkGood)], BB)
        },
        // An epoch that is marked good is written into the marks of all slots.
        Scene {
            prepared: vec!["9.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "prepare a higher epoch",
                "",
                a,
                v9(),
                &[AA],
                &[(a, v9()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["9.0"],
            ..scene("commit a higher epoch", "prepare a higher epoch", a, Commit, &[AA, BB], &good_b, BB)
        },
        Scene {
            marked: vec!["platform_a", "software_a", "platform_b", "software_b"],
            ..scene("raise the floor", "commit a higher epoch", b, MarkGood, &[BB], &[(b, MarkGood)], BB)
        },
        Scene {
            marked: vec!["platform_b", "software_b"],
            ..scene(
                "roll back a trial",
                "commit",
                b,
                RollBack,
                &[BB, AA],
                &[(b, RollBack), (a, v3()), (a, Commit)],
                BB,
            )
        },
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_b", "software_b"],
            ..scene(
                "prepare over a bad slot",
                "roll back a trial",
                a,
                v3(),
                &[AA],
                &[(a, v3()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_a", "software_a"],
            ..scene(
                "prepare over a formerly good slot",
                "mark good",
                b,
                v3(),
                &[BB],
                &[(b, v3()), (b, Commit), (a, MarkGood)],
                AA,
            )
        },
        scene("roll back a good slot", "mark good", b, RollBack, &[BB, AA], &[(b, RollBack)], AA),
        scene("stay after all", "roll back a good slot", b, Cancel, &[AA, BB], &[(b, Cancel)], BB),
        Scene {
            marked: vec!["platform_b", "software_b"],
            ..scene(
                "a trial fails",
                "commit",
                b,
                TrialFailed,
                &fails,
                &[(b, TrialFailed), (b, by_flag)],
                failed,
            )
        },
        Scene {
            prepared: vec!["2.1"],
            targets: vec!["software_a"],
            ..scene(
                "prepare software",
                "mark good",
                b,
                v21(),
                &[BB],
                &[(b, v21()), (b, Commit), (b, MarkGood)],
                BA,
            )
        },
        Scene {
            prepared: vec!["2.1"],
            ..scene(
                "commit software",
                "prepare software",
                b,
                Commit,
                &[BB, BA],
                &[(b, Commit), (b, MarkGood)],
                BA,
            )
        },
        Scene {
            marked: vec!["software_a"],
            ..scene("mark software good", "commit software", b, MarkGood, &[BA], &[(b, MarkGood)], BA)
        },
        Scene {
            marked: vec!["software_a"],
            ..scene("roll back software", "commit software", b, RollBack, &[BA, BB], &[(b, RollBack)], BB)
        },
        scene("start a container", "commit software", b, Start, &[BA], &[(b, MarkGood)], BA),
        scene("start it again", "start a container", b, Start, &[BA], &[(b, MarkGood)], BA),
        // Its last try: from then on the flags select the other slot, which boots next unless this one is marked good.
        scene(
            "start it for the last time",
            "start it again",
            b,
            Start,
            &[BA, BB],
            &[(b, SoftwareBack(A))],
            BB,
        ),
        Scene {
            marked: vec!["software_a"],
            ..scene(
                "a container is healthy",
                "start a container",
                b,
                SoftwareGood(A),
                &[BA],
                &[(b, SoftwareGood(A))],
                BA,
            )
        },
        Scene {
            marked: vec!["software_a"],
            ..scene(
                "a container is not healthy",
                "start a container",
                b,
                SoftwareBack(A),
                &[BA, BB],
                &[(b, SoftwareBack(A))],
                BB,
            )
        },
        Scene {
            marked: vec!["software_a"],
            ..scene(
                "a container fails its last try",
                "start it for the last time",
                b,
                SoftwareBack(A),
                &[BB],
                &[(b, SoftwareBack(A))],
                BB,
            )
        },
        Scene {
            prepared: vec!["2.0"],
            targets: vec!["platform_b"],
            ..scene(
                "lend a prepared slot",
                "prepare",
                a,
                Lend,
                &[AA],
                &[(a, v2()), (a, Commit), (b, MarkGood)],
                BB,
            )
        },
        Scene {
            prepared: vec!["3.0"],
            targets: vec!["platform_a"],
            ..scene(
                "lend a formerly good slot",
                "mark good",
                b,
                Lend,
                &[BB],
                &[(b, v3()), (b, Commit), (a, MarkGood)],
                AA,
            )
        },
    ];
    if a.flag == BootFlag::Priority {
        // Three boots of the new slot without mark-good; then the old slot boots. At the last try the flags already select
        // the old platform, while those of the software stay: a start of the software follows the platform.
        all.extend([
            scene("count a try", "commit", b, Select, &[BB], &[(b, MarkGood)], BB),
            scene("count the second try", "count a try", b, Select, &[BB], &[(b, MarkGood)], BB),
            scene("count the last try", "count the second try", b, Select, &[BB, AB], &[(b, MarkGood)], BB),
            Scene {
                marked: vec!["platform_b", "software_b"],
                ..scene(
                    "good on the last try",
                    "count the last try",
                    b,
                    MarkGood,
                    &[AB, BB],
                    &[(b, MarkGood)],
                    BB,
                )
            },
            Scene {
                marked: vec!["platform_b", "software_b"],
                ..scene(
                    "settle a fallback",
                    "count the last try",
                    a,
                    MarkGood,
                    &[AB, AA],
                    &[(a, MarkGood)],
                    AA,
                )
            },
            Scene {
                prepared: vec!["3.0"],
                targets: vec!["platform_b", "software_b"],
                ..scene(
                    "prepare after a fallback",
                    "count the last try",
                    a,
                    v3(),
                    &[AB, AA],
                    &[(a, v3()), (a, Commit), (b, MarkGood)],
                    BB,
                )
            },
        ]);
    }
    if a.flag == BootFlag::Legacy {
        // The flag does not change: after any cut the old platform boots, until the new one is marked good.
        let other = [(a, v3()), (a, Commit), (b, MarkGood)];
        let both = vec!["platform_b", "software_b"];
        all.extend([
            Scene {
                prepared: vec!["2.0"],
                marked: both.clone(),
                ..scene("try by kexec", "prepare", a, Kexec, &[AA], &other, BB)
            },
            Scene {
                marked: both.clone(),
                ..scene("good after a kexec", "try by kexec", b, MarkGood, &[AA, BB], &[(b, MarkGood)], BB)
            },
            Scene {
                marked: both.clone(),
                ..scene("a kexec fails", "try by kexec", b, TrialFailed, &[AA], &other, BB)
            },
            Scene {
                marked: both,
                ..scene("roll back a kexec", "try by kexec", b, RollBack, &[AA], &other, BB)
            },
        ]);
    }
    all
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
