//! Notifications of a service to its service manager (sd_notify(3)), without a library: one datagram each.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State<'a> {
    /// The service is ready for requests.
    Ready,
    /// The service is about to end.
    Stopping,
    /// Keep-alive; to be sent at least once within [`watchdog`].
    Alive,
    /// A sentence for `systemctl status`.
    Status(&'a str),
}

/// Sends a notification; `false` if no service manager expects one.
///
/// # Errors
/// Those of socket(2) and sendto(2). A service works without notifications; only the manager misses them.
pub fn notify(state: State<'_>) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => tell(&address(path.as_bytes())?, state).map(|()| true),
        None => Ok(false),
    }
}

/// Interval at which to send [`State::Alive`]: half of the manager's limit, as sd_watchdog_enabled(3) advises. `None` if the
/// manager does not watch this process.
pub fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    watched(number("WATCHDOG_USEC"), number("WATCHDOG_PID"), std::process::id())
}

fn watched(usec: Option<u64>, pid: Option<u64>, own: u32) -> Option<Duration> {
    let mine = pid.is_none_or(|pid| pid == u64::from(own));
    usec.filter(|usec| *usec > 0 && mine).map(|usec| Duration::from_micros(usec / 2))
}

/// The address for a path, or for `@` followed by a name of the abstract namespace.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    }
}

fn tell(to: &SocketAddr, state: State<'_>) -> io::Result<()> {
    let text = match state {
        State::Ready => "READY=1".to_owned(),
        State::Stopping => "STOPPING=1".to_owned(),
        State::Alive => "WATCHDOG=1".to_owned(),
        // One assignment per line: a line break in the text would start another assignment.
        State::Status(text) => format!("STATUS={}", text.replace('\n', " ")),
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@qstage-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        for (own, text) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_bytes().to_vec()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), name.clone().into_bytes()),
        ] {
            let to = address(&text).unwrap();
            for (state, expected) in [
                (State::Ready, "READY=1"),
                (State::Alive, "WATCHDOG=1"),
                (State::Stopping, "STOPPING=1"),
                (State::Status("a\nREADY=1"), "STATUS=a READY=1"),
            ] {
                tell(&to, state).unwrap();
                let mut got = [0; 64];
                let len = own.recv(&mut got).unwrap();
                assert_eq!(&got[..len], expected.as_bytes());
            }
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_ignored() {
        assert_eq!(watched(Some(10_000_000), None, 7), Some(Duration::from_secs(5)));
        assert_eq!(watched(Some(10_000_000), Some(7), 7), Some(Duration::from_secs(5)));
        assert_eq!(watched(Some(10_000_000), Some(8), 7), None);
        assert_eq!(watched(Some(0), None, 7), None);
        assert_eq!(watched(None, Some(7), 7), None);
    }
}
