//! The interface of a bundle's input. The implementations are in [`crate::source`].

use std::io::{self, Read};
use std::sync::Arc;

use crate::error::Error;

/// A bundle that can be read at any offset, from several threads at once.
pub trait ReadAt: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from byte `at`.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Reads `len` bytes from byte `at` into `buf`, in place of what it holds. The memory of `buf` may be another one
    /// afterwards: a source that has the bytes in memory hands theirs over instead of copying them.
    fn read_into(&self, buf: &mut Vec<u8>, at: u64, len: usize) -> io::Result<()> {
        // What it holds is written over, so that only more memory than before is zeroed.
        buf.resize(len, 0);
        self.read_exact_at(buf, at)
    }

    /// Declares the offsets, ascending, at which larger reads will begin.
    fn will_begin_at(&self, _offsets: Vec<u64>) {}

    /// Declares that a range will not be needed again: the page cache may drop it.
    fn done_with(&self, _at: u64, _len: u64) {}

    /// Declares that all of a range will be read soon, so that it may be fetched ahead of the readers.
    fn will_read(&self, _at: u64, _len: u64) {}

    /// Declares that a range that was declared, or lies between such ranges, will not be read after all.
    fn will_not_read(&self, _at: u64, _len: u64) {}

    /// Whether random access costs round trips, and the size is only what a server reports.
    fn is_remote(&self) -> bool {
        false
    }

    /// Reports that the bytes of a range were wrong. Returns whether reading again may yield other bytes, from
    /// another server.
    fn distrust(&self, _at: u64, _len: u64) -> bool {
        false
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        Vec::len(self) as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(buf.len())?));
        let from = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

/// A bundle, seekable or not.
pub enum Source {
    /// A file: only the needed parts are read.
    File(Arc<dyn ReadAt>),
    /// A pipe: read once, from start to end.
    Stream(Box<dyn Read + Send>),
    /// The response of a server, read in the same way, with the size in bytes that the server announced.
    Response(Box<dyn Read + Send>, Option<u64>),
}

/// The inner error of a read that was stopped on request. Not `ErrorKind::Interrupted`: `read_exact` and similar
/// functions treat that as `EINTR` and retry for ever.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub struct ReadStopped;

/// Converts the error of a failed read. A read that was stopped is an interruption, not a failure; `what` is the
/// part of the bundle that was being read, named if the input ends there.
pub fn read_failed(what: &str, at: u64, source: io::Error) -> Error {
    if source.get_ref().is_some_and(|inner| inner.is::<ReadStopped>()) {
        return Error::Interrupted { doing: "reading the bundle".to_owned() };
    }
    // A transfer has its own, more precise error.
    let source = match source.downcast::<Error>() {
        Ok(error) => return error,
        Err(source) => source,
    };
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { what: what.to_owned(), at },
        _ => Error::Source { at, source },
    }
}
