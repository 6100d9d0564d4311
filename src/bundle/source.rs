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

    /// Says that all of a range will be read soon, so that it may be fetched ahead of the readers.
    fn will_read(&self, _at: u64, _len: u64) {}

    /// Says that a range that was declared, or lies between such, will not be read after all.
    fn will_not_read(&self, _at: u64, _len: u64) {}

    /// Whether reading here and there costs round trips, and whether the size is what a server says it is.
    fn is_remote(&self) -> bool {
        false
    }

    /// Says that the bytes of a range were wrong. Whether they may be other ones when they are read again, from elsewhere.
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
    /// A file: parts that are not needed are not read.
    File(Arc<dyn ReadAt>),
    /// A pipe or a connection: read once, from front to back.
    Stream(Box<dyn Read + Send>),
    /// The same where the other end has said how many bytes will come.
    Sized(Box<dyn Read + Send>, u64),
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
    // A transfer knows best what became of it.
    let source = match source.downcast::<Error>() {
        Ok(error) => return error,
        Err(source) => source,
    };
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { what: what.to_owned(), at },
        _ => Error::Source { at, source },
    }
}
