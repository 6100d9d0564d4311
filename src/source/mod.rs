//! Where the bytes of a bundle or of an image come from: a file, a pipe, a web server, a map of an image that is packed.
//!
//! The trait that readers see is [`crate::bundle::source`]; what implements it is here.

pub mod address;
pub mod allowed;
mod file;
pub mod http;
pub mod mapped;

pub use file::{drop_from_cache, open_source, opened_source};
