use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::clock::{Clock, at_once};
use crate::harness::load::until_it_catches;
use crate::harness::loops::is_root;
use crate::harness::machine::Bench;
use crate::harness::web::{Full, Server, partial, status};

/// A signal ends a transfer at once, whatever it is that is waited for.
#[test]
fn a_signal_ends_each_phase_at_once() {
    let bench = Bench::installed();
    let file = || std::fs::read(bench.path("v2.qimg")).unwrap();
    let long = Duration::from_secs(60);
    let full = Full::new();
    let connect = format!("{}/x.qimg", full.url);
    // A handshake of TLS without an answer.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = format!("https://{}/x.qimg", deaf.local_addr().unwrap());
    let header = Server::new(file(), move |_, _, _| {
        std::thread::sleep(long);
        Ok(())
    });
    let body = Server::new(file(), move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..100])?;
        std::thread::sleep(long);
        Ok(())
    });
    // In the frames, when the slot is being written.
    let frames = Server::new(file(), move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..file.len() / 2])?;
        std::thread::sleep(long);
        Ok(())
    });
    let back_off = Server::new(file(), |_, _, stream| status("503 Busy", "Retry-After: 60\r\n", stream));
    let redirect = Server::new(file(), |_, _, stream| {
        let mut byte = [0; 1];
        status("302 Found", "Location: http://127.0.0.1:9/x\r\n", stream)?;
        stream.read(&mut byte).map(drop)
    });
    let phases = [
        ("connect", connect),
        ("TLS", tls),
        ("header", header.url),
        ("body", body.url),
        ("frames", frames.url),
        ("back-off", back_off.url),
    ];
    let started: Vec<_> = phases
        .into_iter()
        .map(|(phase, url)| {
            // Each on a disk of its own: they wait at the same time.
            let (disk, state) = (format!("{phase}.img"), format!("{phase}.state"));
            std::fs::copy(bench.disk(), bench.path(&disk)).unwrap();
            let args = ["prepare", &url, "--disk", &disk, "--state-dir", &state];
            (phase, bench.start(&args, Stdio::null()))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1500));
    for (phase, mut running) in started {
        until_it_catches(running.id(), Signal::SIGTERM);
        assert!(running.child().try_wait().unwrap().is_none(), "{phase} is waited for");
        let begun = Clock::start();
        running.signal(Signal::SIGTERM);
        let run = running.end();
        at_once(begun, phase);
        run.bad("INTERRUPTED");
    }
    // A refused connection after a redirect is an end, not a wait.
    bench.at(&["prepare", &redirect.url]).bad("NETWORK_CONNECT");
}

/// The same where a name is looked up, and where a proxy is silent: both are waits of other programs than the server.
#[test]
fn a_signal_ends_the_waits_for_name_servers_and_proxies() {
    let bench = Bench::installed();
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", deaf.local_addr().unwrap());
    // Each on a disk of its own: they wait at the same time.
    let args = |wait: &'static str, scheme: &str| {
        let (disk, state) = (bench.text(&format!("{wait}.img")), bench.text(&format!("{wait}.state")));
        std::fs::copy(bench.disk(), &disk).unwrap();
        let url = format!("{scheme}://h.invalid/x.qimg");
        ["prepare", &url, "--disk", &disk, "--state-dir", &state, "--config", "config.toml"]
            .map(str::to_owned)
    };
    let mut waits = Vec::new();
    for (wait, scheme) in [("https_proxy", "https"), ("http_proxy", "http")] {
        let args = args(wait, scheme);
        let mut command = bench.command(&args.each_ref().map(String::as_str));
        waits.push((wait, command.env(wait, &proxy).spawn().unwrap()));
    }
    if is_root() {
        // A name server that takes requests and says nothing, for this command only.
        let any = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = format!("127.{}.0.53", 2 + any.local_addr().unwrap().port() % 250);
        let _silent = UdpSocket::bind((address.as_str(), 53)).unwrap();
        let text = format!("nameserver {address}\noptions timeout:30\n");
        std::fs::write(bench.path("resolv.conf"), text).unwrap();
        let mount = "mount --bind resolv.conf /etc/resolv.conf && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount, env!("CARGO_BIN_EXE_qstage")]).args(args("name", "http"));
        command.current_dir(bench.path(".")).stdin(Stdio::null()).stdout(Stdio::null());
        waits.push(("name", command.stderr(Stdio::piped()).spawn().unwrap()));
        return ends_at_once(waits);
    }
    ends_at_once(waits);
}

/// Signals each of these programs and expects its end at once.
fn ends_at_once(waits: Vec<(&str, Child)>) {
    std::thread::sleep(Duration::from_millis(1500));
    for (wait, mut child) in waits {
        let pid = Pid::from_raw(child.id() as i32);
        until_it_catches(pid, Signal::SIGTERM);
        let ended = child.try_wait().unwrap();
        let begun = Clock::start();
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        let output = child.wait_with_output().unwrap();
        at_once(begun, wait);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(ended.is_none(), "{wait} is waited for: {text}");
        assert!(text.contains("UPGRADE_ERROR_INTERRUPTED"), "{wait}: {text}");
    }
}

/// A wait is reported with its cause, its time, and the number of the try.
#[test]
fn silence_is_said_to_be_silence() {
    let bench = Bench::installed();
    bench.config("[network]\nretries = 3\n");
    let server = Server::new(std::fs::read(bench.path("v2.qimg")).unwrap(), |asked, _, stream| {
        if asked.number < 4 {
            return status("503 Busy", "", stream);
        }
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let mut running = bench.start(&["prepare", &server.url], Stdio::null());
    let waits = format!("waiting for {}, nothing for ", server.host());
    // It is said after ten seconds and again, before the silence ends the transfer.
    let mut said = Vec::new();
    let is_said = BufReader::new(running.child().stderr.take().unwrap()).lines().any(|line| {
        said.push(line.unwrap());
        said.last().is_some_and(|line| line.contains(&waits) && line.ends_with(" s, retry 3 of 3"))
    });
    assert!(is_said, "{said:#?}");
}
