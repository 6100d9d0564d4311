//! Connections: listeners, authentication, and limits per caller.
//!
//! | module | contents |
//! |---|---|
//! | `listen` | Unix socket and TCP, one task per connection |
//! | [`tls`] | certificate and key; self-signed where none is configured |
//! | [`auth`], [`tokens`], `attempts` | privileges; the file of tokens; the rate of failed logins |
//! | `hosts` | the names that are accepted in the header `Host` |
//! | `origin` | the origin of a request |
//! | `shares`, `write_timeout` | limits per caller; a client that stops reading |

pub(super) mod attempts;
pub mod auth;
pub(super) mod hosts;
pub(super) mod listen;
pub(super) mod origin;
pub(super) mod shares;
pub mod tls;
pub mod tokens;
pub(super) mod write_timeout;
