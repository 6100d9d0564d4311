//! A reboot under the lock of a FleetLock server: the lock is requested before the reboot, and released after mark-good.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::server::{Bench, Server};

/// A server of the protocol for one machine.
struct LockServer {
    url: String,
    grants: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl LockServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (grants, asked) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<(String, Value)>>>::default());
        let (granted, seen) = (Arc::clone(&grants), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
                let head = head.to_lowercase();
                let field = |name: &str| {
                    head.lines()
                        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
                        .unwrap_or("")
                        .to_owned()
                };
                assert_eq!(field("fleet-lock-protocol"), "true", "{head}");
                assert!(head.starts_with("post /v1/"), "{head}");
                let mut body = vec![0; field("content-length").parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let grants = granted.load(Ordering::Relaxed) || path == "/v1/steady-state";
                seen.lock().unwrap().push((path, serde_json::from_slice(&body).unwrap()));
                let (status, answer) = match grants {
                    true => ("200 OK", String::new()),
                    false => (
                        "409 Conflict",
                        json!({"kind": "all_slots_full", "value": "node 9 has it"}).to_string(),
                    ),
                };
                let length = answer.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
                );
            }
        });
        Self { url, grants, asked }
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(asked, _)| asked == path).count()
    }
}

fn configure(bench: &Bench, server: &LockServer, timeout: u32) {
    let service = format!(
        "reboot_command = [\"touch\", {:?}]\n[reboot]\nfleet_lock = {:?}\nfleet_lock_group = \"workers\"\nfleet_lock_id = \"node7\"\n\
         fleet_lock_timeout = {timeout}\n",
        bench.path("rebooting"),
        server.url
    );
    bench.configure(None, &service);
}

fn upgrade(server: &Server, bundle: &str) {
    let order = json!({"image_path": bundle, "auto_commit": true, "do_rolling_reboot": false, "num_nodes_to_reboot": null});
    let (status, text) = server.try_call("POST", "/v2/upgrade/prepare", &order.to_string()).unwrap();
    assert_eq!(status, 202, "{text}");
}

fn get(server: &Server, path: &str) -> Value {
    serde_json::from_str(&server.try_call("GET", path, "").unwrap().1).unwrap()
}

#[test]
fn a_reboot_holds_the_lock_until_the_release_is_good() {
    let (bench, lock) = (Bench::new(None), LockServer::start());
    configure(&bench, &lock, 60);
    let service = bench.serve();
    upgrade(&service, &bench.text("v2.qimg"));
    // Another machine holds it: this one waits, and does not reboot.
    service.until("it waits", |service| service.log().contains("all_slots_full: node 9 has it"));
    assert_eq!(get(&service, "/v3/upgrade/status")["state"], "UPGRADE_STATE_REBOOTING");
    assert!(!bench.path("rebooting").exists());
    lock.grants.store(true, Ordering::Relaxed);
    service.until("it reboots", |_| bench.path("rebooting").exists());
    let body = json!({"client_params": {"id": "node7", "group": "workers"}});
    assert!(
        lock.asked.lock().unwrap().iter().all(|(path, asked)| path == "/v1/pre-reboot" && *asked == body)
    );
    // The new release is on trial: the lock is held, through a restart of the service too.
    drop(service);
    let service = bench.serve_with(&["--booted", "b"]);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(lock.asked("/v1/steady-state"), 0, "it has not proved good");
    let (status, text) = service.try_call("POST", "/v1/qstage/mark-good", "{}").unwrap();
    assert_eq!(status, 200, "{text}");
    service.until("it is given back", |_| lock.asked("/v1/steady-state") == 1);
    service.until("it is forgotten", |_| !bench.path("state").join("fleet-lock").exists());
    // A lock that is not granted in time is an error, and the request is withdrawn. (A new platform: software alone needs no
    // reboot, so no lock.)
    bench.pack("v4.qimg", "4.0", "p3", "s1");
    drop(service);
    let _ = std::fs::remove_file(bench.path("rebooting"));
    lock.grants.store(false, Ordering::Relaxed);
    configure(&bench, &lock, 1);
    let service = bench.serve_with(&["--booted", "b"]);
    upgrade(&service, &bench.text("v4.qimg"));
    service.until("it gives up", |service| !get(service, "/v3/upgrade/status")["error_info"].is_null());
    let told = get(&service, "/v3/upgrade/status")["error_info"].as_str().unwrap().to_owned();
    assert!(service.log().contains("UPGRADE_ERROR_FLEET_LOCK"));
    assert!(told.contains("is not granted: all_slots_full: node 9 has it"), "{told}");
    assert!(!bench.path("rebooting").exists());
    service.until("it is given back", |_| lock.asked("/v1/steady-state") == 2);
    drop(service);
    // Without a command that reboots there is nothing to lock.
    bench.configure(None, &format!("[reboot]\nfleet_lock = {:?}\nfleet_lock_id = \"node7\"\n", lock.url));
    let output = bench.qstage(&["serve", "--listen", "127.0.0.1:0"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("[reboot] fleet_lock"), "{told}");
    assert!(told.contains("reboot_command"), "{told}");
}
