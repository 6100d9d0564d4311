//! A clock that stands still while the machine does. "Within a second" is said of the product; a machine that gives no
//! process a turn for that long, since its disk or its host stalls, is not the product's fault.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// After so long without the state that it waits for, a test fails. It only ends what hangs: no promise of the product is in
/// it, and a busy machine may take most of it.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// The length of one turn of the thread that measures.
const TICK: Duration = Duration::from_millis(5);

/// A turn that comes later than this is a stall; the scheduler of a busy machine is some milliseconds late.
const LATE: Duration = Duration::from_millis(50);

/// Microseconds of stalls since the first clock was started.
static LOST: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The time that the machine ran since a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    begun: Instant,
    lost: Duration,
}

impl Clock {
    /// Takes up to one tick.
    pub(crate) fn start() -> Self {
        let lost = lost();
        Self { begun: Instant::now(), lost }
    }

    /// Takes up to one tick, which does not count.
    pub(crate) fn elapsed(&self) -> Duration {
        let passed = self.begun.elapsed();
        passed.saturating_sub(self.stalled())
    }

    /// For how long the machine stood still since then. Takes up to one tick.
    pub(crate) fn stalled(&self) -> Duration {
        lost().saturating_sub(self.lost)
    }
}

/// Asserts that what began then took less than a second.
#[track_caller]
pub(crate) fn at_once(begun: Clock, what: &str) {
    let took = begun.elapsed();
    println!("{what}: {took:.2?}");
    assert!(took < Duration::from_secs(1), "{what}: {took:?}");
}

/// Stalls up to now.
fn lost() -> Duration {
    static TICKER: Once = Once::new();
    TICKER.call_once(|| drop(thread::spawn(tick)));
    // A stall that has just ended is counted with the tick that it delayed.
    let ticks = TICKS.load(Ordering::Acquire);
    while TICKS.load(Ordering::Acquire) == ticks {
        thread::sleep(TICK / 5);
    }
    Duration::from_micros(LOST.load(Ordering::Acquire))
}

fn tick() {
    loop {
        let begun = Instant::now();
        thread::sleep(TICK);
        let late = begun.elapsed().saturating_sub(TICK);
        if late > LATE {
            LOST.fetch_add(late.as_micros() as u64, Ordering::Release);
        }
        TICKS.fetch_add(1, Ordering::Release);
    }
}
