//! Connections: where the service listens, who may call it, and how much one caller may take.
//!
//! | module | contents |
//! |---|---|
//! | `listen` | Unix socket and TCP, one task per connection |
//! | [`tls`] | certificate and key; self-signed where none is configured |
//! | [`auth`], [`tokens`], `attempts` | privileges; the file of tokens; the rate of failed logins |
//! | `hosts` | the names that the `Host` header may have |
//! | `origin` | from where a request comes |
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
