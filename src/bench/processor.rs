//! Rates of the processors: frames of the bundle in memory, without a device.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
use crate::units::Group;
use crate::workers::{self, Abort, lock};

/// Maximum uncompressed bytes of the sample, spread over the whole bundle: it is kept in memory.
const SAMPLE: u64 = 256 << 20;
/// Number of passes of all cores over it: the rates of a shared machine change within tenths of a second.
const PASSES: usize = 4;

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
    /// SHA-256, one core: it cannot use more.
    pub sha256_one: f64,
}

/// Rates of all cores at one moment, in gigabytes (10^9 uncompressed bytes) per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct AllCores {
    pub(super) decompress: f64,
    pub(super) blake3: f64,
}

/// Rates of one core at one moment; the same unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct OneCore {
    decompress: f64,
    blake3: f64,
    sha256: f64,
}

impl Processor {
    pub(super) fn median(one: &[OneCore], all: &[AllCores]) -> Self {
        let of_one = |get: fn(&OneCore) -> f64| Spread::of(one.iter().map(get)).median;
        let of_all = |get: fn(&AllCores) -> f64| Spread::of(all.iter().map(get)).median;
        Self {
            decompress_one: of_one(|s| s.decompress),
            decompress_all: of_all(|s| s.decompress),
            blake3_one: of_one(|s| s.blake3),
            blake3_all: of_all(|s| s.blake3),
            sha256_one: of_one(|s| s.sha256),
        }
    }
}

/// Frames of a bundle in memory, and workers for them.
pub(super) struct InMemory<'a> {
    frames: Vec<Sample<'a>>,
    /// One for each core.
    workers: Mutex<Vec<Worker>>,
    cores: NonZeroUsize,
    cancel: &'a Cancel,
}

/// One compressed frame in memory.
struct Sample<'a> {
    claim: Claim<'a>,
    compressed: Vec<u8>,
}

impl Sample<'_> {
    fn len(&self) -> usize {
        self.claim.len()
    }
}

struct Worker {
    decoder: FrameDecoder,
    buffer: AlignedBuf,
}

impl<'a> InMemory<'a> {
    /// Reads a sample of the frames.
    pub(super) fn load(bundle: &'a Bundle, cores: NonZeroUsize, cancel: &'a Cancel) -> Result<Self> {
        let abort = Abort::new(cancel, "measuring the processors");
        let feed = Feed::new(bundle, |payload| payload.kind.group() == Group::Platform);
        let stride = feed.total().div_ceil(SAMPLE).max(1);
        let (mut frames, mut compressed) = (Vec::new(), Vec::new());
        while let Some(claim) = feed.claim(&mut compressed, &abort)? {
            // Not at a fixed distance: images have periodic content.
            if scattered(claim.ordinal).is_multiple_of(stride) {
                feed.load(&claim, &mut compressed)?;
                frames.push(Sample { claim, compressed: compressed.clone() });
            }
        }
        let largest = largest_frame(&bundle.manifest().payloads);
        let worker = |_| {
            let mut buffer = AlignedBuf::zeroed(largest);
            // The kernel allocates memory at the first access.
            buffer.fill(0xa5);
            FrameDecoder::new().map(|decoder| Worker { decoder, buffer })
        };
        let workers = (0..cores.get()).map(worker).collect::<Result<_>>()?;
        Ok(Self { frames, workers: Mutex::new(workers), cores, cancel })
    }

    /// Measures all cores.
    pub(super) fn all_cores(&self) -> Result<AllCores> {
        Ok(AllCores {
            decompress: self.rate(self.cores, PASSES, &decompress)?,
            blake3: self.rate(self.cores, PASSES, &blake3)?,
        })
    }

    /// Measures one core.
    pub(super) fn one_core(&self) -> Result<OneCore> {
        let one = NonZeroUsize::MIN;
        Ok(OneCore {
            decompress: self.rate(one, 1, &decompress)?,
            blake3: self.rate(one, 1, &blake3)?,
            sha256: self.rate(one, 1, &sha256)?,
        })
    }

    /// Measures `work` on `jobs` cores, `passes` times on each frame.
    fn rate(&self, jobs: NonZeroUsize, passes: usize, work: &WorkFn) -> Result<f64> {
        let abort = Abort::new(self.cancel, "measuring the processors");
        let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
        let len = self.frames.len();
        let turn = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|turn| *turn < passes * len);
        let start = Instant::now();
        workers::run_with(lock(&self.workers).iter_mut().take(jobs.get()), &abort, |worker| {
            while let Some(frame) = turn().and_then(|turn| self.frames.get(turn % len)) {
                abort.check()?;
                work(worker, frame)?;
                bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(bytes.into_inner() as f64 / 1e9 / start.elapsed().as_secs_f64())
    }
}

/// A number without correlation to any period of the frames (Fibonacci hashing: Knuth, TAOCP 3, 6.4).
fn scattered(ordinal: u64) -> u64 {
    ordinal.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

type WorkFn = dyn Fn(&mut Worker, &Sample<'_>) -> Result<()> + Sync;

fn decompress(worker: &mut Worker, frame: &Sample<'_>) -> Result<()> {
    worker.decoder.decompress(&frame.claim, &frame.compressed, &mut worker.buffer)
}

fn blake3(worker: &mut Worker, frame: &Sample<'_>) -> Result<()> {
    let at = frame.claim.extent().at.0;
    std::hint::black_box(chaining_value(&worker.buffer[..frame.len()], at, false));
    Ok(())
}

fn sha256(worker: &mut Worker, frame: &Sample<'_>) -> Result<()> {
    let mut hasher = Hasher::default();
    hasher.update(&worker.buffer[..frame.len()]);
    std::hint::black_box(hasher.finish());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::scattered;

    #[test]
    fn a_sample_does_not_follow_the_period_of_the_image() {
        // As in the synthetic image: of four mebibytes one is zero.
        for stride in [2, 4, 8, 16] {
            let sampled: Vec<u64> = (0..4096).filter(|n| scattered(*n).is_multiple_of(stride)).collect();
            let zero = sampled.iter().filter(|n| n.is_multiple_of(4)).count();
            let part = zero as f64 / sampled.len() as f64;
            assert!((0.2..0.3).contains(&part), "{part} of {} at {stride}", sampled.len());
        }
    }
}
