//! The origin of a request, and the unit by which shares are counted.

use std::net::{IpAddr, SocketAddr};

/// The connection by which a request arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Origin {
    Network(SocketAddr),
    /// The Unix socket, from a process of this user.
    Socket {
        uid: u32,
        pid: Option<i32>,
    },
}

/// Whether the client of a connection has presented a certificate of the authorities of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) struct Certified(pub(in crate::service) bool);

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(from) => write!(f, "{from}"),
            Self::Socket { uid, pid } => write!(f, "uid {uid} (process {})", pid.unwrap_or_default()),
        }
    }
}

/// A caller for the purpose of shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::service) enum Peer {
    /// An address, or a network that belongs to one host.
    Address(IpAddr),
    /// All of loopback: every local process may use all of its addresses.
    Loopback,
    /// A user of this machine, over the Unix socket.
    User(u32),
}

impl Peer {
    /// The caller of an origin.
    pub(in crate::service) fn of(origin: Origin) -> Self {
        match origin {
            Origin::Network(from) => Self::of_address(from.ip()),
            Origin::Socket { uid, .. } => Self::User(uid),
        }
    }

    /// The caller of an address. Of IPv6 the first 64 bits count, since a host chooses the others itself (RFC 4291, 2.5.1).
    pub(in crate::service) fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::Loopback,
            IpAddr::V6(v6) => Self::Address(IpAddr::V6((v6.to_bits() >> 64 << 64).into())),
            v4 @ IpAddr::V4(_) => Self::Address(v4),
        }
    }
}
