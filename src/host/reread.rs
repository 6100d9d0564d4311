//! Makes the kernel read a new partition table: `BLKRRPART`, by blockdev(8). No crate has the ioctl as a safe function, and
//! it does no harm if the program is missing: the kernel reads every table at the next boot.

use std::path::Path;
use std::time::Duration;

use super::program::Program;

/// Number of attempts: udev probes a disk when a writer closes it, and meanwhile the kernel reports that it is busy.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// Time limit of one attempt.
const LIMIT: Duration = Duration::from_secs(10);

/// Makes the kernel read the table of `disk` again. No process may hold the disk exclusively, not even this one.
///
/// # Errors
/// The reason as a sentence: a partition of the disk is open, the device has no partitions, the program is missing.
pub(crate) fn partitions(disk: &Path) -> Result<(), String> {
    let mut result = ask(disk);
    for _ in 1..TRIES {
        match &result {
            Err(problem) if problem.contains("busy") => std::thread::sleep(PAUSE),
            _ => break,
        }
        result = ask(disk);
    }
    result
}

fn ask(disk: &Path) -> Result<(), String> {
    // The message is parsed, so it must not be translated.
    let program = Program::new("blockdev", LIMIT).arg("--rereadpt").arg(disk).envs([("LC_ALL", "C")]);
    let outcome = program.run().map_err(|error| format!("blockdev: {error}"))?;
    if outcome.end.success() {
        return Ok(());
    }
    let said = outcome.last_words.trim().replace('\n', "; ").to_lowercase();
    Err(if said.is_empty() { format!("blockdev: {}", outcome.end) } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_partitions_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = partitions(file.path()).unwrap_err();
        assert!(problem.contains("blockdev"), "{problem}");
    }
}
