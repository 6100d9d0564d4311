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
    /// Status and body of a refusal.
    refusal: Arc<Mutex<(&'static str, String)>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl LockServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (grants, asked) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<(String, Value)>>>::default());
        let full = json!({"kind": "all_slots_full", "value": "node 9 has it"}).to_string();
        let refusal = Arc::new(Mutex::new(("409 Conflict", full)));
        let (granted, seen, refused) = (Arc::clone(&grants), Arc::clone(&asked), Arc::clone(&refusal));
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
                    false => refused.lock().unwrap().clone(),
                };
                let length = answer.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
                );
            }
        });
        Self { url, grants, refusal, asked }
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

/// The status says what the reboot waits for, and no client takes that for a failed upgrade.
fn shows(service: &Server, why: &str) {
    service.until(why, |service| {
        let reboot = get(service, "/v1/shutdown/reboot/status");
        reboot["state"] == "REBOOT_IN_PROGRESS" && reboot["error_message"].as_str().unwrap().contains(why)
    });
    let details = get(service, "/v1/qstage/status")["details"].as_str().unwrap().to_owned();
    assert!(details.contains("waiting for the fleet lock: ") && details.contains(why), "{details}");
    assert_eq!(get(service, "/v1/upgrade/status")["details"], "");
    assert!(get(service, "/v3/upgrade/status")["error_info"].is_null());
}

/// The power fails while the lock is waited for: the new release boots without it, and asks for it during its trial.
#[test]
fn a_power_cut_before_the_lock_is_granted() {
    let (bench, lock) = (Bench::new(None), LockServer::start());
    configure(&bench, &lock, 60);
    let mut service = bench.serve();
    upgrade(&service, &bench.text("v2.qimg"));
    shows(&service, "node 9 has it");
    service.kill();
    let service = bench.serve_with(&["--booted", "b"]);
    service.until("it says so", |service| service.log().contains("on trial without the fleet lock: "));
    let before = lock.asked("/v1/pre-reboot");
    lock.grants.store(true, Ordering::Relaxed);
    service.until("it asks again", |_| lock.asked("/v1/pre-reboot") > before);
    let held = lock.asked("/v1/pre-reboot");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(
        (lock.asked("/v1/pre-reboot"), lock.asked("/v1/steady-state")),
        (held, 0),
        "once, and not released"
    );
    let (status, text) = service.try_call("POST", "/v1/qstage/mark-good", "{}").unwrap();
    assert_eq!(status, 200, "{text}");
    service.until("it is given back", |_| lock.asked("/v1/steady-state") == 1);
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
    shows(&service, "all_slots_full: node 9 has it");
    // A server that is ill is waited for too.
    let ill = ("503 Service Unavailable", String::new());
    let full = std::mem::replace(&mut *lock.refusal.lock().unwrap(), ill);
    shows(&service, "the server responds with status 503");
    *lock.refusal.lock().unwrap() = full;
    lock.grants.store(true, Ordering::Relaxed);
    service.until("it reboots", |_| bench.path("rebooting").exists());
    let body = json!({"client_params": {"id": "node7", "group": "workers"}});
    assert!(
        lock.asked.lock().unwrap().iter().all(|(path, asked)| path == "/v1/pre-reboot" && *asked == body)
    );
    // The new release is on trial: the lock is held, through a restart of the service too. Nothing is waited for any more.
    assert_eq!(get(&service, "/v1/shutdown/reboot/status")["error_message"], "");
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
    // The server has refused each request: there is nothing to release, and a reboot by hand boots a trial that requests it.
    let record = || std::fs::read_to_string(bench.path("state").join("fleet-lock")).unwrap_or_default();
    assert!(record().ends_with(" released"), "{}", record());
    assert_eq!(lock.asked("/v1/steady-state"), 1);
    // After a request without an answer the lock may be held: it is released.
    *lock.refusal.lock().unwrap() = ("503 Service Unavailable", String::new());
    let before = lock.asked("/v1/pre-reboot");
    assert_eq!(service.try_call("POST", "/v1/shutdown/reboot/start", "{}").unwrap().0, 202);
    service.until("it is requested", |_| lock.asked("/v1/pre-reboot") > before);
    service.until("it is given back", |_| lock.asked("/v1/steady-state") == 2);
    service.until("that is recorded", |_| record().ends_with(" released"));
    drop(service);
    // Without a command that reboots there is nothing to lock.
    bench.configure(None, &format!("[reboot]\nfleet_lock = {:?}\nfleet_lock_id = \"node7\"\n", lock.url));
    let output = bench.qstage(&["serve", "--listen", "127.0.0.1:0"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("[reboot] fleet_lock"), "{told}");
    assert!(told.contains("reboot_command"), "{told}");
}
