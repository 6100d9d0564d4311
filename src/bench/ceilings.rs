//! What the target does by itself: writes and reads of several sizes, one and several at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::Spread;
use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::Result;
use crate::host::load::cpu_seconds;
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
            let (rate, cost) = rate(slot, block, depth, write, cancel)?;
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

/// Gigabytes per second, and seconds of processor time for each gigabyte.
fn rate(
    slot: &dyn BlockDevice,
    block: usize,
    depth: usize,
    write: bool,
    cancel: &Cancel,
) -> Result<(f64, f64)> {
    let abort = Abort::new(cancel, "measuring the target");
    let blocks = slot.len().min(SPAN) / block as u64;
    let next = AtomicU64::new(0);
    let (start, cpu) = (Instant::now(), cpu_seconds());
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
            let at = ByteOffset(number * block as u64);
            if write {
                device::write(slot, "the target", &buffer, at)?;
            } else {
                device::read(slot, "the target", &mut buffer, at)?;
            }
        }
    })?;
    if write {
        device::sync(slot, "the target")?;
    }
    let gigabytes = (blocks * block as u64) as f64 / 1e9;
    Ok((gigabytes / start.elapsed().as_secs_f64(), (cpu_seconds() - cpu) / gigabytes))
}
