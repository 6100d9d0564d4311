//! A service whose disk accepts requests and completes none: clients get responses, and a stop request is obeyed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::clock::Clock;
use crate::harness::machine::is_root;
use crate::harness::nbd::{Nbd, is_held};
use crate::harness::server::{Bench, Server};

/// What the issue grants an answer, and what a loaded machine takes on top.
const SOON: Duration = Duration::from_millis(3000 + 1000);

/// An answer, and whether it came soon.
#[track_caller]
fn soon(server: &Server, method: &str, path: &str, body: &Value) -> (u16, String) {
    let begun = Clock::start();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = server.try_call(method, path, &body).expect("the service answers");
    assert!(begun.elapsed() < SOON, "{method} {path} took {:?}", begun.elapsed());
    answer
}

#[test]
fn a_disk_that_hangs_holds_no_request_and_no_end() {
    if !is_root() {
        return;
    }
    // More than both prepares write: one whose frames are in place already would end before the disk falls silent.
    let bench = Bench::sized(Some("1M"), 24);
    let disk = Nbd::new(&bench.path("disk"), &bench.path("."));
    let device = disk.device.to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(bench.path("config")).unwrap();
    let image = format!("disk = {:?}", bench.text("disk"));
    assert!(text.contains(&image));
    std::fs::write(bench.path("config"), text.replace(&image, &format!("disk = {device:?}"))).unwrap();

    // A line for the history.
    bench.qstage(&["cancel"]);
    let mut server = bench.serve();
    let goes_on = disk.goes_on();
    let writes = |server: &Server| {
        server.prepare(&bench.text("v2.qimg"), false);
        server.until("it writes", |server| server.status()["progress"].as_u64().is_some_and(|n| n > 0));
    };
    writes(&server);
    disk.pause(true);
    let silent = format!("no answer from {device} for ");
    server.until("it says so", |server| {
        let (_, status) = soon(server, "GET", "/v3/upgrade/status", &Value::Null);
        assert!(status.contains("PREPARING"), "{status}");
        soon(server, "GET", "/v1/qstage/status", &Value::Null).1.contains(&silent)
    });
    // What is known: the state, the slots as they were seen last, the history of this disk.
    let get = |path: &str| soon(&server, "GET", path, &Value::Null);
    let (status, slots) = get("/v1/qstage/slots");
    assert!(status == 200 && slots.contains("platform"), "{slots}");
    let (status, history) = get("/v1/qstage/history");
    assert!(status == 200 && history.contains("cancel"), "{history}");
    let (status, metrics) = get("/v1/qstage/metrics");
    let line = metrics.lines().find(|line| line.contains("silent") && !line.starts_with('#'));
    let seconds: u64 = line.unwrap_or(&metrics).rsplit(' ').next().unwrap().parse().expect(&metrics);
    assert!(status == 200 && seconds > 0, "{metrics}");
    let plan = soon(&server, "POST", "/v1/qstage/plan", &json!({"image_path": bench.text("v2.qimg")}));
    assert!(plan.1.contains("NO_ANSWER"), "{plan:?}");
    let cancel = soon(&server, "POST", "/v1/qstage/cancel", &Value::Null);
    assert!(cancel.1.contains("NO_ANSWER") && cancel.1.contains(&device), "{cancel:?}");
    disk.pause(false);
    server.until("cancelled", |server| server.state() == "IDLE" && server.children().is_empty());

    // What can be ended ends; the log names what cannot.
    let says = |server: &Server, word: &str| server.get("/v1/qstage/status").to_string().contains(word);
    server.until("the disk is back", |server| !says(server, "no answer"));
    writes(&server);
    disk.pause(true);
    server.until("it says so", |server| says(server, &silent));
    // The silence may be that of a look of the service: a prepare between two writes could still end in good order.
    server.until("the prepare hangs", |server| server.children().into_iter().any(is_held));
    let pid = nix::unistd::Pid::from_raw(server.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    server.until("it names the device", |server| {
        let log = server.log();
        log.lines().any(|line| line.contains("does not end") && line.contains(&device))
    });
    drop(goes_on);
    server.end();
}
