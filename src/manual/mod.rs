//! The manual: one page per subject, the same text as in `src/manual/*.md`.
//!
//! Start with [`appliance`], which builds one, or with [`coming_from`] if you know another updater; then [`verbs`] and
//! [`configuration`]. [`safety`] argues why an upgrade cannot destroy the old system.

#![allow(rustdoc::broken_intra_doc_links, reason = "the pages link to each other as files")]

#[doc = include_str!("appliance.md")]
pub mod appliance {}
#[doc = include_str!("architecture.md")]
pub mod architecture {}
#[doc = include_str!("boot.md")]
pub mod boot {}
#[doc = include_str!("cluster.md")]
pub mod cluster {}
#[doc = include_str!("coming_from.md")]
pub mod coming_from {}
#[doc = include_str!("configuration.md")]
pub mod configuration {}
#[doc = include_str!("containers.md")]
pub mod containers {}
#[doc = include_str!("errors.md")]
pub mod errors {}
#[doc = include_str!("format.md")]
pub mod format {}
#[doc = include_str!("glossary.md")]
pub mod glossary {}
#[doc = include_str!("network.md")]
pub mod network {}
#[doc = include_str!("performance.md")]
pub mod performance {}
#[doc = include_str!("../SAFETY.md")]
pub mod safety {}
#[doc = include_str!("service.md")]
pub mod service {}
#[doc = include_str!("verbs.md")]
pub mod verbs {}
