//! Giving up rights for good.

mod calls;

pub use calls::forbid_user_namespaces;
