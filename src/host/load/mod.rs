//! Load on the machine: processor time, priorities, and two limits of the write rate.
//!
//! | module | contents |
//! |---|---|
//! | [`rate_limit`] | limit in bytes per second that all threads share |
//! | [`throttle`] | pauses in favour of other processes that wait for the disk |

pub mod rate_limit;
pub mod throttle;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// Processor time of this process, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    /// In user mode.
    pub user: f64,
    /// In the kernel, on behalf of the process.
    pub system: f64,
}

impl CpuTime {
    /// Time so far (getrusage(2)).
    pub fn now() -> Self {
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        getrusage(UsageWho::RUSAGE_SELF).map_or(Self::default(), |usage| Self {
            user: seconds(usage.user_time()),
            system: seconds(usage.system_time()),
        })
    }

    /// Sum of user and system time, in seconds.
    pub fn total(&self) -> f64 {
        self.user + self.system
    }

    /// Sum of user and system time, with the time of kernel threads, in seconds. [`kernel_seconds`] includes the system time
    /// of this process, but in ticks that miss short bursts, so the larger of the two counts.
    pub fn with_kernel(&self, kernel_seconds: f64) -> f64 {
        self.user + self.system.max(kernel_seconds)
    }
}

impl std::ops::Sub for CpuTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }
}

/// Time that all processors have spent in the kernel so far, for any process, in seconds (proc_stat(5): `system`, `irq` and
/// `softirq`, in ticks of 10 ms). Kernel threads do the copying of a loop device, which no process accounts for. 0 if `/proc`
/// is not mounted.
pub fn kernel_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_kernel_seconds(&text).unwrap_or(0.0)
}

fn parse_kernel_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // user nice system idle iowait irq softirq
    let mut next = |skip| fields.nth(skip).and_then(|text: &str| text.parse::<f64>().ok());
    // USER_HZ is 100 on every architecture that Linux runs this on (`getconf CLK_TCK`).
    Some((next(2)? + next(2)? + next(0)?) / 100.0)
}

/// Starts a session and gives it the lowest weight among sessions (sched(7), the autogroup feature). Does nothing if the
/// kernel does not have or allow it.
pub fn lower_session() {
    if nix::unistd::setsid().is_ok() {
        // The file exists only with the feature.
        let _ = std::fs::write("/proc/self/autogroup", "19");
    }
}

/// Gives all threads of a process the default priority again, so that the process ends soon. Does nothing if that is not
/// allowed.
pub fn raise(pid: i32) {
    let _ = std::fs::write(format!("/proc/{pid}/autogroup"), "0");
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    let numbers = threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for thread in numbers.filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::setpriority_process(Some(thread), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_time_is_what_is_neither_user_nor_idle() {
        let stat = "cpu  100 20 3000 40000 500000 60 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_kernel_seconds(stat), Some((3000.0 + 60.0 + 7.0) / 100.0));
        for torn in ["", "cpu", "cpu  1 2 3 4 5 6", "cpu0 1 2 3 4 5 6 7"] {
            assert_eq!(parse_kernel_seconds(torn), None);
        }
        assert!(kernel_seconds() > 0.0);
    }
}
