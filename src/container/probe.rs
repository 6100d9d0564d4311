//! One attempt of the health probe, from within the network of the container.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// Longest status line that is read, in bytes.
const STATUS_MAX: u64 = 1024;

/// Checks that a TCP connection is accepted.
pub(super) fn tcp(address: &str, timeout: Duration) -> Result<(), String> {
    connect(address, Instant::now() + timeout).map(drop)
}

/// Checks that a GET is answered by a status from 200 to 399.
pub(super) fn http(address: &str, path: &str, timeout: Duration) -> Result<(), String> {
    let until = Instant::now() + timeout;
    let failed = |e: std::io::Error| format!("http://{address}{path}: {e}");
    let mut stream = connect(address, until)?;
    stream.set_write_timeout(Some(left(until)?)).map_err(failed)?;
    // HTTP/1.0 with "close": the response ends with the connection, and no proxy may hold it open. In one write: a small
    // server may answer the first part and close, and a second write would fail.
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nUser-Agent: qstage\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut head = Vec::new();
    // Only the first line is needed; a server that sends byte by byte must not exceed the timeout.
    while !head.contains(&b'\n') && (head.len() as u64) < STATUS_MAX {
        stream.set_read_timeout(Some(left(until)?)).map_err(failed)?;
        let mut part = [0; 256];
        match stream.read(&mut part).map_err(failed)? {
            0 => break,
            got => head.extend_from_slice(&part[..got]),
        }
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let version = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match words.next().and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) if version => Ok(()),
        _ => Err(format!("http://{address}{path}: answered '{line}'")),
    }
}

/// Runs `act` in a network namespace, on a new thread: a thread that has entered a namespace does not return.
pub(super) fn in_network(
    namespace: &Path,
    act: impl FnOnce() -> Result<(), String> + Send,
) -> Result<(), String> {
    let enter = || {
        let file = File::open(namespace).map_err(|e| format!("{}: {e}", namespace.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| format!("{}: {e}", namespace.display()))?;
        act()
    };
    crate::workers::on_own_thread("the probe", enter).map_err(|e| e.to_string())?
}

fn connect(address: &str, until: Instant) -> Result<TcpStream, String> {
    let mut last = format!("{address}: no address");
    for target in address.to_socket_addrs().map_err(|e| format!("{address}: {e}"))? {
        match TcpStream::connect_timeout(&target, left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = format!("{target}: {e}"),
        }
    }
    Err(last)
}

fn left(until: Instant) -> Result<Duration, String> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("no answer in time".to_owned()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    /// A server that sends one response to one client; byte by byte with `dribble`.
    fn server(answer: &'static [u8], dribble: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]);
            for byte in answer {
                if dribble {
                    std::thread::sleep(Duration::from_millis(50));
                }
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        address
    }

    #[test]
    fn a_status_decides() {
        for (answer, good) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], true),
            (b"HTTP/1.0 204\r\n\r\n", true),
            (b"HTTP/1.1 302 Found\r\n\r\n", true),
            (b"HTTP/1.1 503 no\r\n\r\n", false),
            (b"HTTP/1.1 404 no\r\n\r\n", false),
            (b"SSH-2.0 200\r\n", false),
            (b"", false),
        ] {
            let address = server(answer, false);
            let got = http(&address, "/x", LONG);
            assert_eq!(got.is_ok(), good, "{answer:?}: {got:?}");
        }
    }

    #[test]
    fn slow_and_missing_servers_cost_the_timeout_at_most() {
        let begun = Instant::now();
        // Its first line takes it 45 s.
        let address = server(&[b'x'; 900], true);
        assert!(http(&address, "/", SHORT).is_err());
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert!(tcp(&closed, SHORT).is_err());
        assert!(tcp("nothing", SHORT).is_err());
    }
}
