//! Lookup of host names.
//!
//! The default resolver of the client takes a thread of tokio, and tokio panics if the system refuses it. Here each
//! lookup has a thread of its own, and a refusal is an error of the connection, which is retried as such.

use std::net::ToSocketAddrs;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::workers;

/// Looks up names as the system does (getaddrinfo(3)).
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let work = move || {
                // The client sets the port. The receiver is gone if the connection took too long.
                let _ = answer.send((name.as_str(), 0).to_socket_addrs());
            };
            workers::spawn("looking up a host", work)?;
            let found = answered.await??;
            Ok::<Addrs, _>(Box::new(found))
        })
    }
}
