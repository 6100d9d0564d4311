use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::machine::{Bench, MIB, Noise};
use crate::harness::ports::free_port;
use crate::harness::web::{Asked, Daemon, Link, Manner, Server, partial, ranges, status};

/// What a frame, the head of a bundle and what is under way when an answer is left may cost: the send buffer of the server,
/// the receive buffer here, and one block.
const WINDOW: u64 = 3 << 20;

/// A bench with two platforms that do not compress, of the given size in MiB, and slots for them. The bundles are `a` and `b`.
fn bench(mib: u64, software: bool) -> Bench {
    let bench = Bench::new();
    bench.config("");
    for (name, seed) in [("a", 11), ("b", 12)] {
        let bytes = Noise(seed).bytes((mib * MIB) as usize);
        std::fs::write(bench.path(&format!("{name}.img")), bytes).unwrap();
        std::fs::write(bench.path(&format!("{name}.soft")), Noise(seed + 10).bytes(MIB as usize)).unwrap();
    }
    let pack = |name: &str, version: &str, platform: &str, soft: &str| {
        let more = ["--platform", platform, "--software", soft];
        bench.pack(name, version, if software { &more } else { &more[..2] });
    };
    pack("a", "1.0", "a.img", "a.soft");
    pack("b", "2.0", "b.img", "b.soft");
    pack("soft", "1.5", "a.img", "b.soft");
    let size = format!("{}M", mib + 4);
    let parts: &[&str] = if software { &["--software-size", "4M"] } else { &[] };
    bench.at(&[&["init", "disk.img", "--slot-size", &size, "--bundle", "a.qimg"], parts].concat()).good();
    bench
}

fn len(bench: &Bench, name: &str) -> u64 {
    std::fs::metadata(bench.path(name)).unwrap().len()
}

/// Fifty connections that break: all comes once, but for what was under way when each broke.
#[test]
fn fifty_cuts_cost_one_window_each() {
    let bench = bench(24, false);
    let port = free_port();
    let nginx = Daemon::nginx(&bench, port, "", "");
    let size = len(&bench, "b.qimg");
    let cut = size / 50;
    let manner = Manner { delay: Duration::ZERO, rate: None, cut: Some(cut) };
    let link = Link::new(&format!("127.0.0.1:{port}"), manner);
    bench.at(&["prepare", &link.url("b.qimg")]).good();
    assert!(bench.holds("platform_b", "b.img"));
    let (came, requests) = (link.came.load(Ordering::Relaxed), nginx.log(50).len() as u64);
    assert!(requests >= 50, "{requests}");
    // Headers are a few hundred bytes each.
    assert!(came <= size + size / 100 + requests * 1024, "{came} of {size} in {requests}");
}

/// Killed anywhere and run again: only what is not in the slot comes.
#[test]
fn a_kill_costs_what_is_not_in_the_slot() {
    let bench = bench(32, false);
    let port = free_port();
    let nginx = Daemon::nginx(&bench, port, "", "");
    let url = format!("http://127.0.0.1:{port}/b.qimg");
    let image = std::fs::read(bench.path("b.img")).unwrap();
    let (at, _) = bench.extent("platform_b");
    let missing = || {
        let frames = image.chunks(MIB as usize).zip(0..);
        let differs = |(frame, number): &(&[u8], u64)| {
            bench.hash_of(at + number * MIB, frame.len() as u64) != blake3::hash(frame)
        };
        frames.filter(differs).count() as u64
    };
    let mut dice = Noise(3);
    let mut before = missing();
    assert_eq!(before, 32);
    for round in 0..6 {
        let running = bench.start(&["prepare", &url, "--max-rate", "20M"], Stdio::null());
        if round < 5 {
            std::thread::sleep(Duration::from_millis(150 + dice.below(350)));
            running.signal(Signal::SIGKILL);
            running.end();
        } else {
            running.end().good();
        }
        let (sent, after) = (nginx.sent(), missing());
        assert!(
            sent <= before * (MIB + 64) + WINDOW,
            "round {round}: {sent} bytes for {before} frames: {:?}",
            nginx.log(0)
        );
        assert!(after <= before);
        before = after;
        nginx.forget();
    }
    assert_eq!(before, 0);
}

/// One 32nd of an image differs: what is in place does not come, whatever lies between.
#[test]
fn frames_in_place_never_come() {
    let bench = bench(32, false);
    let port = free_port();
    let nginx = Daemon::nginx(&bench, port, "", "");
    let url = |name: &str| format!("http://127.0.0.1:{port}/{name}");
    bench.at(&["prepare", &url("b.qimg")]).good();
    let mut bytes = std::fs::read(bench.path("b.img")).unwrap();
    for mib in (2..32).step_by(5) {
        bytes[mib << 20..][..100].fill(7);
    }
    std::fs::write(bench.path("c.img"), bytes).unwrap();
    bench.pack("c", "3.0", &["--platform", "c.img"]);
    nginx.forget();
    bench.at(&["prepare", &url("c.qimg")]).good();
    assert!(bench.holds("platform_b", "c.img"));
    let sent = nginx.sent();
    assert!(sent < 6 * MIB + WINDOW, "{sent}");
    let log = nginx.log(0);
    // One for a delta, one request for the head, one for each hole, one for what follows the last frame.
    assert!(log.len() <= 9, "{log:?}");
    // Prepared again: the head, and what stands between the frames.
    nginx.forget();
    bench.at(&["prepare", &url("c.qimg")]).good();
    assert!(nginx.sent() < WINDOW / 2);
}

/// What the running slot holds at the same place is copied from there: the slot that is written may hold anything.
#[test]
fn frames_of_the_running_slot_never_come() {
    let bench = bench(32, false);
    let port = free_port();
    let nginx = Daemon::nginx(&bench, port, "", "");
    let url = format!("http://127.0.0.1:{port}/c.qimg");
    let mut bytes = std::fs::read(bench.path("a.img")).unwrap();
    for mib in (2..32).step_by(5) {
        bytes[mib << 20..][..100].fill(7);
    }
    std::fs::write(bench.path("c.img"), bytes).unwrap();
    bench.pack("c", "3.0", &["--platform", "c.img"]);
    let plan = bench.at(&["plan", &url, "--json"]).json();
    let expected = plan["transfer_bytes"].as_u64().unwrap();
    assert!((6 * MIB..6 * MIB + (64 << 10)).contains(&expected), "{plan}");
    nginx.forget();
    let before = bench.vital();
    let report = bench.at(&["prepare", &url, "--json"]).json();
    assert!(bench.holds("platform_b", "c.img"));
    assert_eq!(report["copied_bytes"], 26 * MIB, "{report}");
    assert_eq!(report["downloaded_bytes"], expected, "{report}");
    let sent = nginx.sent();
    assert!(sent < 6 * MIB + WINDOW, "{sent}");
    assert_eq!(bench.vital(), before, "what runs was touched");
    let history = bench.at(&["history"]).good();
    assert!(history.contains("downloaded, 26.0 MiB copied"), "{history}");

    // Damaged, it costs what is damaged; and nothing wrong is written.
    bench.at(&["cancel"]).good();
    bench.blank("platform_b");
    let (start, _) = bench.extent("platform_a");
    bench.poke(start + 20 * MIB + 70_000, b"damage");
    nginx.forget();
    let report = bench.at(&["prepare", &url, "--json"]).json();
    assert!(bench.holds("platform_b", "c.img"));
    assert_eq!(report["copied_bytes"], 25 * MIB, "{report}");
    assert!(nginx.sent() < 7 * MIB + WINDOW);
}

/// The software of a whole bundle comes without its platform.
#[test]
fn software_only_costs_no_platform() {
    let bench = bench(64, true);
    let port = free_port();
    let nginx = Daemon::nginx(&bench, port, "", "");
    let url = format!("http://127.0.0.1:{port}/soft.qimg");
    bench.at(&["plan", &url]).good();
    assert!(nginx.sent() <= 256 << 10, "a plan reads the head");
    nginx.forget();
    bench.at(&["prepare", &url]).good();
    let sent = nginx.sent();
    let beyond = sent - len(&bench, "b.soft");
    assert!(beyond < 64 * MIB / 100, "{beyond} bytes more than the software: {:?}", nginx.log(0));
}

/// A URL that is good for one request, and a slot that holds most of it: read once, in its order.
#[test]
fn one_request_is_enough_also_where_most_is_in_place() {
    let bench = bench(16, false);
    let file = std::fs::read(bench.path("b.qimg")).unwrap();
    let all = Server::new(file.clone(), ranges);
    bench.at(&["prepare", &all.url]).good();
    let mut bytes = std::fs::read(bench.path("b.img")).unwrap();
    for mib in [1, 2, 7, 11, 12, 15] {
        bytes[mib << 20..][..100].fill(7);
    }
    std::fs::write(bench.path("c.img"), bytes).unwrap();
    bench.pack("c", "3.0", &["--platform", "c.img"]);
    let once =
        Server::new(std::fs::read(bench.path("c.qimg")).unwrap(), |asked, file, stream| match asked.number {
            1 => ranges(asked, file, stream),
            _ => status("403 Forbidden", "", stream),
        });
    bench.at(&["prepare", &once.url]).good();
    assert!(bench.holds("platform_b", "c.img"));
}

/// A server that takes one connection of each client.
#[test]
fn one_connection_is_enough() {
    let bench = bench(16, false);
    let port = free_port();
    let limit = "limit_conn one 1; limit_conn_status 503;";
    let nginx = Daemon::nginx(&bench, port, "", limit);
    let url = |name: &str| format!("http://127.0.0.1:{port}/{name}");
    bench.at(&["prepare", &url("b.qimg")]).good();
    let mut bytes = std::fs::read(bench.path("b.img")).unwrap();
    for mib in (0..16).step_by(2) {
        bytes[mib << 20..][..100].fill(7);
    }
    std::fs::write(bench.path("c.img"), bytes).unwrap();
    bench.pack("c", "3.0", &["--platform", "c.img"]);
    bench.at(&["prepare", &url("c.qimg")]).good();
    assert!(bench.holds("platform_b", "c.img"), "{:?}", nginx.log(0));
}

/// Where the server is dead to which a redirect led, the redirect is requested again: it leads to another one by now.
#[test]
fn a_redirect_is_followed_anew_where_its_end_is_dead() {
    let bench = bench(16, false);
    bench.config("[network]\nretries = 3\n");
    let file = std::fs::read(bench.path("b.qimg")).unwrap();
    let dies = Server::new(file.clone(), cut_once(|_, _, _| Ok(())));
    let lives = Server::new(file, ranges);
    let ends = [dies.url.clone(), lives.url.clone()];
    let first = Server::new(Vec::new(), move |asked, _, stream| {
        let to = &ends[usize::from(asked.number > 1)];
        status("302 Found", &format!("Location: {to}\r\n"), stream)
    });
    bench.at(&["prepare", &first.url]).good();
    assert!(bench.holds("platform_b", "b.img") && lives.requests() > 0);
}

/// A redirect that is given only once: its end is used again although a request to it failed.
#[test]
fn a_redirect_that_is_given_once_is_resumed_at_its_end() {
    let bench = bench(16, false);
    bench.config("[network]\nretries = 3\n");
    let file = std::fs::read(bench.path("b.qimg")).unwrap();
    let end = Server::new(
        file,
        cut_once(|asked, file, stream| if asked.number == 2 { Ok(()) } else { ranges(asked, file, stream) }),
    );
    let to = format!("Location: {}\r\n", end.url);
    let first = Server::new(Vec::new(), move |asked, _, stream| match asked.number {
        1 => status("302 Found", &to, stream),
        _ => status("403 Forbidden", "", stream),
    });
    bench.at(&["prepare", &first.url]).good();
    assert!(bench.holds("platform_b", "b.img"));
}

/// Behaviour of a server that cuts its first response after a third, and then does as `later` does.
fn cut_once(
    later: impl Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync,
) -> impl Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync {
    move |asked, file, stream| {
        if asked.number > 1 {
            return later(asked, file, stream);
        }
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[..file.len() / 3])
    }
}

/// Without a length, a connection that breaks looks like the end of the file; a bad link is no bad bundle.
#[test]
fn a_body_without_a_length_is_resumed_too() {
    let bench = bench(4, false);
    bench.config("[network]\nretries = 2\n");
    let file = std::fs::read(bench.path("b.qimg")).unwrap();
    let server = |cuts: usize| {
        Server::new(file.clone(), move |asked, file, stream| {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
            stream.write_all(if asked.number <= cuts { &file[..file.len() / 2] } else { file })
        })
    };
    let always = server(usize::MAX);
    bench.at(&["prepare", &always.url]).bad("NETWORK_BROKEN");
    let once = server(1);
    bench.at(&["prepare", &once.url]).good();
    assert!(bench.holds("platform_b", "b.img") && once.requests() == 2);
}

/// The server says by 416 how long the file is now.
#[test]
fn a_file_that_shrinks_has_changed() {
    let bench = bench(4, false);
    let file = std::fs::read(bench.path("b.qimg")).unwrap();
    let shrinks = Server::new(
        file,
        cut_once(|_, _, stream| {
            status("416 Range Not Satisfiable", "Content-Range: bytes */1000\r\n", stream)
        }),
    );
    let run = bench.at(&["prepare", &shrinks.url]);
    assert!(run.err.contains("it has 1000 bytes"), "{}", run.err);
    run.bad("SOURCE_CHANGED");
}
