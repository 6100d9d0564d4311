//! Failures beside the upgrade: the container, the health checks, a remote service.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::harness::machine::Bench;

#[test]
fn a_container_needs_a_configuration_and_an_image() {
    let bench = Bench::installed();
    bench.at(&["container", "status"]).bad("NO_CONTAINER");
    bench.config("[container]\ncommand = [\"/app\"]\n");
    bench.at(&["container", "start"]).bad("NO_SOFTWARE");
}

#[test]
fn a_failing_health_check_is_named() {
    let bench = Bench::installed();
    let check = bench.path("10-disk");
    std::fs::write(&check, "#!/bin/sh\necho disk is dying >&2; exit 1\n").unwrap();
    let dir = bench.path("health.d");
    std::fs::create_dir(&dir).unwrap();
    std::fs::rename(&check, dir.join("10-disk")).unwrap();
    std::fs::set_permissions(dir.join("10-disk"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let message = bench.run(&["health", "--dir", dir.to_str().unwrap()]).bad("UNHEALTHY");
    assert!(message.contains("10-disk") && message.contains("disk is dying"), "{message}");
}

#[test]
fn a_service_that_does_not_answer_is_named() {
    let bench = Bench::installed();
    // Port 1 of this machine: no process listens there.
    let message = bench.run(&["status", "--service", "https://127.0.0.1:1"]).bad("SERVICE_UNREACHABLE");
    assert!(message.contains("127.0.0.1:1: Connection refused"), "{message}");
    assert!(message.contains("'systemctl status qstage'") && message.contains("--service"), "{message}");
}

/// A service ignores parameters that it does not know: an older one would carry out what should only be tried.
#[test]
fn no_dry_run_is_sent_to_a_service_without_it() {
    let bench = Bench::installed();
    let socket = bench.path("older.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let older = std::thread::spawn(move || {
        let mut requests = vec![];
        // One request per connection; the last one has no request.
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let n = stream.read(&mut head).unwrap();
            if n == 0 {
                return requests;
            }
            requests.push(String::from_utf8_lossy(&head[..n]).lines().next().unwrap().to_owned());
            let body = r#"{"paths": {"/v1/qstage/cluster/pause": {"post": {"parameters": []}}}}"#;
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    let service = format!("unix:{}", socket.display());
    let message =
        bench.run(&["cluster", "pause", "--dry-run", "--service", &service]).bad("SERVICE_UNREACHABLE");
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    assert!(message.contains("nothing was ordered"), "{message}");
    assert_eq!(older.join().unwrap(), ["GET /v1/qstage/openapi.json HTTP/1.1"]);
}

/// With no door that opens it cannot serve; one that does is enough (see the service's own tests).
#[test]
fn a_service_without_a_door_ends() {
    let bench = Bench::installed();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = bench.at(&["serve", "--listen", &address, "--socket", "none"]).bad("LISTEN");
    assert!(message.contains(&address), "{message}");
}
