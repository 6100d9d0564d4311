//! Names and versions in a manifest.

use crate::error::{Error, Result};

/// Maximum length of a name or version in bytes.
pub const NAME_MAX: usize = 64;

/// Checks a name or version: they become parts of paths, tar members and terminal output.
pub(super) fn check_word(what: &str, text: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+~^-".contains(c);
    if text.is_empty() || text.len() > NAME_MAX || text.starts_with('.') || !text.chars().all(fine) {
        return Err(Error::Manifest {
            problem: format!(
                "{what} {text:?} must have 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ + ~ ^ - and not begin with a dot"
            ),
        });
    }
    Ok(())
}
