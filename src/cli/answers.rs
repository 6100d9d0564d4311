//! Whether a disk responds, tested in a separate process.
//!
//! A process that waits for a hung disk cannot be ended, neither by SIGKILL nor by itself: it could not even print what it
//! knows and exit. So read-only verbs first let another process test the disk, and leave that behind if it hangs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::config::Settings;
use crate::device::{Direct, Mode};
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::FileJournal;
use crate::units::BlockSize;

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

/// Returns when the disk has responded, even with an error.
///
/// # Errors
/// [`Error::NoAnswer`] with the facts that are known without the disk.
pub(super) fn answers(settings: &Settings) -> Result<()> {
    let disk = settings.disk()?;
    if within(disk) {
        return Ok(());
    }
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
    Err(Error::NoAnswer { device: disk.display().to_string(), seconds: LIMIT.as_secs(), known })
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
