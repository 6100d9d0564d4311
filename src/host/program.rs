//! Runs helper programs: hooks of the configuration, health checks, mount(8), kexec(8), systemctl(1), ssh-keygen(1). This is
//! the one place that does so.
//!
//! A program cannot block its caller:
//!
//! - It has a time limit, after which it is killed with all its children: it leads its own process group.
//! - One loop without threads serves its input and output. It never waits for a reader, and the stored part of its output
//!   has a limit.
//! - The end of its output (`last_words`) is stored, for the message about a failure.
//! - Its name is looked up in [`PATH`], never in the caller's search path.
//!
//! Processes that a program leaves running when it exits by itself are not killed: a command that restarts the software may
//! start it in the background. Such a process must redirect its output, since nothing reads it any more.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Search path of programs. The last directory is that of NixOS, which has none of the others.
pub const PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// Number of bytes at the end of the output that are stored.
const LAST_WORDS: usize = 4096;
/// Largest standard output that is returned as an answer, in bytes.
const ANSWER: usize = 1 << 20;
/// Interval at which the exit of the program is polled.
const POLL: Duration = Duration::from_millis(2);
/// Longest wait for output after the exit of the program: a process that it left running may hold the pipe open.
const DRAIN: Duration = Duration::from_millis(200);
/// Longest wait for the exit of a killed program: while it is blocked in the kernel, it does not exit.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// A program that is to be run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    input: Option<Vec<u8>>,
    /// Time limit; `None` for an interactive program.
    limit: Option<Duration>,
    answers: bool,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, or by a signal of another process.
    Exited(ExitStatus),
    /// It did not end within this limit, and was killed with its process group.
    TimedOut(Duration),
}

impl End {
    /// Whether it ended within its limit with exit code 0.
    pub fn success(&self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => status.fmt(f),
            Self::TimedOut(limit) => write!(f, "did not end within {:.1} s", limit.as_secs_f64()),
        }
    }
}

/// Outcome of a program that could be started.
#[derive(Debug)]
pub struct ProgramOutcome {
    /// How it ended.
    pub end: End,
    /// Standard output, up to 1 MiB, if [`Program::answer`] was called; else empty.
    pub answer: Vec<u8>,
    /// Last 4 KiB of the standard error, together with the standard output unless that is the answer; trimmed.
    pub last_words: String,
}

impl Program {
    /// A program without arguments and input, with the environment of this process except for the search path.
    pub fn new(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        let mut command = Command::new(program);
        // The program's name is looked up in the PATH of its own environment.
        command.env("PATH", PATH).process_group(0);
        Self { command, input: None, limit: Some(limit), answers: false }
    }

    /// A program that may prompt the user: it stays in the foreground of the terminal and has no time limit. It inherits the
    /// standard error.
    pub fn interactive(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env("PATH", PATH).stderr(Stdio::inherit());
        Self { command, input: None, limit: None, answers: false }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Sets environment variables. `PATH` also changes where the program is looked up.
    #[must_use]
    pub fn envs(mut self, pairs: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        self.command.envs(pairs);
        self
    }

    /// Clears the environment, except for the search path.
    #[must_use]
    pub fn without_environment(mut self) -> Self {
        self.command.env_clear().env("PATH", PATH);
        self
    }

    /// Sends these bytes to its standard input, and closes it. A program need not read them.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Stores the standard output separately, as [`ProgramOutcome::answer`].
    #[must_use]
    pub fn answer(mut self) -> Self {
        self.answers = true;
        self
    }

    /// Runs the program until it ends or reaches its limit.
    ///
    /// # Errors
    /// The program could not be started or watched; a failure of the program itself is an [`ProgramOutcome`].
    pub fn run(mut self) -> io::Result<ProgramOutcome> {
        let mut streams = Streams::default();
        let (reader, writer) = io::pipe()?;
        streams.words = Some(Stream::new(reader, LAST_WORDS)?);
        if self.answers {
            let (reader, writer) = io::pipe()?;
            streams.answer = Some(Stream::new(reader, ANSWER)?);
            self.command.stdout(writer);
        } else {
            self.command.stdout(writer.try_clone()?);
        }
        if self.limit.is_some() {
            self.command.stderr(writer);
        }
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let begun = Instant::now();
        let shown = format!("{:?}", self.command);
        let mut group = Group { child: self.command.spawn()?, leads: self.limit.is_some() };
        // Closes our copies of the writing ends: else the reading ends would never report the end.
        drop(self.command);
        if let (Some(bytes), Some(pipe)) = (self.input, group.child.stdin.take()) {
            nonblocking(&pipe)?;
            streams.input = Some((pipe, bytes, 0));
        }
        let end = loop {
            streams.serve(POLL)?;
            if let Some(status) = group.child.try_wait()? {
                break End::Exited(status);
            }
            if let Some(limit) = self.limit.filter(|limit| begun.elapsed() >= *limit) {
                break End::TimedOut(limit);
            }
        };
        drop(group);
        tracing::debug!("{shown}: {end} after {:.2} s", begun.elapsed().as_secs_f64());
        streams.input = None;
        if self.answers || !end.success() {
            let until = Instant::now() + DRAIN;
            while streams.open() && Instant::now() < until {
                streams.serve(POLL)?;
            }
        }
        let words = streams.words.map(|words| words.kept).unwrap_or_default();
        let first = words.len().saturating_sub(LAST_WORDS);
        let last_words = String::from_utf8_lossy(&words[first..]).trim().to_owned();
        Ok(ProgramOutcome {
            end,
            answer: streams.answer.map(|answer| answer.kept).unwrap_or_default(),
            last_words,
        })
    }
}

/// The pipes to and from a program.
#[derive(Default)]
struct Streams {
    /// The pipe, the bytes for it, and how many of them have been written.
    input: Option<(ChildStdin, Vec<u8>, usize)>,
    words: Option<Stream>,
    answer: Option<Stream>,
}

impl Streams {
    fn open(&self) -> bool {
        [&self.words, &self.answer].into_iter().flatten().any(|stream| stream.open)
    }

    /// Waits for `time` at most until a pipe is ready, and transfers what is available.
    fn serve(&mut self, time: Duration) -> io::Result<()> {
        let mut ready: Vec<PollFd<'_>> = [&self.words, &self.answer]
            .into_iter()
            .flatten()
            .filter(|stream| stream.open)
            .map(|stream| PollFd::new(stream.pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        if let Some((pipe, _, _)) = &self.input {
            ready.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        }
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        match poll(&mut ready, time) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if let Some(words) = &mut self.words {
            words.read()?;
            // The oldest bytes are dropped from time to time.
            let spare = words.kept.len().saturating_sub(LAST_WORDS);
            words.kept.drain(..spare);
        }
        if let Some(answer) = &mut self.answer {
            answer.read()?;
            answer.kept.truncate(answer.bound);
        }
        if let Some((pipe, bytes, written)) = &mut self.input {
            match pipe.write(bytes.get(*written..).unwrap_or_default()) {
                Ok(more) => *written += more,
                Err(e) if is_later(&e) => {}
                // It has closed its input; its exit status says whether that is an error.
                Err(_) => *written = bytes.len(),
            }
            if *written >= bytes.len() {
                self.input = None;
            }
        }
        Ok(())
    }
}

/// Output of a program from one pipe.
struct Stream {
    pipe: io::PipeReader,
    kept: Vec<u8>,
    bound: usize,
    open: bool,
}

impl Stream {
    fn new(pipe: io::PipeReader, bound: usize) -> io::Result<Self> {
        nonblocking(&pipe)?;
        Ok(Self { pipe, kept: Vec::new(), bound, open: true })
    }

    /// Reads one part of the available output, without waiting.
    fn read(&mut self) -> io::Result<()> {
        let mut part = [0; 16 << 10];
        match self.pipe.read(&mut part) {
            Ok(0) => self.open = false,
            Ok(got) => self.kept.extend_from_slice(part.get(..got).unwrap_or_default()),
            Err(e) if is_later(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let pipe: BorrowedFd<'_> = pipe.as_fd();
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A running program; the drop kills it, and its whole process group if it leads one.
struct Group {
    child: Child,
    leads: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // Not reaped yet, so the process ID cannot have been reused.
        match i32::try_from(self.child.id()) {
            Ok(pid) if self.leads => drop(killpg(Pid::from_raw(pid), Signal::SIGKILL)),
            _ => drop(self.child.kill()),
        }
        let until = Instant::now() + KILL_WAIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str, limit: Duration) -> Program {
        Program::new("sh", limit).args(["-c", script])
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = Instant::now();
        let outcome = shell("sleep 78.25 & echo $!; wait", SHORT).run().unwrap();
        assert_eq!(outcome.end, End::TimedOut(SHORT));
        assert_eq!(outcome.end.to_string(), "did not end within 0.3 s");
        assert!(begun.elapsed() < LONG);
        let child = std::path::Path::new("/proc").join(&outcome.last_words).join("cmdline");
        // A zombie until process 1 reaps it; a zombie has no command line.
        assert!(std::fs::read(&child).unwrap_or_default().is_empty(), "{}", child.display());
    }

    #[test]
    fn much_output_does_not_block_and_its_end_is_stored() {
        let outcome = shell("head -c 3000000 /dev/zero | tr '\\0' x; echo the end >&2; exit 3", LONG);
        let outcome = outcome.run().unwrap();
        assert!(outcome.last_words.ends_with("the end") && outcome.last_words.len() <= LAST_WORDS);
        assert!(!outcome.end.success() && outcome.end.to_string().contains("exit status: 3"));
        let outcome = shell("yes", SHORT).answer().run().unwrap();
        assert!(outcome.answer.len() <= ANSWER && outcome.end == End::TimedOut(SHORT));
    }

    #[test]
    fn input_is_sent_whole_and_need_not_be_read() {
        let much = vec![b'x'; 500_000];
        let outcome = shell("echo loud >&2; exec cat", LONG).input(much.clone()).answer().run().unwrap();
        assert!(outcome.end.success() && outcome.answer == much);
        assert_eq!(outcome.last_words, "loud");
        assert!(shell("exit 0", LONG).input(much).run().unwrap().end.success());
        assert!(
            shell("read x; test \"$x\" = '{\"a\":1}'", LONG)
                .input("{\"a\":1}\n")
                .run()
                .unwrap()
                .end
                .success()
        );
        assert!(!shell("read x", LONG).run().unwrap().end.success(), "no input: it ends at once");
    }

    #[test]
    fn the_search_path_is_fixed_and_the_environment_is_given() {
        let print = "echo \"$PATH $QSTAGE_X ${HOME-none}\"";
        let outcome = shell(print, LONG).without_environment().envs([("QSTAGE_X", "y")]).run().unwrap();
        assert_eq!(outcome.last_words, format!("{PATH} y none"));
        let outcome = shell("echo $PATH", LONG).run().unwrap();
        assert_eq!(outcome.last_words, PATH);
        assert!(Program::new("no-such-program", LONG).run().is_err());
    }

    #[test]
    fn a_process_left_running_does_not_block() {
        let begun = Instant::now();
        let outcome = shell("sleep 60 & echo broken; exit 1", LONG).run().unwrap();
        assert_eq!(outcome.last_words, "broken");
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn an_interactive_program_stays_in_its_process_group() {
        let group = nix::unistd::getpgrp().to_string();
        let outcome = Program::interactive("sh").args(["-c", "ps -o pgid= -p $$"]).answer().run().unwrap();
        assert_eq!(String::from_utf8_lossy(&outcome.answer).trim(), group);
        assert!(Program::interactive("sh").args(["-c", "exit 1"]).run().is_ok_and(|o| !o.end.success()));
    }
}
