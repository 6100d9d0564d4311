//! Access rights of callers, and malformed requests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use server::{Bench, run};

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error_class"].as_str().unwrap_or_default())
}

#[test]
fn malformed_requests_are_answered_and_harm_nothing() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let raw = |request: &[u8]| {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let post = |body: &str| server.try_call("POST", "/v2/upgrade/prepare", body).unwrap();
    for body in [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        "{\"image_path\":7}",
        "{\"image_path\":\"/x\",\"auto_commit\":\"yes\"}",
        "\u{0}",
    ] {
        let (status, answer) = post(body);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(code(&(status, answer.clone())), (400, "UPGRADE_ERROR_BAD_REQUEST"), "{body:?} {answer}");
        let keys: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["description", "error_class", "module", "stack", "user_visible"]);
    }
    let deep = "[".repeat(60_000);
    assert_eq!(post(&deep).0, 400, "too deep");
    let (status, answer) = post(&format!("{{\"image_path\":\"/{}\"}}", "x".repeat(70_000)));
    assert!(status == 413 && answer.contains("error_class"), "{status} {answer}");
    let long = format!("GET /v1/version HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    assert!(raw(long.as_bytes()).starts_with("HTTP/1.1 431"), "a header that is too long");
    assert!(raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").starts_with("HTTP/1.1 400"));
    for (method, path, expected) in
        [("GET", "/v1/none", 404), ("DELETE", "/v3/upgrade/status", 405), ("GET", "/v2/upgrade/commit", 405)]
    {
        let answer = server.call(method, path, &Value::Null);
        assert_eq!(code(&answer), (expected, "UPGRADE_ERROR_NO_SUCH_ENDPOINT"), "{method} {path}");
    }
    assert_eq!(server.state(), "IDLE");
}

/// Everything that the document lists, by everybody who may come: the table of `auth`, by its effect.
#[test]
fn every_endpoint_asks_who_it_is() {
    let bench = Bench::new(None);
    let hash = |token: &str| {
        let file = bench.path("token");
        std::fs::write(&file, token).unwrap();
        run(Command::new("sha256sum").arg(file)).split(' ').next().unwrap().to_owned()
    };
    std::fs::write(
        bench.path("tokens"),
        format!("reader read {}\nwriter write {}\n", hash("rrr"), hash("www")),
    )
    .unwrap();
    bench.configure(None, &format!("tokens = {:?}\n", bench.path("tokens")));
    let server = bench.serve();
    let curl = |method: &str, path: &str, token: Option<&str>| {
        let mut curl = Command::new("curl");
        // Events never end: the status is what counts.
        curl.args([
            "-sk",
            "--noproxy",
            "*",
            "--max-time",
            "1",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            method,
        ]);
        token.map(|token| curl.args(["-H", &format!("Authorization: Bearer {token}")]));
        // An empty object orders nothing, so that even a privileged caller changes nothing.
        if method != "GET" {
            curl.args(["-d", "[]"]);
        }
        let output = curl.arg(format!("https://{}{path}", server.address)).output().unwrap();
        String::from_utf8(output.stdout).unwrap().parse::<u16>().unwrap()
    };
    let document = server.get("/v1/qstage/openapi.json");
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            seen += 1;
            let (method, reads) = (method.to_uppercase(), operation["x-privilege"] == "read");
            let at = format!("{method} {path}");
            let granted = |status: u16| status != 401 && status != 403;
            assert_eq!(curl(&method, path, Some("wrong")), 401, "{at}");
            let by_none = curl(&method, path, None);
            let by_reader = curl(&method, path, Some("rrr"));
            if reads {
                // What only a cluster, or a machine with users, can answer says so, to everybody.
                let of_clusters = path.starts_with("/v1/cluster/") || path.starts_with("/v1/qstage/cluster");
                let answers = operation["responses"].get("200").is_some() && !of_clusters;
                let expected = if answers { 200..201 } else { 400..500 };
                assert_eq!(by_none, by_reader, "{at}");
                assert!(expected.contains(&by_none), "{at}: {by_none}");
            } else {
                assert_eq!((by_none, by_reader), (403, 403), "{at}");
                // There are no passwords: a login is refused for every caller.
                let login = path == "/v1/session/login";
                assert_ne!(granted(curl(&method, path, Some("www"))), login, "{at}");
            }
        }
    }
    assert!(seen > 25, "{seen}");
    // Who, what, outcome: one record per change that was tried.
    let log = server.log();
    let audit: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["target"] == "audit")
        .collect();
    let refused = audit.iter().find(|line| line["status"] == 403).unwrap();
    assert!(refused["who"].as_str().unwrap().starts_with("local 127.0.0.1:"), "{refused}");
    let unknown = audit.iter().find(|line| line["status"] == 401).unwrap();
    assert!(unknown["who"].as_str().unwrap().starts_with("unknown, 127.0.0.1:"), "{unknown}");
    assert_eq!(unknown["outcome"], "UPGRADE_ERROR_UNAUTHENTICATED");
    assert!(refused["what"].as_str().unwrap().starts_with("P"), "{refused}");
    assert_eq!(refused["outcome"], "UPGRADE_ERROR_FORBIDDEN");
    assert!(refused["timestamp"].is_string());
    assert!(
        audit.iter().any(|line| line["who"] == "token writer" && line["what"] == "POST /v2/upgrade/commit")
    );
    for secret in ["rrr", "www", "wrong"] {
        assert!(!log.contains(secret), "a token is in the log");
    }
}

#[test]
fn without_authentication_it_must_be_said_so() {
    let bench = Bench::new(None);
    let server = bench.serve_with(&["--booted", "a", "--insecure-no-auth"]);
    assert!(server.log().contains("--insecure-no-auth"), "loudly");
    let mut curl = Command::new("curl");
    curl.args(["-sk", "--noproxy", "*", "-X", "POST", "-w", "%{http_code}"]);
    let answer = run(curl.arg(format!("https://{}/v2/upgrade/commit", server.address)));
    assert!(answer.ends_with("409"), "{answer}");
}
