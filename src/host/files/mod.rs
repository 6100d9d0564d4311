//! How files outside of disks are opened, in one place each: locks, output, and input that decides about trust.
//! Directories that others may write to are assumed: a name there may be a link, or be replaced at any moment.

mod lock;
mod output;
mod trusted;

pub(crate) use lock::{lock_file, private_directory};
pub(crate) use output::{OutputFile, replace};
pub(crate) use trusted::{check_trusted, read_trusted, read_trusted_text};
