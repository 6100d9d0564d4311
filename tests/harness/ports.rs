//! Ports on loopback for servers that cannot choose one by themselves, or are started again on the same one.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that Linux gives to connections and to port 0 (net.ipv4.ip_local_port_range, ip(7)): one of those may belong
/// to another process by the time that the server binds it, or while it is stopped.
const PORTS: std::ops::Range<u32> = 12_000..32_000;

/// A port that nothing listens on, that this process has not had yet, and that no other test is given by chance.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Each test program begins elsewhere. Two may run at a time, and each takes some hundred.
    let begin = std::process::id().wrapping_mul(211);
    loop {
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + begin.wrapping_add(count) % (PORTS.end - PORTS.start);
        let port = u16::try_from(port).expect("a port");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
