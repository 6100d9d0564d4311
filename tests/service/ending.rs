//! SIGTERM ends the service at once, in each phase and whatever its clients do.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::harness::clock::{Clock, at_once};
use crate::harness::server::{Bench, Server, alive};
use crate::harness::web::Full;

/// A request over the Unix socket; the answer is not read.
fn request(server: &Server, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).unwrap();
    stream
}

fn prepare(server: &Server, url: &str) -> UnixStream {
    let order = json!({"image_path": url}).to_string();
    request(server, "POST", "/v2/upgrade/prepare", &order)
}

/// Ends the service, and asserts that it and the processes that it started are gone in time.
#[track_caller]
fn ends(phase: &str, mut server: Server) {
    let children = server.children();
    let begun = Clock::start();
    server.end();
    at_once(begun, phase);
    assert!(children.iter().all(|pid| !alive(*pid)), "{phase}: a process is left");
}

#[test]
fn sigterm_ends_each_phase_at_once() {
    let bench = Bench::new(Some("1M"));
    let full = Full::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    bench.configure(Some("1M"), &format!("image_urls = [\"http://{at}/\", \"{}/\"]\n", full.url));

    ends("idle", bench.serve());

    let server = bench.serve();
    let _waiting = prepare(&server, &format!("{}/x.qimg", full.url));
    server.until("a process connects", |server| !server.children().is_empty());
    std::thread::sleep(Duration::from_millis(300));
    ends("connecting", server);

    let server = bench.serve();
    let _waiting = prepare(&server, &format!("http://{at}/x.qimg"));
    let _held = silent.accept().unwrap();
    ends("a server without an answer", server);

    // The head is enough for the plan; then nothing comes.
    let server = bench.serve();
    let bundle = std::fs::read(bench.path("v2.qimg")).unwrap();
    let _waiting = prepare(&server, &format!("http://{at}/x.qimg"));
    let mut held = loop {
        let (mut stream, _) = silent.accept().unwrap();
        let mut request = [0; 4096];
        let len = stream.read(&mut request).unwrap();
        if !String::from_utf8_lossy(&request[..len]).contains(".qdelta") {
            break stream;
        }
        stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bundle.len());
    held.write_all(head.as_bytes()).unwrap();
    held.write_all(&bundle[..bundle.len() / 2]).unwrap();
    server.until("it prepares", |server| server.state() == "PREPARING");
    server.until("it writes", |server| server.status()["progress"].as_u64().is_some_and(|done| done > 0));
    ends("a server that falls silent", server);

    let server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), false);
    server.until("it writes", |server| server.status()["progress"].as_u64().is_some_and(|done| done > 0));
    ends("a prepare that writes", server);

    // Half of a request; and a client that reads nothing of what it asks for again and again.
    let server = bench.serve();
    let mut half = UnixStream::connect(&server.socket).unwrap();
    half.write_all(b"POST /v2/upgrade/prepare HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let mut deaf = UnixStream::connect(&server.socket).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let again = b"GET /v1/qstage/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
    while deaf.write(&again).is_ok() {}
    ends("slow clients", server);

    let server = bench.serve();
    let mut events = request(&server, "GET", "/v1/qstage/events", "");
    assert!(events.read(&mut [0; 4096]).unwrap() > 0);
    ends("an open stream of events", server);
}
