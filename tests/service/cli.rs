//! The verbs that talk to a service: `upgrade`, `watch`, `status --service`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::server;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use server::{Bench, QSTAGE, Server};

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// By the socket of the configuration.
fn local(bench: &Bench, args: &[&str]) -> (Option<i32>, String, String) {
    said(&bench.qstage(args))
}

#[test]
fn an_upgrade_from_the_bundle_to_the_commit() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let v2 = bench.text("v2.qimg");
    let (code, out, err) = local(&bench, &["watch"]);
    assert_eq!((code, out.as_str()), (Some(0), "no upgrade is under way\n"), "{err}");
    // A dry run says what would be ordered, or what forbids it, and changes nothing.
    let disk = || std::fs::read(bench.path("disk")).unwrap();
    let dry = |args: &[&str], says: &[&str]| {
        let before = (disk(), server.status());
        let (code, out, err) = local(&bench, &[&["upgrade"], args, &["--dry-run"]].concat());
        assert!((disk(), server.status()) == before, "{args:?} changed something");
        for part in says {
            assert!((out.clone() + &err).contains(part), "{args:?}: '{part}' is not in: {out}{err}");
        }
        code
    };
    let plan = "; the plan, nothing was written:\n";
    let says =
        [&*format!("prepare 2.0 from {v2}: SOFTWARE_AND_PLATFORM{plan}"), "write platform to platform_b"];
    assert_eq!(dry(&[&v2], &says), Some(0));
    assert_eq!(dry(&[&v2, "--json"], &["{\"dry_run\":true,\"done\":\"prepare 2.0"]), Some(0));
    assert_eq!(dry(&[&v2, "--rolling"], &["NOT_A_CLUSTER"]), Some(2));
    assert_eq!(dry(&[&bench.text("old.qimg")], &["DOWNGRADE"]), Some(5));
    assert_eq!(dry(&[&bench.text("signers")], &["BUNDLE"]), Some(3));
    assert_eq!(dry(&["--commit"], &["NOT_PREPARED"]), Some(5));
    let (code, out, err) = local(&bench, &["upgrade", &v2]);
    assert!(code == Some(0) && out.starts_with("2.0 prepared"), "{code:?} {out} {err}");
    assert_eq!(dry(&[&bench.text("v3.qimg")], &["OTHER_PREPARED"]), Some(5));
    assert_eq!(dry(&["--commit"], &["2.0 is selected on trial", plan, "write LBA"]), Some(0));
    assert!(local(&bench, &["watch"]).1.starts_with("2.0 prepared"));
    let (code, out, err) = local(&bench, &["upgrade", "--commit", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["state"]),
        (&"result".into(), &"UPGRADE_STATE_COMMITTED".into()),
        "{out}"
    );
    drop(server);
    // Over HTTPS with the certificate that the service made; without a token only reading.
    let server = bench.serve();
    let address = format!("https://{}", server.address);
    let (code, out, err) = local(&bench, &["status", "--service", &address]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("{\"install_path\":") && out.contains("\"state\":\"UPGRADE_TRIAL\""), "{out}");
    // The history is the same from both.
    let (code, out, err) = local(&bench, &["history", "--service", &address, "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let verbs: Vec<Value> =
        serde_json::from_str::<Vec<Value>>(&out).unwrap().iter().map(|event| event["verb"].clone()).collect();
    assert_eq!(verbs, ["prepare", "commit"]);
    assert_eq!(local(&bench, &["history", "--json"]).1, out);
    let (code, _, err) = local(&bench, &["upgrade", "--commit", "--service", &address]);
    assert!(code == Some(12) && err.contains("may only read"), "{code:?} {err}");
    // A certificate that is not known is not accepted, unless that is said.
    std::fs::rename(bench.path("state/tls"), bench.path("tls")).unwrap();
    let (code, _, err) = local(&bench, &["status", "--service", &address]);
    assert!(code == Some(7) && err.to_lowercase().contains("certificate"), "{code:?} {err}");
    let (code, ..) = local(&bench, &["status", "--service", &address, "--service-insecure"]);
    assert_eq!(code, Some(0));
    let ca = bench.text("tls/certificate.pem");
    assert_eq!(local(&bench, &["status", "--service", &address, "--service-ca", &ca]).0, Some(0));
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let bench = Bench::new(Some("2M"));
    let path = |name: &str| bench.text(name);
    assert_eq!(local(&bench, &["watch"]).0, Some(7), "nobody listens");
    assert_eq!(local(&bench, &["watch", "--service", "ftp://x"]).0, Some(2));
    let server = bench.serve();
    std::fs::write(path("cut.qimg"), &std::fs::read(path("v2.qimg")).unwrap()[..2 << 20]).unwrap();
    std::fs::write(path("junk.qimg"), vec![7; 4096]).unwrap();
    for (bundle, code, word) in [
        ("cut.qimg", 3, "BUNDLE_TRUNCATED"),
        ("bad.qimg", 3, "BUNDLE_FRAME"),
        ("junk.qimg", 3, "BUNDLE_TAR_HEADER"),
        ("old.qimg", 5, "DOWNGRADE"),
        ("none.qimg", 7, "OPEN"),
    ] {
        let (got, _, err) = local(&bench, &["upgrade", &path(bundle)]);
        assert!(got == Some(code) && err.contains(word), "{bundle}: {got:?} {err}");
    }
    let (code, out, _) = local(&bench, &["upgrade", "--commit", "--json"]);
    assert_eq!(code, Some(5));
    let error: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"UPGRADE_ERROR_NOT_PREPARED".into()));
    let (code, _, err) = local(&bench, &["upgrade", &path("v2.qimg"), "--rolling"]);
    assert!(
        code == Some(2)
            && err.contains("needs a cluster")
            && err.contains("see [cluster] in its configuration"),
        "{err}"
    );
    // A second service is not started over the first one, which goes on.
    let (code, _, err) = local(&bench, &["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(5) && err.contains("UPGRADE_ERROR_BUSY"), "{err}");
    let (code, ..) = local(&bench, &["upgrade", &path("old.qimg"), "--override-compatibility-check"]);
    assert_eq!(code, Some(0));
    drop(server);
}

fn spawn(bench: &Bench, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(QSTAGE);
    command.args(args).arg("--config").arg(bench.path("config"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A `watch` that has shown something.
struct Watcher {
    child: std::process::Child,
    shows: BufReader<Box<dyn Read>>,
    text: String,
}

impl Watcher {
    fn new(bench: &Bench, more: &[&str]) -> Self {
        let mut child = spawn(bench, &[&["watch"], more].concat());
        let shows: Box<dyn Read> = match more {
            ["--json"] => Box::new(child.stdout.take().unwrap()),
            _ => Box::new(child.stderr.take().unwrap()),
        };
        let (mut shows, mut text) = (BufReader::new(shows), String::new());
        shows.read_line(&mut text).unwrap();
        Self { child, shows, text }
    }

    fn ends(mut self) -> (Option<i32>, String) {
        self.shows.read_to_string(&mut self.text).unwrap();
        (self.child.wait().unwrap().code(), self.text)
    }
}

fn writing(server: &Server) {
    server.until("it writes", |server| server.status()["progress"].as_u64() > Some(10));
}

#[test]
fn ctrl_c_ends_the_view_and_what_is_prepared_stays_prepared() {
    let bench = Bench::new(Some("2M"));
    let server = bench.serve();
    let child = spawn(&bench, &["upgrade", &bench.text("v2.qimg"), "--commit"]);
    writing(&server);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let (code, _, err) = said(&child.wait_with_output().unwrap());
    assert!(code == Some(8) && err.contains("the upgrade itself goes on"), "{code:?} {err}");
    server.reach("PREPARED");
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(server.state(), "PREPARED", "nobody commits any more");
}

#[test]
fn a_watcher_outlasts_a_restart_and_sees_a_cancel() {
    let bench = Bench::new(Some("1M"));
    let mut server = bench.serve();
    server.prepare(&bench.text("v2.qimg"), false);
    writing(&server);
    let watcher = Watcher::new(&bench, &[]);
    server.kill();
    std::thread::sleep(Duration::from_millis(800));
    let server = bench.serve();
    let (code, err) = watcher.ends();
    assert!(code == Some(8) && err.contains("SERVICE_ENDED"), "{code:?} {err}");
    server.prepare(&bench.text("v2.qimg"), false);
    writing(&server);
    let watcher = Watcher::new(&bench, &["--json"]);
    server.post("/v1/qstage/cancel", &Value::Null);
    let (code, out) = watcher.ends();
    assert_eq!(code, Some(8));
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["code"]),
        (&"error".into(), &"UPGRADE_ERROR_CANCELLED".into()),
        "{out}"
    );
}
