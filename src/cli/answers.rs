//! Whether a disk answers, asked in a process of its own.
//!
//! A process that waits for a disk which hangs cannot be ended, not by SIGKILL and not by itself: it would not even print
//! what it knows and go. So verbs that only look let another one ask first, and leave it behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::config::Settings;
use crate::device::{Direct, Mode};
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::FileJournal;
use crate::units::BlockSize;

/// How long it may take: a disk that spins up is not waited for, but asked again.
const LIMIT: Duration = Duration::from_millis(2500);

/// Read a sector of a disk
#[derive(Debug, Args)]
pub(super) struct AnswersArgs {
    /// Disk or image file
    disk: PathBuf,
}

impl AnswersArgs {
    pub(super) fn run(&self) -> Result<()> {
        // To open it is to read its second block. What is wrong with it is said by who uses it.
        let _ = Direct::open(&self.disk, Mode::Read, BlockSize::B512);
        Ok(())
    }
}

/// Returns when the disk has answered, be it with an error.
///
/// # Errors
/// [`Error::NoAnswer`] with what is known without it.
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
    // Where no process can be started, the disk is asked without one.
    let Ok(mut child) = command.spawn() else { return true };
    let mut step = Duration::from_micros(200);
    while begun.elapsed() < LIMIT {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(step);
        step = (step * 2).min(Duration::from_millis(20));
    }
    // It ends when the disk answers, and is nobody's child then.
    let _ = child.kill();
    false
}
