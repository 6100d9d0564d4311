//! Rules that are broken on purpose.

/// A rule that is broken on purpose: the rules below must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    None,
    /// Whoever once led writes on.
    NoFence,
    /// The right to be down ends with the lease of who has it.
    TtlLock,
    /// A reboot that failed goes on by itself.
    GoesOn,
    /// A node counts as back before the data that it holds is protected again.
    Unprotected,
    /// A node counts as back before it is in service again.
    Undrained,
}
