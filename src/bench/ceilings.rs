//! What the target does by itself: writes and reads of several sizes, one and several at a time.

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

/// Bytes of one transfer and transfers under way at once.
const SHAPES: [(usize, usize); 5] = [(128 << 10, 1), (1 << 20, 1), (1 << 20, 4), (4 << 20, 1), (4 << 20, 4)];
/// Bytes that each figure is taken over, at most.
const SPAN: u64 = 256 << 20;

/// A rate of the target.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    /// Writing, with the flush at the end; else reading.
    pub write: bool,
    /// Bytes of one transfer.
    pub block: usize,
    /// Transfers under way at once.
    pub depth: usize,
    /// Gigabytes (10^9 bytes) per second.
    pub gb_per_s: Spread,
    /// Processor time that it costs, in seconds per gigabyte: the kernel copies and maps, and on a device that is memory
    /// that is all there is.
    pub cpu_s_per_gb: Spread,
    #[serde(skip)]
    samples: Vec<f64>,
    #[serde(skip)]
    costs: Vec<f64>,
}

/// Takes one more sample of each figure.
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

/// What a number of bytes cost in bare transfers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    pub(super) bytes: u64,
    /// Wall time, in seconds.
    pub(super) seconds: f64,
    /// Processor time in seconds, of this process and of threads of the kernel: a loop device has its own.
    pub(super) cpu_seconds: f64,
}

impl Pass {
    /// At the same time as another one, on another device.
    pub(super) fn beside(self, other: Self) -> Self {
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

/// Transfers `len` bytes in the shape that was the fastest so far. Rates over a part of them would promise too much: caches
/// and quotas of a device make bursts fast.
pub(super) fn pass(
    slot: &dyn BlockDevice,
    ceilings: &[Ceiling],
    len: u64,
    write: bool,
    cancel: &Cancel,
) -> Result<Pass> {
    transfer(slot, len, best_shape(ceilings, write), write, cancel)
}

fn best_shape(ceilings: &[Ceiling], write: bool) -> (usize, usize) {
    let rate = |ceiling: &&Ceiling| ceiling.gb_per_s.median;
    let best = ceilings.iter().filter(|c| c.write == write).max_by(|a, b| rate(a).total_cmp(&rate(b)));
    best.map_or(SHAPES[1], |c| (c.block, c.depth))
}

/// Reads `len` bytes like [`pass`] and hashes the first `hashed` of them by BLAKE3. What a device has just put into memory is
/// not in the caches of the core that hashes it, which costs more than the same bytes a second time.
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

/// Writes and reads so many bytes at the same time, evenly mixed, in the shape in which writing was the fastest. A link with
/// two directions, or a device with a queue, may do both in less time than one after the other; others take longer.
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
        // The n-th transfer is a write wherever the share of writes passes a whole number.
        let before = number * writes / all;
        if (number + 1) * writes / all > before {
            device::write(slot, "the target", buffer, ByteOffset(before * block as u64))
        } else {
            // Half the slot away from where it is written: no block is asked for both at once.
            let place = (number - before + reads / 2) % reads;
            device::read(slot, "the target", buffer, ByteOffset(place * block as u64))
        }
    })
}

/// Makes zeroes of `len` bytes from `at`, by the device's own means where it has any.
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

/// Times `work` on each block of `len` bytes, and the flush at the end.
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

/// Blocks that `len` bytes take, as far as the slot goes.
fn blocks(slot: &dyn BlockDevice, len: u64, block: usize) -> u64 {
    len.div_ceil(block as u64).min(slot.len() / block as u64)
}

/// Times `work` on each of so many blocks, by their numbers, and the flush at the end.
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
        // Not zeroes: some devices answer those without writing.
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
    // After reading it has nothing to do.
    device::sync(slot, "the target")?;
    let seconds = start.elapsed().as_secs_f64();
    let (own, kernel) = (CpuTime::now() - own, kernel_seconds() - kernel);
    Ok(Pass { bytes: blocks * block as u64, seconds, cpu_seconds: own.with_kernel(kernel) })
}
