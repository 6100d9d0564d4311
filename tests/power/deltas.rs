//! Every cut of a prepare from a delta: the running slot, which the delta is applied to, is as it was and boots; what is
//! reported as prepared is whole; and the next run completes, again from the delta.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;

use proof::cuts::{Rules, judge};
use proof::scenes::{AA, BB, FRAMES, recorded, to_the_end};
use proof::{Release, Site, Tape, Verb, factory, noise};
use qstage::boot::BootFlag;
use qstage::bundle::delta::FrameKind;
use qstage::delta::{self, DeltaSpec};
use qstage::pack::Destination;
use qstage::progress::{Cancel, Silent};
use qstage::units::Slot;
use tables::{Op, Reader};

const FRAME: usize = proof::FRAME as usize;

/// A release whose images share most with `old`: frames in place, moved, with changed bytes, and new ones.
fn next(old: &Release) -> Release {
    let changed = |image: &[u8], seed| {
        let mut new = image.to_vec();
        new.copy_within(10 * FRAME..14 * FRAME, 5 * FRAME + 100);
        (0..new.len()).step_by(90).skip(200).for_each(|at| new[at] ^= 1);
        new.splice(8 * FRAME..9 * FRAME, noise(seed, FRAME));
        new
    };
    Release {
        version: "2.0",
        platform: changed(&old.platform, 7),
        software: old.software.as_deref().map(|image| changed(image, 8)),
        ..old.clone()
    }
}

/// The delta between two bundles.
fn delta(old: &Arc<Vec<u8>>, new: &Arc<Vec<u8>>) -> Arc<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    for (name, bytes) in [("old", old), ("new", new)] {
        fs::write(path(name), bytes.as_slice()).unwrap();
    }
    let (old, new, made) = (path("old"), path("new"), path("made"));
    let jobs = NonZeroUsize::new(1);
    let spec = DeltaSpec { old, new, level: Some(3), lean: false, force: true, jobs };
    delta::make(&spec, Destination::New(&made), &Silent, &Cancel::default()).unwrap();
    Arc::new(fs::read(made).unwrap())
}

#[test]
fn every_cut_of_a_prepare_from_a_delta() {
    let old = Release::new("1.0", 10, FRAMES);
    let new = next(&old);
    let (v1, v2) = (old.pack(), new.pack());
    let made = delta(&v1, &v2);
    // Every kind that reads the base is there.
    let opened = proof::open(&made).unwrap();
    let kinds: Vec<FrameKind> =
        opened.release().frames(0).map(|frame| opened.delta().unwrap().recipe(&frame).kind).collect();
    for kind in [FrameKind::InPlace, FrameKind::Patch, FrameKind::Aligned] {
        assert!(kinds.contains(&kind), "{kind:?}: {kinds:?}");
    }
    for (block, flag) in [(512, BootFlag::Priority), (4096, BootFlag::Legacy)] {
        let before = factory(block, flag, &v1);
        let at = |slot| Site::new(slot, flag);
        let prepare = Verb::Prepare(made.clone());
        let (after, ops) = recorded(&before, block, at(Slot::A), &prepare);
        let slot = proof::extent(&after, block, "platform_b");
        assert!(after[slot.start..][..new.platform.len()] == new.platform[..]);
        let steps = [(at(Slot::A), prepare), (at(Slot::A), Verb::Commit), (at(Slot::B), Verb::MarkGood)];
        let next = |disk: Arc<Tape>| to_the_end(disk, block, &steps, AA, BB);
        let rules = Rules {
            block,
            site: at(Slot::A),
            choices: vec![AA],
            prepared: vec!["2.0"],
            targets: vec!["platform_b", "software_b"],
            marked: vec![],
            readers: vec![Reader::Fallback, Reader::Strict],
            thorough: true,
            next: Some(&next),
        };
        let report = judge(&before, &ops, &rules);
        let writes = ops.iter().filter(|op| matches!(op, Op::Write(..))).count();
        println!("{flag:?}, {block}: {writes} writes, {} states, {} resumed", report.states, report.resumed);
        assert!(report.wrong.is_empty(), "{:#?}", report.wrong);
        assert!(report.states > 100 && report.resumed > 0, "{}", report.states);
    }
}
