//! The gate in front of the program of a container: namespaces, mounts and init are made while the old container
//! serves, and the one execve(2) that is left is done on a word.
//!
//! qstage itself is bound into the container and is the first thing that runs there. It connects to a socket of the
//! process that arranges the container, and waits:
//!
//! | inside | outside |
//! |---|---|
//! | `r`: here I am | |
//! | | `g`: go. End of stream instead (that process died, or changed its mind): the gate ends, and the container |
//! | end of stream by execve (the socket is close-on-exec): it runs. Text instead: why it does not | |
//!
//! Nothing of that needs the image: it may hold a single static program. Where qstage is linked dynamically, its
//! loader and its libraries are bound too, and the loader is called by name. Rejected: a shell that reads from a FIFO
//! (images without a shell); stopping the program by a signal (it must not have begun); fanotify permission events on
//! its execve (when their owner dies the kernel lets the program run).

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Where all of it lies in the container: below a tmpfs that nspawn makes.
pub(super) const INSIDE: &str = "/run/qstage-gate";
/// The directory of the socket, within [`INSIDE`] and within the run directory of the container.
pub(super) const IO: &str = "io";
const SOCKET: &str = "socket";
/// The file for output, within [`INSIDE`].
pub(super) const CONSOLE: &str = "console";

const READY: u8 = b'r';
const GO: u8 = b'g';
/// How long a program may take from the word to its execve: page faults of a slow disk.
const EXEC_LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(1);

/// The side outside, before anybody has come.
pub(super) struct Gate(UnixListener);

/// A gate at which a container waits. Dropped, the container ends.
pub(super) struct Waiting(UnixStream);

impl Gate {
    /// Makes the socket in the directory `io`.
    pub(super) fn new(io: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(io.join(SOCKET))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Waits for the container. `alive` says whether it can still come.
    pub(super) fn wait(self, limit: Duration, alive: impl Fn() -> bool) -> Result<Waiting, String> {
        let until = Instant::now() + limit;
        let mut stream = loop {
            match self.0.accept() {
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
    /// Lets the program start, and returns when it has been executed.
    pub(super) fn open(mut self) -> Result<(), String> {
        let mut said = Vec::new();
        let done = self
            .0
            .set_read_timeout(Some(EXEC_LIMIT))
            .and_then(|()| self.0.write_all(&[GO]))
            .and_then(|()| (&mut self.0).take(4096).read_to_end(&mut said));
        match done {
            Ok(0) => Ok(()),
            Ok(_) => Err(String::from_utf8_lossy(&said).into_owned()),
            Err(e) => Err(format!("its gate: {e}")),
        }
    }
}

/// The side inside: waits for the word and becomes the program. Returns only where that fails.
///
/// # Errors
/// [`Error::Internal`], which nobody but a log sees: the reason has been told outside.
pub fn wait_inside(console: Option<&Path>, command: &[String]) -> Result<()> {
    let socket = Path::new(INSIDE).join(IO).join(SOCKET);
    let failed = |problem: io::Error| Error::Internal { what: format!("the gate of a container: {problem}") };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.write_all(&[READY]).map_err(failed)?;
    let mut word = [0];
    stream.read_exact(&mut word).map_err(failed)?;
    let [program, arguments @ ..] = command else {
        return Err(Error::Internal { what: "the gate of a container has no program".to_owned() });
    };
    let mut program = Command::new(program);
    program.args(arguments).stdin(Stdio::null());
    let redirected = console.map(|path| {
        let out = OpenOptions::new().append(true).open(path)?;
        program.stdout(out.try_clone()?).stderr(out);
        Ok::<_, io::Error>(())
    });
    let problem = match redirected {
        Some(Err(problem)) => problem,
        _ => program.exec(),
    };
    stream.write_all(format!("{}: {problem}", command.join(" ")).as_bytes()).map_err(failed)?;
    Err(failed(problem))
}

/// What the gate needs inside.
pub(super) struct Tools {
    /// Files outside and their names within [`INSIDE`].
    pub(super) files: Vec<(PathBuf, String)>,
    /// The words in front of the arguments of qstage.
    pub(super) prefix: Vec<String>,
}

impl Tools {
    /// Asks the dynamic loader what `qstage` consists of.
    pub(super) fn of(qstage: &Path) -> io::Result<Self> {
        // ld.so(8): with this variable a dynamic program prints its libraries instead of running. A static one runs.
        let output = Command::new(qstage)
            .arg("--version")
            .env_clear()
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .stdin(Stdio::null())
            .output()?;
        let inside = |name: &str| format!("{INSIDE}/{name}");
        let mut files = vec![(qstage.to_owned(), "qstage".to_owned())];
        let mut prefix = Vec::new();
        for (name, path) in libraries(&String::from_utf8_lossy(&output.stdout)) {
            if name.starts_with("ld-") || name.starts_with("ld.") {
                prefix = vec![inside(&name), "--library-path".to_owned(), INSIDE.to_owned()];
            }
            files.push((path, name));
        }
        prefix.push(inside("qstage"));
        Ok(Self { files, prefix })
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
    fn a_gate_reports_what_comes_through_it() {
        let pair = |answer: &'static [u8]| {
            let dir = tempfile::tempdir().unwrap();
            let gate = Gate::new(dir.path()).unwrap();
            let path = dir.path().join(SOCKET);
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
        let (waiting, _inside) = pair(b"/app: no such file");
        assert_eq!(waiting.open(), Err("/app: no such file".to_owned()));
        // Discarded: the gate inside reads the end.
        let (waiting, inside) = pair(b"");
        drop(waiting);
        assert_eq!(inside.join().unwrap().0, 0);
    }

    #[test]
    fn nobody_is_waited_for_in_vain() {
        let dir = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let gate = Gate::new(dir.path()).unwrap();
        assert!(gate.wait(Duration::from_secs(60), || false).is_err_and(|e| e.contains("before")));
        std::fs::remove_file(dir.path().join(SOCKET)).unwrap();
        let gate = Gate::new(dir.path()).unwrap();
        assert!(gate.wait(Duration::from_millis(50), || true).is_err_and(|e| e.contains("within")));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
