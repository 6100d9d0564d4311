//! Bundles from web servers. Their error codes are reached in `errors::network`.

/// Servers that do not prove their identity.
mod certificates;
/// Deltas beside bundles, and how much may come.
mod deltas;
/// Mirrors, and what becomes of those that lie, die or are slow.
mod mirrors;
/// How many bytes come, after cuts and kills and where frames are in place.
mod resume;
/// nginx, lighttpd, squid and SOCKS, with TLS and passwords.
mod servers;
/// Signals in each phase of a transfer.
mod signals;
