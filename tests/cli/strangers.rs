//! No untrusted text acts on a terminal: every character of the categories Cc, Cf, Zl and Zp, by the table of another
//! program (unicodedata of Python), through every field that another process can write, in all that is shown.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::machine::{Bench, Run, forge::Parts, tool};

const TABLE: &str = "import sys, unicodedata
print(''.join('%x ' % c for c in range(0x110000) if unicodedata.category(chr(c)) in ('Cc', 'Cf', 'Zl', 'Zp')))";

/// All of them but the line feed, which separates lines, and NUL, which ends names.
fn acting() -> String {
    let table = tool("python3", &["-c", TABLE]);
    let codes = table.split_whitespace().map(|code| u32::from_str_radix(code, 16).unwrap());
    let text: String =
        codes.filter(|code| ![0, 10].contains(code)).map(|code| char::from_u32(code).unwrap()).collect();
    assert!(text.chars().count() > 200 && text.contains(['\x1b', '\u{9b}', '\u{202e}', '\u{2028}']));
    text
}

/// Asserts that nothing acts in what a verb printed, on either channel.
#[track_caller]
fn harmless(what: &str, run: &Run, acting: &str) {
    for shown in [&run.out, &run.err] {
        if let Some(c) = shown.chars().find(|c| acting.contains(*c)) {
            panic!("{what}: U+{:04X} in {shown:?}", u32::from(c));
        }
    }
}

/// Appends a text to each string of a JSON value in turn.
fn each_string(value: &Value, text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        match value.pointer(&path).unwrap() {
            Value::Object(map) => paths.extend(map.keys().map(|key| format!("{path}/{key}"))),
            Value::Array(all) => paths.extend((0..all.len()).map(|index| format!("{path}/{index}"))),
            Value::String(old) => {
                let mut changed = value.clone();
                *changed.pointer_mut(&path).unwrap() = json!(format!("{old}{text}"));
                found.push(changed);
            }
            _ => {}
        }
    }
    found
}

#[test]
fn bundles() {
    let (bench, acting) = (Bench::installed(), acting());
    let parts = Parts::of(&bench, "v2.qimg");
    let mut forged: Vec<Parts> = each_string(&parts.clone().manifest(), &acting)
        .into_iter()
        .map(|manifest| parts.clone().edit(&bench, "key", |old| *old = manifest))
        .collect();
    assert!(forged.len() >= 8, "{}", forged.len());
    // Names of members, in parts: a name has 100 bytes.
    let letters: Vec<char> = acting.chars().collect();
    for some in letters.chunks(24) {
        let mut renamed = parts.clone();
        renamed.members[0].0 = some.iter().collect();
        forged.push(renamed);
    }
    for (number, bundle) in forged.iter().enumerate() {
        bundle.save(&bench, "x.qimg");
        for verb in [
            &["inspect", "x.qimg"][..],
            &["inspect", "x.qimg", "--json"],
            &["verify", "x.qimg"],
            &["verify", "x.qimg", "--unsigned-for-development"],
            &["plan", "x.qimg", "--config", "config.toml"],
            &["prepare", "x.qimg", "--json", "--config", "config.toml"],
        ] {
            harmless(&format!("bundle {number}, {verb:?}"), &bench.run(verb), &acting);
        }
    }
}

#[test]
fn marks_history_and_checks() {
    let (bench, acting) = (Bench::installed(), acting());
    fs::create_dir(bench.path("checks")).unwrap();
    fs::write(bench.path("said"), &acting).unwrap();
    fs::write(bench.path("checks/1"), format!("#!/bin/sh\ncat {}; exit 1\n", bench.text("said"))).unwrap();
    fs::set_permissions(bench.path("checks/1"), fs::Permissions::from_mode(0o755)).unwrap();
    bench.at(&["prepare", "v2.qimg", "--booted", "a"]).good();
    bench.at(&["commit", "--booted", "a"]).good();
    let look = |what: &str, booted: &str| {
        for verb in ["status", "slots", "history"] {
            let more = if verb == "history" { &[][..] } else { &["--booted", booted] };
            for format in [&[][..], &[if verb == "status" { "--human" } else { "--json" }]] {
                harmless(
                    &format!("{what}, {verb} {format:?}"),
                    &bench.at(&[&[verb], more, format].concat()),
                    &acting,
                );
            }
        }
    };
    for format in [&[][..], &["--json"]] {
        let checks = bench.text("checks");
        let health = bench.at(&[&["health", "--dir", &checks], format].concat());
        assert_ne!(health.code, Some(0));
        harmless("health", &health, &acting);
    }
    look("the reason of a check", "b");
    harmless("health", &bench.at(&["health", "--trial-failed", "--booted", "b"]), &acting);
    harmless("roll-back", &bench.at(&["roll-back", "--booted", "b", "--reason", &acting]), &acting);
    look("a mark", "a");
    // The files of the journal, as another user left them: each string of each line.
    let mut changes = 0;
    for file in files(&bench.path("state")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_one = serde_json::from_str::<Value>(&text).is_ok();
        let values: Vec<&str> = if is_one { vec![&text] } else { text.lines().collect() };
        for (index, value) in values.iter().enumerate() {
            let Ok(value) = serde_json::from_str::<Value>(value) else { continue };
            for changed in each_string(&value, &acting) {
                let mut all: Vec<String> = values.iter().map(|line| (*line).to_owned()).collect();
                all[index] = changed.to_string();
                fs::write(&file, all.join("\n") + "\n").unwrap();
                look("the state", "a");
                changes += 1;
            }
        }
        fs::write(&file, text).unwrap();
    }
    assert!(changes > 10, "{changes}");
}

/// All files below a directory that have text.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| fs::read_to_string(path).is_ok_and(|text| !text.is_empty()));
    files.chain(dirs.iter().flat_map(|dir| self::files(dir))).collect()
}

/// Names of files, in errors and in the details of a run.
#[test]
fn names() {
    let (bench, acting) = (Bench::installed(), acting());
    let letters: Vec<char> = acting.chars().collect();
    for some in letters.chunks(48) {
        let name: String = some.iter().collect();
        fs::copy(bench.path("config.toml"), bench.path(&name)).unwrap();
        let run = bench.run(&["slots", "--config", &name, "-v"]);
        assert!(run.err.contains("detail: configuration "), "{}", run.err);
        harmless("a detail", &run, &acting);
        harmless("an error", &bench.run(&["inspect", &name]), &acting);
        harmless("a missing file", &bench.run(&["inspect", &format!("{name}x"), "--json"]), &acting);
    }
}

#[test]
fn services() {
    let (bench, acting) = (Bench::new(), acting());
    let socket = bench.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let text = acting.clone();
    // Every object of the API in one, so that each verb finds what it reads.
    let answer = json!({
        "state": text, "progress": 1, "settings": null, "error_info": text, "install_path": text, "details": text,
        "error_message": text, "error_state": text, "is_blocked": true, "blocked_reason": text, "error_class": text,
        "description": text, "node_id": 1, "cluster_id": text, "connected": true, "problem": text, "leader": 1,
        "stage": text, "starting_version": text, "target_version": text, "waits_for": text, "time": text, "verb": text, "code": text, "message": text,
        "nodes": [{"id": 1, "address": text, "version": text, "standing": text, "reason": text, "doing": text, "progress": 1}],
    });
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let len = stream.read(&mut request).unwrap_or(0);
            let history = request[..len].windows(7).any(|part| part == b"history");
            let body = if history { json!([answer]) } else { answer.clone() }.to_string();
            let status = ["200 OK", "409 Conflict"][number % 2];
            let head =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    let service = format!("unix:{}", socket.display());
    for verb in [
        &["status"][..],
        &["status", "--human"],
        &["history"],
        &["history", "--json"],
        &["watch"],
        &["watch", "--json"],
        &["upgrade", "/x.qimg"],
        &["upgrade", "/x.qimg", "--json"],
        &["cluster", "status"],
        &["cluster", "status", "--json"],
        &["cluster", "join"],
    ] {
        // Both answers of the server.
        for _ in 0..2 {
            let run = bench.at(&[verb, &["--service", &service]].concat());
            assert!(!run.out.is_empty() || !run.err.is_empty(), "{verb:?}");
            harmless(&format!("{verb:?}"), &run, &acting);
        }
    }
}
