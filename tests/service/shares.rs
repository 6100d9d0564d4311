//! Shares of connections and of event streams, by the sockets of a running service: one user of the machine, or one address,
//! leaves room for the others, and root has places of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::server::{Bench, Server};

/// Opens connections, by turns from two addresses of loopback, and prints how many of them the service accepted: those that
/// answer 200 to a request, or, without one, stay open. Ends with its standard input.
const CROWD: &str = r"
import socket, ssl, sys, time
place, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl._create_unverified_context()
def connect(number):
    if place.startswith('/'):
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(place)
        return stream
    host, port = place.rsplit(':', 1)
    source = ('127.0.0.%d' % (1 + number % 2), 0)
    return context.wrap_socket(socket.create_connection((host, int(port)), source_address=source))
def accepted(stream):
    try:
        if path:
            stream.settimeout(20)
            stream.sendall(('GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n' % path).encode())
            return b' 200 ' in stream.recv(64)
        stream.setblocking(False)
        return stream.recv(1) != b''
    except BlockingIOError:
        return True
    except OSError:
        return False
held = [connect(number) for number in range(count)]
if not path: time.sleep(2)
print(sum(map(accepted, held)), flush=True)
sys.stdin.read()
";

/// Connections of one user; the drop closes them.
struct Crowd(Child);

impl Crowd {
    /// Returns it with the number of connections that the service accepted.
    fn of(uid: u32, place: &str, count: usize, path: &str) -> (Self, usize) {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), "--regid=65534", "--clear-groups", "--"]);
        command.args(["/usr/bin/python3", "-c", CROWD, place, &count.to_string(), path]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let crowd = Self(child);
        (crowd, line.trim().parse().unwrap())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service() -> Option<(Bench, Server)> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs as root");
        eprintln!("SKIPPED: needs root, to have other users");
        return None;
    }
    let bench = Bench::new(None);
    fs::set_permissions(bench.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let server = bench.serve();
    Some((bench, server))
}

#[test]
fn users_have_shares_of_the_socket_and_root_a_reserve() {
    let Some((_bench, server)) = service() else { return };
    let socket = server.socket.to_str().unwrap();
    let (first, accepted) = Crowd::of(65534, socket, 150, "");
    assert_eq!(accepted, 128, "a quarter of 512");
    // Another user is not affected; together they have all that root does not have.
    let mut crowds = vec![first];
    let mut all = accepted;
    for uid in 65530..65533 {
        let (crowd, accepted) = Crowd::of(uid, socket, 128, "");
        assert!(accepted > 0, "{uid}");
        crowds.push(crowd);
        all += accepted;
    }
    assert_eq!(all, 512 - 64);
    assert_eq!(Crowd::of(65529, socket, 1, "/v1/version").1, 0, "nothing is left for a user");
    let silent: Vec<UnixStream> = (0..60).map(|_| UnixStream::connect(&server.socket).unwrap()).collect();
    assert!(server.get("/v1/version")["revision_id"].is_string(), "root is answered");
    drop((silent, crowds));
    server.until("a user is answered again", |_| Crowd::of(65529, socket, 1, "/v1/version").1 == 1);
}

#[test]
fn event_streams_are_shared_by_origin() {
    let Some((_bench, server)) = service() else { return };
    let socket = server.socket.to_str().unwrap();
    let (_user, accepted) = Crowd::of(65534, socket, 20, "/v1/qstage/events");
    assert_eq!(accepted, 16, "a quarter of 64");
    // All addresses of loopback are one origin, whatever user is there.
    let (_loopback, accepted) = Crowd::of(65534, &server.address, 20, "/v1/qstage/events");
    assert_eq!(accepted, 16);
    assert_eq!(Crowd::of(65533, &server.address, 1, "/v1/qstage/events").1, 0);
    assert_eq!(Crowd::of(65533, socket, 1, "/v1/qstage/events").1, 1, "another user");
    assert_eq!(Crowd::of(0, socket, 1, "/v1/qstage/events").1, 1, "root");
    let status: Value = server.get("/v1/upgrade/status");
    assert_eq!(status["state"], "UPGRADE_IDLE", "and everything else is answered");
}
