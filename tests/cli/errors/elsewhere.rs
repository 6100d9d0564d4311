//! Failures that no command line can cause on a sound machine: a disk that lies, an incorrect caller.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use qstage::device::{BlockDevice, MemoryDevice};
use qstage::progress::{Cancel, Silent};
use qstage::slot::{Content, Layout, Record};
use qstage::stage::{self, Target};
use qstage::units::{BlockSize, ByteOffset, Group};
use qstage::{Bundle, Error, Source, Trust, commit};

use crate::harness::machine::{Bench, MIB};
use crate::harness::tables::Spec;

/// A disk that says "written" and once did not.
struct Lossy {
    disk: Arc<MemoryDevice>,
    loses: u64,
    lost: AtomicBool,
}

impl BlockDevice for Lossy {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn block_size(&self) -> BlockSize {
        self.disk.block_size()
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.disk.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        if at.0 == self.loses && !self.lost.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.disk.write_at(buf, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
}

#[test]
fn a_write_that_the_disk_lost_is_found_by_reading_back() {
    let bench = Bench::installed();
    let bytes = std::fs::read(bench.path("v2.qimg")).unwrap();
    let disk = Arc::new(MemoryDevice::new(vec![0; 8 << 20], BlockSize::B512));
    let stage = |read_back: bool| {
        let bundle =
            Bundle::open(Source::File(Arc::new(bytes.clone())), &Trust::dangerously_unsigned()).unwrap();
        let manifest = bundle.manifest().clone();
        let body_len = bundle.release().record_len();
        let layout = Layout::new(&manifest, Group::Platform, body_len, 8 * MIB, "platform_b").unwrap();
        let record =
            Record { release: bundle.release().clone(), layout, origin: "test".to_owned(), unsigned: true };
        // The second frame.
        let lossy = Lossy { disk: Arc::clone(&disk), loses: 256 << 10, lost: AtomicBool::new(false) };
        let target = Target {
            group: Group::Platform,
            partition: "platform_b".to_owned(),
            device: Box::new(lossy),
            record,
        };
        let options = stage::StageOptions {
            jobs: NonZeroUsize::MIN,
            read_back,
            sha256: false,
            cancel: &Cancel::default(),
            sources: None,
            look: false,
            pace: &|_| Ok(()),
        };
        let outcome = stage::stage(&bundle, &[target], &options, &Silent);
        (outcome, Content::read(&*disk, Group::Platform, "platform_b").unwrap())
    };
    let (outcome, content) = stage(true);
    match outcome {
        Err(Error::ReadBack { frame: 1, at, .. }) => assert_eq!(at, 256 << 10),
        other => panic!("{other:?}"),
    }
    assert!(matches!(content, Content::Torn { .. }), "it is not called whole");
    // It is the read-back that finds it, and nothing else could.
    disk.write_at(&qstage::device::AlignedBuf::zeroed(8 << 20), ByteOffset(0)).unwrap();
    let (outcome, content) = stage(false);
    outcome.unwrap();
    assert!(content.record().is_some());
}

#[test]
fn a_switch_that_would_move_partitions() {
    let load = |spec: &Spec| {
        let disk = MemoryDevice::new(spec.image(), BlockSize::B512);
        commit::load(&disk, "disk").unwrap()
    };
    let spec = Spec::slots(512, 8192, 2048, 512);
    let mut moved = spec.clone();
    moved.parts[1].2 += 8;
    let error = commit::plan(&load(&spec), load(&moved).table().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error}");
    assert!(error.to_string().contains("please report"));
}
