//! The gate before the program of a container: namespaces, mounts and init are made while the old container serves. Only one
//! execve(2) is left, which is done on a message.
//!
//! A copy of qstage (see `gate_dir`) is the first process that runs there. It connects to a socket of the process that
//! arranges the container, and waits:
//!
//! | inside | outside |
//! |---|---|
//! | | with `--prober`: `l`, and the socket at which [`prober`](super::prober) is to listen |
//! | `r`: ready | |
//! | | `g`: go. End of stream instead (the process died, or discards the container): gate and container end |
//! | end of stream by execve (the socket is close-on-exec): the program runs. Instead `p`, if its file is to blame, or `o`, and the reason why not | |
//!
//! None of this needs anything in the image, which may hold a single static program. If qstage is linked dynamically, its
//! loader and its libraries are copied too, and the loader is called by name. Rejected: a shell that reads from a FIFO
//! (images without a shell); to stop the program by a signal (it must not have begun); fanotify permission events on its
//! execve (when their owner dies, the kernel lets the program run).

use std::fs::OpenOptions;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::gate_dir;
use super::program::Problem;
use crate::error::{Error, Result};
use crate::sandbox;

/// Directory of the gate in the container, below a tmpfs that nspawn makes.
pub(super) const INSIDE: &str = "/run/qstage-gate";
/// The file for output, in the container.
pub(super) const CONSOLE: &str = "/run/qstage-console";
/// The loader of dynamic programs, in [`INSIDE`].
const LOADER: &str = "loader";
const PROGRAM: &str = "qstage";

const LISTENER: u8 = b'l';
const READY: u8 = b'r';
const GO: u8 = b'g';
/// The file of the program was refused by execve.
const PROGRAM_REFUSED: u8 = b'p';
/// Another failure before the program runs.
const OTHER_FAILURE: u8 = b'o';
/// Time limit from the message to the execve: it covers page faults on a slow disk.
const EXEC_LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(1);

/// The outer side, before the container has connected.
pub(super) struct Gate {
    gate: UnixListener,
    /// Listening socket for the prober; `None` without one.
    prober: Option<UnixListener>,
}

/// A gate at which a container waits. The drop ends the container.
pub(super) struct Waiting(UnixStream);

impl Gate {
    /// Creates the sockets in the directory of the gate.
    pub(super) fn new(dir: &Path, prober: bool) -> io::Result<Self> {
        let socket = |name: &str| {
            let listener = UnixListener::bind(dir.join(name))?;
            gate_dir::permit(&dir.join(name))?;
            Ok::<_, io::Error>(listener)
        };
        let gate = socket(gate_dir::GATE)?;
        gate.set_nonblocking(true)?;
        let prober = prober.then(|| UnixListener::bind(dir.join(gate_dir::PROBER))).transpose()?;
        Ok(Self { gate, prober })
    }

    /// Waits for the container. `alive` reports whether it can still connect.
    pub(super) fn wait(self, limit: Duration, alive: impl Fn() -> bool) -> Result<Waiting, String> {
        let until = Instant::now() + limit;
        let mut stream = loop {
            match self.gate.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(format!("its gate: {e}")),
            }
            if !alive() {
                return Err("it ended before its gate".to_owned());
            }
            if Instant::now() >= until {
                return Err(format!("it did not reach its gate within {:.0} s", limit.as_secs_f64()));
            }
            std::thread::sleep(STEP);
        };
        let mut word = [0];
        let read = stream
            .set_nonblocking(false)
            .and_then(|()| self.prober.as_ref().map_or(Ok(()), |listener| send(&stream, listener)))
            .and_then(|()| stream.set_read_timeout(Some(limit)))
            .and_then(|()| stream.read_exact(&mut word));
        match (read, word) {
            (Ok(()), [READY]) => Ok(Waiting(stream)),
            (Ok(()), _) => Err("its gate said something unknown".to_owned()),
            (Err(e), _) => Err(format!("its gate: {e}")),
        }
    }
}

impl Waiting {
    /// ID of the waiting process, which becomes the program when it is released.
    pub(super) fn pid(&self) -> io::Result<u32> {
        let peer = rustix::net::sockopt::socket_peercred(&self.0)?;
        Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Lets the program start; returns when it has been executed.
    pub(super) fn open(mut self) -> Result<(), Problem> {
        let mut said = Vec::new();
        let done = self
            .0
            .set_read_timeout(Some(EXEC_LIMIT))
            .and_then(|()| self.0.write_all(&[GO]))
            .and_then(|()| (&mut self.0).take(4096).read_to_end(&mut said));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match (done, &said[..]) {
            (Err(e), _) => Err(Problem::Start(format!("its gate: {e}"))),
            (Ok(_), []) => Ok(()),
            (Ok(_), [PROGRAM_REFUSED, reason @ ..]) => Err(Problem::Program(text(reason))),
            (Ok(_), [_, reason @ ..]) => Err(Problem::Start(text(reason))),
        }
    }
}

/// Sends a descriptor.
fn send(stream: &UnixStream, listener: &UnixListener) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream, &[IoSlice::new(&[LISTENER])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a descriptor.
fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptors.next().ok_or_else(|| io::Error::other("no socket for the prober"))
}

/// Starts [`prober`](super::prober); returns when it runs in the background.
fn start_prober(listener: OwnedFd) -> io::Result<()> {
    let inside = Path::new(INSIDE);
    let words = prefix(inside.join(LOADER).exists());
    let (program, words) = words.split_first().ok_or_else(|| io::Error::other("no program"))?;
    let mut prober = Command::new(program);
    prober.args(words).args(["container", "prober"]);
    let status = prober.stdin(listener).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("the prober: {status}"))) }
}

/// Arguments of the inner side.
#[derive(Debug)]
pub struct GateArgs<'a> {
    /// File that takes the output of the program; `None`: it is inherited.
    pub console: Option<&'a Path>,
    /// Whether to start the prober, which runs the commands of the health probe.
    pub prober: bool,
    /// Whether to forbid user namespaces, to the prober too.
    pub no_user_namespaces: bool,
    /// The program and its arguments.
    pub command: &'a [String],
}

/// The inner side: waits for the message and becomes the program. Returns only on failure.
///
/// # Errors
/// [`Error::Internal`], which only a log shows: the outer side has got the reason.
pub fn wait_inside(args: &GateArgs<'_>) -> Result<()> {
    let socket = Path::new(INSIDE).join(gate_dir::GATE);
    let failed = |problem: io::Error| Error::Internal { what: format!("the gate of a container: {problem}") };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    if args.no_user_namespaces {
        sandbox::forbid_user_namespaces().map_err(failed)?;
    }
    if args.prober {
        receive(&stream).and_then(start_prober).map_err(failed)?;
    }
    stream.write_all(&[READY]).map_err(failed)?;
    let mut word = [0];
    stream.read_exact(&mut word).map_err(failed)?;
    let [program, arguments @ ..] = args.command else {
        return Err(Error::Internal { what: "the gate of a container has no program".to_owned() });
    };
    let mut program = Command::new(program);
    program.args(arguments).stdin(Stdio::null());
    let redirected = args.console.map(|path| {
        let out = OpenOptions::new().append(true).open(path)?;
        program.stdout(out.try_clone()?).stderr(out);
        Ok::<_, io::Error>(())
    });
    let (kind, problem) = match redirected {
        Some(Err(problem)) => (OTHER_FAILURE, problem),
        _ => {
            let problem = program.exec();
            (if is_of_the_file(&problem) { PROGRAM_REFUSED } else { OTHER_FAILURE }, problem)
        }
    };
    let reason = format!("{}: {problem}", args.command.join(" "));
    stream.write_all(&[&[kind], reason.as_bytes()].concat()).map_err(failed)?;
    Err(failed(problem))
}

/// Whether execve(2) refused the file, or its interpreter, and not for lack of resources.
fn is_of_the_file(problem: &io::Error) -> bool {
    use Errno::{EACCES, EISDIR, ELIBBAD, ELOOP, ENOENT, ENOEXEC, ENOTDIR};
    let of_the_file = [EACCES, EISDIR, ELIBBAD, ELOOP, ENOENT, ENOEXEC, ENOTDIR];
    of_the_file.iter().any(|errno| problem.raw_os_error() == Some(*errno as i32))
}

/// The words before the arguments of qstage, inside.
fn prefix(dynamic: bool) -> Vec<String> {
    let inside = |name: &str| format!("{INSIDE}/{name}");
    if dynamic {
        vec![inside(LOADER), "--library-path".to_owned(), INSIDE.to_owned(), inside(PROGRAM)]
    } else {
        vec![inside(PROGRAM)]
    }
}

/// Files that the gate needs inside.
pub(super) struct Tools {
    /// Files outside and their names within [`INSIDE`].
    pub(super) files: Vec<(PathBuf, String)>,
    /// The words before the arguments of qstage.
    pub(super) prefix: Vec<String>,
}

impl Tools {
    /// Asks the dynamic loader for the files that `qstage` consists of.
    pub(super) fn of(qstage: &Path) -> io::Result<Self> {
        // ld.so(8): with this variable a dynamic program prints its libraries instead of running. A static one runs.
        let output = Command::new(qstage)
            .arg("--version")
            .env_clear()
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .stdin(Stdio::null())
            .output()?;
        let mut files = vec![(qstage.to_owned(), PROGRAM.to_owned())];
        for (name, path) in libraries(&String::from_utf8_lossy(&output.stdout)) {
            let loader = name.starts_with("ld-") || name.starts_with("ld.");
            files.push((path, if loader { LOADER.to_owned() } else { name }));
        }
        let dynamic = files.iter().any(|(_, name)| name == LOADER);
        Ok(Self { files, prefix: prefix(dynamic) })
    }
}

/// Names and paths of libraries, from lines such as `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux.so.2 (0x…)`.
fn libraries(text: &str) -> Vec<(String, PathBuf)> {
    let path = |line: &str| {
        let word = line.split("=>").last()?.split_ascii_whitespace().next()?;
        word.starts_with('/').then(|| PathBuf::from(word))
    };
    text.lines()
        .filter(|line| line.starts_with('\t'))
        .filter_map(path)
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_dynamic_and_static_programs() {
        let text = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<String> = libraries(text).into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, ["libm.so.6", "ld-linux-x86-64.so.2"]);
        assert!(libraries("qstage 0.1.0\n").is_empty());
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_gate_reports_the_message_inside() {
        let pair = |answer: &'static [u8]| {
            let dir = tempfile::tempdir().unwrap();
            let gate = Gate::new(dir.path(), false).unwrap();
            let path = dir.path().join(gate_dir::GATE);
            let inside = std::thread::spawn(move || {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(&[READY]).unwrap();
                let mut word = [0];
                let got = stream.read(&mut word).unwrap();
                stream.write_all(answer).unwrap();
                (got, word)
            });
            (gate.wait(Duration::from_secs(5), || true).map_err(|e| panic!("{e}")).unwrap(), inside)
        };
        let (waiting, inside) = pair(b"");
        assert_eq!(waiting.open(), Ok(()));
        assert_eq!(inside.join().unwrap(), (1, [GO]));
        let (waiting, _inside) = pair(b"p/app: no such file");
        assert_eq!(waiting.open(), Err(Problem::Program("/app: no such file".to_owned())));
        let (waiting, _inside) = pair(b"o/app: out of memory");
        assert_eq!(waiting.open(), Err(Problem::Start("/app: out of memory".to_owned())));
        // Discarded: the inner side reads the end of the stream.
        let (waiting, inside) = pair(b"");
        drop(waiting);
        assert_eq!(inside.join().unwrap().0, 0);
    }

    #[test]
    fn a_wait_ends_when_the_container_cannot_come() {
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let gate = Gate::new(dir.path(), false).unwrap();
        assert!(gate.wait(Duration::from_secs(60), || false).is_err_and(|e| e.contains("before")));
        std::fs::remove_file(dir.path().join(gate_dir::GATE)).unwrap();
        let gate = Gate::new(dir.path(), false).unwrap();
        assert!(gate.wait(Duration::from_millis(50), || true).is_err_and(|e| e.contains("within")));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
