//! Pauses in favour of other processes that wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Cancel;

/// Work time between two pauses for a measurement.
const WORK: Duration = Duration::from_millis(1000);
/// Work time after a pause that reached [`MAX_PAUSE`].
const SHORT_WORK: Duration = Duration::from_millis(250);
/// Time before a measurement in which our own transfers, of a few MiB each, end.
const SETTLE: Duration = Duration::from_millis(20);
/// Length of a measurement.
const MEASURE: Duration = Duration::from_millis(40);
/// Longest pause: after it work goes on although others wait, since a machine that is always busy must get its upgrade too.
const MAX_PAUSE: Duration = Duration::from_millis(2000);
/// Others are waiting if some process was stalled for more than this part of the measurement.
const STALLED: f64 = 0.1;

/// Pauses work while other processes wait for the disk or for memory.
///
/// The kernel's pressure figures (`/proc/pressure`, Documentation/accounting/psi.rst) include our own waiting, so while we
/// write they are never zero. So all workers pause for a moment from time to time, and whatever is stalled then is another
/// process. The pause lasts as long as others are stalled, up to a limit.
#[derive(Debug)]
pub struct Throttle {
    dir: PathBuf,
    phase: Mutex<Phase>,
    min: MinRate,
    waited: Mutex<PauseTime>,
}

/// Minimum rate: below it there are no pauses.
#[derive(Debug)]
struct MinRate {
    bytes_per_second: u64,
    begun: Instant,
    written: AtomicU64,
}

/// Time for which work has paused.
#[derive(Debug)]
struct PauseTime {
    all: Duration,
    reported: Duration,
    reported_at: Instant,
}

/// Interval between two reports of pauses.
const REPORT_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy)]
enum Phase {
    Work { until: Instant },
    Settle { paused: Instant, until: Instant },
    Measure { paused: Instant, since: Instant, until: Instant, stalled_before: Duration },
}

impl Throttle {
    /// `None` if the kernel has no such figures (no CONFIG_PSI, or `psi=0` on its command line).
    ///
    /// There are no pauses while fewer than `min_rate` bytes per second have been written since this call; 0: no minimum.
    pub fn new(min_rate: u64) -> Option<Self> {
        Self::with(Path::new("/proc/pressure"), min_rate)
    }

    fn with(dir: &Path, min_rate: u64) -> Option<Self> {
        stalled(dir)?;
        let now = Instant::now();
        let phase = Mutex::new(Phase::Work { until: now + WORK });
        let min = MinRate { bytes_per_second: min_rate, begun: now, written: AtomicU64::new(0) };
        let waited =
            Mutex::new(PauseTime { all: Duration::ZERO, reported: Duration::ZERO, reported_at: now });
        Some(Self { dir: dir.to_owned(), phase, min, waited })
    }

    /// A sentence for the user, at intervals: for how long work has paused in favour of others. `None` if nothing is due.
    pub fn report(&self) -> Option<String> {
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, paused) = (waited.reported_at.elapsed(), waited.all.saturating_sub(waited.reported));
        if since < REPORT_INTERVAL {
            return None;
        }
        (waited.reported, waited.reported_at) = (waited.all, Instant::now());
        // The pauses for measurements alone are 6 %.
        (paused.as_secs_f64() > 0.1 * since.as_secs_f64()).then(|| {
            format!(
                "gave way to other processes for {:.0} of the last {:.0} s ({:.0} s in all); --min-rate sets a floor",
                paused.as_secs_f64(),
                since.as_secs_f64(),
                waited.all.as_secs_f64()
            )
        })
    }

    /// Returns when work may go on. Each worker calls it before each transfer, with the number of bytes that it writes.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn give_way(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let written = self.min.written.fetch_add(bytes, Ordering::Relaxed);
        loop {
            let now = Instant::now();
            if self.min.is_above(written, now) {
                return Ok(());
            }
            let Some(until) = self.step(now) else { return Ok(()) };
            cancel.check("giving way to other processes")?;
            std::thread::sleep(until.saturating_duration_since(now).min(MEASURE));
        }
    }

    /// The instant until which to wait at least; `None`: go on.
    fn step(&self, now: Instant) -> Option<Instant> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        match *phase {
            Phase::Work { until } if now < until => return None,
            Phase::Work { .. } => *phase = Phase::Settle { paused: now, until: now + SETTLE },
            Phase::Settle { until, .. } | Phase::Measure { until, .. } if now < until => return Some(until),
            Phase::Settle { paused, .. } => *phase = self.measure(paused, now),
            Phase::Measure { paused, since, stalled_before, .. } => {
                let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
                waited.all += now.saturating_duration_since(since.max(paused));
                drop(waited);
                // Figures that can no longer be read count as no pressure.
                let stalled = stalled(&self.dir).unwrap_or_default().saturating_sub(stalled_before);
                let others = stalled.as_secs_f64() > STALLED * (now - since).as_secs_f64();
                *phase = match others {
                    true if now - paused < MAX_PAUSE => self.measure(paused, now),
                    true => Phase::Work { until: now + SHORT_WORK },
                    false => Phase::Work { until: now + WORK },
                };
            }
        }
        match *phase {
            Phase::Work { .. } => None,
            Phase::Settle { until, .. } | Phase::Measure { until, .. } => Some(until),
        }
    }

    fn measure(&self, paused: Instant, now: Instant) -> Phase {
        let stalled_before = stalled(&self.dir).unwrap_or_default();
        Phase::Measure { paused, since: now, until: now + MEASURE, stalled_before }
    }
}

impl MinRate {
    /// Whether `written` bytes at `now` are fewer than the minimum rate demands.
    fn is_above(&self, written: u64, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.begun).as_secs_f64() * self.bytes_per_second as f64;
        self.bytes_per_second > 0 && (written as f64) < due
    }
}

/// Total time since boot for which some process was stalled, for the disk or for memory.
fn stalled(dir: &Path) -> Option<Duration> {
    let of = |resource: &str| some(&std::fs::read_to_string(dir.join(resource)).ok()?);
    of("io").into_iter().chain(of("memory")).reduce(|a, b| a + b)
}

/// The total of the line `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds.
fn some(text: &str) -> Option<Duration> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let total = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(dir: &Path, micros: u64) {
        let line = |kind| format!("{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={micros}\n");
        std::fs::write(dir.join("io"), line("some") + &line("full")).unwrap();
    }

    /// Simulates `millis` ms in which another process is stalled for `part` of the time; returns the work time in ms.
    fn simulate(part: f64, millis: u64) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        say(dir.path(), 0);
        let throttle = Throttle::with(dir.path(), 0).unwrap();
        let start = Instant::now();
        let mut work = 0;
        for ms in (0..millis).step_by(10) {
            say(dir.path(), (ms as f64 * 1000.0 * part) as u64);
            work += 10 * u64::from(throttle.step(start + Duration::from_millis(ms)).is_none());
        }
        work
    }

    #[test]
    fn work_goes_on_if_no_process_waits() {
        let work = simulate(0.0, 10_000);
        assert!((9_300..9_600).contains(&work), "{work} ms of 10 s");
        assert_eq!(simulate(0.05, 10_000), work, "a little stalling is what every disk has");
    }

    #[test]
    fn others_come_first_but_never_get_everything() {
        let work = simulate(0.5, 10_000);
        assert!((1_500..2_500).contains(&work), "{work} ms of 10 s");
    }

    #[test]
    fn below_the_minimum_rate_there_are_no_pauses() {
        let dir = tempfile::tempdir().unwrap();
        say(dir.path(), 0);
        let throttle = Throttle::with(dir.path(), 1_000_000).unwrap();
        let after = |ms: u64| throttle.min.begun + Duration::from_millis(ms);
        assert!(throttle.min.is_above(0, after(1)));
        assert!(throttle.min.is_above(499_000, after(500)));
        assert!(!throttle.min.is_above(501_000, after(500)));
        assert!(!Throttle::with(dir.path(), 0).unwrap().min.is_above(0, after(5_000)), "no floor");
        *throttle.phase.lock().unwrap() = Phase::Work { until: Instant::now() };
        let cancel = Cancel::default();
        cancel.request();
        std::thread::sleep(Duration::from_millis(5));
        // It does not check the stop request either; its caller does.
        throttle.give_way(1, &cancel).unwrap();
    }

    #[test]
    fn pauses_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        say(dir.path(), 0);
        let throttle = Throttle::with(dir.path(), 0).unwrap();
        assert_eq!(throttle.report(), None, "not yet");
        let mut waited = throttle.waited.lock().unwrap();
        waited.all = Duration::from_secs(9);
        waited.reported_at -= Duration::from_secs(20);
        drop(waited);
        let report = throttle.report().unwrap();
        assert!(report.contains("for 9 of the last 20 s (9 s in all)"), "{report}");
        throttle.waited.lock().unwrap().reported_at -= Duration::from_secs(20);
        assert_eq!(throttle.report(), None, "none since");
    }

    #[test]
    fn without_figures_nothing_is_throttled() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Throttle::with(dir.path(), 0).is_none());
        // EOPNOTSUPP with psi=0: the files are there and cannot be read.
        std::fs::create_dir(dir.path().join("io")).unwrap();
        assert!(Throttle::with(dir.path(), 0).is_none());
        std::fs::write(dir.path().join("memory"), "some avg10=0.00 total=7\n").unwrap();
        assert!(Throttle::with(dir.path(), 0).is_some());
    }

    #[test]
    fn a_pause_ends_on_request() {
        let dir = tempfile::tempdir().unwrap();
        say(dir.path(), 0);
        let throttle = Throttle::with(dir.path(), 0).unwrap();
        *throttle.phase.lock().unwrap() = Phase::Work { until: Instant::now() };
        let cancel = Cancel::default();
        cancel.request();
        assert_eq!(throttle.give_way(0, &cancel).unwrap_err().code(), "UPGRADE_ERROR_INTERRUPTED");
    }
}
