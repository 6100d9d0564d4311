//! Deliberately broken rules.

/// Deliberately broken rule, which the exploration must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    None,
    /// A former leader continues to write.
    NoFence,
    /// The right to be down ends with the lease of its node.
    TtlLock,
    /// A reboot that failed continues by itself.
    GoesOn,
    /// A node counts as back before its data is protected again.
    Unprotected,
    /// A node counts as back before it is in service again.
    Undrained,
    /// An abandoned upgrade is over without a look at the release that each node runs.
    Unchecked,
    /// An upgrade is abandoned while a group is under way.
    Hasty,
}
