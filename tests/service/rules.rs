//! States in which no step may begin, the report of a refusal, and limits.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use crate::harness::{loops, server};

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Bench, QSTAGE, Server};

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error_class"].as_str().unwrap_or_default())
}

/// Bundles that are none, each with what is wrong with it.
fn bad_bundles(bench: &Bench) -> Vec<(String, &'static str)> {
    let good = std::fs::read(bench.path("v2.qimg")).unwrap();
    let save = |name: &str, bytes: &[u8]| std::fs::write(bench.path(name), bytes).unwrap();
    save("cut.qimg", &good[..2 << 20]);
    save("junk.qimg", &[7; 4096]);
    let mut forged = good.clone();
    let at = forged.windows(10).position(|w| w == b"\"version\":").unwrap() + 12;
    forged[at] ^= 1;
    save("forged.qimg", &forged);
    [
        ("cut.qimg", "UPGRADE_ERROR_BUNDLE_TRUNCATED"),
        ("forged.qimg", "UPGRADE_ERROR_BAD_SIGNATURE"),
        ("junk.qimg", "UPGRADE_ERROR_BUNDLE_TAR_HEADER"),
        ("none.qimg", "UPGRADE_ERROR_OPEN"),
    ]
    .map(|(name, code)| (bench.text(name), code))
    .to_vec()
}

/// The error of a bundle that cannot be opened is in the answer, and in the status for every later reader.
#[test]
fn a_refused_bundle_is_an_error_of_the_status() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let v2 = bench.text("v2.qimg");
    for (path, expected) in bad_bundles(&bench) {
        let (_, answer) = server.try_prepare(&path, false);
        assert_eq!(answer["error_class"], expected, "{answer}");
        let status = server.get("/v1/upgrade/status");
        assert_eq!(
            (&status["state"], &status["error_state"]),
            (&json!("UPGRADE_IDLE"), &json!(expected)),
            "{status}"
        );
        assert_eq!(
            (&status["error_message"], &status["install_path"]),
            (&answer["description"], &json!(path))
        );
        let v3 = server.status();
        assert_eq!((&v3["state"], &v3["error_info"]), (&json!("UPGRADE_STATE_IDLE"), &answer["description"]));
        assert_eq!(v3["settings"]["install_path"], json!(path), "settings stay filled beside an error");
        // Without the service too: it stands in the journal of the disk, and in its history.
        let direct: Value =
            serde_json::from_slice(&bench.qstage(&["status", "--booted", "a"]).stdout).unwrap();
        assert_eq!(
            (&direct["error_state"], &direct["install_path"]),
            (&json!(expected), &json!(path)),
            "{direct}"
        );
        let history = server.get("/v1/qstage/history");
        assert_eq!(history.as_array().unwrap().last().unwrap()["code"], expected);
    }
    // A rule that forbids is no failure: the status stays as it was. So does looking.
    let before = server.status();
    assert_eq!(code(&server.try_prepare(&bench.text("old.qimg"), false)), (409, "UPGRADE_ERROR_DOWNGRADE"));
    server.post("/v2/upgrade/verify-image", &json!({"image_path": bench.text("cut.qimg")}));
    assert_eq!(server.status(), before);
    // The next prepare ends it.
    server.prepare(&v2, false);
    server.reach("PREPARED");
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NO_ERROR");
    // What is prepared stays so, and can be committed.
    server.try_prepare(&bench.text("junk.qimg"), false);
    let status = server.status();
    assert_eq!(
        (&status["state"], &status["settings"]["install_path"]),
        (&json!("UPGRADE_STATE_PREPARED"), &json!(v2))
    );
    assert!(!status["error_info"].is_null());
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null).0, 202);
    server.reach("COMMITTED");
}

#[test]
fn a_refused_bundle_does_not_touch_a_prepare_that_runs() {
    let bench = Bench::new(Some("2M"));
    let server = bench.serve();
    let bad = bad_bundles(&bench);
    server.prepare(&bench.text("v2.qimg"), false);
    for (path, expected) in bad {
        assert_eq!(server.try_prepare(&path, false).1["error_class"], expected);
        assert!(server.status()["error_info"].is_null());
        assert_eq!(server.get("/v1/upgrade/status")["install_path"], json!(bench.text("v2.qimg")));
        // Nor does the command line, which finds the disk locked.
        bench.qstage(&["prepare", &path, "--booted", "a"]);
    }
    server.reach("PREPARED");
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NO_ERROR");
}

#[test]
fn a_waiting_period_after_the_start_and_after_a_trial() {
    let bench = Bench::new(None);
    let blocked = |server: &Server| server.get("/v2/upgrade/blocked");
    let waits = |server: &Server| {
        let answer = blocked(server);
        answer["is_blocked"] == true && answer["blocked_reason"].as_str().unwrap().contains("waiting period")
    };
    let server = bench.serve();
    assert_eq!(blocked(&server)["is_blocked"], false, "there is none unless it is configured");
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
    drop(server);
    // No machine has been up for nine years.
    bench.configure(None, "waiting_period = 300000000\n");
    let server = bench.serve();
    assert!(waits(&server), "{}", blocked(&server));
    assert_eq!(code(&server.try_prepare(&bench.text("v3.qimg"), false)), (409, "UPGRADE_ERROR_WAITING"));
    assert_eq!(code(&server.try_prepare(&bench.text("v2.qimg"), true)), (409, "UPGRADE_ERROR_WAITING"));
    // A commit is refused in its state: a client that has prepared takes another answer for a machine that reboots.
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null), (202, Value::Null));
    assert_eq!(server.state(), "COMMITTING");
    server.until("it is refused", |server| server.state() == "PREPARED");
    let status = server.status();
    assert!(status["error_info"].as_str().unwrap().contains("waiting period"), "{status}");
    assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_WAITING");
    assert_eq!(server.get("/v1/upgrade/status")["is_blocked"], true);
    server.prepare(&bench.text("v2.qimg"), false);
    assert_eq!(server.post("/v1/qstage/cancel", &Value::Null).0, 200, "that begins nothing");
    drop(server);
    // This machine has been up for longer than that; a trial begins it anew.
    const PERIOD: Duration = Duration::from_secs(12);
    bench.configure(None, &format!("waiting_period = {}\n", PERIOD.as_secs()));
    let mut server = bench.serve();
    assert_eq!(blocked(&server)["is_blocked"], false);
    server.prepare(&bench.text("soft.qimg"), true);
    server.reach("COMMITTED");
    assert!(blocked(&server)["blocked_reason"].as_str().unwrap().contains("on trial"));
    let begun = Instant::now();
    assert_eq!(server.post("/v1/qstage/mark-good", &json!({})).0, 200);
    assert!(waits(&server) || begun.elapsed() > PERIOD, "{}", blocked(&server));
    server.kill();
    let server = bench.serve();
    assert!(waits(&server) || begun.elapsed() > PERIOD, "it survives the service");
    server.until("the period has passed", |server| !waits(server));
    assert!(begun.elapsed() + Duration::from_secs(1) > PERIOD, "{:?}", begun.elapsed());
    server.prepare(&bench.text("v2.qimg"), false);
    server.reach("PREPARED");
}

/// Another program holds the slot that the upgrade writes, or the one that the commit selects.
#[test]
fn a_target_slot_that_is_in_use() {
    if !loops::is_root() {
        return;
    }
    let bench = Bench::new(None);
    let server = bench.serve();
    let (v2, v3) = (bench.text("v2.qimg"), bench.text("v3.qimg"));
    let number = server.slot("platform", "b")["partition"].to_string();
    let disk = bench.path("disk");
    let of_table = ["--noheadings", "--raw", "--output", "START,SECTORS", "--nr", &number];
    let found = loops::run("partx", &[&of_table[..], &[loops::text(&disk)]].concat());
    let at: Vec<u64> = found.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let (offset, size) = ((at[0] * 512).to_string(), (at[1] * 512).to_string());
    let slot = loops::Loop::new(&disk, 512, &["--offset", &offset, "--sizelimit", &size]);
    // As a mount does; the drop of the file ends it.
    let hold = || {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).custom_flags(nix::fcntl::OFlag::O_EXCL.bits());
        loops::eventually(|| options.open(&slot.0))
    };
    let is_blocked = |server: &Server, by: bool| {
        server.until("it is noticed", |server| server.get("/v2/upgrade/blocked")["is_blocked"] == by);
        server.get("/v2/upgrade/blocked")["blocked_reason"].as_str().unwrap().to_owned()
    };
    is_blocked(&server, false);
    let held = hold();
    let reason = is_blocked(&server, true);
    assert!(reason.contains("platform_b is in use: "), "{reason}");
    let v1 = server.get("/v1/upgrade/status");
    assert_eq!((&v1["is_blocked"], &v1["blocked_reason"]), (&json!(true), &json!(reason)));
    assert_eq!(code(&server.try_prepare(&v2, true)), (409, "UPGRADE_ERROR_SLOT_IN_USE"));
    drop(held);
    is_blocked(&server, false);
    server.prepare(&v2, false);
    server.reach("PREPARED");
    // After a prepare a refusal stands in the status: a client takes another answer for a machine that reboots.
    let held = hold();
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null), (202, Value::Null));
    assert_eq!(server.state(), "COMMITTING");
    server.until("it is refused", |server| server.state() == "PREPARED");
    let status = server.status();
    assert!(status["error_info"].as_str().unwrap().contains("platform_b is in use: "), "{status}");
    assert_eq!(status["settings"]["install_path"], json!(v2));
    assert_eq!(server.slot("platform", "a")["boots_next"], true);
    assert_eq!(code(&server.prepare_with(&v3, "replace=true")), (409, "UPGRADE_ERROR_SLOT_IN_USE"));
    drop(held);
    is_blocked(&server, false);
    assert_eq!(server.post("/v2/upgrade/commit", &Value::Null), (202, Value::Null));
    server.reach("COMMITTED");
}

/// The command is content, or does not come back, and the machine is still there.
#[test]
fn a_reboot_that_does_not_come_is_an_error() {
    for command in ["\"true\"", "\"sleep\", \"5\""] {
        let bench = Bench::new(None);
        bench.configure(None, &format!("reboot_command = [{command}]\nreboot_timeout = 1\n"));
        let server = bench.serve();
        server.prepare(&bench.text("v2.qimg"), true);
        server.reach("REBOOTING");
        server.until("it is given up", |server| server.state() != "REBOOTING");
        let status = server.status();
        assert_eq!(status["state"], "UPGRADE_STATE_COMMITTED", "what is committed stays so");
        assert!(
            status["error_info"].as_str().unwrap().contains("did not reboot the machine within 1 s"),
            "{status}"
        );
        assert_eq!(server.get("/v1/upgrade/status")["error_state"], "UPGRADE_ERROR_NOT_REBOOTED");
        assert_eq!(server.get("/v1/shutdown/reboot/status")["state"], "REBOOT_IDLE");
        // By hand, and again without success.
        let start = json!({"is_rolling": false, "num_nodes_to_reboot": null});
        assert_eq!(server.post("/v1/shutdown/reboot/start", &start).0, 202);
        assert_eq!(server.get("/v1/shutdown/reboot/status")["state"], "REBOOT_IN_PROGRESS");
        server.until("it is given up too", |server| {
            server.get("/v1/shutdown/reboot/status")["state"] == "REBOOT_IDLE"
        });
        let reboot = server.get("/v1/shutdown/reboot/status");
        assert!(reboot["error_message"].as_str().unwrap().contains("did not reboot"), "{reboot}");
    }
}

#[test]
fn two_services_do_not_own_one_upgrade() {
    let bench = Bench::new(None);
    let _server = bench.serve();
    let other = bench.text("other");
    let output = bench.qstage(&["serve", "--listen", "127.0.0.1:0", "--socket", &other]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && said.contains("another service"), "{said}");
}

/// A process that is gone with this.
struct Gone(Child);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_prepare_by_hand_is_not_interfered_with() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let mut prepare = Command::new(QSTAGE);
    prepare.args(["prepare", "-", "--booted", "a", "--config"]).arg(bench.path("config"));
    let mut prepare = Gone(prepare.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut pipe = prepare.0.stdin.take().unwrap();
    let bundle = std::fs::read(bench.path("v2.qimg")).unwrap();
    // It waits for the last block of the archive.
    let (most, last) = bundle.split_at(bundle.len() - 512);
    pipe.write_all(most).unwrap();
    server.until("it is seen", |server| server.state() == "PREPARING");
    assert_eq!(code(&server.try_prepare(&bench.text("v3.qimg"), false)), (409, "UPGRADE_ERROR_UPGRADE_BUSY"));
    pipe.write_all(last).unwrap();
    drop(pipe);
    assert!(prepare.0.wait().unwrap().success());
    server.reach("PREPARED");
    assert_eq!(server.status()["settings"]["target_version"], "2.0");
}

/// Clients that hang up at the worst moment: their order is carried out or not, and can be repeated.
#[test]
fn connections_that_are_lost() {
    let bench = Bench::new(None);
    let server = bench.serve();
    let v2 = bench.text("v2.qimg");
    let body = json!({"image_path": v2, "auto_commit": false, "do_rolling_reboot": false,
        "num_nodes_to_reboot": null})
    .to_string();
    let whole = format!(
        "POST /v2/upgrade/prepare HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // Within the header, within the body, and as soon as all is said.
    for len in [20, whole.len() - 10, whole.len(), whole.len()] {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.write_all(&whole.as_bytes()[..len]).unwrap();
        drop(stream);
    }
    server.prepare(&v2, false);
    server.reach("PREPARED");
    for _ in 0..2 {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream
            .write_all(b"POST /v2/upgrade/commit HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        drop(stream);
    }
    server.until("committed or not", |server| {
        if server.state() == "PREPARED" {
            server.post("/v2/upgrade/commit", &Value::Null);
        }
        server.state() == "COMMITTED"
    });
    assert_eq!(server.slot("platform", "b")["state"], "trial");
}

/// Readers of the history wait for a thread and a disk each: they must not take all of the threads.
#[test]
fn a_crowd_that_asks_for_the_history_takes_few_threads() {
    let bench = Bench::new(None);
    let server = bench.serve();
    server.post("/v1/qstage/mark-good", &json!({}));
    let entries = std::fs::read_dir(bench.path("state")).unwrap().flatten();
    let history = entries.map(|entry| entry.path().join("history.jsonl")).find(|path| path.exists()).unwrap();
    // A reader of a FIFO waits for a writer.
    std::fs::remove_file(&history).unwrap();
    nix::unistd::mkfifo(&history, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count();
    let before = threads();
    let waiting: Vec<UnixStream> = (0..60)
        .map(|_| {
            let mut stream = UnixStream::connect(&server.socket).unwrap();
            stream.write_all(b"GET /v1/qstage/history HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let with = threads();
    drop(std::fs::OpenOptions::new().read(true).write(true).open(&history).unwrap());
    std::fs::remove_file(&history).unwrap();
    drop(waiting);
    assert!(with <= before + 8, "{before} threads became {with}");
    server.prepare(&bench.text("v2.qimg"), true);
    server.reach("COMMITTED");
}

/// A web server that redirects, and one that is not allowed.
#[test]
fn a_web_server_is_believed_as_far_as_it_was_asked() {
    const SERVER: &str = "
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/v2.qimg':
            self.send_response(200)
            data = open(sys.argv[1], 'rb').read()
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            try: self.wfile.write(data)
            except OSError: pass
        else:
            self.send_response(302)
            to = {'/open': 'http://127.0.0.1:1/v2.qimg', '/same': '/v2.qimg'}.get(self.path, '/again')
            self.send_header('Location', to)
            self.send_header('Content-Length', '0')
            self.end_headers()
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
";
    let bench = Bench::new(None);
    // Its certificate is the one that a service makes.
    drop(bench.serve());
    let (certificate, key) = (bench.text("state/tls/certificate.pem"), bench.text("state/tls/key.pem"));
    let mut web = Command::new("python3");
    web.args(["-c", SERVER, &bench.text("v2.qimg"), &certificate, &key]).stdout(Stdio::piped());
    let mut web = Gone(web.spawn().unwrap());
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(web.0.stdout.take().unwrap()), &mut port)
        .unwrap();
    let plan = |path: &str| {
        let url = format!("https://localhost:{}{path}", port.trim());
        let output = bench.qstage(&["plan", &url, "--booted", "a"]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let config = std::fs::read_to_string(bench.path("config")).unwrap();
    let (code, said) = plan("/v2.qimg");
    assert!(code == Some(10) && said.to_lowercase().contains("certificate"), "{said}");
    for trust in [format!("web_ca = {certificate:?}\n"), "web_insecure = true\n".to_owned()] {
        std::fs::write(bench.path("config"), format!("{trust}{config}")).unwrap();
        assert_eq!(plan("/v2.qimg").0, Some(0), "{}", plan("/v2.qimg").1);
        assert_eq!(plan("/same").0, Some(0), "a redirect");
        let (code, said) = plan("/again");
        assert!(code == Some(10) && said.contains("redirect"), "round and round: {said}");
        let (code, said) = plan("/open");
        assert!(code == Some(10) && said.contains("not https"), "to where everybody can look: {said}");
    }
}

/// Where the loader has no trials the service has none either: it may not start kernels. It says so before an upgrade needs one.
#[test]
fn by_the_legacy_flag_the_service_says_that_it_has_no_trials() {
    let bench = Bench::new(None);
    let server = bench.serve_with(&["--booted", "a", "--boot-flag", "legacy"]);
    let log = server.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("--trial kexec")), "{log}");
    let plan = server.post("/v1/qstage/plan", &json!({"image_path": bench.text("v2.qimg")}));
    assert!(plan.1["trial"].as_str().unwrap().starts_with("none by the boot loader"), "{plan:?}");
    drop(server);
    assert!(!bench.serve().log().contains("kexec"));
}
