//! Remedies for causes that the system reports.

use std::io::{self, ErrorKind};

/// A cause whose text names its remedy.
pub(super) trait WithRemedy {
    /// The text, followed by the remedy if the cause has one.
    fn with_remedy(&self) -> String;
}

/// The cause of a failed write of a file.
impl WithRemedy for io::Error {
    fn with_remedy(&self) -> String {
        let remedy = match self.kind() {
            ErrorKind::NotFound => "make its directory first",
            ErrorKind::NotADirectory => "name a place below a directory, not below a file",
            ErrorKind::IsADirectory => "name a file in it",
            ErrorKind::PermissionDenied => "run it as a user who may write there, such as root",
            ErrorKind::ReadOnlyFilesystem => "name a place on a file system that is not read-only",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space",
            _ => return self.to_string(),
        };
        format!("{self}; {remedy}")
    }
}
