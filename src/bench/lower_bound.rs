//! The minimum possible time of prepare, calculated from the machine's current rates.

use std::num::NonZeroUsize;

use super::ceilings::Pass;
use super::processor::AllCores;

/// A variant of prepare.
pub(super) struct RunKind {
    pub(super) name: &'static str,
    pub(super) read_back: bool,
    /// Whether the bundle has to be read from its device.
    pub(super) cold: bool,
}

/// The variants that are measured. `--at-least` applies to the last one.
pub(super) const KINDS: [RunKind; 3] = [
    RunKind { name: "prepare without read-back", read_back: false, cold: false },
    RunKind { name: "prepare, cold bundle", read_back: true, cold: true },
    PREPARE,
];

/// Prepare with its defaults.
pub(super) const PREPARE: RunKind = RunKind { name: "prepare", read_back: true, cold: false };

/// Amount of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload {
    /// Bytes that are not zero frames.
    pub(super) data: u64,
    /// Bytes of zero frames.
    pub(super) zero: u64,
    /// Whether bundle and slot are on the same device.
    pub(super) same_device: bool,
    /// Number of cores for it.
    pub(super) cores: NonZeroUsize,
}

/// Rates of the machine at one moment, while no prepare runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct MachineRates {
    pub(super) all_cores: AllCores,
    /// Writing everything, data and zeroes.
    pub(super) write: Pass,
    /// Reading everything back; its processor time is that of reading and hashing.
    pub(super) read: Pass,
    /// Writing and reading the same bytes at the same time.
    pub(super) both: Pass,
    /// Reading the bundle past the page cache.
    pub(super) fetch: Pass,
    /// Processor time, in seconds, of reading the bundle from the page cache.
    pub(super) copy_cpu_seconds: f64,
}

impl MachineRates {
    /// Writing and reading, one after the other or at the same time, whichever takes the device less time.
    fn written_and_read(&self) -> Pass {
        let one_by_one = self.write + self.read;
        Pass { seconds: one_by_one.seconds.min(self.both.seconds), ..one_by_one }
    }
}

/// The minimum possible time of prepare, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LowerBound {
    /// Minimum time of the device.
    pub(super) device: f64,
    /// Minimum time of all cores: decompression, BLAKE3, and the kernel's work for the transfers.
    pub(super) processor: f64,
}

impl LowerBound {
    /// The bound for `kind`, at the rates of `now`.
    pub(super) fn of(kind: &RunKind, work: &Workload, now: &MachineRates) -> Self {
        let slot = if kind.read_back { now.written_and_read() } else { now.write };
        let device = match (kind.cold, work.same_device) {
            (false, _) => Pass { cpu_seconds: slot.cpu_seconds + now.copy_cpu_seconds, ..slot },
            (true, true) => {
                // The bundle is read while the slot is written.
                let whole = now.both.bytes + now.fetch.bytes;
                let mixed = now.both.seconds * whole as f64 / now.both.bytes.max(1) as f64;
                let one_by_one = now.write + now.read + now.fetch;
                Pass { seconds: one_by_one.seconds.min(mixed), ..one_by_one }
            }
            (true, false) => slot.alongside(now.fetch),
        };
        // Everything is hashed once before it is written, and data is hashed again when it is read back.
        let image = (work.data + work.zero) as f64 / 1e9;
        let cores = image / now.all_cores.decompress + image / now.all_cores.blake3;
        Self { device: device.seconds, processor: cores + device.cpu_seconds / work.cores.get() as f64 }
    }

    /// Half-way to `other`: the bound of a run between two measurements of the rates.
    pub(super) fn midpoint(self, other: Self) -> Self {
        Self {
            device: f64::midpoint(self.device, other.device),
            processor: f64::midpoint(self.processor, other.processor),
        }
    }

    /// The longer of both; all other work can overlap with it.
    pub(super) fn ideal(&self) -> f64 {
        self.device.max(self.processor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(seconds: f64, cpu_seconds: f64) -> Pass {
        Pass { bytes: 1, seconds, cpu_seconds }
    }

    #[test]
    fn bounds_are_calculated_by_kind() {
        let mut now = MachineRates {
            all_cores: AllCores { decompress: 2.0, blake3: 10.0 },
            write: pass(1.0, 0.4),
            read: pass(0.5, 0.2),
            both: Pass { bytes: 2, ..pass(2.0, 0.6) },
            fetch: pass(0.25, 0.1),
            copy_cpu_seconds: 0.02,
        };
        let mut work = Workload {
            data: 3_000_000_000,
            zero: 1_000_000_000,
            same_device: false,
            cores: NonZeroUsize::MIN.saturating_add(1),
        };
        let [blind, cold, whole] = KINDS.map(|kind| LowerBound::of(&kind, &work, &now));
        // 4 GB at 2 GB/s and at 10 GB/s; and half of the processor time of the transfers.
        let close = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
        close(blind.processor, 2.0 + 0.4 + 0.2 + 0.01);
        close(whole.processor, 2.0 + 0.4 + 0.3 + 0.01);
        close(cold.processor, 2.0 + 0.4 + 0.35);
        close(blind.device, 1.0);
        close(whole.device, 1.5);
        close(cold.device, 1.5);
        work.same_device = true;
        close(LowerBound::of(&KINDS[1], &work, &now).device, 1.75);
        close(whole.midpoint(blind).device, 1.25);
        close(whole.midpoint(blind).ideal(), 2.66);
        // A device that reads while it writes has a lower bound.
        now.both.seconds = 1.1;
        let [blind, cold, whole] = KINDS.map(|kind| LowerBound::of(&kind, &work, &now));
        close(blind.device, 1.0);
        close(whole.device, 1.1);
        close(cold.device, 1.65);
        close(whole.processor, 2.0 + 0.4 + 0.3 + 0.01);
    }
}
