//! The OpenAPI document against the service: every endpoint is called as the document says, and responds accordingly.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use server::{Bench, check, check_example, run};

/// What clients of the upgrade API call, by its public documentation.
const CONTRACT: [&str; 36] = [
    "GET /v1/upgrade/settings",
    "PUT /v1/upgrade/settings",
    "GET /v1/upgrade/status",
    "GET /v2/upgrade/blocked",
    "POST /v2/upgrade/verify-image",
    "POST /v2/upgrade/prepare",
    "POST /v2/upgrade/commit",
    "GET /v2/upgrade/status",
    "GET /v3/upgrade/status",
    "POST /v1/shutdown/reboot/start",
    "POST /v1/shutdown/reboot/pause",
    "POST /v1/shutdown/reboot/resume",
    "GET /v1/shutdown/reboot/status",
    "POST /v1/shutdown/node/container-restart",
    "POST /v1/shutdown/container-restart",
    "POST /v1/shutdown/container-restart/{node_id}",
    "GET /v1/version",
    "GET /v1/node/state",
    "POST /v1/shutdown/halt",
    "POST /v1/shutdown/halt/{node_id}",
    "POST /v1/shutdown/reboot/{node_id}",
    "POST /v1/upgrade/verify-image",
    "GET /v1/cluster/protection/status",
    "GET /v1/cluster/protection/restriper/status",
    "GET /v1/unconfigured/nodes/",
    "GET /v1/cluster/nodes/",
    "GET /v1/cluster/nodes/{node_id}",
    "GET /v1/cluster/settings",
    "POST /v1/session/login",
    "GET /v1/session/who-am-i",
    "POST /v1/cluster/reboot",
    "POST /v1/cluster/halt",
    "POST /v1/node/reboot",
    "POST /v1/node/halt",
    "GET /v1/session/roles",
    "GET /v1/cluster/restriper/status",
];

/// The changes in an order in which all can be done, each with its body and its status.
fn changes(bundle: &str) -> Vec<(&'static str, Value, u16)> {
    let none = Value::Null;
    let prepare = json!({"image_path": bundle, "auto_commit": false, "do_rolling_reboot": false,
        "num_nodes_to_reboot": null});
    let settings =
        |target: &str| json!({"install_path": bundle, "target": format!("UPGRADE_TARGET_{target}")});
    let reboot = json!({"is_rolling": false, "num_nodes_to_reboot": null});
    vec![
        ("POST /v2/upgrade/verify-image", json!({"image_path": bundle}), 200),
        ("POST /v1/upgrade/verify-image", json!({"image_path": bundle}), 200),
        ("POST /v1/qstage/plan", json!({"image_path": bundle}), 200),
        ("POST /v1/session/login", none.clone(), 401),
        ("POST /v1/shutdown/halt", none.clone(), 409),
        ("POST /v1/shutdown/halt/{node_id}", none.clone(), 409),
        ("POST /v1/cluster/halt", none.clone(), 409),
        ("POST /v1/node/halt", none.clone(), 409),
        ("POST /v2/upgrade/commit", none.clone(), 409),
        ("POST /v2/upgrade/prepare", prepare, 202),
        ("GET PREPARED", none.clone(), 200),
        ("POST /v1/qstage/cancel", none.clone(), 200),
        ("PUT /v1/upgrade/settings", settings("PREPARE"), 200),
        ("GET PREPARED", none.clone(), 200),
        ("PUT /v1/upgrade/settings", settings("ARM"), 200),
        ("GET COMMITTED", none.clone(), 200),
        ("POST /v1/qstage/roll-back", none.clone(), 200),
        ("POST /v1/qstage/mark-good", json!({"slot": null}), 200),
        ("POST /v1/shutdown/node/container-restart", none.clone(), 202),
        ("POST /v1/shutdown/container-restart", none.clone(), 202),
        ("POST /v1/shutdown/container-restart/{node_id}", none.clone(), 202),
        ("POST /v1/qstage/cluster/join", none.clone(), 409),
        ("POST /v1/qstage/cluster/leave", none.clone(), 409),
        ("POST /v1/qstage/cluster/leave/{node_id}", none.clone(), 409),
        ("POST /v1/qstage/cluster/abandon", none.clone(), 409),
        ("POST /v1/qstage/cluster/take-back/{node_id}", none.clone(), 409),
        ("POST /v1/shutdown/reboot/pause", none.clone(), 409),
        ("POST /v1/shutdown/reboot/resume", none.clone(), 409),
        ("POST /v1/shutdown/reboot/start", reboot, 202),
        ("POST /v1/shutdown/reboot/{node_id}", none.clone(), 409),
        ("POST /v1/cluster/reboot", none.clone(), 409),
        ("POST /v1/node/reboot", none, 409),
    ]
}

#[test]
fn every_endpoint_answers_as_the_document_says() {
    let bench = Bench::new(None);
    // "Reboots" to nowhere: what is called last.
    bench.configure(None, "software_restart_command = [\"true\"]\nreboot_command = [\"true\"]\n");
    let server = bench.serve();
    let document = server.get("/v1/qstage/openapi.json");
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        described.extend(
            item.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    for endpoint in CONTRACT {
        assert!(described.contains(endpoint), "{endpoint} is not in the document");
    }
    described_for_generators(&document);
    let answers = |method: &str, path: &str, body: &Value, expected: u16| {
        let at = format!("{method} {path}");
        let operation = &document["paths"][path][method.to_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            assert!(body.is_null(), "{at} takes no body");
        } else {
            check(&document, schema, body, &format!("body of {at}"));
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) =
            server.try_call(method, &path.replace("{node_id}", "1").replace("{digest}", "0"), &body).unwrap();
        assert_eq!(status, expected, "{at}: {text}");
        let response =
            response_of(&document, operation, status).unwrap_or_else(|| panic!("{at}: no {status}"));
        match response["content"]["application/json"]["schema"] {
            Value::Null if text.is_empty() => {}
            Value::Null => {
                assert!(!response["content"].is_null(), "{at} has a body, by the document it has none")
            }
            ref schema => {
                let answer = serde_json::from_str(&text).unwrap();
                check(&document, schema, &answer, &at);
                if status < 300 && path != "/v1/qstage/openapi.json" {
                    check_example(&document, &response["content"]["application/json"], &answer, &at);
                }
            }
        }
    };
    let mut called = BTreeSet::new();
    let v2 = bench.text("v2.qimg");
    // A dry run has an answer of its own.
    let order = json!({"image_path": v2, "auto_commit": false});
    let (status, planned) = server.post("/v2/upgrade/prepare?dry_run=true", &order);
    let response = &document["paths"]["/v2/upgrade/prepare"]["post"]["responses"]["200"];
    let content = &response["content"]["application/json"];
    assert_eq!((status, &planned["dry_run"]), (200, &json!(true)), "{planned}");
    check(&document, &content["schema"], &planned, "a dry run");
    check_example(&document, content, &planned, "a dry run");
    // The software alone, so that it can be marked good and rolled back without a reboot.
    let soft = bench.text("soft.qimg");
    for (endpoint, body, status) in changes(&soft) {
        let (method, path) = endpoint.split_once(' ').unwrap();
        if !path.starts_with('/') {
            server.reach(path);
            continue;
        }
        answers(method, path, &body, status);
        called.insert(endpoint.to_owned());
    }
    for endpoint in described.iter().filter(|endpoint| endpoint.starts_with("GET /")) {
        let path = endpoint.trim_start_matches("GET ");
        // A stream does not end; its own test reads it.
        if path != "/v1/qstage/events" {
            let status = match path {
                _ if path.starts_with("/v1/cluster/") || path.starts_with("/v1/qstage/cluster") => 409,
                _ if path.starts_with("/v1/users/") => 403,
                _ => 200,
            };
            answers("GET", path, &Value::Null, status);
        }
        called.insert(endpoint.clone());
    }
    assert_eq!(called, described, "endpoints that nobody calls here");
    assert_eq!(server.try_prepare(&v2, false).0, 409, "a reboot is under way");
}

/// The response of an operation with a status; `None`: the document has none.
fn response_of<'a>(document: &'a Value, operation: &'a Value, status: u16) -> Option<&'a Value> {
    let response = operation["responses"].get(status.to_string())?;
    match response["$ref"].as_str() {
        Some(name) => document["components"]["responses"].get(name.rsplit('/').next().unwrap()),
        None => Some(response),
    }
}

/// The running release is shown with the date at which its bundle was packed.
#[test]
fn the_version_has_the_date_of_its_bundle() {
    let bench = Bench::new(None);
    let mut pack = Command::new(server::QSTAGE);
    pack.args(["pack", "--product", "Demo", "--level", "1", "--version", "1.6", "--key"])
        .arg(bench.path("key"));
    pack.arg("--platform").arg(bench.path("p1")).arg("--software").arg(bench.path("s2"));
    run(pack.arg("-o").arg(bench.path("dated.qimg")).env("SOURCE_DATE_EPOCH", "1700000000"));
    let server = bench.serve();
    let before = server.get("/v1/version");
    assert!(before["build_date"].as_str().unwrap().ends_with('Z'), "{before}");
    server.prepare(&bench.text("dated.qimg"), true);
    server.reach("COMMITTED");
    assert_eq!(server.get("/v1/version"), before, "nobody has started it");
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200);
    let version = server.get("/v1/version");
    assert_eq!(
        (&version["revision_id"], &version["build_date"]),
        (&json!("Demo 1.6"), &json!("2023-11-14T22:13:20Z"))
    );
}

/// What generators of clients need: a name for each operation, where the service is, and examples that fit their schemas.
fn described_for_generators(document: &Value) {
    assert!(document["servers"][0]["url"].as_str().unwrap().starts_with("https://{host}"));
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_default();
            assert!(name.starts_with(method) && names.insert(name), "{method} {path}: '{name}'");
            let body = &operation["requestBody"]["content"]["application/json"];
            if !body.is_null() {
                check(document, &body["schema"], &body["example"], &format!("example of {name}"));
            }
            for status in 200..300 {
                let response = response_of(document, operation, status);
                let contents = response.and_then(|response| response["content"].as_object());
                for (kind, content) in contents.into_iter().flatten() {
                    if kind != "application/octet-stream" {
                        example_of(document, kind, content, &format!("{name} {status}"));
                    }
                }
            }
        }
    }
}

/// Each response has an example: an object of its schema, or the text itself.
fn example_of(document: &Value, kind: &str, content: &Value, at: &str) {
    if kind == "application/json" {
        return check_example(document, content, &Value::Null, at);
    }
    let name = content["examples"]["usual"]["$ref"].as_str().unwrap_or_else(|| panic!("{at}: no example"));
    let example = &document["components"]["examples"][name.rsplit('/').next().unwrap()]["value"];
    let text = example.as_str().unwrap_or_else(|| panic!("{at}: {example}"));
    if let Some(event) = text.strip_prefix("event: status\ndata: ") {
        check(document, &content["schema"], &serde_json::from_str(event.trim_end()).unwrap(), at);
    }
}
