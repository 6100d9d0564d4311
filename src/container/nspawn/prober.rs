//! Runs a probe that is a command, inside the container: a process there starts it, so it has the namespaces, capabilities,
//! system calls and control group of the container, and no more.
//!
//! The gate starts the prober only if the probe is a command, and passes it a listening socket. One connection is one
//! request: a line of JSON. The response is a text, empty if the command ended with 0.
//! Rejected: nsenter(1) from outside, which would run the image's program with all rights of the host's root.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::program::{End, Program};

/// Largest request and response in bytes.
const LARGEST: u64 = 64 << 10;
/// Time limit from the connection to the whole request.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// Time that a response may take in addition to the command's limit.
const SLACK: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Question {
    words: Vec<String>,
    environment: Vec<String>,
    timeout: Duration,
}

/// Runs a command inside the container; the error is the reason why it did not succeed.
pub(super) fn ask(
    socket: &Path,
    words: &[String],
    environment: &[String],
    timeout: Duration,
) -> Result<(), String> {
    let shown = words.join(" ");
    let failed = |e: io::Error| format!("{shown}: the container cannot be asked: {e}");
    let question = Question { words: words.to_vec(), environment: environment.to_vec(), timeout };
    let mut line = serde_json::to_vec(&question).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_write_timeout(Some(REQUEST_LIMIT)).map_err(failed)?;
    // Concurrent requests are served one after the other.
    stream.set_read_timeout(Some(timeout * 2 + SLACK)).map_err(failed)?;
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LARGEST)).read_line(&mut answer).map_err(failed)?;
    match answer.strip_suffix('\n') {
        Some("") => Ok(()),
        Some(problem) => Err(problem.to_owned()),
        None => Err(format!("{shown}: the container ended while it was asked")),
    }
}

/// The inner side: listens at standard input, for as long as the container lives.
///
/// # Errors
/// [`Error::Internal`], which only a log shows.
pub fn serve() -> Result<()> {
    let failed = |e: io::Error| Error::Internal { what: format!("the prober of a container: {e}") };
    // A child of process 1, not of the program, which may wait for all of its children.
    nix::unistd::daemon(true, true).map_err(|errno| failed(errno.into()))?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    listener.set_nonblocking(false).map_err(failed)?;
    for stream in listener.incoming() {
        let stream = stream.map_err(failed)?;
        // A bad request gets no response; the loop goes on.
        let _ = answer(&stream);
    }
    Ok(())
}

fn answer(mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    stream.set_write_timeout(Some(REQUEST_LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream.take(LARGEST)).read_line(&mut line)?;
    let question: Question = serde_json::from_str(&line)?;
    let problem = run(&question).err().unwrap_or_default().replace('\n', " ");
    stream.write_all(format!("{problem}\n").as_bytes())
}

fn run(question: &Question) -> Result<(), String> {
    let shown = question.words.join(" ");
    let (program, arguments) = question.words.split_first().ok_or("there is no command")?;
    let environment = question.environment.iter().filter_map(|pair| pair.split_once('='));
    let program =
        Program::new(program, question.timeout).args(arguments).without_environment().envs(environment);
    match program.run().map(|outcome| outcome.end) {
        Ok(end) if end.success() => Ok(()),
        Ok(End::TimedOut(limit)) => Err(format!("{shown}: no answer within {:.1} s", limit.as_secs_f64())),
        Ok(End::Exited(status)) => Err(format!("{shown}: {status}")),
        Err(e) => Err(format!("{shown}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn commands_run_and_their_results_are_returned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = answer(&stream.unwrap());
            }
        });
        let environment = ["A=b".to_owned()];
        let ask = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            ask(&path, &words, &environment, LIMIT)
        };
        assert_eq!(ask(&["sh", "-c", "test $A = b && test -z $HOME"]), Ok(()));
        assert!(ask(&["sh", "-c", "exit 7"]).unwrap_err().ends_with("exit status: 7"));
        assert!(ask(&["/missing"]).unwrap_err().starts_with("/missing: No such file"));
        assert!(ask(&["sleep", "60"]).unwrap_err().ends_with("no answer within 0.3 s"));
        // A malformed request gets no response; the next request does.
        UnixStream::connect(&path).unwrap().write_all(b"{}\n").unwrap();
        assert_eq!(ask(&["true"]), Ok(()));
        let gone = super::ask(&dir.path().join("none"), &["x".to_owned()], &[], LIMIT);
        assert!(gone.unwrap_err().contains("cannot be asked"));
    }
}
