//! A server that misbehaves as servers in the field do, and the result of a prepare from it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::clock::Clock;
use crate::harness::machine::{Bench, MIB};
use crate::harness::web::{Asked, Full, Server, end, partial, ranges, whole};

fn file(bench: &Bench) -> Vec<u8> {
    std::fs::read(bench.path("v2.qimg")).unwrap()
}

/// Makes a limit short, so that what takes minutes in the field takes a second here. The others stay: where two are short, a
/// busy machine decides which is met first.
fn limit(bench: &Bench, limit: &str) {
    bench.config(&format!("[network]\nretries = 0\n{limit}\n"));
}

#[test]
fn each_failure_of_a_server_has_its_code_and_writes_nothing_wrong() {
    let bench = Bench::installed();
    limit(&bench, "");
    let vital = bench.vital();
    let fails = |code: &str, server: &Server| {
        let message = bench.at(&["prepare", &server.url]).bad(code);
        assert_eq!(bench.vital(), vital, "{code}");
        message
    };
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found", "410 Gone"] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let server = Server::new(file(&bench), move |_, _, stream| stream.write_all(answer.as_bytes()));
        assert!(fails("HTTP", &server).contains(status), "{status}");
        assert_eq!(server.requests(), 1, "{status} was tried again");
    }
    let server =
        Server::new(file(&bench), |_, file, stream| whole(file, stream, "Content-Type: text/html\r\n"));
    assert!(fails("HTTP", &server).contains("web page"));
    let server =
        Server::new(file(&bench), |_, file, stream| whole(file, stream, "Content-Encoding: gzip\r\n"));
    assert!(fails("HTTP", &server).contains("gzip"));
    let server = Server::new(file(&bench), |asked, file, stream| {
        let wrong = partial(asked, file, "").replace("bytes 0-", "bytes 1-");
        stream.write_all(wrong.as_bytes())
    });
    assert!(fails("HTTP", &server).contains("were asked for"));
    let server = Server::new(file(&bench), |_, _, _| {
        std::thread::sleep(Duration::from_secs(30));
        Ok(())
    });
    limit(&bench, "stall_timeout = 1");
    fails("NETWORK_STALLED", &server);
    let server = Server::new(file(&bench), |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        for byte in file {
            stream.write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    });
    limit(&bench, "least_rate = \"1M\"\nleast_rate_time = 1");
    fails("NETWORK_SLOW", &server);
    limit(&bench, "");
    let server = Server::new(file(&bench), |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[asked.at..][..1000])
    });
    fails("NETWORK_BROKEN", &server);
    bench.at(&["prepare", "http://127.0.0.1:9/x.qimg"]).bad("NETWORK_CONNECT");
    limit(&bench, "connect_timeout = 1");
    let (full, begun) = (Full::new(), Clock::start());
    bench.at(&["prepare", &format!("{}/x.qimg", full.url)]).bad("NETWORK_CONNECT");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    limit(&bench, "");
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}/x.qimg", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    bench.at(&["prepare", &address]).bad("NETWORK_TLS");
    bench.config("[network]\nproxy = \"ftp://127.0.0.1:9\"\n");
    bench.at(&["prepare", "http://127.0.0.1:9/x.qimg"]).bad("NETWORK_CONNECT");
}

/// A size that does not fit the signed index is seen before the slot, which may be a good fallback, is touched.
#[test]
fn a_wrong_length_is_seen_before_anything_is_written() {
    let bench = Bench::installed();
    for answer in
        [ranges as fn(&Asked, &[u8], &mut TcpStream) -> _, |_, file, stream| whole(file, stream, "")]
    {
        let mut short = file(&bench);
        short.truncate(short.len() - 512);
        let server = Server::new(short, answer);
        let before = bench.hash();
        bench.at(&["prepare", &server.url]).bad("SOURCE_LENGTH");
        assert_eq!(bench.hash(), before);
    }
}

#[test]
fn a_file_that_changes_during_the_transfer_is_said_to() {
    let bench = Bench::installed();
    let server = Server::new(file(&bench), |asked, file, stream| {
        let tag = format!("ETag: \"{}\"\r\n", asked.number);
        stream.write_all(partial(asked, file, &tag).as_bytes())?;
        let half = if asked.number == 1 { file.len() / 2 } else { end(asked, file) };
        stream.write_all(&file[asked.at..half])
    });
    let message = bench.at(&["prepare", &server.url]).bad("SOURCE_CHANGED");
    assert!(message.contains("ETag was \"1\", is \"2\""), "{message}");
    let asked = server.asked.lock().unwrap()[1].to_lowercase();
    assert!(asked.contains("if-range: \"1\"\r\n"), "{asked}");
}

/// Fifty connections that break: all is fetched once.
#[test]
fn fifty_cuts_cost_nothing_but_their_requests() {
    let bench = Bench::installed();
    bench.image("big.img", 12 * MIB, 7);
    bench.pack("big", "3.0", &["--platform", "big.img", "--frame-size", "256K"]);
    bench.at(&["init", "big.disk", "--slot-size", "16M", "--bundle", "v1.qimg"]).good();
    let whole = std::fs::read(bench.path("big.qimg")).unwrap();
    let (len, sent) = (whole.len(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&sent);
    let server = Server::new(whole, move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        let end = end(asked, file).min(asked.at + file.len() / 50);
        stream.write_all(&file[asked.at..end])?;
        count.fetch_add((end - asked.at) as u64, Ordering::Relaxed);
        Ok(())
    });
    bench.at(&["prepare", &server.url, "--disk", "big.disk", "--booted", "a"]).good();
    assert!(server.requests() >= 50, "{}", server.requests());
    let sent = sent.load(Ordering::Relaxed) as f64;
    assert!(sent <= 1.01 * len as f64, "{sent} of {len}");
}

/// A server that gives a file out once, and one that knows no ranges and breaks once.
#[test]
fn one_answer_is_enough_and_no_ranges_are_needed() {
    for knows_ranges in [true, false] {
        let bench = Bench::installed();
        let server = Server::new(file(&bench), move |asked, file, stream| match asked.number {
            1 if knows_ranges => ranges(asked, file, stream),
            1 => whole(file, stream, ""),
            _ => {
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            }
        });
        bench.at(&["prepare", &server.url]).good();
        assert!(bench.holds("platform_b", "v2.img"));
        assert_eq!(server.requests(), 1);
    }
    let bench = Bench::installed();
    let server = Server::new(file(&bench), |asked, file, stream| match asked.number {
        1 => {
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len()).as_bytes())?;
            stream.write_all(&file[..file.len() / 2])
        }
        2 => stream.write_all(
            b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        _ => whole(file, stream, ""),
    });
    bench.at(&["prepare", &server.url]).good();
    assert!(bench.holds("platform_b", "v2.img"));
    assert_eq!(server.requests(), 3, "{:?}", server.asked.lock().unwrap());
}

/// What is secret goes to the host that it is for, and is shown nowhere.
#[test]
fn credentials_reach_their_host_and_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::installed();
    let target = Server::new(file(&bench), ranges);
    let to = target.url.replace("127.0.0.1", "localhost");
    let server = Server::new(file(&bench), move |_, _, stream| {
        let answer =
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes())
    });
    let host = server.url.trim_start_matches("http://").trim_end_matches("/x.qimg").to_owned();
    std::fs::write(bench.path("secrets"), format!("{host} bearer hunter2\n")).unwrap();
    std::fs::set_permissions(bench.path("secrets"), std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.config(&format!("[network]\ncredentials = \"{}\"\n", bench.text("secrets")));
    let out = bench.at(&["prepare", &format!("{}?hunter2", server.url)]).good();
    assert!(!out.contains("hunter2"));
    assert!(server.asked.lock().unwrap()[0].contains("Bearer hunter2"));
    assert!(!target.asked.lock().unwrap()[0].contains("hunter2"));
    assert!(!bench.at(&["status"]).good().contains("hunter2"));
    // A proxy gets the whole address for http.
    let proxy = Server::new(file(&bench), ranges);
    let through = proxy.url.trim_end_matches("/x.qimg").to_owned();
    bench.config(&format!("[network]\nproxy = \"{through}\"\n"));
    bench.blank("platform_b");
    bench.at(&["prepare", "http://nowhere.invalid/x.qimg"]).good();
    let first = proxy.asked.lock().unwrap()[0].clone();
    assert!(first.starts_with("GET http://nowhere.invalid/x.qimg HTTP/1.1"), "{first}");
}
