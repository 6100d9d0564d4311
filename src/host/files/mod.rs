//! How files outside of disks are opened: locks, output, and input that decides about trust; each in one place.
//! Others may be able to write to the directory: a name there may be a link, or be replaced at any moment.

mod lock;
mod output;
mod trusted;

pub(crate) use lock::{lock_file, private_directory};
pub(crate) use output::{OutputFile, replace};
pub(crate) use trusted::{check_trusted, read_trusted, read_trusted_text, trust_remedy};
