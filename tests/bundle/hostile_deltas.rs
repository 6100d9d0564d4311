//! Truncated, damaged and malicious deltas, prepared on a whole disk in memory: what runs is never written, and nothing but
//! genuine frames reaches the other slot.

use std::ops::Range;
use std::sync::Arc;

use qstage::boot::BootFlag;
use qstage::bundle::pick::Whole;
use qstage::bundle::{Bundle, Source};
use qstage::device::BlockDevice;
use qstage::error::{Class, Result};
use qstage::progress::Silent;
use qstage::state::PrepareReport;
use qstage::units::{ByteOffset, Slot};

use super::delta_attacks::{base, next, sound};
use super::{parts, sources};
use crate::harness::proof::{self, RecordState, Release, Site, Tape, extent, factory, record};
use crate::harness::tables::{self, Op};

/// A machine that runs the release from which the deltas start. Each prepare finds it as it was.
pub(super) struct Machine {
    site: Site,
    pristine: Vec<u8>,
    disk: Arc<Tape>,
    next: Release,
    whole: Arc<Vec<u8>>,
    /// The slot that is written.
    slot: Range<usize>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let pristine = factory(512, BootFlag::Priority, &base().pack());
        let next = next();
        Self {
            site: Site::new(Slot::A, BootFlag::Priority),
            disk: Tape::new(pristine.clone(), 512),
            slot: extent(&pristine, 512, "platform_b"),
            pristine,
            whole: next.pack(),
            next,
        }
    }

    /// Prepares from a delta, with the whole bundle beside it or without. Whatever comes of it, nothing else than genuine
    /// frames is written, in no other place than the free slot, and only a success leaves a record.
    #[track_caller]
    pub(super) fn prepare(&self, delta: Source, whole: bool) -> Result<PrepareReport> {
        let bundle = Bundle::open(delta, proof::trust())?;
        let whole = whole.then(|| Arc::new(Whole::of(proof::open(&self.whole).unwrap()).unwrap()));
        let options = qstage::PrepareOptions { whole, ..self.site.options() };
        let result = self.site.engine(self.disk.clone(), |engine| engine.prepare(bundle, &options, &Silent));
        let ops = self.disk.take_ops();
        self.judge(&ops, result.is_ok());
        for op in ops {
            let Op::Write(at, bytes) = op else { continue };
            let was = &self.pristine[at as usize..at as usize + bytes.len()];
            self.disk.memory.write_at(was, ByteOffset(at)).unwrap();
        }
        result
    }

    #[track_caller]
    fn judge(&self, ops: &[Op], good: bool) {
        let (platform, mut slot) = (&self.next.platform, self.pristine[self.slot.clone()].to_vec());
        for op in ops {
            let Op::Write(at, bytes) = op else { continue };
            let (from, to) = (*at as usize, *at as usize + bytes.len());
            assert!(self.slot.start <= from && to <= self.slot.end, "{} bytes at {from}", bytes.len());
            let from = from - self.slot.start;
            slot[from..from + bytes.len()].copy_from_slice(bytes);
            if from < platform.len() {
                let genuine = platform[from..].iter().chain(std::iter::repeat(&0));
                let wrong = bytes.iter().zip(genuine).position(|(is, should)| is != should);
                assert_eq!(wrong, None, "unverified bytes at {from}");
            }
        }
        assert_eq!(matches!(record(&slot), RecordState::Whole(_)), good, "the record of the slot");
        assert!(!good || slot[..platform.len()] == platform[..], "another image than the release's");
    }

    /// The platform slot and the software slot that boot.
    pub(super) fn selected(&self) -> Option<(Option<char>, Option<char>)> {
        tables::selection(&self.disk.memory.snapshot(), 512, tables::Reader::Strict)
    }
}

/// The class that damage of a part of the archive must have.
fn expected(part: &str) -> &'static [Class] {
    match part {
        "manifest.json" | "manifest.json.sig" => &[Class::Trust],
        // The base that it names may be another one.
        "delta.bin" => &[Class::Bundle, Class::Refused],
        _ => &[Class::Bundle],
    }
}

#[test]
fn every_truncation_of_a_delta_is_refused() {
    let (machine, delta) = (Machine::new(), sound());
    for len in 0..delta.len() {
        for (kind, source) in sources(&delta[..len]) {
            let error = machine.prepare(source, false).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_BUNDLE_TRUNCATED", "{kind} of {len} bytes: {error}");
        }
    }
    println!("{} lengths, as a file and as a stream", delta.len());
}

/// A changed bit is refused, or the bytes that it gives are the genuine ones. With the whole bundle beside it, a delta with
/// an archive and recipes that are possible leads to the release whatever its frames are.
#[test]
fn every_flipped_bit_of_a_delta_is_refused_or_harmless() {
    let machine = Machine::new();
    let mut bytes = sound().to_vec();
    let (mut refused, mut harmless, mut mended) = (0, Vec::new(), 0);
    for (part, from, to) in parts(&bytes) {
        // The other parts are read by the lines that read those of a bundle, which meet every bit: one of each byte.
        let own = part.ends_with("delta.bin") || part.ends_with(".delta");
        for bit in (from * 8..to * 8).filter(|bit| own || bit % 8 == bit / 8 % 8) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            for (kind, source) in sources(&bytes) {
                // As a file and as a stream a delta is read by the same lines, but for the place of a frame.
                if kind == "stream" && bit % 7 != 0 {
                    continue;
                }
                match machine.prepare(source, false) {
                    Ok(_) => harmless.push((part.clone(), bit / 8 - from, bit % 8)),
                    Err(error) => {
                        let class = error.class();
                        assert!(expected(&part).contains(&class), "{part}, bit {bit}, {kind}: {error}");
                        refused += 1;
                        if error.code() == "UPGRADE_ERROR_DELTA_FRAME" && bit % 5 == 0 {
                            mended += 1;
                            let source = Source::File(Arc::new(bytes.clone()));
                            let report = machine.prepare(source, true).unwrap();
                            assert!(report.delta.unwrap().fallen_back_bytes > 0, "{part}, bit {bit}");
                        }
                    }
                }
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    println!("{refused} refused, {mended} mended by the bundle; harmless: {harmless:?}");
    // Ranges that lead to more or other bytes of the base, where the frame needs none of them; the bits that a decoder of
    // zstd shall not interpret.
    for (part, byte, bit) in &harmless {
        assert!(
            ["delta.bin", "platform.img.delta"].contains(&&**part),
            "{part}, byte {byte}, bit {bit}: why?"
        );
    }
    assert!(mended > 1000 && harmless.len() < 100, "{mended} {}", harmless.len());
}
