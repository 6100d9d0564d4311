//! How a verb ends that did its work.

use crate::error::Class;

/// Result of a verb that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// Nothing more is to be said: exit code 0.
    Done,
    /// The report says that the upgrade is forbidden: the exit code is that of a refusal, 5, without an error.
    Forbidden,
}

impl Conclusion {
    /// The exit code of the process.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Forbidden => Class::Refused.exit_code(),
        }
    }
}
