//! Bundles that callers may name, secrets that are not shown to them, and what of a request is stored.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::clock::{Clock, at_once};
use crate::harness::server::{Bench, Server, run};

/// A request with headers of its own; the whole answer.
fn ask(server: &Server, request: &str, headers: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The same over HTTPS from this machine, without a token unless `more` has one.
fn curl(server: &Server, path: &str, more: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-sk", "--noproxy", "*", "-w", "%{http_code}"]).args(more);
    run(curl.arg(format!("https://{}{path}", server.address)))
}

fn refused(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error_class"].as_str().unwrap_or_default())
}

fn audit(server: &Server) -> Vec<Value> {
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}

/// With a token that may write and the digest of nothing else.
fn with_token(bench: &Bench, more: &str) {
    let hash = run(Command::new("sh").args(["-c", "printf www | sha256sum"]));
    fs::write(bench.path("tokens"), format!("writer write {}\n", &hash[..64])).unwrap();
    bench.configure(None, &format!("tokens = {:?}\n{more}", bench.path("tokens")));
}

#[test]
fn only_configured_places_are_read() {
    let bench = Bench::new(None);
    fs::create_dir(bench.path("upgrade")).unwrap();
    fs::copy(bench.path("v2.qimg"), bench.path("upgrade/v2.qimg")).unwrap();
    std::os::unix::fs::symlink(bench.path("v2.qimg"), bench.path("upgrade/link")).unwrap();
    let server_of_others = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpListener::bind("127.0.0.1:0").unwrap();
    let (other, our) = (server_of_others.local_addr().unwrap(), ours.local_addr().unwrap());
    bench.configure(
        None,
        &format!("image_paths = [{:?}]\nimage_urls = [\"http://{our}/\"]\n", bench.path("upgrade")),
    );
    std::thread::spawn(move || {
        for stream in ours.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "HTTP/1.1 302 F\r\nLocation: http://{other}/x\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let server = bench.serve();
    for path in [
        bench.text("v2.qimg"),
        bench.text("upgrade/../v2.qimg"),
        bench.text("upgrade/link"),
        "/etc/shadow".into(),
    ] {
        assert_eq!(refused(&server.try_prepare(&path, false)), (400, "UPGRADE_ERROR_BAD_REQUEST"), "{path}");
        assert_eq!(refused(&server.post("/v1/qstage/plan", &json!({"image_path": path}))).0, 400, "{path}");
    }
    // What is there and what is not, and which door of this machine is open, is not found out in this way.
    let url = |url: String| server.try_prepare(&url, false);
    assert_eq!(refused(&url(format!("http://{other}/x"))), (400, "UPGRADE_ERROR_BAD_REQUEST"));
    let answer = url(format!("http://{our}/x"));
    assert_eq!(answer.0, 502, "{answer:?}");
    assert!(answer.1["description"].as_str().unwrap().contains("redirect"), "{answer:?}");
    server_of_others.set_nonblocking(true).unwrap();
    assert!(server_of_others.accept().is_err(), "the other server was asked");
    server.prepare(&bench.text("upgrade/v2.qimg"), false);
    server.reach("PREPARED");
}

/// A password in a URL is seen nowhere: not by the status, the log, the files, the history or the list of processes.
#[test]
fn what_is_secret_in_a_url_is_shown_nowhere() {
    let bench = Bench::new(None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    bench.configure(Some("1M"), &format!("image_urls = [\"http://{at}/\"]\n"));
    let bytes = fs::read(bench.path("v2.qimg")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
            let _ = stream.write_all(&bytes);
        }
    });
    let server = bench.serve();
    server.prepare(&format!("http://u:hunter2@{at}/v2.qimg?sig=hunter2#hunter2"), false);
    assert_eq!(server.state(), "PREPARING");
    let shown = |server: &Server| {
        let mut all = vec![server.log()];
        for path in [
            "/v1/upgrade/status",
            "/v3/upgrade/status",
            "/v1/upgrade/settings",
            "/v1/qstage/status",
            "/v1/qstage/history",
        ] {
            all.push(server.get(path).to_string());
        }
        for entry in walk(&bench.path("state")) {
            all.push(String::from_utf8_lossy(&fs::read(entry).unwrap()).into_owned());
        }
        for child in server.children() {
            all.push(fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default());
        }
        all
    };
    let all = shown(&server);
    assert!(all.iter().any(|text| text.contains("prepare\0--json")), "the process is looked at");
    assert!(all.iter().all(|text| !text.contains("hunter2")), "{all:#?}");
    assert!(all.iter().any(|text| text.contains(&format!("http://{at}/v2.qimg"))), "but the rest of it is");
    assert_eq!(server.post("/v1/qstage/cancel", &Value::Null).0, 200);
    assert_eq!(server.try_prepare(&format!("http://u:hunter2@{at}:1/?hunter2"), false).0, 400);
    assert!(shown(&server).iter().all(|text| !text.contains("hunter2")));
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries
        .flat_map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

/// A server that takes the connection and says nothing: neither a cancel nor a stop of the service waits for it.
#[test]
fn a_silent_server_holds_nothing() {
    let bench = Bench::new(None);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    bench.configure(None, &format!("image_urls = [\"http://{at}/\"]\n"));
    let mut server = bench.serve();
    let order = json!({"image_path": format!("http://{at}/x.qimg")}).to_string();
    let request = |socket: std::path::PathBuf, order: String| {
        std::thread::spawn(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            let head = format!(
                "POST /v2/upgrade/prepare HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{order}",
                order.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        })
    };
    let asked = request(server.socket.clone(), order.clone());
    let _held = listener.accept().unwrap();
    let begun = Clock::start();
    assert_eq!(server.post("/v1/qstage/cancel", &Value::Null), (200, Value::Null));
    let answer = asked.join().unwrap();
    at_once(begun, "a cancel");
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("UPGRADE_ERROR_CANCELLED"), "{answer}");
    assert_eq!(server.state(), "IDLE");
    let asked = request(server.socket.clone(), order);
    let _held = listener.accept().unwrap();
    let begun = Clock::start();
    let children = server.children();
    server.end();
    at_once(begun, "the end");
    let _ = asked.join();
    assert!(children.iter().all(|pid| !crate::harness::server::alive(*pid)), "a process is left");
}

/// Who, what, which bundle, outcome; and no line is longer for a longer request.
#[test]
fn records_name_the_bundle_and_are_short() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let plan = bench.qstage(&["plan", &bench.text("v2.qimg"), "--json", "--booted", "a"]);
    let digest = serde_json::from_slice::<Value>(&plan.stdout).unwrap()["manifest"].clone();
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
    let none = bench.text("none");
    server.try_prepare(&none, false);
    let long = format!("/{}\u{202e}", "x".repeat(50_000));
    server.try_prepare(&long, false);
    let path = format!("/{}", "y".repeat(8_000));
    server.try_call("POST", &path, "");
    // The log is written by a thread, which no answer waits for.
    server.until("four records", |server| audit(server).len() >= 4);
    let records = audit(&server);
    let prepared = records.iter().find(|line| line["status"] == 202).unwrap();
    assert_eq!(
        (&prepared["path"], &prepared["digest"]),
        (&json!(bench.text("v2.qimg")), &digest),
        "{prepared}"
    );
    assert_eq!(prepared["outcome"], "UPGRADE_ERROR_NO_ERROR");
    let missing = records.iter().find(|line| line["path"] == none.as_str()).unwrap();
    assert_eq!(missing["outcome"], "UPGRADE_ERROR_OPEN");
    assert_eq!(records.len(), 4, "{records:#?}");
    assert!(server.log().lines().all(|line| line.len() < 4000), "a line is as long as a request");
}

/// Untrusted input has no effect on the terminal of a reader of the log or an answer.
#[test]
fn what_acts_is_escaped_in_answers_and_in_the_log() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let acting = "\u{1b}[2J\u{9b}2J\u{202e}\u{200b}\u{2028}\u{ad}";
    let order = json!({"image_path": bench.text(acting)}).to_string();
    let answer = ask(&server, "POST /v2/upgrade/prepare", "", &order);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    server.post("/v2/upgrade/verify-image", &json!({"image_path": acting}));
    // The name of a bundle that exists is in the status, in events and in the log.
    fs::copy(bench.path("v2.qimg"), bench.path(acting)).unwrap();
    let order = json!({"image_path": bench.text(acting)}).to_string();
    let accepted = ask(&server, "POST /v2/upgrade/prepare", "", &order);
    assert!(accepted.starts_with("HTTP/1.1 202"), "{accepted}");
    let status = ask(&server, "GET /v1/upgrade/status", "", "");
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.write_all(b"GET /v3/upgrade/status HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/qstage/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut events = String::new();
    while !events.contains("data:") {
        let mut part = [0; 65536];
        let len = stream.read(&mut part).unwrap();
        assert_ne!(len, 0, "{events}");
        events += std::str::from_utf8(&part[..len]).unwrap();
    }
    for text in [answer, status, events, server.log(), fs::read_to_string(bench.path("log")).unwrap()] {
        assert!(text.contains("202e"), "it is shown: {text:?}");
        let acts = |c: char| {
            !matches!(c, '\n' | '\r') && (c.is_control() || acting[4..].contains(c) && !c.is_ascii())
        };
        assert!(!text.contains(acts), "{text:?}");
    }
}

#[test]
fn failed_logins_are_limited_and_lock_nobody_out() {
    let bench = Bench::new(None);
    with_token(&bench, "");
    let server = bench.serve();
    let ask = |token: &str| {
        let answer = ask(&server, "GET /v1/version", &format!("Authorization: Bearer {token}\r\n"), "");
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let begun = Instant::now();
    let within = (0..1000).take_while(|_| ask("wrong") == 401).count();
    // 64 at once, and one more each second.
    let most = 65 + begun.elapsed().as_secs() as usize;
    assert!((64..=most).contains(&within), "{within} of {most}");
    let begun = Instant::now();
    let late = ask("wrong");
    assert!(late == 401 || late == 429 && begun.elapsed() >= Duration::from_secs(1), "{late}");
    assert_eq!(ask("www"), 200, "who has a token gets in");
    assert!(audit(&server).len() <= within + 2, "and the log is not filled");
}

#[test]
fn the_service_answers_to_its_own_names() {
    let bench = Bench::new(None);
    bench.configure(None, "hosts = [\"node7.example.org\"]\n");
    let server = bench.serve();
    for (host, status) in [("localhost:1", "200"), ("node7.example.org", "200"), ("evil.example", "421")] {
        let answer = curl(&server, "/v1/version", &["-H", &format!("Host: {host}")]);
        assert!(answer.ends_with(status), "{host}: {answer}");
    }
}

/// Messages name paths, keys and untrusted input; a caller that may only read gets what clients need.
#[test]
fn readers_see_code_and_class() {
    let bench = Bench::new(None);
    with_token(&bench, "");
    let server = bench.serve();
    server.try_prepare(&bench.text("bad.qimg"), false);
    server.until("it fails", |server| {
        server.get("/v1/upgrade/status")["error_state"] != "UPGRADE_ERROR_NO_ERROR"
    });
    let full = server.get("/v1/upgrade/status");
    let code = full["error_state"].as_str().unwrap();
    let message = full["error_message"].as_str().unwrap();
    assert!(message.len() > 40 && !message.contains(code), "{full}");
    let reader = curl(&server, "/v1/upgrade/status", &[]);
    assert!(reader.contains(&format!("\"error_message\":\"{code} (bundle)\"")), "{reader}");
    let holder = curl(&server, "/v1/upgrade/status", &["-H", "Authorization: Bearer www"]);
    assert_eq!(holder.trim_end_matches("200").parse::<Value>().unwrap(), full);
    for path in ["/v3/upgrade/status", "/v1/qstage/status", "/v1/qstage/history", "/v1/qstage/slots"] {
        let shown = curl(&server, path, &[]);
        assert!(!shown.contains(message), "{path}: {shown}");
    }
}

/// A full or read-only /var, and a port that is in use: the service offers the rest.
#[test]
fn a_place_that_cannot_be_written_keeps_nothing_from_starting() {
    let bench = Bench::new(None);
    let config = fs::read_to_string(bench.path("config")).unwrap();
    fs::write(bench.path("file"), "").unwrap();
    let unusable = config.replace(&bench.text("state"), &bench.text("file/state"));
    fs::write(bench.path("config"), unusable).unwrap();
    let server = bench.serve();
    assert!(curl(&server, "/v1/version", &[]).ends_with("200"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<&str> = files.split_whitespace().collect();
    assert!(words[3] == words[4] || words[3] == "65536", "{files}");
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
}
