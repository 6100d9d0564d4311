//! `-v`: lines on standard error about what a verb reads, queries and starts.

use std::io::{self, Write};

use tracing::Level;

use super::outlet;
use crate::units::text;

/// The level of the log for a number of `-v`; `quiet` for none.
pub(super) const fn level(count: u8, quiet: Level) -> Level {
    match count {
        0 => quiet,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

/// Shows details from now on.
pub(super) fn show(count: u8) {
    let _ = tracing_subscriber::fmt()
        .with_max_level(level(count, Level::ERROR))
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Lines)
        .log_internal_errors(false)
        .try_init();
}

/// Writer of lines without control characters, among the notes.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let line_text = String::from_utf8_lossy(line);
        outlet::err().offer(format!("qstage: detail: {}\n", text::shown(line_text.trim())).as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
