//! What the processors do by themselves: the frames of the bundle from memory, without a device.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::Spread;
use crate::bundle::Bundle;
use crate::bundle::feed::{Claim, Feed};
use crate::bundle::frame::{FrameDecoder, chaining_value};
use crate::bundle::manifest::largest_frame;
use crate::bundle::sha256::Hasher;
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::progress::Cancel;
use crate::workers::{self, Abort};

/// Uncompressed bytes that the figures are taken over, at most: a sample spread over the whole bundle.
const SAMPLE: u64 = 192 << 20;

/// Rates in gigabytes (10^9 uncompressed bytes) per second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Processor {
    /// zstd, one core.
    pub decompress_one: f64,
    /// zstd, all cores.
    pub decompress_all: f64,
    /// BLAKE3 of frames, one core.
    pub blake3_one: f64,
    /// BLAKE3 of frames, all cores.
    pub blake3_all: f64,
    /// SHA-256, one core: it has no more.
    pub sha256_one: f64,
}

impl Processor {
    pub(super) fn median(samples: &[Self]) -> Self {
        let of = |get: fn(&Self) -> f64| Spread::of(samples.iter().map(get)).median;
        Self {
            decompress_one: of(|s| s.decompress_one),
            decompress_all: of(|s| s.decompress_all),
            blake3_one: of(|s| s.blake3_one),
            blake3_all: of(|s| s.blake3_all),
            sha256_one: of(|s| s.sha256_one),
        }
    }
}

/// One compressed frame in memory.
struct Frame<'a> {
    claim: Claim<'a>,
    compressed: Vec<u8>,
}

pub(super) fn measure(bundle: &Bundle, cores: NonZeroUsize) -> Result<Processor> {
    let cancel = Cancel::default();
    let abort = Abort::new(&cancel, "measuring the processors");
    let feed = Feed::new(bundle, |payload| payload.kind.group() == crate::units::Group::Platform);
    let stride = feed.total().div_ceil(SAMPLE).max(1);
    let (mut frames, mut compressed) = (Vec::new(), Vec::new());
    while let Some(claim) = feed.claim(&mut compressed, &abort)? {
        if claim.ordinal.is_multiple_of(stride) {
            feed.load(&claim, &mut compressed)?;
            frames.push(Frame { claim, compressed: compressed.clone() });
        }
    }
    let bytes: u64 =
        frames.iter().map(|frame| u64::from(frame.claim.payload.frame_extent(frame.claim.frame).1)).sum();
    let rate = |jobs: NonZeroUsize, work: &(dyn Fn(&mut Worker, &Frame<'_>) -> Result<()> + Sync)| {
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        workers::run(jobs, &abort, || {
            let mut worker = Worker::new(bundle)?;
            while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(&mut worker, frame)?;
            }
            Ok(())
        })?;
        Ok::<_, crate::Error>(bytes as f64 / 1e9 / start.elapsed().as_secs_f64())
    };
    let decompress = |worker: &mut Worker, frame: &Frame<'_>| {
        worker.decoder.decompress(
            &frame.compressed,
            frame.claim.payload,
            frame.claim.frame,
            &mut worker.buffer,
        )
    };
    let blake3 = |worker: &mut Worker, frame: &Frame<'_>| {
        let (at, len) = frame.claim.payload.frame_extent(frame.claim.frame);
        std::hint::black_box(chaining_value(&worker.buffer[..len as usize], at, false));
        Ok(())
    };
    let sha256 = |worker: &mut Worker, frame: &Frame<'_>| {
        let (_, len) = frame.claim.payload.frame_extent(frame.claim.frame);
        let mut hasher = Hasher::default();
        hasher.update(&worker.buffer[..len as usize]);
        std::hint::black_box(hasher.finish());
        Ok(())
    };
    let one = NonZeroUsize::MIN;
    Ok(Processor {
        decompress_one: rate(one, &decompress)?,
        decompress_all: rate(cores, &decompress)?,
        blake3_one: rate(one, &blake3)?,
        blake3_all: rate(cores, &blake3)?,
        sha256_one: rate(one, &sha256)?,
    })
}

struct Worker {
    decoder: FrameDecoder,
    buffer: AlignedBuf,
}

impl Worker {
    fn new(bundle: &Bundle) -> Result<Self> {
        let largest = largest_frame(&bundle.manifest().payloads);
        Ok(Self { decoder: FrameDecoder::new()?, buffer: AlignedBuf::zeroed(largest) })
    }
}
