//! A cancel ends each phase of a transfer at once, and leaves a service that is idle.

use std::cell::RefCell;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::clock::{Clock, at_once};
use crate::harness::machine::is_root;
use crate::harness::server::{Bench, QSTAGE, Server, alive};
use crate::harness::web::{self, Full, partial, status};

/// How long the servers are silent: longer than the test.
const LONG: Duration = Duration::from_secs(60);

/// Whether a process requests a connection to this address and has no answer: SYN_SENT in proc_net_tcp(5).
fn connects_to(url: &str) -> bool {
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == "02"
    })
}

/// Whether the slot is no longer as it was.
fn has_written(server: &Server) -> bool {
    server.state() == "PREPARING" && server.slot("platform", "b")["state"] == "torn"
}

/// A bench whose service may read from these addresses.
fn bench(urls: &[&str]) -> Bench {
    let bench = Bench::new(None);
    let allowed: Vec<String> =
        urls.iter().map(|url| format!("{}/", url.trim_end_matches("/x.qimg"))).collect();
    bench.configure(None, &format!("image_urls = {allowed:?}\n"));
    bench
}

/// Requests a prepare, waits until `reached`, and cancels it. `accepted`: the prepare was answered before, since its plan was
/// made; else the cancel answers it.
#[track_caller]
fn cancels(phase: &str, server: &Server, url: &str, accepted: bool, reached: impl Fn() -> bool) {
    let order = json!({"image_path": url}).to_string();
    std::thread::scope(|scope| {
        let prepare = scope.spawn(|| server.try_call("POST", "/v2/upgrade/prepare", &order).unwrap());
        server.until(phase, |_| reached());
        // A response is on its way to the process: it begins to wait for the rest now.
        std::thread::sleep(Duration::from_millis(200));
        if accepted {
            server.until("the prepare is answered", |_| prepare.is_finished());
        }
        assert!(accepted == prepare.is_finished(), "{phase}: the prepare is answered: {}", !accepted);
        let children = server.children();
        assert_eq!(children.len(), 1, "{phase}: a process waits");
        let begun = Clock::start();
        assert_eq!(server.post("/v1/qstage/cancel", &Value::Null), (200, Value::Null), "{phase}");
        let (code, answer) = prepare.join().unwrap();
        while children.iter().any(|pid| alive(*pid)) && begun.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(5));
        }
        at_once(begun, phase);
        if accepted {
            assert_eq!(code, 202, "{phase}: {answer}");
            let status = server.status();
            assert!(status["error_info"].as_str().unwrap().contains("cancelled"), "{phase}: {status}");
            assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_CANCELLED", "{phase}");
        } else {
            assert!(code == 409 && answer.contains("UPGRADE_ERROR_CANCELLED"), "{phase}: {code} {answer}");
        }
    });
    assert_eq!(server.state(), "IDLE", "{phase}");
    assert_eq!(server.slot("platform", "b")["state"], "empty", "{phase}");
    server.until("no process is left", |server| server.children().is_empty());
}

#[test]
fn a_cancel_ends_each_phase_of_a_transfer_at_once() {
    let full = Full::new();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    deaf.set_nonblocking(true).unwrap();
    let tls = format!("https://{}/x.qimg", deaf.local_addr().unwrap());
    let held: RefCell<Vec<TcpStream>> = RefCell::default();
    let accepts = || deaf.accept().map(|(stream, _)| held.borrow_mut().push(stream)).is_ok();

    // The file is the bundle of the bench, which is made when the addresses are known.
    let file = std::sync::Arc::new(std::sync::OnceLock::<Vec<u8>>::new());
    let serve = |manners: fn(&web::Asked, &[u8], &mut TcpStream) -> std::io::Result<()>| {
        let file = std::sync::Arc::clone(&file);
        web::Server::new(Vec::new(), move |asked, _, stream| manners(asked, file.get().unwrap(), stream))
    };
    let head = serve(|_, _, _| {
        std::thread::sleep(LONG);
        Ok(())
    });
    let body = serve(|asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..100])?;
        std::thread::sleep(LONG);
        Ok(())
    });
    let frames = serve(|asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[asked.at..asked.at.max(file.len() / 2)])?;
        std::thread::sleep(LONG);
        Ok(())
    });
    let back_off = serve(|_, _, stream| status("503 Busy", "Retry-After: 60\r\n", stream));
    let breaks = serve(|asked, file, stream| {
        if asked.number > 1 {
            return status("503 Busy", "Retry-After: 60\r\n", stream);
        }
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..file.len() / 2])
    });
    let bench = bench(&[&full.url, &tls, &head.url, &body.url, &frames.url, &back_off.url, &breaks.url]);
    file.set(std::fs::read(bench.path("v2.qimg")).unwrap()).unwrap();
    let server = bench.serve();

    cancels("connecting", &server, &format!("{}/x.qimg", full.url), false, || connects_to(&full.url));
    cancels("a handshake of TLS", &server, &tls, false, accepts);
    cancels("the header", &server, &head.url, false, || head.requests() > 0);
    cancels("the body", &server, &body.url, false, || body.requests() > 0);
    cancels("the frames", &server, &frames.url, true, || has_written(&server));
    cancels("a back-off", &server, &back_off.url, false, || back_off.requests() > 0);
    let again = || breaks.requests() > 1 && has_written(&server);
    cancels("a back-off within the frames", &server, &breaks.url, true, again);

    // The slot that two of them began is written from its start, and nothing else is left of any of them.
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
}

/// Proxies and name servers are other programs than the server.
#[test]
fn a_cancel_ends_the_waits_for_proxies_and_name_servers_at_once() {
    let proxy = web::Server::new(Vec::new(), |_, _, _| {
        std::thread::sleep(LONG);
        Ok(())
    });
    let (http, https, name) =
        ("http://h.invalid/x.qimg", "https://h.invalid/x.qimg", "http://n.invalid/x.qimg");
    let bench = bench(&[http, https, name]);
    let any = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("127.{}.0.54", 2 + any.local_addr().unwrap().port() % 250);
    let names = is_root().then(|| UdpSocket::bind((address.as_str(), 53)).unwrap());
    let mut command = Command::new(QSTAGE);
    if names.is_some() {
        // For the service and its processes only.
        let text = format!("nameserver {address}\noptions timeout:30\n");
        std::fs::write(bench.path("resolv.conf"), text).unwrap();
        command = Command::new("unshare");
        command.args([
            "--mount",
            "sh",
            "-c",
            "mount --bind resolv.conf /etc/resolv.conf && exec \"$0\" \"$@\"",
        ]);
        command.arg(QSTAGE).current_dir(bench.path("."));
    }
    command.envs([("http_proxy", proxy.host()), ("https_proxy", proxy.host()), ("no_proxy", "n.invalid")]);
    let server = bench.serve_by(command, &["--booted", "a"]);
    for (phase, url) in [("a proxy", http), ("a tunnel", https)] {
        let before = proxy.requests();
        cancels(phase, &server, url, false, || proxy.requests() > before);
    }
    if let Some(names) = names {
        names.set_nonblocking(true).unwrap();
        cancels("a name", &server, name, false, || names.recv(&mut [0; 512]).is_ok());
    }
}
