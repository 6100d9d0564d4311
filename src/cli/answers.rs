//! Whether a disk responds, and soon enough.
//!
//! A process that waits for a hung disk cannot be ended, neither by SIGKILL nor by itself: it could not even print what it
//! knows and exit. So verbs first let another process test the disk, and do not wait for it if it hangs. A disk that takes
//! seconds for each transfer passes that test, but a look at it takes many transfers; so read-only verbs look in a thread, and
//! do not wait for that either.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Args;

use crate::config::Settings;
use crate::device::watch::silent;
use crate::device::{Direct, Mode};
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::FileJournal;
use crate::units::BlockSize;
use crate::workers::{self, lock};

/// Longest wait for the test: a disk that spins up is not waited for, but tested again by the next run.
const LIMIT: Duration = Duration::from_millis(2500);

/// Read a sector of a disk
#[derive(Debug, Args)]
pub(super) struct AnswersArgs {
    /// Disk or image file
    disk: PathBuf,
}

impl AnswersArgs {
    pub(super) fn run(&self) -> Result<()> {
        // The open reads the second block. An error of the disk is reported by the verb that uses it.
        let _ = Direct::open(&self.disk, Mode::Read, BlockSize::B512);
        Ok(())
    }
}

/// Duration of a single transfer from which on a disk is too slow to wait for the end of a look.
const SLOW: Duration = Duration::from_millis(500);

/// Runs `look` on a disk that responds. After [`LIMIT`] it is abandoned as soon as a single transfer takes longer than [`SLOW`];
/// a look that takes long for another reason is not.
///
/// # Errors
/// Those of [`answers`] and of `look`.
pub(super) fn look_within_limit<T: Send + 'static>(
    settings: &Settings,
    look: impl FnOnce(&Settings) -> Result<T> + Send + 'static,
) -> Result<T> {
    let begun = Instant::now();
    answers(settings)?;
    let look = Arc::new(Mutex::new(Some(look)));
    let (done, result) = mpsc::channel();
    let (shared, copy) = (Arc::clone(&look), settings.clone());
    // Without a thread the look has no limit.
    if workers::spawn("looking at the disk", move || drop(done.send(run_once(&shared, &copy)))).is_err() {
        return run_once(&look, settings);
    }
    loop {
        match result.recv_timeout(Duration::from_millis(50)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Internal { what: "a panic, see the lines before".to_owned() });
            }
            Err(RecvTimeoutError::Timeout) if begun.elapsed() >= LIMIT && silent(SLOW).is_some() => {
                return Err(no_answer(settings, settings.disk()?));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Runs what is still there.
fn run_once<T>(look: &Mutex<Option<impl FnOnce(&Settings) -> Result<T>>>, settings: &Settings) -> Result<T> {
    let look = lock(look).take().ok_or_else(|| Error::Internal { what: "a second look".to_owned() })?;
    look(settings)
}

/// Returns when the disk has responded, even with an error.
///
/// # Errors
/// [`Error::NoAnswer`] with the facts that are known without the disk.
pub(super) fn answers(settings: &Settings) -> Result<()> {
    let disk = settings.disk()?;
    if within(disk) { Ok(()) } else { Err(no_answer(settings, disk)) }
}

/// The error, with what is known without the disk.
fn no_answer(settings: &Settings, disk: &Path) -> Error {
    let last = FileJournal::new(&settings.state_dir, |_| {}).only_history().pop();
    let known = last.map_or_else(
        || "nothing is remembered of it".to_owned(),
        |event| {
            let ended = if event.code == NO_ERROR { "done" } else { &event.code };
            format!(
                "the last that is remembered: {} {} {ended}: {}",
                event.time,
                event.verb,
                event.message.trim_end()
            )
        },
    );
    Error::NoAnswer { device: disk.display().to_string(), seconds: LIMIT.as_secs(), known }
}

fn within(disk: &Path) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg("answers").arg("--").arg(disk);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    // If no process can be started, the disk is used without a test.
    let Ok(mut child) = command.spawn() else { return true };
    let mut step = Duration::from_micros(200);
    while begun.elapsed() < LIMIT {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
    // It ends when the disk responds; process 1 reaps it then.
    let _ = child.kill();
    false
}
