//! Disks that fail, lie or vanish. Every fault is injected at every n-th read, write, flush or transfer of a whole upgrade:
//! nothing is reported as prepared or committed that is not, the old slot does not change, the error names the place, and
//! when the disk works again the upgrade succeeds.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::proof;
use crate::harness::tables;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use proof::{
    RecordState, Release, SLOTS, Site, Tape, Verb, boots, extent, factory, foreign_intact, holds, record,
};
use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::error::{Class, Error};
use qstage::units::Slot::{A, B};
use qstage::units::{BlockSize, ByteOffset};
use tables::Reader;

const EIO: i32 = 5;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;

/// What goes wrong, and when: at the n-th of its kind, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A read fails.
    Read(usize),
    /// A write fails with this errno; nothing of it arrives.
    Write(usize, i32),
    /// A write arrives by half and fails.
    Short(usize),
    /// A write is acknowledged and dropped.
    Lost(usize),
    /// A write arrives with a flipped bit.
    Flipped(usize),
    /// A write is acknowledged and arrives 12 KiB beside its place.
    Misdirected(usize),
    /// A flush fails, what was not yet durable is gone; later flushes succeed ("fsyncgate").
    Sync(usize),
    /// From this transfer on the device ends in the middle of the target slot.
    Shrunk(usize),
    /// From this transfer on the device is gone.
    Gone(usize),
}

#[derive(Default)]
struct State {
    reads: usize,
    writes: usize,
    syncs: usize,
    transfers: usize,
    /// What writes since the last flush have replaced, oldest first.
    undo: Vec<(u64, Vec<u8>)>,
    /// Writes after the fault has struck.
    after: usize,
    struck: bool,
}

struct Faulty {
    disk: Arc<Tape>,
    fault: Fault,
    state: Mutex<State>,
}

impl Faulty {
    fn new(image: &[u8], fault: Fault) -> Arc<Self> {
        Arc::new(Self { disk: Tape::new(image.to_vec(), 512), fault, state: Mutex::default() })
    }

    /// Counts a transfer; fails where the device is gone or too short for it.
    fn transfer(&self, state: &mut State, at: u64, len: usize) -> io::Result<()> {
        let n = state.transfers;
        state.transfers += 1;
        match self.fault {
            Fault::Gone(from) if n >= from => {
                state.struck = true;
                Err(io::Error::from_raw_os_error(ENODEV))
            }
            Fault::Shrunk(from) if n >= from && at + len as u64 > self.len() / 3 => {
                state.struck = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            _ => Ok(()),
        }
    }
}

impl BlockDevice for Faulty {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn block_size(&self) -> BlockSize {
        self.disk.block_size()
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        self.transfer(&mut state, at.0, buf.len())?;
        let n = state.reads;
        state.reads += 1;
        if self.fault == Fault::Read(n) {
            state.struck = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.disk.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.after += usize::from(state.struck);
        self.transfer(&mut state, at.0, buf.len())?;
        let n = state.writes;
        state.writes += 1;
        let mut put = |at: u64, bytes: &[u8]| {
            let mut old = vec![0; bytes.len()];
            self.disk.read_at(&mut old, ByteOffset(at))?;
            state.undo.push((at, old));
            self.disk.write_at(bytes, ByteOffset(at))
        };
        let result = match self.fault {
            Fault::Write(bad, errno) if bad == n => Err(io::Error::from_raw_os_error(errno)),
            Fault::Short(bad) if bad == n => {
                put(at.0, &buf[..buf.len() / 1024 * 512])?;
                Err(io::ErrorKind::WriteZero.into())
            }
            Fault::Lost(bad) if bad == n => Ok(()),
            Fault::Flipped(bad) if bad == n => {
                let mut bytes = buf.to_vec();
                bytes[buf.len() / 3] ^= 0x10;
                put(at.0, &bytes)
            }
            Fault::Misdirected(bad) if bad == n => {
                // Beside its place, but within the slot: what it does elsewhere no program can know.
                let inside = |to: u64| {
                    let home = |name: &&&str| extent(&[], 512, name).contains(&(at.0 as usize));
                    SLOTS.iter().find(home).is_none_or(|name| {
                        let slot = extent(&[], 512, name);
                        slot.contains(&(to as usize)) && to as usize + buf.len() <= slot.end
                    })
                };
                let back = at.0.checked_sub(12288).filter(|to| *to >= 65536 && inside(*to));
                put(back.unwrap_or(at.0 + 12288), buf)
            }
            _ => return put(at.0, buf),
        };
        state.struck = true;
        result
    }
    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        self.transfer(&mut state, 0, 0)?;
        let n = state.syncs;
        state.syncs += 1;
        let undo = std::mem::take(&mut state.undo);
        if self.fault == Fault::Sync(n) {
            for (at, old) in undo.iter().rev() {
                self.disk.write_at(old, ByteOffset(*at))?;
            }
            state.struck = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }
}

/// Whether a slot's record is whole, and whether it is true.
fn vouched(image: &[u8], name: &str) -> (bool, bool) {
    let slot = &image[extent(image, 512, name)];
    match record(slot) {
        RecordState::Whole(manifest) => (true, holds(slot, name.split('_').next().unwrap(), &manifest)),
        RecordState::Nothing | RecordState::Torn => (false, false),
    }
}

/// What the outcome of steps on a faulty disk was.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Clone, Copy)]
enum Outcome {
    /// All steps succeeded, rightly.
    Fine,
    /// One failed, rightly.
    Refused,
    /// A slot is called prepared and is not: only ever without read-back.
    FalselyPrepared,
}

struct Case {
    before: Vec<u8>,
    steps: Vec<(Site, Verb)>,
    /// Slots that may not change by a byte: the one that runs.
    old: Vec<&'static str>,
    /// What boots before and after.
    choices: [(Option<char>, Option<char>); 2],
}

impl Case {
    /// Runs the steps with a fault and judges the disk afterwards.
    fn judge(&self, fault: Fault) -> Outcome {
        let disk = Faulty::new(&self.before, fault);
        let result: Result<(), Error> =
            self.steps.iter().try_for_each(|(site, verb)| site.run(disk.clone(), verb));
        let after = disk.disk.memory.snapshot();
        let flag = self.steps[0].0.flag;
        let booted = boots(&after, 512, flag, Reader::Fallback);
        // A mark that lands beside its place hits the record before it, that of the running slot.
        let hit = matches!(fault, Fault::Misdirected(_)) && !matches!(self.steps[0].1, Verb::Prepare(_));
        for name in self.old.iter().filter(|_| !hit) {
            let slot = extent(&after, 512, name);
            let (from, to) = (&self.before[slot.clone()], &after[slot]);
            // The mark of a slot that runs may be written; its image and record may not.
            let end = from.len() - 8192;
            assert!(
                from[..end] == to[..end] && from[end + 4096..] == to[end + 4096..],
                "{fault:?}: {name} changed"
            );
        }
        let wild = matches!(fault, Fault::Misdirected(_) | Fault::Flipped(_));
        if !wild {
            foreign_intact(&self.before, &after, 512, flag)
                .unwrap_or_else(|what| panic!("{fault:?}: {what}"));
        }
        let state = disk.state.lock().unwrap();
        let mut outcome = Outcome::Refused;
        match &result {
            Ok(()) => {
                assert_eq!(booted, Some(self.choices[1]), "{fault:?}: success is not on the disk");
                assert_eq!(boots(&after, 512, flag, Reader::Strict), booted, "{fault:?}");
                outcome = Outcome::Fine;
                let (platform, software) = self.choices[1];
                for (group, slot) in [("platform", platform), ("software", software)] {
                    let name = format!("{group}_{}", slot.unwrap());
                    if vouched(&after, &name) != (true, true) {
                        outcome = Outcome::FalselyPrepared;
                    }
                }
            }
            Err(error) => {
                assert!(matches!(error.class(), Class::Io | Class::Disk), "{fault:?}: {error}");
                // With a copy that a disk has torn unnoticed the other one still boots.
                assert!(
                    booted.is_some_and(|b| self.choices.contains(&b)),
                    "{fault:?}: boots {booted:?}: {error}"
                );
                let text = error.to_string();
                let located = text.contains("byte") || text.contains("offset") || text.contains("flushing");
                assert!(located || matches!(error.class(), Class::Disk), "{fault:?}: where? {text}");
                if matches!(fault, Fault::Sync(_)) {
                    assert!(matches!(error, Error::Sync { .. }), "{fault:?}: {error}");
                    assert_eq!(state.after, 0, "{fault:?}: written on after a failed flush");
                }
                if matches!(fault, Fault::Write(_, ENOSPC)) {
                    assert_eq!(error.code(), "UPGRADE_ERROR_NO_SPACE", "{error}");
                }
            }
        }
        for name in SLOTS {
            let (whole, truly) = vouched(&after, name);
            if whole && !truly {
                assert_eq!(outcome, Outcome::FalselyPrepared, "{fault:?}: {name} vouches for what it lacks");
            }
        }
        // The disk behaves again: the same steps end as they should, those that are done are skipped.
        if outcome == Outcome::Refused {
            let again = Tape::new(after, 512);
            for (site, verb) in &self.steps {
                let image = again.memory.snapshot();
                let done = boots(&image, 512, flag, Reader::Strict) == Some(self.choices[1]);
                let twice = self.choices[0] != self.choices[1] && !matches!(verb, Verb::MarkGood);
                if done && twice {
                    continue;
                }
                match site.run(again.clone(), verb) {
                    Ok(()) => {}
                    Err(Error::NothingToCancel { .. }) => {}
                    Err(error) => panic!("{fault:?}, once more: {error}"),
                }
            }
            assert_eq!(
                boots(&again.memory.snapshot(), 512, flag, Reader::Strict),
                Some(self.choices[1]),
                "{fault:?}"
            );
        }
        outcome
    }

    /// Reads, writes, flushes and transfers of a run without a fault.
    fn counts(&self) -> [usize; 4] {
        let disk = Faulty::new(&self.before, Fault::None);
        for (site, verb) in &self.steps {
            site.run(disk.clone(), verb).unwrap();
        }
        let state = disk.state.lock().unwrap();
        [state.reads, state.writes, state.syncs, state.transfers]
    }

    /// Every fault at every n. How often each kind ended how.
    fn every_n(&self) -> BTreeMap<(&'static str, Outcome), usize> {
        let [reads, writes, syncs, transfers] = self.counts();
        let mut outcomes = BTreeMap::new();
        let mut run = |kind, faults: &mut dyn Iterator<Item = Fault>| {
            faults.for_each(|fault| *outcomes.entry((kind, self.judge(fault))).or_default() += 1);
        };
        run("read EIO", &mut (0..reads).map(Fault::Read));
        run("write EIO", &mut (0..writes).map(|n| Fault::Write(n, EIO)));
        run("write ENOSPC", &mut (0..writes).map(|n| Fault::Write(n, ENOSPC)));
        run("write short", &mut (0..writes).map(Fault::Short));
        run("write lost", &mut (0..writes).map(Fault::Lost));
        run("write flipped", &mut (0..writes).map(Fault::Flipped));
        run("write misdirected", &mut (0..writes).map(Fault::Misdirected));
        run("sync", &mut (0..syncs).map(Fault::Sync));
        run("shrunk", &mut (0..transfers).map(Fault::Shrunk));
        run("gone", &mut (0..transfers).map(Fault::Gone));
        println!("{reads} reads, {writes} writes, {syncs} flushes: {outcomes:?}");
        outcomes
    }
}

type Image = Vec<u8>;

/// Disks before prepare, after prepare, and after commit, and the bundle.
fn stages(flag: BootFlag) -> (Image, Image, Image, Verb) {
    let old = Release::new("1.0", 10, 12).pack();
    let prepare = Verb::Prepare(Release::new("2.0", 20, 12).pack());
    let fresh = factory(512, flag, &old);
    let disk = Tape::new(fresh.clone(), 512);
    Site::new(A, flag).run(disk.clone(), &prepare).unwrap();
    let prepared = disk.memory.snapshot();
    Site::new(A, flag).run(disk.clone(), &Verb::Commit).unwrap();
    (fresh, prepared, disk.memory.snapshot(), prepare)
}

const AA: (Option<char>, Option<char>) = (Some('a'), Some('a'));
const BB: (Option<char>, Option<char>) = (Some('b'), Some('b'));

#[test]
fn every_fault_at_every_n_of_prepare_and_commit() {
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        let (fresh, _, _, prepare) = stages(flag);
        let site = Site::new(A, flag);
        let case = Case {
            before: fresh,
            steps: vec![(site, prepare), (site, Verb::Commit)],
            old: vec!["platform_a", "software_a"],
            choices: [AA, BB],
        };
        let outcomes = case.every_n();
        assert!(!outcomes.keys().any(|(_, outcome)| *outcome == Outcome::FalselyPrepared), "{outcomes:?}");
        let refused = |kind| outcomes.get(&(kind, Outcome::Refused)).copied().unwrap_or(0);
        let fine = |kind| outcomes.get(&(kind, Outcome::Fine)).copied().unwrap_or(0);
        assert_eq!(
            (fine("write EIO"), fine("write ENOSPC"), fine("write short"), fine("sync")),
            (0, 0, 0, 0)
        );
        assert!(refused("write lost") > fine("write lost"), "{outcomes:?}");
    }
}

#[test]
fn every_fault_at_every_n_of_the_other_verbs() {
    for flag in [BootFlag::Priority, BootFlag::Legacy] {
        let (_, prepared, committed, prepare) = stages(flag);
        let (a, b) = (Site::new(A, flag), Site::new(B, flag));
        let both = vec!["platform_a", "software_a", "platform_b", "software_b"];
        let case = |before: &Image, steps: &[(Site, Verb)], old: &[&'static str], choices| Case {
            before: before.clone(),
            steps: steps.to_vec(),
            old: old.to_vec(),
            choices,
        };
        for (name, case) in [
            ("mark good", case(&committed, &[(b, Verb::MarkGood)], &both, [BB, BB])),
            ("roll back", case(&committed, &[(b, Verb::RollBack)], &both, [BB, AA])),
            ("cancel committed", case(&committed, &[(a, Verb::Cancel)], &both[..2], [BB, AA])),
            ("cancel prepared", case(&prepared, &[(a, Verb::Cancel)], &both[..2], [AA, AA])),
            ("prepare anew", case(&prepared, &[(a, prepare.clone())], &both[..2], [AA, AA])),
        ] {
            print!("{flag:?}, {name}: ");
            let outcomes = case.every_n();
            assert!(
                !outcomes.keys().any(|(_, outcome)| *outcome == Outcome::FalselyPrepared),
                "{outcomes:?}"
            );
        }
    }
}

/// A cancel that reports success has taken the record away, whatever the disk lost.
#[test]
fn what_was_cancelled_cannot_be_committed() {
    let (_, prepared, _, _) = stages(BootFlag::Priority);
    let site = Site::new(A, BootFlag::Priority);
    for n in 0..2 {
        let disk = Faulty::new(&prepared, Fault::Lost(n));
        let cancelled = site.run(disk.clone(), &Verb::Cancel);
        assert_eq!(cancelled.unwrap_err().code(), "UPGRADE_ERROR_READ_BACK", "write {n}");
    }
}

/// What read-back is for: without it the same faults pass, and this is how many.
#[test]
fn without_read_back_lost_writes_are_not_noticed() {
    let (fresh, _, _, prepare) = stages(BootFlag::Priority);
    let site = Site { read_back: false, ..Site::new(A, BootFlag::Priority) };
    let case = Case {
        before: fresh,
        steps: vec![(site, prepare), (site, Verb::Commit)],
        old: vec!["platform_a", "software_a"],
        choices: [AA, BB],
    };
    let [_, writes, ..] = case.counts();
    for (kind, fault) in [
        ("lost", Fault::Lost as fn(usize) -> Fault),
        ("flipped", Fault::Flipped),
        ("misdirected", Fault::Misdirected),
    ] {
        let mut outcomes: BTreeMap<Outcome, usize> = BTreeMap::new();
        (0..writes).for_each(|n| *outcomes.entry(case.judge(fault(n))).or_default() += 1);
        println!("no read-back, a write is {kind}: {outcomes:?}");
        // Frames are not noticed; the table and the records, which are always read again, are.
        assert!(outcomes[&Outcome::FalselyPrepared] > 5, "if these are noticed now, say so in SAFETY.md");
        assert!(outcomes[&Outcome::Refused] > 5);
    }
}
