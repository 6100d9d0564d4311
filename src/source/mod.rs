//! Sources of the bytes of a bundle or of an image: a file, a pipe, a web server, a map of an image that is packed.
//!
//! Readers use the trait in [`crate::bundle::source`]; its implementations are here.

pub mod address;
pub mod allowed;
pub mod beside;
mod file;
pub mod http;
pub mod mapped;

pub use file::{InputTimeout, drop_from_cache, open_source, opened_source};
