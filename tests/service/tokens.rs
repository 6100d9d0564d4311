//! `qstage token`, and the socket at which root's service listens by default.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::loops::LEAVE_MOUNTS;
use crate::harness::server::{Bench, QSTAGE};

/// Exit code, standard output and standard error of a verb.
fn qstage(bench: &Bench, args: &[&str]) -> (Option<i32>, String, String) {
    let output = bench.qstage(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_token_opens_the_service_until_it_is_revoked() {
    let bench = Bench::new(None);
    fs::write(bench.path("tokens"), "").unwrap();
    bench.configure(None, &format!("tokens = {:?}\n", bench.path("tokens")));
    let server = bench.serve();
    let address = format!("https://{}", server.address);
    let pause = |token: &str| {
        let file = bench.path("token");
        fs::write(&file, token).unwrap();
        let cancel = ["upgrade", "--commit", "--service", &address, "--token-file", file.to_str().unwrap()];
        let (code, _, err) = qstage(&bench, &cancel);
        (code, err)
    };
    let refused = |(code, err): (Option<i32>, String), what: &str| {
        assert!(code == Some(12) && err.contains(what) && err.contains("token"), "{code:?} {err}");
    };
    let (code, ops, err) = qstage(&bench, &["token", "new", "ops"]);
    assert!(code == Some(0) && err.contains("'ops' may write"), "{err}");
    assert!(ops.trim().len() == 64 && ops.lines().count() == 1, "{ops}");
    let (_, json, _) = qstage(&bench, &["token", "new", "guest", "--read-only", "--json"]);
    let guest: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&guest["name"], &guest["privilege"]), (&"guest".into(), &"read".into()), "{guest}");
    assert_eq!(fs::metadata(bench.path("tokens")).unwrap().permissions().mode() & 0o777, 0o600);
    let stored = fs::read_to_string(bench.path("tokens")).unwrap();
    assert!(!stored.contains(ops.trim()) && !stored.contains(guest["token"].as_str().unwrap()));

    // The running service has noticed: nothing is prepared, which is another answer than a refusal of the caller.
    let (code, err) = pause(&ops);
    assert!(code == Some(5) && err.contains("UPGRADE_ERROR_NOT_PREPARED"), "{code:?} {err}");
    refused(pause(guest["token"].as_str().unwrap()), "UPGRADE_ERROR_FORBIDDEN");
    refused(pause("another"), "UPGRADE_ERROR_UNAUTHENTICATED");
    assert_eq!(qstage(&bench, &["token", "list"]).1, "write ops\nread  guest\n");
    assert_eq!(qstage(&bench, &["token", "new", "ops"]).0, Some(2), "the name is taken");
    assert_eq!(qstage(&bench, &["token", "revoke", "ops"]).1, "revoked 'ops'\n");
    refused(pause(&ops), "UPGRADE_ERROR_UNAUTHENTICATED");
    assert_eq!(qstage(&bench, &["token", "revoke", "ops"]).0, Some(2));
    let list: Value = serde_json::from_str(&qstage(&bench, &["token", "list", "--json"]).1).unwrap();
    assert_eq!(list, serde_json::json!([{"name": "guest", "privilege": "read"}]));
}

/// A configured file of tokens that is missing, and a certificate that is: before, the first let the service end, again and again,
/// and the second needed a restart.
#[test]
fn missing_files_of_the_configuration_do_not_end_the_service() {
    let bench = Bench::new(None);
    let config = format!(
        "tokens = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        bench.path("tokens"),
        bench.path("made.pem"),
        bench.path("made.key")
    );
    bench.configure(None, &config);
    let server = bench.serve();
    // Root needs no token: nothing is prepared, which is another answer than a refusal of the caller.
    let (status, answer) = server.post("/v1/qstage/cancel", &Value::Null);
    assert!(![401, 403].contains(&status), "{status} {answer}");
    let log = server.log();
    for part in ["no token is accepted", "qstage token new NAME", "no HTTPS", "made.pem", "it is tried again"]
    {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(qstage(&bench, &["token", "list"]).2.contains("'qstage token new NAME' makes it"));
    // Both are made while it runs.
    let (_, token, _) = qstage(&bench, &["token", "new", "ops"]);
    fs::write(bench.path("token"), token).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=box", "-addext"])
        .args(["subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "made.key", "-out", "made.pem"])
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    server.until("HTTPS", |server| server.log().contains("certificate and key can be used now"));
    let address = format!("https://{}", server.address);
    let (token, ca) = (bench.text("token"), bench.text("made.pem"));
    let args = ["upgrade", "--commit", "--service", &address, "--token-file", &token, "--service-ca", &ca];
    let (code, _, err) = qstage(&bench, &args);
    assert!(code == Some(5) && err.contains("UPGRADE_ERROR_NOT_PREPARED"), "{code:?} {err}");
}

/// In a mount namespace of its own, so that the machine's `/run` and `/etc` are not touched.
#[test]
fn service_and_client_meet_at_the_default_socket() {
    let bench = Bench::new(None);
    let config = fs::read_to_string(bench.path("config")).unwrap();
    let without: String = config.split_inclusive('\n').filter(|line| !line.starts_with("socket")).collect();
    fs::write(bench.path("config"), without).unwrap();
    let script = "mount -t tmpfs tmpfs /run || exit 77
        $0 serve --listen 127.0.0.1:0 --booted a --config config 2>log & service=$!
        for _ in $(seq 600); do [ -S /run/qstage/service.sock ] && break; sleep 0.1; done
        $0 watch --config config; code=$?
        kill $service; wait $service; exit $code";
    let script = format!("{LEAVE_MOUNTS}{script}");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script, QSTAGE]);
    let output = unshare.current_dir(bench.path("")).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let log = fs::read_to_string(bench.path("log")).unwrap();
    assert!(output.status.success() && out == "no upgrade is under way\n", "{out} {output:?} {log}");
    assert!(log.contains("\"socket\":\"/run/qstage/service.sock\""), "{log}");
}
