//! Output of `pack`, `sign` and `delta`: a file, or standard output for `-`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::outlet;
use super::output::{self, Format, Palette};
use crate::error::{Error, Result};
use crate::pack::Destination;

/// The output by the command line.
pub(super) struct BundleOutput {
    path: PathBuf,
    force: bool,
    /// Standard output; `None` for a file.
    stream: Option<Pipe>,
}

impl BundleOutput {
    /// # Errors
    /// [`Error::Argument`]: standard output is a terminal, or JSON would go there too.
    pub(super) fn new(path: &Path, force: bool, json: bool) -> Result<Self> {
        let is_stream = path == Path::new("-");
        let refused = |problem: &str| {
            Err(Error::Argument { what: "--output -".to_owned(), problem: problem.to_owned() })
        };
        match is_stream {
            true if json => refused("--json goes to standard output too; leave one of them out"),
            true if output::is_terminal() => {
                refused("standard output is a terminal; send it to a file or a pipe")
            }
            _ => Ok(Self { path: path.to_owned(), force, stream: is_stream.then_some(Pipe) }),
        }
    }

    pub(super) fn destination(&mut self) -> Destination<'_> {
        match &mut self.stream {
            Some(stream) => Destination::Stream(stream),
            None if self.force => Destination::Replaced(&self.path),
            None => Destination::New(&self.path),
        }
    }

    /// Prints the result; as a note on standard error if the bundle itself went to standard output.
    pub(super) fn outcome<T: Serialize>(
        &self,
        format: Format,
        report: &T,
        human: impl Fn(&T, Palette) -> String,
    ) -> Result<()> {
        if self.stream.is_none() {
            return output::outcome(format, report, human);
        }
        human(report, Palette::PLAIN).lines().for_each(output::note);
        Ok(())
    }
}

/// Standard output for a bundle. If the reader has closed the pipe, it has not received the bundle, which is a failure; in
/// contrast to a report, which may go unread.
struct Pipe;

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        outlet::out().deliver(bytes, None).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
