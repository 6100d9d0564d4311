//! Deltas that are cut, altered, or applied to a damaged base: either the genuine image reaches the slot or
//! nothing.

use std::io::{self, Cursor};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::bundle::delta::tests::{bundle, noise};
use crate::bundle::delta::{self, BaseRef, MEMBER, Options};
use crate::bundle::writer::{write_front, write_members};
use crate::bundle::{Source, Trust};
use crate::device::{BlockDevice, MemoryDevice, Region};
use crate::progress::{Cancel, Silent};
use crate::slot::{Content, Layout, Record};
use crate::stage::{self, StageOutcome, Target};
use crate::units::{BlockSize, ByteOffset, Extent, Group};

const FRAME: u32 = 4096;
const SLOT: u64 = 96 << 10;

fn slot() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(vec![0; SLOT as usize], BlockSize::B512))
}

fn staged(bundle: &Bundle, sources: Option<&Sources<'_>>, slot: &Arc<MemoryDevice>) -> Result<StageOutcome> {
    let release = bundle.release().clone();
    let layout = Layout::new(&release.manifest, Group::Platform, release.record_len(), SLOT, "slot")?;
    let extent = Extent { at: ByteOffset(0), len: SLOT };
    let device = Region::new(Arc::clone(slot) as Arc<dyn BlockDevice>, extent).unwrap();
    let record = Record { release, layout, origin: String::new(), unsigned: false };
    let (partition, device) = ("slot".to_owned(), Box::new(device));
    let targets = [Target { group: Group::Platform, partition, device, record }];
    let options = stage::StageOptions {
        jobs: NonZeroUsize::MIN,
        read_back: true,
        sha256: false,
        cancel: &Cancel::default(),
        sources,
        look: false,
        pace: &|_| Ok(()),
    };
    stage::stage(bundle, &targets, &options, &Silent)
}

/// Base whose reads flip one bit, or fail, from some read on: it changes while it is read, or its disk is dying.
struct Turning {
    inner: Arc<MemoryDevice>,
    reads: AtomicUsize,
    from: usize,
    fails: bool,
}

impl BlockDevice for Turning {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn block_size(&self) -> BlockSize {
        self.inner.block_size()
    }

    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.inner.read_at(buf, at)?;
        if self.reads.fetch_add(1, Ordering::Relaxed) < self.from {
            return Ok(());
        }
        if self.fails {
            return Err(io::Error::other("a dying disk"));
        }
        buf[0] ^= 0x40;
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> io::Result<()> {
        panic!("the base is written")
    }

    fn sync(&self) -> io::Result<()> {
        panic!("the base is written")
    }
}

/// An old release installed, a new one, and the delta between them, with every kind of frame.
struct Case {
    running: Arc<MemoryDevice>,
    new: Vec<u8>,
    delta: Vec<u8>,
    /// Offset of `delta.bin` in it.
    head_at: usize,
}

impl Case {
    fn new() -> Self {
        let old = [noise(1, 12_288), noise(2, 8192)].concat();
        let mut new = old[..4096].to_vec();
        new.extend_from_slice(&[0; 4096]);
        // Copied from an odd offset; patched; new.
        new.extend_from_slice(&old[5001..5001 + 4096]);
        new.extend_from_slice(&old[13_000..13_000 + 4096]);
        new[14_000] ^= 1;
        new.extend_from_slice(&noise(3, 700));
        let (before, whole) = (bundle(&old, FRAME), bundle(&new, FRAME));
        let running = slot();
        staged(&before, None, &running).unwrap();
        let bases = [Some(delta::Base { image: &old, of: BaseRef::of(&old).unwrap() })];
        let options = Options { level: Some(9), lean: false, jobs: NonZeroUsize::new(1) };
        let mut members = Cursor::new(Vec::new());
        let head = delta::make(&whole, &bases, options, &mut members, &Cancel::default(), &Silent).unwrap();
        let (mut bytes, manifest) = (Vec::new(), whole.manifest());
        let index = whole.release().index().bytes();
        write_front(&mut bytes, manifest.bytes(), b"", index, manifest.created).unwrap();
        let head_at = bytes.len();
        write_members(&mut bytes, &[(MEMBER, &head)], manifest.created).unwrap();
        bytes.extend_from_slice(members.get_ref());
        Self { running, new, delta: bytes, head_at }
    }

    fn base(&self, from: usize, fails: bool) -> BaseSlot {
        let Content::Whole(record, _) = Content::read(&*self.running, Group::Platform, "a").unwrap() else {
            panic!("the base is not whole");
        };
        let device = Turning { inner: Arc::clone(&self.running), reads: AtomicUsize::new(0), from, fails };
        let (partition, device) = ("platform_a".to_owned(), Box::new(device));
        BaseSlot { partition, device, record: *record, payload: 0 }
    }

    /// Prepares from these bytes. On success the slot must hold the new image; on failure nothing but frames of it, and
    /// no record.
    #[track_caller]
    fn prepare(&self, bytes: &[u8], stream: bool, base: BaseSlot, whole: bool) -> Result<DeltaOutcome> {
        let source = if stream {
            Source::Stream(Box::new(Cursor::new(bytes.to_vec())))
        } else {
            Source::File(Arc::new(bytes.to_vec()))
        };
        let bundle = Bundle::open(source, &Trust::dangerously_unsigned())?;
        let whole = whole.then(|| Whole::of(self::bundle(&self.new, FRAME)).unwrap());
        let sources = Sources { bases: vec![Some(base)], whole: whole.as_ref(), most: None };
        let slot = slot();
        let result = staged(&bundle, Some(&sources), &slot);
        let held = slot.snapshot();
        let says = Content::read(&*slot, Group::Platform, "b").unwrap();
        match &result {
            Ok(_) => {
                assert_eq!(held[..self.new.len()], self.new);
                assert!(matches!(says, Content::Whole(..)));
            }
            Err(_) => {
                assert!(!matches!(says, Content::Whole(..)), "a failed prepare left a record");
                for (at, frame) in self.new.chunks(FRAME as usize).enumerate() {
                    let got = &held[at * FRAME as usize..][..frame.len()];
                    assert!(got == frame || got.iter().all(|byte| *byte == 0), "frame {at} was not verified");
                }
            }
        }
        result.map(|outcome| outcome.made.unwrap())
    }
}

#[test]
fn any_changed_or_missing_byte_of_a_delta_is_detected() {
    let case = Case::new();
    let good = case.prepare(&case.delta, false, case.base(usize::MAX, false), false).unwrap();
    assert_eq!((good.copied, good.patched, good.fallen_back), (8192, 4096 + 700, 0));
    assert_eq!(case.prepare(&case.delta, true, case.base(usize::MAX, false), false).unwrap(), good);
    let (mut refused, mut fallen) = (0, 0);
    for at in case.head_at..case.delta.len() {
        for (stream, bit) in [(false, at % 8), (true, (at + 3) % 8)] {
            let mut bytes = case.delta.clone();
            bytes[at] ^= 1 << bit;
            let base = || case.base(usize::MAX, false);
            if case.prepare(&bytes, stream, base(), false).is_err() {
                refused += 1;
                // Damage found in a frame is repaired by the bundle; damage found in the archive is not.
                fallen += usize::from(case.prepare(&bytes, stream, base(), true).is_ok());
            }
        }
        if at % 7 == 0 {
            assert!(case.prepare(&case.delta[..at], false, case.base(usize::MAX, false), false).is_err());
        }
    }
    assert!(refused > 3000 && fallen > 300, "{refused} refused, {fallen} of them mended by the bundle");
}

#[test]
fn a_base_that_changes_or_fails_at_any_read_costs_frames_but_never_corrupts() {
    let case = Case::new();
    for fails in [false, true] {
        for from in 0..12 {
            let alone = case.prepare(&case.delta, false, case.base(from, fails), false);
            let with = case.prepare(&case.delta, false, case.base(from, fails), true).unwrap();
            match alone {
                Ok(made) => assert_eq!((made.fallen_back, with.fallen_back), (0, 0), "{from} {fails}"),
                Err(error) => {
                    assert_eq!(error.code(), "UPGRADE_ERROR_BASE_DAMAGED", "{error}");
                    assert!(with.fallen_back > 0 && with.base_damaged.is_some(), "{from} {fails}");
                }
            }
        }
        assert!(case.prepare(&case.delta, false, case.base(0, fails), false).is_err());
    }
}

/// A new image that is longer than the running one has frames that the running one has not.
#[test]
fn frames_beyond_the_running_image_are_not_taken_from_it() {
    let case = Case::new();
    let base = case.base(usize::MAX, false);
    let frames = base.record.manifest.payloads[0].frames() as usize;
    let longer = bundle(&noise(9, (frames + 2) * FRAME as usize), FRAME);
    let bases = [Some(base)];
    let copies = crate::stage::base::RunningFrames::new(&bases);
    assert!(longer.release().frames(0).all(|frame| !copies.has(frame)));
}
