//! Names and versions in a manifest.

use crate::error::{Error, Result};

/// Maximum length of a name or version in bytes.
pub const NAME_MAX: usize = 64;

/// Checks a name or version: they become parts of paths, tar members and terminal output.
pub(super) fn check_word(what: &str, text: &str) -> Result<()> {
    parse_word(text).map(drop).map_err(|rule| Error::Manifest { problem: format!("{what} {text:?} {rule}") })
}

/// Checks the name of a product.
pub(super) fn check_product(text: &str) -> Result<()> {
    parse_product(text).map(drop).map_err(|rule| Error::Manifest { problem: format!("product {rule}") })
}

/// Parses a name or version. The error is the rule.
pub(crate) fn parse_word(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+~^-".contains(c);
    if text.is_empty() || text.len() > NAME_MAX || text.starts_with('.') || !text.chars().all(fine) {
        return Err(format!(
            "must have 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ + ~ ^ - and not begin with a dot"
        ));
    }
    Ok(text.to_owned())
}

/// Parses the name of a product. The error is the rule.
pub(crate) fn parse_product(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_MAX || text.chars().any(char::is_control) {
        return Err(format!("must have 1 to {NAME_MAX} bytes and no control characters"));
    }
    Ok(text.to_owned())
}
