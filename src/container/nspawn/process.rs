//! Processes that are identified by ID and start time, so that a signal never reaches another process that has got the same
//! ID.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Interval at which the end of a process is polled.
const STEP: Duration = Duration::from_millis(1);

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Process ID.
    pub(super) pid: u32,
    /// Clock ticks from boot to its start (proc_pid_stat(5), field 22).
    start: u64,
}

struct Stat {
    zombie: bool,
    parent: u32,
    start: u64,
}

impl Process {
    /// The process that has this ID now; `None` if there is none.
    pub(super) fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start: stat.start })
    }

    /// Whether it still runs; a zombie counts as ended.
    pub(super) fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start == self.start && !stat.zombie)
    }

    /// Sends a signal if the process still runs. It can end between check and signal, but its ID is not reused in that
    /// instant: the kernel assigns all other IDs first.
    pub(super) fn signal(self, signal: Signal) {
        if let (true, Ok(pid)) = (self.is_alive(), i32::try_from(self.pid)) {
            // If it has ended in the meantime, the purpose is reached.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end; returns whether it ended within the limit.
    pub(super) fn ends_within(self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(STEP);
        }
        true
    }

    /// Its only living child; `None` if it has none or several.
    pub(super) fn only_child(self) -> Option<Self> {
        let numbers = fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut children = numbers.filter_map(|pid: u32| {
            let stat = stat(pid)?;
            (stat.parent == self.pid && !stat.zombie).then_some(Self { pid, start: stat.start })
        });
        children.next().filter(|_| children.next().is_none())
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
}

/// Parses a line of `/proc/PID/stat`. The name in parentheses may contain parentheses too, so the fields start after the
/// last one.
fn parse(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { zombie: matches!(state, "Z" | "X" | "x"), parent, start })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_name_of_a_process_may_contain_anything() {
        let rest = "1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99";
        for name in ["sh", "a b", ") Z 7 (", "((", "1"] {
            let stat = parse(&format!("12 ({name}) S 3 {rest}")).unwrap();
            assert_eq!((stat.zombie, stat.parent, stat.start), (false, 3, 4711), "{name}");
        }
        assert!(parse("").is_none() && parse("1 (x)").is_none() && parse("1 (x) S 2 3").is_none());
    }

    #[test]
    fn a_number_alone_is_no_identity() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        let impostor = Process { start: process.start + 1, ..process };
        assert!(!impostor.is_alive());
        impostor.signal(Signal::SIGKILL);
        assert!(!process.ends_within(Duration::from_millis(50)), "another one's signal hit it");
        process.signal(Signal::SIGKILL);
        // Not reaped yet: a zombie counts as ended.
        assert!(process.ends_within(Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(Process::of(child.id()).is_none_or(|other| other != process));
    }
}
