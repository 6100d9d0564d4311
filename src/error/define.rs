//! The macro that makes the [list of errors](super::list) into the type, its codes and its classes.

/// Defines [`Error`](super::Error) together with its class, its code and the list of all codes, so that none can be left out.
macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $name:ident $({ $($field:ident: $ty:ty),* $(,)? })?
        => $class:ident, $code:literal, ($sentence:literal $($values:tt)*);)*) => {
        /// A failure. `Display` is the message for people: what, where, expected, got, what to do.
        #[derive(Debug, thiserror::Error)]
        #[allow(missing_docs, reason = "a field is named for the fact it carries; the variant is documented")]
        #[non_exhaustive]
        pub enum Error {
            $($(#[doc = $doc])+ #[error($sentence $($values)*)] $name $({ $($field: $ty),* })?,)*
        }

        impl Error {
            pub(super) const fn own_code(&self) -> &'static str {
                match self { $(Self::$name $({ $($field: _),* })? => concat!("UPGRADE_ERROR_", $code),)* }
            }

            pub(super) const fn own_class(&self) -> Class {
                match self { $(Self::$name $({ $($field: _),* })? => Class::$class,)* }
            }

            /// All codes, with their classes.
            pub const ALL: &'static [(&'static str, Class)] =
                &[$((concat!("UPGRADE_ERROR_", $code), Class::$class)),*];
        }

        /// The same with all that is written of each.
        pub(super) const ENTRIES: &[ErrorEntry] = &[$(ErrorEntry {
            code: concat!("UPGRADE_ERROR_", $code),
            class: Class::$class,
            meaning: concat!($($doc),+),
            sentence: $sentence,
            values: stringify!($($values)*),
        }),*];
    };
}

pub(super) use errors;
