//! Every failure of the project: one variant each, with the facts as fields, a class that determines the exit code,
//! and a stable code for programs. The [list](Error) is the only place where any of the three is written.

mod define;
mod entry;
mod explain;
mod list;
mod remedy;

use std::io;

pub use explain::{Explanation, all, explain, page};
pub use list::Error;
pub use remedy::Remedy;

use crate::units::text;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Class of a failure; the process exits with [`exit_code`](Self::exit_code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A defect of qstage or of the system below it. Exit code 1.
    Internal,
    /// The command line or the configuration is wrong. Exit code 2 (the same as clap's).
    Usage,
    /// The bundle is malformed, damaged or exceeds a limit. Exit code 3.
    Bundle,
    /// The bundle may be whole, but no trusted key has signed it. Exit code 4.
    Trust,
    /// All parts are valid, but the rules forbid the step now. Exit code 5.
    Refused,
    /// The disk is not laid out as needed, or a slot is not what it should be. Exit code 6.
    Disk,
    /// Reading or writing failed. Exit code 7.
    Io,
    /// Stopped by a signal; another run continues. Exit code 8.
    Interrupted,
    /// The disk is as it should be, but a program that runs from it is not: a container, a health check. Exit code
    /// 9.
    Service,
    /// The bundle could not be fetched: a link, a proxy, a server failed. Does not concern its content. Exit code
    /// 10.
    Network,
    /// Everything is done, but its report could not be delivered. Exit code 11.
    Report,
    /// The service does not let the caller do this: no token, an unknown one, or one without the privilege. Exit code
    /// 12.
    Access,
}

impl Class {
    /// Every class, by exit code.
    pub const ALL: [Self; 12] = [
        Self::Internal,
        Self::Usage,
        Self::Bundle,
        Self::Trust,
        Self::Refused,
        Self::Disk,
        Self::Io,
        Self::Interrupted,
        Self::Service,
        Self::Network,
        Self::Report,
        Self::Access,
    ];

    /// Name in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Bundle => "bundle",
            Self::Trust => "trust",
            Self::Refused => "refused",
            Self::Disk => "disk",
            Self::Io => "io",
            Self::Interrupted => "interrupted",
            Self::Service => "service",
            Self::Network => "network",
            Self::Report => "report",
            Self::Access => "access",
        }
    }

    /// The exit code of the process.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Bundle => 3,
            Self::Trust => 4,
            Self::Refused => 5,
            Self::Disk => 6,
            Self::Io => 7,
            Self::Interrupted => 8,
            Self::Service => 9,
            Self::Network => 10,
            Self::Report => 11,
            Self::Access => 12,
        }
    }
}

/// `error_state` of a status without an error.
pub const NO_ERROR: &str = "UPGRADE_ERROR_NO_ERROR";
impl Error {
    /// The stable code: `error_state` of the status, `code` in JSON. A failure that a service reported has its
    /// original code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Remote { code, .. } => {
                Self::ALL.iter().find(|(known, _)| known == code).map_or(self.own_code(), |(known, _)| known)
            }
            _ => self.own_code(),
        }
    }

    /// The class, which is the exit code.
    pub const fn class(&self) -> Class {
        match self {
            Self::Remote { class, .. } => *class,
            _ => self.own_class(),
        }
    }

    /// A failure reported by a service; the class is derived from the code, as far as this program knows it.
    pub fn remote(code: &str, message: &str) -> Self {
        let class =
            Self::ALL.iter().find(|(known, _)| *known == code).map_or(Class::Internal, |known| known.1);
        Self::Remote { code: code.to_owned(), class, message: message.to_owned() }
    }

    /// Code and class only: what users without write access are shown.
    pub fn for_readers(&self) -> String {
        format!("{} ({})", self.code(), self.class().word())
    }

    /// A failed write, classified by its cause: a full file system is not a broken disk.
    pub(crate) fn write(what: &str, at: u64, len: u64, source: io::Error) -> Self {
        let what = what.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { what, at },
            _ => Self::Write { what, at, len, source },
        }
    }
}

/// The message of an error with its causes. A cause that the message already contains is not repeated. Control
/// characters are escaped.
pub fn sentence(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text::shown(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let codes: BTreeSet<_> = Error::ALL.iter().map(|(code, _)| code).collect();
        assert_eq!(codes.len(), Error::ALL.len());
        for code in codes {
            let rest = code.strip_prefix("UPGRADE_ERROR_").unwrap();
            assert!(rest.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'), "{code}");
            assert_ne!(*code, NO_ERROR);
        }
    }

    #[test]
    fn a_remote_failure_keeps_its_code() {
        let remote =
            |code: &str| Error::Remote { code: code.into(), class: Class::Disk, message: "x".into() };
        assert_eq!(remote("UPGRADE_ERROR_NOT_GPT").code(), "UPGRADE_ERROR_NOT_GPT");
        assert_eq!(remote("UPGRADE_ERROR_OF_TOMORROW").code(), "UPGRADE_ERROR_REMOTE");
        assert_eq!(remote("").class(), Class::Disk);
    }

    #[test]
    fn a_full_file_system_has_its_own_error() {
        let full = io::Error::from_raw_os_error(nix::libc::ENOSPC);
        assert_eq!(Error::write("x", 0, 1, full).code(), "UPGRADE_ERROR_NO_SPACE");
        let broken = io::Error::from_raw_os_error(nix::libc::EIO);
        assert_eq!(Error::write("x", 0, 1, broken).code(), "UPGRADE_ERROR_WRITE");
    }
}
