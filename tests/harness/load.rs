//! Other processes: programs that end with the test, also when it is killed, and load for the processor or the disk.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A program that the kernel ends together with the thread that started it (setpriv(1), PR_SET_PDEATHSIG): a test that is
/// killed runs no destructor.
pub(crate) fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
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
