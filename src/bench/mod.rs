//! Measures the rates of target and processors, the time of prepare, and what bounds it. All in one run,
//! alternating: machines are noisy, and only ratios of figures from the same minutes are meaningful.

mod ceilings;
mod lower_bound;
mod processor;
mod sample;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

pub use ceilings::Ceiling;
pub use processor::Processor;
pub use sample::{ScratchDir, fill, synthetic_bundle};

use crate::boot::{BootFlag, Flags, Slots};
use crate::bundle::Bundle;
use crate::commit;
use crate::device::{BlockDevice, Direct, Mode, Region};
use crate::error::{Error, Result};
use crate::gpt::TableMethod;
use crate::host::load::{CpuTime, kernel_seconds};
use crate::host::{LocalDisk, Machine};
use crate::init::{InitSpec, init};
use crate::progress::{Cancel, Progress, Silent};
use crate::slot::{Layout, Record};
use crate::stage::{self, StageOptions, StageOutcome, Target};
use crate::units::{BlockSize, ByteOffset, Extent, Group, Slot};
use crate::workers;
use ceilings::Pass;
use lower_bound::{KINDS, LowerBound, MachineRates, RunKind, Workload};
use processor::InMemory;

/// Minimum, median and maximum of several runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Median; the upper one if the number of values is even.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// The spread of at least one value; all 0 if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

/// Duration of prepare, and its minimum possible duration.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// Variant of prepare.
    pub name: &'static str,
    /// Wall time in seconds.
    pub seconds: Spread,
    /// Processor time in seconds, of all cores together, including kernel threads.
    pub cpu_seconds: Spread,
    /// Share of the time of all cores: median of the rounds. If it is nearly 1 only less work helps.
    pub busy: f64,
    /// Uncompressed gigabytes (10^9 bytes) per second, by the median.
    pub gb_per_s: f64,
    /// The longer one of `device` and `processor`, in seconds: median of the rounds.
    pub ideal_seconds: f64,
    /// Time of transferring the same number of bytes without other work, in seconds: data and zeroes written,
    /// flushed, and read. One after the other or at the same time, whichever is faster, with the fastest block size
    /// and depth: median of the rounds.
    pub device_seconds: f64,
    /// Time of all cores for decompression, BLAKE3 and the kernel's work for the transfers, in seconds: median of
    /// the rounds.
    pub processor_seconds: f64,
    /// The minimum possible time of a round divided by the time of prepare in that round: median of the rounds. 1.0
    /// is not reachable.
    pub of_ideal: f64,
    /// The same for the best round: other load on the machine slows down the others.
    pub best_of_ideal: f64,
    /// Limiting resource: `device` or `processor`.
    pub bound_by: &'static str,
}

impl BenchReport {
    /// Compares ratios, not seconds, so that the same limit applies on every machine.
    ///
    /// # Errors
    /// [`Error::TooSlow`] if the fastest prepare with read-back has not reached `wanted` of the ideal.
    pub fn at_least(&self, wanted: f64) -> Result<()> {
        let slow = self.runs.last().filter(|run| run.best_of_ideal < wanted);
        slow.map_or(Ok(()), |run| {
            Err(Error::TooSlow { reached: run.best_of_ideal, wanted, bound: run.bound_by })
        })
    }
}

/// Report of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Name of the target.
    pub target: String,
    /// Uncompressed size of the bundle in bytes.
    pub image_bytes: u64,
    /// Of these, bytes outside of zero frames.
    pub data_bytes: u64,
    /// Compressed size in bytes.
    pub bundle_bytes: u64,
    /// Number of cores that this process may use.
    pub cores: usize,
    /// Number of workers of prepare.
    pub jobs: usize,
    /// Raw rates of the target.
    pub ceilings: Vec<Ceiling>,
    /// Rates of the processors.
    pub processor: Processor,
    /// Rate of reading the bundle past the page cache from its location, in gigabytes (10^9 compressed bytes) per
    /// second.
    pub bundle_gb_per_s: Spread,
    /// Rate of writing everything that a prepare writes, in gigabytes (10^9 bytes) per second.
    pub write_gb_per_s: Spread,
    /// Rate of reading everything that a prepare reads back, in gigabytes (10^9 bytes) per second.
    pub read_gb_per_s: Spread,
    /// Rate of writing and reading at the same time, both together, in gigabytes (10^9 bytes) per second.
    pub mixed_gb_per_s: Spread,
    /// Variants of prepare: without read-back, with a bundle that is not in the page cache, and last with its
    /// defaults.
    pub runs: Vec<RunReport>,
    /// Milliseconds of one switch of the partition table, including all barriers and re-reads; only measured on a
    /// scratch file, else `None`.
    pub commit_ms: Option<Spread>,
    /// The same with `table = "in-place"`, measured alternately: the difference is the cost of the detour by the
    /// spare place.
    pub commit_in_place_ms: Option<Spread>,
}

/// The bundle and the slot to measure with. The slot is overwritten.
pub struct Subject<'a> {
    /// Name in the report.
    pub name: String,
    /// The slot.
    pub slot: Arc<dyn BlockDevice>,
    /// Opens the bundle again: a bundle is read once, and is dropped from the page cache by that.
    pub open: &'a dyn Fn() -> Result<Bundle>,
    /// Path of the bundle.
    pub bundle: &'a Path,
    /// Whether bundle and slot are on the same device; `false` if unknown.
    pub same_device: bool,
}

/// Settings of a benchmark.
pub struct BenchOptions<'a> {
    /// Number of repetitions of each measurement.
    pub repeat: NonZeroUsize,
    /// Number of workers of prepare; `None` for its own default.
    pub jobs: Option<NonZeroUsize>,
    /// Requests a stop.
    pub cancel: &'a Cancel,
}

/// Runs the benchmark. The platform image and firmware of the bundle are staged into the slot several times, with
/// their record. The caller has made sure that the slot's content is not needed, and discards the record
/// afterwards.
///
/// # Errors
/// Those of reading the bundle and of staging.
pub fn bench(
    subject: &Subject<'_>,
    options: &BenchOptions<'_>,
    progress: &dyn Progress,
) -> Result<BenchReport> {
    let cores = workers::cores();
    let bundle = (subject.open)()?;
    let manifest = bundle.manifest();
    let jobs = options.jobs.unwrap_or_else(|| stage::default_jobs(&manifest.payloads, false));
    let body_len = bundle.release().record_len();
    let layout = Layout::new(manifest, Group::Platform, body_len, subject.slot.len(), &subject.name)?;
    let image_bytes: u64 = layout.places.iter().map(|place| place.len).sum();
    let compressed: u64 =
        layout.places.iter().map(|place| bundle.release().compressed_size(place.payload)).sum();

    progress.notice("measuring the target and the processors");
    let bare = InMemory::load(&bundle, cores, options.cancel)?;
    let packed = Direct::open(subject.bundle, Mode::Read, BlockSize::B512)?;
    let run = |kind: &RunKind| prepare(subject, options, jobs, &layout, kind, progress);
    // Not counted: the first run allocates memory that the others reuse. Its result shows which bytes are zero.
    let first = run(&lower_bound::PREPARE)?.outcome;
    let work = Workload { data: first.written, zero: first.zeroed, same_device: subject.same_device, cores };
    let sound = |ceilings: &[Ceiling]| {
        let (slot, cancel) = (&*subject.slot, options.cancel);
        let write = ceilings::pass(slot, ceilings, work.data, true, cancel)?;
        let zeroes = ceilings::zeroes(slot, work.data, work.zero, cancel)?;
        Ok::<_, Error>(MachineRates {
            all_cores: bare.all_cores()?,
            write: write + zeroes,
            both: ceilings::both(slot, ceilings, (work.data, image_bytes), cancel)? + zeroes,
            read: Pass {
                cpu_seconds: ceilings::read_and_hash(slot, ceilings, (image_bytes, work.data), cancel)?
                    .cpu_seconds,
                ..ceilings::pass(slot, ceilings, image_bytes, false, cancel)?
            },
            fetch: ceilings::pass(&packed, ceilings, packed.len(), false, cancel)?,
            copy_cpu_seconds: sample::time_copy(subject.bundle)?,
        })
    };
    let mut ceilings = Vec::new();
    let (mut one_core, mut rates) = (Vec::new(), Vec::new());
    let mut rounds = KINDS.map(|_| Vec::new());
    for round in 1..=options.repeat.get() {
        options.cancel.check("measuring")?;
        ceilings::measure(&*subject.slot, &mut ceilings, options.cancel)?;
        one_core.push(bare.one_core()?);
        let mut before = sound(&ceilings)?;
        for (kind, rounds) in KINDS.iter().zip(&mut rounds) {
            let run = run(kind)?;
            let after = sound(&ceilings)?;
            // The rates of a shared machine change within seconds, so they are measured before and after the run.
            let bound = LowerBound::of(kind, &work, &before).midpoint(LowerBound::of(kind, &work, &after));
            rounds.push(Round { seconds: run.seconds, cpu_seconds: run.cpu_seconds, bound });
            rates.push(std::mem::replace(&mut before, after));
        }
        rates.push(before);
        progress.notice(&format!("round {round} of {} is done", options.repeat));
    }
    let all_cores: Vec<_> = rates.iter().map(|rate| rate.all_cores).collect();
    let runs = rounds.iter().zip(KINDS);
    let rate = |of: fn(&MachineRates) -> Pass| Spread::of(rates.iter().map(|rate| of(rate).gb_per_s()));
    Ok(BenchReport {
        target: subject.name.clone(),
        image_bytes,
        data_bytes: work.data,
        bundle_bytes: compressed,
        cores: cores.get(),
        jobs: jobs.get(),
        runs: runs.map(|(rounds, kind)| RunReport::of(kind.name, rounds, image_bytes, cores)).collect(),
        bundle_gb_per_s: rate(|rate| rate.fetch),
        write_gb_per_s: rate(|rate| rate.write),
        read_gb_per_s: rate(|rate| rate.read),
        mixed_gb_per_s: rate(|rate| rate.both),
        ceilings,
        processor: Processor::median(&one_core, &all_cores),
        commit_ms: None,
        commit_in_place_ms: None,
    })
}

/// Result of one run of prepare.
struct Prepared {
    outcome: StageOutcome,
    seconds: f64,
    cpu_seconds: f64,
}

fn prepare(
    subject: &Subject<'_>,
    options: &BenchOptions<'_>,
    jobs: NonZeroUsize,
    layout: &Layout,
    kind: &RunKind,
    progress: &dyn Progress,
) -> Result<Prepared> {
    // A blind write is to be measured: the present content must not be recognised.
    sample::invalidate(&*subject.slot, layout)?;
    if kind.cold {
        sample::evict(subject.bundle)?;
    } else {
        sample::warm(subject.bundle)?;
    }
    let bundle = (subject.open)()?;
    let target = Target {
        group: Group::Platform,
        partition: subject.name.clone(),
        device: Box::new(whole(&subject.slot)?),
        record: Record {
            release: bundle.release().clone(),
            layout: layout.clone(),
            origin: "bench".to_owned(),
            unsigned: true,
        },
    };
    let staging = StageOptions {
        jobs,
        read_back: kind.read_back,
        sha256: false,
        cancel: options.cancel,
        sources: None,
        look: false,
        pace: &|_| Ok(()),
    };
    let (start, cpu, kernel) = (Instant::now(), CpuTime::now(), kernel_seconds());
    let outcome = stage::stage(&bundle, &[target], &staging, progress)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = (CpuTime::now() - cpu).with_kernel(kernel_seconds() - kernel);
    Ok(Prepared { outcome, seconds, cpu_seconds })
}

/// One prepare, and its lower bound in the same seconds.
struct Round {
    seconds: f64,
    cpu_seconds: f64,
    bound: LowerBound,
}

impl RunReport {
    fn of(name: &'static str, rounds: &[Round], image_bytes: u64, cores: NonZeroUsize) -> Self {
        let of = |get: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(get));
        let ideal = |round: &Round| round.bound.ideal();
        // Machines change from minute to minute, so the ratio is taken within each round.
        let reached = of(&|round| ideal(round) / round.seconds);
        let seconds = of(&|round| round.seconds);
        let device_seconds = of(&|round| round.bound.device).median;
        let processor_seconds = of(&|round| round.bound.processor).median;
        Self {
            name,
            seconds,
            cpu_seconds: of(&|round| round.cpu_seconds),
            busy: of(&|round| round.cpu_seconds / (round.seconds * cores.get() as f64)).median,
            gb_per_s: image_bytes as f64 / 1e9 / seconds.median,
            ideal_seconds: of(&ideal).median,
            device_seconds,
            processor_seconds,
            of_ideal: reached.median,
            best_of_ideal: reached.max,
            bound_by: if device_seconds > processor_seconds { "device" } else { "processor" },
        }
    }
}

/// The slot as a device that a target can own.
fn whole(slot: &Arc<dyn BlockDevice>) -> Result<Region> {
    let extent = Extent { at: ByteOffset(0), len: slot.len() };
    Region::new(Arc::clone(slot), extent)
        .ok_or_else(|| Error::Internal { what: "a device is not within itself".into() })
}

/// Measures one switch of the boot flag on a newly laid out disk image in `scratch`, `rounds` times in both
/// directions: by way of the spare place, and in place. Alternating, so that both run in the same minutes of the
/// machine.
///
/// # Errors
/// Class Disk and Io.
pub fn time_commit(scratch: &ScratchDir, rounds: usize) -> Result<(Spread, Spread)> {
    let path = scratch.join("table.img");
    let spec = InitSpec {
        disk: path.clone(),
        size: None,
        slot_size: crate::units::MIB,
        software_size: None,
        reserve: crate::units::MIB,
        sector_size: BlockSize::B512,
        boot_flag: BootFlag::Priority,
        force: false,
        bundle: None,
        into: vec![Slot::A],
        dry_run: false,
    };
    init(spec, &Silent, &Cancel::default())?;
    let machine = LocalDisk::open(&path, Mode::Write, None)?;
    let (disk, lock) = (machine.disk(), machine.lock()?);
    let switch = |how: TableMethod, slot: Slot| -> Result<f64> {
        let loaded = commit::load(&*disk, machine.name())?.with_method(how);
        let slots = Slots::resolve(loaded.table()?, machine.name())?;
        let flags = Flags::new(loaded.table()?.clone(), &slots, BootFlag::Priority);
        let table = flags.select_trial(Group::Platform, slot, 3)?.into_table();
        let start = Instant::now();
        commit::switch(&*disk, &lock, &loaded, &table)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let (mut spare, mut in_place) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (how, times) in [(TableMethod::Spare, &mut spare), (TableMethod::InPlace, &mut in_place)] {
            times.push(switch(how, Slot::B)?);
            times.push(switch(how, Slot::A)?);
        }
    }
    Ok((Spread::of(spare), Spread::of(in_place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        let round = |seconds, device, processor| Round {
            seconds,
            cpu_seconds: 1.0,
            bound: LowerBound { device, processor },
        };
        // The second round fell into a slow minute of the machine, so its lower bound is higher too.
        let run = RunReport::of(
            "prepare",
            &[round(2.0, 1.0, 1.8), round(8.0, 6.0, 2.0), round(2.0, 1.6, 1.0)],
            4_000_000_000,
            NonZeroUsize::MIN.saturating_add(1),
        );
        assert_eq!(run.busy, 0.25, "one second of two cores in two seconds");
        assert_eq!((run.of_ideal, run.best_of_ideal), (0.8, 0.9));
        assert_eq!((run.ideal_seconds, run.device_seconds, run.processor_seconds), (1.8, 1.6, 1.8));
        assert_eq!((run.gb_per_s, run.bound_by), (2.0, "processor"));
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        let spread = Spread::of([3.0, 1.0, 2.0, 10.0]);
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 10.0));
        assert_eq!(Spread::of([]).median, 0.0);
    }
}
