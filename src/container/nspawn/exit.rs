//! The exit status of a container's program, which systemd-nspawn ends with too.
//!
//! It is stored in the container's run directory by the process that reaps nspawn: a thread of this one, or systemd by
//! `ExecStopPost=`. Rejected: `systemctl show`, since a unit with `--collect` is forgotten when it ends, and one without stays
//! as failed for ever.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::container::runtime::Exit;

/// Name of the file. Its content is that of `$EXIT_CODE` and `$EXIT_STATUS` in systemd.exec(5): `exited 127`, `killed KILL`.
pub(super) const FILE: &str = "exit";
/// Longest wait for the file after the program has ended: nspawn cleans up before it ends.
const LIMIT: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(2);

/// Stores the status in the run directory of a container. A stop removes the directory, and with it the need.
pub(super) fn store(dir: &Path, status: ExitStatus) -> io::Result<()> {
    let text = match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exited {code}\n"),
        (None, Some(Ok(signal))) => format!("killed {}\n", signal.as_str().trim_start_matches("SIG")),
        (None, _) => return Ok(()),
    };
    fs::write(dir.join(FILE), text)
}

/// The same by systemd, as a property of the unit. `:` leaves the variables to the shell, `-` ignores its failure.
pub(super) fn property(dir: &Path) -> OsString {
    let file = dir.join(FILE).display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    let script = r#"exec 2>/dev/null; echo "$EXIT_CODE $EXIT_STATUS" >"$1""#;
    format!("--property=ExecStopPost=-:/bin/sh -c '{script}' sh \"{file}\"").into()
}

/// Reads the status of a program that has just ended; `None`: it is not known within the limit.
pub(super) fn wait(dir: &Path) -> Option<Exit> {
    let until = Instant::now() + LIMIT;
    loop {
        let exit = fs::read_to_string(dir.join(FILE)).ok().and_then(|text| parse(&text));
        if exit.is_some() || Instant::now() >= until {
            return exit;
        }
        std::thread::sleep(STEP);
    }
}

/// `None` also for a line that is not complete yet.
fn parse(text: &str) -> Option<Exit> {
    match text.strip_suffix('\n')?.split_once(' ')? {
        ("exited", status) => status.parse().ok().map(Exit::Status),
        (_, signal) => Some(Exit::Signal(signal.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_status_is_stored_by_this_process() {
        let dir = tempfile::tempdir().unwrap();
        for (script, exit) in [
            ("exit 127", Exit::Status(127)),
            ("exit 0", Exit::Status(0)),
            ("kill -SEGV $$", Exit::Signal("SEGV".to_owned())),
        ] {
            store(dir.path(), Command::new("sh").args(["-c", script]).status().unwrap()).unwrap();
            assert_eq!(wait(dir.path()), Some(exit));
        }
        for part in ["", "exited", "exited 1", "exited x\n"] {
            assert_eq!(parse(part), None, "{part:?}");
        }
    }

    /// The shell gets exactly these words; systemd itself was tried by hand.
    #[test]
    fn a_status_is_stored_by_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a %n b");
        fs::create_dir(&odd).unwrap();
        let property = property(&odd).into_string().unwrap();
        let command = property.strip_prefix("--property=ExecStopPost=-:").unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).env("EXIT_CODE", "exited").env("EXIT_STATUS", "126");
        assert!(shell.status().unwrap().success());
        assert_eq!(wait(&odd), Some(Exit::Status(126)));
        // A stop has removed the directory.
        fs::remove_dir_all(&odd).unwrap();
        let said = shell.output().unwrap();
        assert!(said.stderr.is_empty() && !odd.exists(), "{said:?}");
    }
}
