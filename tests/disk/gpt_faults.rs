//! A device that fails, lies or loses writes while the table is changed.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use crate::harness::tables;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use qstage::boot::Slots;
use qstage::commit;
use qstage::device::BlockDevice;
use qstage::error::Error;
use qstage::gpt::{CopyState, Table};
use qstage::host::DiskLock;
use qstage::units::{BlockSize, ByteOffset, Group, Slot};
use tables::{Op, Reader, Recorder, Spec, selection, trial};

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The n-th sync fails.
    Sync(usize),
    /// The n-th write fails.
    Write(usize),
    /// The n-th write is acknowledged and dropped.
    Dropped(usize),
    /// Every write is acknowledged and dropped.
    DroppedAll,
    /// Transfers of this many bytes come back with a bit of byte 1072, an entry's attributes, flipped.
    Rotten(usize),
    /// Reading this block fails until it is written.
    Unreadable(u64),
}

struct Faulty {
    inner: Recorder,
    fault: Fault,
    writes: AtomicUsize,
    syncs: AtomicUsize,
}

impl Faulty {
    fn new(spec: &Spec, fault: Fault) -> Self {
        let inner = spec.device(spec.image());
        Self { inner, fault, writes: AtomicUsize::new(0), syncs: AtomicUsize::new(0) }
    }

    fn covers(&self, lba: u64, at: u64, len: usize) -> bool {
        (at..at + len as u64).contains(&(lba * u64::from(self.block_size().bytes())))
    }
}

impl BlockDevice for Faulty {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn block_size(&self) -> BlockSize {
        self.inner.block_size()
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        if let Fault::Unreadable(lba) = self.fault {
            let written = self.inner.ops().iter().any(|op| match op {
                Op::Write(from, bytes) => self.covers(lba, *from, bytes.len()),
                Op::Sync => false,
            });
            if !written && self.covers(lba, at.0, buf.len()) {
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        self.inner.read_at(buf, at)?;
        if matches!(self.fault, Fault::Rotten(len) if len == buf.len() && at.0 == 0) {
            buf[1024 + 48] ^= 8;
        }
        Ok(())
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        let n = self.writes.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Write(bad) if n == bad => Err(io::Error::from_raw_os_error(5)),
            Fault::Dropped(bad) if n == bad => Ok(()),
            Fault::DroppedAll => Ok(()),
            _ => self.inner.write_at(buf, at),
        }
    }
    fn sync(&self) -> io::Result<()> {
        let n = self.syncs.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Sync(bad) if n == bad => Err(io::Error::from_raw_os_error(5)),
            _ => self.inner.sync(),
        }
    }
}

fn both_to_b(table: &Table) -> Table {
    let slots = Slots::resolve(table, "disk").unwrap();
    let one = trial(table, &slots, Group::Platform, Slot::B, 3);
    trial(&one, &slots, Group::Software, Slot::B, 3)
}

fn switch(device: &Faulty) -> Result<qstage::gpt::Plan, Error> {
    let loaded = commit::load(device, "disk")?;
    commit::switch(device, &DiskLock::new(()), &loaded, &both_to_b(loaded.table()?))
}

/// Roomy and tight: a switch by a second array and one in place.
fn specs() -> [Spec; 2] {
    [Spec::slots(512, 512, 128, 16), Spec::slots(512, 300, 34, 16)]
}

#[test]
fn a_failed_sync_or_write_ends_it_and_the_disk_still_selects() {
    for spec in specs() {
        let sound = Faulty::new(&spec, Fault::Sync(usize::MAX));
        switch(&sound).unwrap();
        let (writes, syncs) = (sound.writes.into_inner(), sound.syncs.into_inner());
        let faults = (0..syncs).map(Fault::Sync).chain((0..writes).map(Fault::Write));
        for fault in faults {
            let device = Faulty::new(&spec, fault);
            let error = switch(&device).unwrap_err();
            match fault {
                Fault::Sync(n) => {
                    assert_eq!(error.code(), "UPGRADE_ERROR_SYNC");
                    assert_eq!(device.syncs.load(Ordering::Relaxed), n + 1, "no second try");
                    assert!(!matches!(device.inner.ops().last(), Some(Op::Sync)), "nothing after it");
                }
                _ => assert_eq!(error.code(), "UPGRADE_ERROR_WRITE"),
            }
            let image = device.inner.memory.snapshot();
            let both = selection(&image, 512, Reader::Fallback);
            assert!(
                [Some((Some('a'), Some('a'))), Some((Some('b'), Some('b')))].contains(&both),
                "{fault:?}"
            );
        }
    }
}

#[test]
fn a_write_that_was_acknowledged_and_lost_is_found() {
    for (spec, is_roomy) in specs().iter().zip([true, false]) {
        let sound = Faulty::new(spec, Fault::Sync(usize::MAX));
        switch(&sound).unwrap();
        for n in 0..sound.writes.into_inner() {
            let device = Faulty::new(spec, Fault::Dropped(n));
            let error = switch(&device).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_GPT_VERIFY", "write {n}: {error}");
            // Found before anything that depends on it: with a second array, a reader without fallback selects one as well.
            if is_roomy {
                let found = selection(&device.inner.memory.snapshot(), 512, Reader::Strict);
                assert!(
                    [Some((Some('a'), Some('a'))), Some((Some('b'), Some('b')))].contains(&found),
                    "write {n}"
                );
            }
        }
    }
}

#[test]
fn a_lost_array_write_is_found_before_the_header_names_it() {
    let spec = &specs()[0];
    let device = Faulty::new(spec, Fault::Dropped(0));
    let error = switch(&device).unwrap_err().to_string();
    assert!(error.contains("spare array differs at byte 49152"), "{error}");
    assert_eq!(device.writes.load(Ordering::Relaxed), 1, "the header was not written");
}

/// A sector that the medium lost is repaired by writing it, and keeps no one from the rest of the head.
#[test]
fn unreadable_sectors_of_either_copy_are_repaired() {
    let spec = &specs()[0];
    let expected = [
        (1, CopyState::BackupOnly),
        (2, CopyState::BackupOnly),
        (33, CopyState::BackupOnly),
        (479, CopyState::PrimaryOnly),
        (511, CopyState::PrimaryOnly),
        (45, CopyState::Equal),
    ];
    for (lba, state) in expected {
        let device = Faulty::new(spec, Fault::Unreadable(lba));
        let loaded = commit::load(&device, "disk").unwrap();
        assert_eq!(loaded.state(), state, "LBA {lba}");
        let plan = switch(&device).unwrap_or_else(|error| panic!("LBA {lba}: {error}"));
        assert!(!plan.is_empty());
        let entries = plan.primary.header().entries_lba.0;
        assert!(lba != 45 || !(entries..entries + 32).contains(&45), "a bad block is no place for the array");
        assert_eq!(
            selection(&device.inner.memory.snapshot(), 512, Reader::Strict),
            Some((Some('b'), Some('b')))
        );
        assert_eq!(commit::load(&device, "disk").unwrap().state(), CopyState::Equal);
    }
}

#[test]
fn a_backup_that_cannot_be_placed_is_refused_without_a_write() {
    // The disk is shorter than the table says: its end was cut off.
    let spec = &specs()[0];
    let mut image = spec.image();
    image.truncate(image.len() - 40 * 512);
    let device = spec.device(image);
    let loaded = commit::load(&device, "disk").unwrap();
    let error = commit::repair(&device, &DiskLock::new(()), &loaded).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_TABLE_LARGER_DISK");
    assert!(error.to_string().contains("usable blocks up to LBA 478, the disk ends at LBA 471"), "{error}");
    assert!(device.ops().is_empty());
}

/// A layout has no read-back of its own: the comparison at the end has to notice that nothing arrived.
#[test]
fn a_layout_that_did_not_arrive_is_found() {
    let spec = &specs()[0];
    let len = 512 * 4096;
    let sound = spec.device(vec![0; len]);
    let lay_out = |device: &dyn BlockDevice| {
        let layout = qstage::gpt::layout::create("disk", len as u64, BlockSize::B512, &[], None).unwrap();
        commit::lay_out(device, "disk", &DiskLock::new(()), &layout)
    };
    lay_out(&sound).unwrap();
    let inner = spec.device(sound.memory.snapshot());
    let device =
        Faulty { inner, fault: Fault::DroppedAll, writes: AtomicUsize::new(0), syncs: AtomicUsize::new(0) };
    let error = lay_out(&device).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_GPT_VERIFY");
    assert!(error.to_string().contains("the primary is valid but not the one intended"), "{error}");
}

/// The second reader is asked: what it alone gets to see wrong, transfers of its window of 32 KiB, is an error.
#[test]
fn a_second_reader_that_disagrees_is_heard() {
    let device = Faulty::new(&specs()[0], Fault::Rotten(32 << 10));
    let error = switch(&device).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_GPT_VERIFY");
    assert!(error.to_string().contains("second reader"), "{error}");
}
