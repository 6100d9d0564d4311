//! Raw rates of the target: writes and reads in several block sizes and queue depths.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::Spread;
use crate::bundle::frame::chaining_value;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::host::load::{CpuTime, kernel_seconds};
use crate::progress::Cancel;
use crate::units::ByteOffset;
use crate::workers::{self, Abort};

/// Block sizes in bytes, and queue depths.
const SHAPES: [(usize, usize); 5] = [(128 << 10, 1), (1 << 20, 1), (1 << 20, 4), (4 << 20, 1), (4 << 20, 4)];
/// Maximum bytes that each rate is measured over.
const SPAN: u64 = 256 << 20;

/// A rate of the target.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    /// Writing, with the flush at the end; otherwise reading.
    pub write: bool,
    /// Block size in bytes.
    pub block: usize,
    /// Queue depth: number of concurrent transfers.
    pub depth: usize,
    /// Gigabytes (10^9 bytes) per second.
    pub gb_per_s: Spread,
    /// Processor time in seconds per gigabyte. The kernel copies and maps; if the device is memory, that is all the
    /// work there is.
    pub cpu_s_per_gb: Spread,
    #[serde(skip)]
    samples: Vec<f64>,
    #[serde(skip)]
    costs: Vec<f64>,
}

/// Adds one sample to each rate.
pub(super) fn measure(slot: &dyn BlockDevice, ceilings: &mut Vec<Ceiling>, cancel: &Cancel) -> Result<()> {
    for (block, depth) in SHAPES {
        for write in [true, false] {
            let pass = transfer(slot, slot.len().min(SPAN), (block, depth), write, cancel)?;
            let gigabytes = pass.bytes as f64 / 1e9;
            let (rate, cost) = (gigabytes / pass.seconds, pass.cpu_seconds / gigabytes);
            let known = ceilings.iter_mut().find(|c| (c.write, c.block, c.depth) == (write, block, depth));
            match known {
                Some(ceiling) => {
                    ceiling.samples.push(rate);
                    ceiling.gb_per_s = Spread::of(ceiling.samples.iter().copied());
                    ceiling.costs.push(cost);
                    ceiling.cpu_s_per_gb = Spread::of(ceiling.costs.iter().copied());
                }
                None => ceilings.push(Ceiling {
                    write,
                    block,
                    depth,
                    gb_per_s: Spread::of([rate]),
                    cpu_s_per_gb: Spread::of([cost]),
                    samples: vec![rate],
                    costs: vec![cost],
                }),
            }
        }
    }
    Ok(())
}

/// Cost of transferring a number of bytes without other work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    pub(super) bytes: u64,
    /// Wall time, in seconds.
    pub(super) seconds: f64,
    /// Processor time in seconds, of this process and of kernel threads: a loop device has its own.
    pub(super) cpu_seconds: f64,
}

impl Pass {
    /// Both at the same time, on different devices.
    pub(super) fn alongside(self, other: Self) -> Self {
        Self { seconds: self.seconds.max(other.seconds), ..self + other }
    }

    /// Gigabytes (10^9 bytes) per second.
    pub(super) fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }
}

impl std::ops::Add for Pass {
    type Output = Self;

    /// One after the other.
    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            seconds: self.seconds + other.seconds,
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
        }
    }
}

/// Transfers `len` bytes with the block size and depth that were fastest so far. A smaller sample would overstate
/// the rate: caches and quotas of a device make bursts fast.
pub(super) fn pass(
    slot: &dyn BlockDevice,
    ceilings: &[Ceiling],
    len: u64,
    write: bool,
    cancel: &Cancel,
) -> Result<Pass> {
    let (block, depth) = best_shape(ceilings, write);
    // A small bundle has no whole block of the fastest size; its rate would be 0.
    let block = if slot.len() < block as u64 { SHAPES[0].0 } else { block };
    transfer(slot, len, (block, depth), write, cancel)
}

fn best_shape(ceilings: &[Ceiling], write: bool) -> (usize, usize) {
    let rate = |ceiling: &&Ceiling| ceiling.gb_per_s.median;
    let best = ceilings.iter().filter(|c| c.write == write).max_by(|a, b| rate(a).total_cmp(&rate(b)));
    best.map_or(SHAPES[1], |c| (c.block, c.depth))
}

/// Reads `len` bytes like [`pass`] and hashes the first `hashed` of them by BLAKE3. Bytes that a device has just
/// put into memory are not in the caches of the core that hashes them, which costs more than hashing the same bytes
/// again.
pub(super) fn read_and_hash(
    slot: &dyn BlockDevice,
    ceilings: &[Ceiling],
    (len, hashed): (u64, u64),
    cancel: &Cancel,
) -> Result<Pass> {
    run(slot, len, best_shape(ceilings, false), cancel, |buffer, at| {
        device::read(slot, "the target", buffer, ByteOffset(at))?;
        if at < hashed {
            std::hint::black_box(chaining_value(buffer, at, false));
        }
        Ok(())
    })
}

/// Writes and reads these numbers of bytes at the same time, evenly mixed, with the block size and depth that were
/// fastest for writing. A link with two directions, or a device with a queue, may do both in less time than one
/// after the other; others take longer.
pub(super) fn both(
    slot: &dyn BlockDevice,
    ceilings: &[Ceiling],
    (written, read): (u64, u64),
    cancel: &Cancel,
) -> Result<Pass> {
    let (block, depth) = best_shape(ceilings, true);
    let depth = depth.saturating_add(best_shape(ceilings, false).1);
    let (writes, reads) = (blocks(slot, written, block), blocks(slot, read, block));
    let all = writes + reads;
    repeat(slot, all, (block, depth), cancel, |buffer, number| {
        // The n-th transfer is a write whenever the accumulated share of writes passes a whole number.
        let before = number * writes / all;
        if (number + 1) * writes / all > before {
            device::write(slot, "the target", buffer, ByteOffset(before * block as u64))
        } else {
            // Half a slot away from the writes: no block is read and written at once.
            let place = (number - before + reads / 2) % reads;
            device::read(slot, "the target", buffer, ByteOffset(place * block as u64))
        }
    })
}

/// Zeroes `len` bytes from `at`, by means of the device if it has any.
pub(super) fn zeroes(slot: &dyn BlockDevice, at: u64, len: u64, cancel: &Cancel) -> Result<Pass> {
    run(slot, len, (1 << 20, 4), cancel, |buffer, offset| {
        let len = buffer.len() as u64;
        let result = slot.write_zeroes(ByteOffset(at + offset), len);
        result.map_err(|source| Error::write("zeroes to the target", at + offset, len, source))
    })
}

fn transfer(
    slot: &dyn BlockDevice,
    len: u64,
    shape: (usize, usize),
    write: bool,
    cancel: &Cancel,
) -> Result<Pass> {
    run(slot, len, shape, cancel, |buffer, at| {
        if write {
            device::write(slot, "the target", buffer, ByteOffset(at))
        } else {
            device::read(slot, "the target", buffer, ByteOffset(at))
        }
    })
}

/// Measures `work` on each block of `len` bytes, and the flush at the end.
fn run(
    slot: &dyn BlockDevice,
    len: u64,
    shape: (usize, usize),
    cancel: &Cancel,
    work: impl Fn(&mut AlignedBuf, u64) -> Result<()> + Sync,
) -> Result<Pass> {
    let block = shape.0;
    repeat(slot, blocks(slot, len, block), shape, cancel, |buffer, number| {
        work(buffer, number * block as u64)
    })
}

/// Number of blocks in `len` bytes, at most those of the slot.
fn blocks(slot: &dyn BlockDevice, len: u64, block: usize) -> u64 {
    len.div_ceil(block as u64).min(slot.len() / block as u64)
}

/// Measures `work` on each block number below `blocks`, and the flush at the end.
fn repeat(
    slot: &dyn BlockDevice,
    blocks: u64,
    (block, depth): (usize, usize),
    cancel: &Cancel,
    work: impl Fn(&mut AlignedBuf, u64) -> Result<()> + Sync,
) -> Result<Pass> {
    let abort = Abort::new(cancel, "measuring the target");
    let next = AtomicU64::new(0);
    let (start, own, kernel) = (Instant::now(), CpuTime::now(), kernel_seconds());
    workers::run(workers::at_least_one(depth), &abort, || {
        let mut buffer = AlignedBuf::zeroed(block);
        // Not zeroes: some devices complete those without writing.
        buffer.iter_mut().zip((0..=250_u8).cycle()).for_each(|(byte, value)| *byte = value);
        loop {
            abort.check()?;
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= blocks {
                return Ok(());
            }
            work(&mut buffer, number)?;
        }
    })?;
    // After reading, this flush has nothing to write.
    device::sync(slot, "the target")?;
    let seconds = start.elapsed().as_secs_f64();
    let (own, kernel) = (CpuTime::now() - own, kernel_seconds() - kernel);
    Ok(Pass { bytes: blocks * block as u64, seconds, cpu_seconds: own.with_kernel(kernel) })
}
