//! How files outside of disks are opened, in one place each: locks, output, and input that decides about trust.
//! Directories that others may write to are assumed: a name there may be a link, or be replaced at any moment.

mod lock;

pub(crate) use lock::{lock_file, private_directory};
