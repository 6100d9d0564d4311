//! Every cut of a prepare from a delta: the running slot, which the delta is applied to, is as it was and boots; what is
//! reported as prepared is whole; and the next run completes, again from the delta. And sectors of the running slot that
//! are damaged, change or cannot be read.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io};

use proof::cuts::{Rules, judge};
use proof::scenes::{AA, BB, FRAMES, recorded, to_the_end};
use proof::{RecordState, Release, Site, Tape, Verb, factory, noise};
use qstage::boot::BootFlag;
use qstage::bundle::delta::FrameKind;
use qstage::bundle::pick::Whole;
use qstage::delta::{self, DeltaSpec};
use qstage::device::BlockDevice;
use qstage::pack::Destination;
use qstage::progress::{Cancel, Silent};
use qstage::units::{BlockSize, ByteOffset, Extent, Slot};
use qstage::{Error, PrepareOptions};
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

/// What a disk does with reads of one sector of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The sector cannot be read.
    Unreadable,
    /// A byte of it is another one, at every read.
    Wrong,
    /// The same, but only at the first read: it changes while it is read.
    WrongOnce,
    /// The same, at every read but the first.
    WrongLater,
}

/// A disk with a fault in one sector.
struct BadSector {
    disk: Arc<Tape>,
    /// Offset on the disk of the byte that is wrong.
    at: u64,
    fault: Fault,
    reads: AtomicUsize,
}

impl BlockDevice for BadSector {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn block_size(&self) -> BlockSize {
        self.disk.block_size()
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.disk.read_at(buf, at)?;
        if !(at.0..at.0 + buf.len() as u64).contains(&self.at) {
            return Ok(());
        }
        let first = self.reads.fetch_add(1, Ordering::Relaxed) == 0;
        match self.fault {
            Fault::Unreadable => return Err(io::Error::from_raw_os_error(5)),
            Fault::WrongOnce if !first => {}
            Fault::WrongLater if first => {}
            Fault::Wrong | Fault::WrongOnce | Fault::WrongLater => buf[(self.at - at.0) as usize] ^= 0x10,
        }
        Ok(())
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        self.disk.write_at(buf, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}

/// A sector of the base that is damaged, or changes while it is read, costs the frames that are made of it and no others,
/// and is reported with its place; without the whole bundle nothing is prepared. A sector in each frame of the base in turn.
#[test]
fn a_bad_sector_of_the_base_costs_the_frames_that_read_it() {
    let old = Release { software: None, firmware: None, ..Release::new("1.0", 10, 24) };
    let new = next(&old);
    let (v1, v2) = (old.pack(), new.pack());
    let made = delta(&v1, &v2);
    let before = factory(512, BootFlag::Priority, &v1);
    let (running, target) =
        (proof::extent(&before, 512, "platform_a"), proof::extent(&before, 512, "platform_b"));
    let site = Site { read_back: false, ..Site::new(Slot::A, BootFlag::Priority) };
    let opened = proof::open(&made).unwrap();
    // For each frame how it is made, its length, and the ranges of the base that it reads.
    let frames: Vec<_> = (opened.release().frames(0))
        .map(|frame| (opened.delta().unwrap().recipe(&frame), frame.len() as u64))
        .map(|(recipe, len)| (recipe.kind, recipe.ranges().collect::<Vec<_>>(), len))
        .collect();
    let (mut alone, mut fallen) = (0, 0);
    for unit in (0..old.platform.len()).step_by(4096) {
        let at = (unit + unit / 8 % 4096).min(old.platform.len() - 1);
        let place = at as u64;
        // The device is read in units of 4 KiB, which is the size of a frame as well.
        let unit = unit as u64;
        let reads = |part: std::ops::Range<u64>| {
            let touches = move |range: &Extent| range.at.0 < part.end && part.start < range.at.0 + range.len;
            frames.iter().filter(move |(_, ranges, _)| ranges.iter().any(&touches))
        };
        let sum = |lens: &mut dyn Iterator<Item = u64>| lens.sum::<u64>();
        let of_unit = sum(&mut reads(unit..unit + 4096).map(|frame| frame.2));
        let of_byte = sum(&mut reads(place..place + 1).map(|frame| frame.2));
        let is_copy = |kind| matches!(kind, FrameKind::InPlace | FrameKind::Copy);
        let copies = sum(&mut reads(place..place + 1).filter(|frame| is_copy(frame.0)).map(|frame| frame.2));
        for fault in [Fault::Unreadable, Fault::Wrong, Fault::WrongOnce, Fault::WrongLater] {
            for whole in [false, true] {
                let disk = Tape::new(before.clone(), 512);
                let bad = BadSector {
                    disk: disk.clone(),
                    at: running.start as u64 + place,
                    fault,
                    reads: AtomicUsize::new(0),
                };
                let bundle = || Arc::new(Whole::of(proof::open(&v2).unwrap()).unwrap());
                let options = PrepareOptions { whole: whole.then(bundle), ..site.options() };
                let result = site.engine(Arc::new(bad), |engine| {
                    engine.prepare(proof::open(&made).unwrap(), &options, &Silent)
                });
                let after = disk.memory.snapshot();
                let what = format!("{fault:?} at {at}, whole bundle: {whole}");
                assert!(after[running.clone()] == before[running.clone()], "{what}: the base was written");
                let record = proof::record(&after[target.clone()]);
                assert_eq!(matches!(record, RecordState::Whole(_)), result.is_ok(), "{what}");
                match result {
                    Ok(report) => {
                        assert!(after[target.start..][..new.platform.len()] == new.platform[..], "{what}");
                        let report = report.delta.unwrap();
                        let lost = report.fallen_back_bytes;
                        fallen += usize::from(lost > 0);
                        match fault {
                            Fault::Unreadable => assert_eq!(lost, of_unit, "{what}"),
                            Fault::Wrong => assert!((copies..=of_byte).contains(&lost), "{what}: {lost}"),
                            Fault::WrongOnce | Fault::WrongLater => {
                                assert!(lost <= of_byte, "{what}: {lost}")
                            }
                        }
                        let named = report.base_damaged == Some(unit);
                        let known = report.base_damaged.is_none() || named;
                        assert!(known && (lost > 0 || !named), "{what}: {:?}", report.base_damaged);
                        // What was wrong once only is sound when it is looked for.
                        let lasts = fault != Fault::WrongOnce;
                        assert_eq!(named, lasts && lost > 0, "{what}: {:?}", report.base_damaged);
                    }
                    Err(error) => {
                        alone += 1;
                        assert!(!whole && of_unit > 0, "{what}: {error}");
                        match (&error, fault) {
                            (Error::BaseDamaged { partition, at }, _) => {
                                assert_eq!((partition.as_str(), *at), ("platform_a", unit), "{what}");
                            }
                            (Error::DeltaFrame { .. }, Fault::WrongOnce) => {}
                            _ => panic!("{what}: {error}"),
                        }
                    }
                }
            }
        }
    }
    println!("{alone} refused, {fallen} with frames of the bundle");
    assert!(alone > 40 && fallen == alone, "{alone} {fallen}");
}
