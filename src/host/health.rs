//! The health checks of the machine: a directory of programs, each of which must end with 0.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::files::check_trusted;
use super::program::{End, Program};
use crate::error::{Error, Result};

/// Number of characters of a failing check's last output that are shown.
const LAST_WORDS: usize = 300;

/// Default directory of the checks.
pub const DEFAULT_DIR: &str = "/etc/qstage/health.d";

/// A check that passed.
#[derive(Debug, Clone, Serialize)]
pub struct Passed {
    /// The file name of the program.
    pub check: String,
    /// Run time in seconds.
    pub seconds: f64,
}

/// Result of the checks of a directory.
#[derive(Debug)]
pub struct Checks {
    /// All checks, each passed.
    pub passed: Vec<Passed>,
    /// Names of files without execute permission: a likely mistake, whatever they hold. `README` is none.
    pub left_out: Vec<String>,
}

/// Runs the executable files of a directory in the order of their names, each for `timeout` at most. The first failure ends
/// the run: a machine is healthy when all checks pass. An empty directory passes; a missing one is an error, of the path or
/// of the installation. A file without execute permission is left out. Names that begin with a dot or end with `~`, `.bak`, `.dpkg-*` and the like are skipped, as
/// run-parts(8) does.
///
/// # Errors
/// [`Error::Unhealthy`] with the check that failed; [`Error::Open`] if the directory is missing or cannot be read.
pub fn run_checks(dir: &Path, timeout: Duration) -> Result<Checks> {
    let failed = |source| Error::Open { path: dir.to_owned(), source };
    let (mut programs, mut left_out) = (Vec::new(), Vec::new());
    let missing = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            let remedy = "make it, with a program for each check, or name another directory with --dir";
            failed(io::Error::other(format!("{source}; {remedy}")))
        }
        _ => failed(source),
    };
    for entry in fs::read_dir(dir).map_err(missing)? {
        let path = entry.map_err(failed)?.path();
        if is_check(&path) {
            programs.push(path);
        } else if is_named(&path) && path.is_file() {
            left_out.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    programs.sort();
    // The package puts one there.
    left_out.retain(|name| name != "README");
    left_out.sort();
    let passed = programs.iter().map(|program| run_check(program, timeout)).collect::<Result<_>>()?;
    Ok(Checks { passed, left_out })
}

fn is_named(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let named = name.strip_suffix(".sh").unwrap_or(&name);
    !named.is_empty() && named.chars().all(plain)
}

/// Whether a file is a check: it can be executed and is no leftover of an editor or a package.
pub(crate) fn is_check(path: &Path) -> bool {
    // A link counts as what it leads to.
    is_named(path)
        && fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn run_check(program: &Path, timeout: Duration) -> Result<Passed> {
    let check = program.display().to_string();
    let unhealthy = |problem: String| Error::Unhealthy { check: check.clone(), problem };
    check_trusted(program).map_err(|e| unhealthy(e.to_string()))?;
    let begun = Instant::now();
    let outcome =
        Program::new(program, timeout).run().map_err(|e| unhealthy(format!("cannot be run: {e}")))?;
    if outcome.end.success() {
        let check = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Passed { check, seconds: begun.elapsed().as_secs_f64() });
    }
    let words: Vec<char> = outcome.last_words.replace('\n', "; ").chars().collect();
    let last: String = words[words.len().saturating_sub(LAST_WORDS)..].iter().collect();
    Err(unhealthy(if last.is_empty() || matches!(outcome.end, End::TimedOut(_)) {
        outcome.end.to_string()
    } else {
        format!("{}: {last}", outcome.end)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn dir(checks: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, body, mode) in checks {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        dir
    }

    /// A file that was just written may be open for writing in the fork of another test: "text file busy".
    fn run(dir: &Path, timeout: Duration) -> Result<Checks> {
        for _ in 0..100 {
            match run_checks(dir, timeout) {
                Err(Error::Unhealthy { problem, .. }) if problem.contains("busy") => {}
                other => return other,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        run_checks(dir, timeout)
    }

    #[test]
    fn all_must_agree_in_order() {
        let dir = dir(&[("20-b", "exit 0", 0o755), ("10-a.sh", "true", 0o755), ("30-c", "exit 1", 0o644)]);
        let Checks { passed, left_out } = run(dir.path(), LONG).unwrap();
        assert_eq!(left_out, ["30-c"], "a file that nobody may execute is told of");
        assert_eq!(passed.iter().map(|one| one.check.as_str()).collect::<Vec<_>>(), ["10-a.sh", "20-b"]);
    }

    #[test]
    fn a_failing_check_is_named_with_its_output() {
        let dir = dir(&[("10-good", "true", 0o755), ("20-disk", "echo disk is full >&2; exit 3", 0o755)]);
        let error = run(dir.path(), LONG).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_UNHEALTHY");
        let text = error.to_string();
        assert!(text.contains("20-disk") && text.contains("disk is full") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_check_that_hangs_is_killed() {
        // The child holds the pipe open, and prints more than a pipe holds.
        let dir = dir(&[("10-hang", "yes & sleep 60", 0o755)]);
        let begun = Instant::now();
        let error = run(dir.path(), Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("within 0.3 s"), "{error}");
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn a_process_left_running_by_a_failed_check_blocks_nothing() {
        let dir = dir(&[("10-leaves", "sleep 60 & echo broken; exit 1", 0o755)]);
        let begun = Instant::now();
        let text = run(dir.path(), LONG).unwrap_err().to_string();
        assert!(text.contains("broken") && begun.elapsed() < LONG, "{text}");
    }

    #[test]
    fn a_check_that_prints_much_passes() {
        let dir = dir(&[("10-loud", "head -c 1000000 /dev/zero", 0o755)]);
        assert_eq!(run(dir.path(), LONG).unwrap().passed.len(), 1);
    }

    #[test]
    fn a_missing_directory_is_a_mistake_and_leftovers_are_no_checks() {
        let error = run(Path::new("/nonexistent/health.d"), LONG).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_OPEN");
        let dir = dir(&[("a~", "exit 1", 0o755), (".b", "exit 1", 0o755), ("c.dpkg-old", "exit 1", 0o755)]);
        assert!(run(dir.path(), LONG).unwrap().passed.is_empty());
    }
}
