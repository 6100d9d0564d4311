//! The list of scenes: a verb on the disk that another one left. A new transition of a verb goes here.

use qstage::boot::BootFlag;
use qstage::units::Slot::{self, A, B};

use super::{AA, AB, BA, BB, Releases, Scene};
use crate::harness::proof::cuts::Choice;
use crate::harness::proof::{Site, Verb};

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
