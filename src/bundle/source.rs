//! Where the bytes of a bundle come from, as the reader sees it. The kinds are in [`crate::source`].

use std::io::{self, Read};
use std::sync::Arc;

use crate::error::Error;

/// A bundle that can be read anywhere, from several threads at once.
pub trait ReadAt: Send + Sync {
    /// Its size in bytes.
    fn len(&self) -> u64;

    /// Whether it holds no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from byte `at`.
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()>;

    /// Says that a range will not be needed again: the page cache may forget it.
    fn done_with(&self, _at: u64, _len: u64) {}
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
    /// A file: parts that are not needed are not read.
    File(Arc<dyn ReadAt>),
    /// A pipe or a connection: read once, from front to back.
    Stream(Box<dyn Read + Send>),
}

/// The inner error of a read that was stopped on request. Not `ErrorKind::Interrupted`: `read_exact` and its kin
/// take that for `EINTR` and try for ever.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub struct Stopped;

/// The error of a failed read as one of ours. A read that was stopped is an interruption, not a failure; `what` is the
/// part of the bundle that was being read, for when it ends there.
pub fn read_failed(what: &str, at: u64, source: io::Error) -> Error {
    if source.get_ref().is_some_and(|inner| inner.is::<Stopped>()) {
        return Error::Interrupted { doing: "reading the bundle".to_owned() };
    }
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { what: what.to_owned(), at },
        _ => Error::Source { at, source },
    }
}
