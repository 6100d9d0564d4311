//! What a staging reports of its progress: each phase reaches its end, and writing counts what is paced and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::bundle::delta::tests::{bundle, noise};
use crate::device::{MemoryDevice, Region};
use crate::slot::Layout;
use crate::units::BlockSize;

const FRAME: usize = 4096;
const SLOT: u64 = 96 << 10;

/// The phases with their totals, and what was done and reused of each.
#[derive(Default)]
struct Counts(Mutex<Vec<(Phase, u64, u64, u64)>>);

impl Progress for Counts {
    fn begin(&self, phase: Phase, total: u64) {
        self.0.lock().unwrap().push((phase, total, 0, 0));
    }

    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().2 += bytes;
    }

    fn reuse(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().3 += bytes;
    }
}

fn target(bundle: &Bundle, slot: &Arc<MemoryDevice>) -> Target {
    let release = bundle.release().clone();
    let layout = Layout::new(&release.manifest, Group::Platform, release.record_len(), SLOT, "slot").unwrap();
    let extent = Extent { at: ByteOffset(0), len: SLOT };
    let device = Box::new(Region::new(Arc::clone(slot) as Arc<dyn BlockDevice>, extent).unwrap());
    let record = Record { release, layout, origin: String::new(), unsigned: false };
    Target { group: Group::Platform, partition: "slot".to_owned(), device, record }
}

/// Stages `image` into `slot`; the counts, and the bytes that were paced.
fn staged(image: &[u8], slot: &Arc<MemoryDevice>) -> (Vec<(Phase, u64, u64, u64)>, u64) {
    let bundle = bundle(image, FRAME as u32);
    let targets = [target(&bundle, slot)];
    let (counts, paced) = (Counts::default(), AtomicU64::new(0));
    let options = StageOptions {
        jobs: workers::at_least_one(3),
        read_back: true,
        sha256: false,
        cancel: &Cancel::default(),
        sources: None,
        look: false,
        pace: &|bytes| {
            paced.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        },
    };
    stage(&bundle, &targets, &options, &counts).unwrap();
    (counts.0.into_inner().unwrap(), paced.into_inner())
}

fn slot() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(vec![7; SLOT as usize], BlockSize::B512))
}

/// Six frames of data, four of zeroes, and a part of one.
fn image() -> Vec<u8> {
    [noise(1, 6 * FRAME), vec![0; 4 * FRAME], noise(2, 1000)].concat()
}

#[test]
fn writing_counts_what_is_paced() {
    let (image, slot) = (image(), slot());
    let (phases, paced) = staged(&image, &slot);
    let names: Vec<Phase> = phases.iter().map(|phase| phase.0).collect();
    // Samples, then frames that may be zeroes.
    assert_eq!(names, [Phase::Zero, Phase::Probe, Phase::Probe, Phase::Write, Phase::ReadBack]);
    for (phase, total, done, reused) in &phases {
        assert_eq!(done + reused, *total, "{phase:?} ends at its total");
        assert!(*total > 0, "{phase:?} of nothing");
    }
    let write = phases[3];
    assert_eq!((write.1, write.3), (image.len() as u64, 0));
    assert_eq!(write.2, paced, "the bar counts what the maximum rate limits");

    // The same once more, but for one frame of data and one of zeroes.
    let mut slot_bytes = slot.snapshot();
    for at in [2 * FRAME, 7 * FRAME] {
        slot_bytes[at..at + FRAME].fill(9);
    }
    let slot = Arc::new(MemoryDevice::new(slot_bytes, BlockSize::B512));
    let (phases, paced) = staged(&image, &slot);
    let write = phases.iter().find(|phase| phase.0 == Phase::Write).unwrap();
    assert_eq!((write.2, write.3), (2 * FRAME as u64, image.len() as u64 - 2 * FRAME as u64));
    assert_eq!(write.2, paced);

    // All of it is in place.
    let (phases, paced) = staged(&image, &slot);
    let write = phases.iter().find(|phase| phase.0 == Phase::Write).unwrap();
    assert_eq!((write.2, write.3, paced), (0, image.len() as u64, 0));
}

#[test]
fn a_stop_is_heeded_while_the_rest_of_the_slot_is_zeroed() {
    let bundle = bundle(&noise(1, FRAME), FRAME as u32);
    let slot = slot();
    let targets = [target(&bundle, &slot)];
    let cancel = Cancel::default();
    cancel.request();
    let error = zero_gaps(&targets, &cancel, &crate::progress::Silent).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_INTERRUPTED");
    assert!(slot.snapshot().iter().all(|&byte| byte == 7));
}
