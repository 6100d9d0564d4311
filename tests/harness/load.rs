//! Other processes: programs that end with the test, also when it is killed, and load for the processor or the disk.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::clock::HANG;

/// A program that the kernel ends together with the thread that started it (setpriv(1), PR_SET_PDEATHSIG): a test that is
/// killed runs no destructor.
pub(crate) fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// Waits until a process catches a signal, which before that ends it as it ends any program: SigCgt in proc_pid_status(5).
#[track_caller]
pub(crate) fn until_it_catches(pid: Pid, signal: Signal) {
    let begun = Instant::now();
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        mask >> (signal as i32 - 1) & 1 == 1
    };
    while !caught() {
        assert!(begun.elapsed() < HANG, "process {pid} does not catch {signal}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Shells that repeat a command until this is dropped.
pub(crate) struct Load(Vec<Child>);

impl Load {
    /// `count` of them repeat `command`, in which `$0` is the path for each.
    pub(crate) fn new(count: usize, command: &str, path: impl Fn(usize) -> PathBuf) -> Self {
        let shell = |number| {
            let mut shell = bound("sh");
            shell
                .args(["-c", &format!("while :; do {command}; done")])
                .arg(path(number))
                .stdin(Stdio::null());
            // A group of its own, so that what the shell has started ends with it.
            shell.process_group(0).spawn().unwrap()
        };
        Self((0..count).map(shell).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}
