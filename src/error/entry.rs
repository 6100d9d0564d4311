//! An entry of the list of errors, for `explain`.

use super::Class;

/// An entry of the list as written there.
pub(super) struct ErrorEntry {
    /// The code.
    pub(super) code: &'static str,
    /// The class.
    pub(super) class: Class,
    /// The documentation of the variant.
    pub(super) meaning: &'static str,
    /// The message with `{}` and `{name}` in place of facts.
    pub(super) sentence: &'static str,
    /// The tokens of the facts without a name in the message: `, .path.display()`.
    pub(super) values: &'static str,
}
