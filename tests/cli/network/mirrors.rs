use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::clock::Clock;
use crate::harness::machine::Bench;
use crate::harness::web::{Asked, Server, end, partial, ranges, status, whole};

fn file(bench: &Bench) -> Vec<u8> {
    std::fs::read(bench.path("v2.qimg")).unwrap()
}

/// A server whose bundle was changed by `change`.
fn liar(bench: &Bench, change: impl FnOnce(&mut Vec<u8>)) -> Server {
    let mut bytes = file(bench);
    change(&mut bytes);
    Server::new(bytes, ranges)
}

/// Each in turn is asked first; whatever it does, the other one serves, and no wrong byte is written.
#[test]
fn whoever_lies_dies_or_stalls_is_left_and_the_others_go_on() {
    let bench = Bench::installed();
    bench.config("[network]\nretries = 2\nstall_timeout = 3\nconnect_timeout = 3\n");
    let (len, genuine) = (file(&bench).len(), file(&bench));
    let member = genuine.windows(9).position(|name| name == b"index.bin").unwrap();
    let index_at = member + 512 + 20;
    let dead = |asked: &Asked, file: &[u8], stream: &mut std::net::TcpStream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[asked.at..end(asked, file).min(asked.at + file.len() / 3)])
    };
    let stalls = |asked: &Asked, file: &[u8], stream: &mut std::net::TcpStream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        stream.write_all(&file[asked.at..end(asked, file).min(asked.at + file.len() / 2)])?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    let bad = [
        ("other bytes in a frame", liar(&bench, |bytes| bytes[len * 2 / 3..][..5000].fill(0x55))),
        ("other bytes in the first frame", liar(&bench, |bytes| bytes[8000..9000].fill(0x55))),
        ("a bad manifest", liar(&bench, |bytes| bytes[600] ^= 1)),
        ("a bad tar header", liar(&bench, |bytes| bytes[100..108].fill(b'z'))),
        ("a bad index", liar(&bench, |bytes| bytes[index_at] ^= 1)),
        ("a bad header of a payload", liar(&bench, |bytes| bytes[3800] ^= 1)),
        ("another end", liar(&bench, |bytes| bytes[len - 100] = 1)),
        ("too short a file", liar(&bench, |bytes| bytes.truncate(len - 1000))),
        ("too long a file", liar(&bench, |bytes| bytes.extend([0; 512]))),
        (
            "another range",
            Server::new(file(&bench), |asked, file, stream| {
                let answer = partial(asked, file, "").replace("bytes 0-", "bytes 1-");
                stream.write_all(answer.as_bytes())
            }),
        ),
        (
            "a page",
            Server::new(file(&bench), |_, file, stream| whole(file, stream, "Content-Type: text/html\r\n")),
        ),
        ("gone", Server::new(file(&bench), |_, _, stream| status("404 Not Found", "", stream))),
        ("death", Server::new(file(&bench), dead)),
        ("a stall", Server::new(file(&bench), stalls)),
        ("garbage", Server::new(file(&bench), |_, _, stream| stream.write_all(b"SSH-2.0-x\r\n\r\n"))),
    ];
    let vital = bench.vital();
    for (what, server) in bad {
        let good = Server::new(file(&bench), ranges);
        let run = bench.at(&["prepare", &server.url, "--mirror", &good.url]);
        let notes = run.err.clone();
        run.good();
        assert!(bench.holds("platform_b", "v2.img"), "{what}");
        assert!(good.requests() > 0, "{what}");
        // What only breaks now and then is no reason to leave a server for ever.
        assert!(
            notes.contains("asked no more") || ["death", "a stall", "garbage"].contains(&what),
            "{what}: {notes}"
        );
        // Alone it is an error, and verify, inspect and plan ask the others like prepare.
        bench.at(&["verify", &server.url, "--mirror", &good.url]).good();
        for verb in ["plan", "inspect"] {
            let trust: &[&str] = if verb == "inspect" { &["--trust", "allowed_signers"] } else { &[] };
            bench.at(&[&[verb, &server.url, "--mirror", &good.url], trust].concat()).good();
        }
        bench.at(&["cancel"]).good();
        bench.blank("platform_b");
        assert_eq!(bench.vital(), vital, "{what}");
    }
}

#[test]
fn only_liars_is_an_error_of_the_bundle() {
    let bench = Bench::installed();
    let wrong = || liar(&bench, |bytes| bytes[100_000..105_000].fill(0x55));
    let (one, two) = (wrong(), wrong());
    let run = bench.at(&["prepare", &one.url, "--mirror", &two.url]);
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(!bench.holds("platform_b", "v2.img"));
    bench.at(&["prepare", &one.url, "--mirror", "ftp://h/"]).bad("ARGUMENT");
}

/// One sends 200 KB a second, one all at once: the slow one is left after two seconds, not after its least rate.
#[test]
fn the_slow_one_is_left_for_a_faster_one() {
    let bench = Bench::installed();
    let sent = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&sent);
    let slow = Server::new(file(&bench), move |asked, file, stream| {
        stream.write_all(partial(asked, file, "").as_bytes())?;
        for part in file[asked.at..end(asked, file)].chunks(20_000) {
            stream.write_all(part)?;
            count.fetch_add(part.len(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
    let good = Server::new(file(&bench), ranges);
    let begun = Clock::start();
    let run = bench.at(&["prepare", &slow.url, "--mirror", &good.url]);
    let notes = run.err.clone();
    run.good();
    // By the slow one alone it takes 15 s.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let (sent, whole) = (sent.load(Ordering::Relaxed), file(&bench).len());
    println!("{sent} of {whole} bytes by the slow one");
    assert!(sent < whole && good.requests() > 0, "{sent} of {whole}");
    assert!(notes.contains("is asked instead"), "{notes}");
    assert!(bench.holds("platform_b", "v2.img"));
}

/// A text beside the bundle.
#[test]
fn a_list_of_mirrors_is_followed() {
    let bench = Bench::installed();
    let good = Server::new(file(&bench), ranges);
    let other = good.url.clone();
    let list = Server::new(file(&bench), move |asked, _, stream| match &asked.path[..] {
        "/r/x.qimg.mirrors" => whole(
            format!("# of the 2.0\nx.qimg\n{other}\n").as_bytes(),
            stream,
            "Content-Type: text/plain\r\n",
        ),
        _ => status("410 Gone", "", stream),
    });
    let url = list.url.replace("/x.qimg", "/r/x.qimg.mirrors");
    let run = bench.at(&["prepare", &url]);
    assert!(run.err.contains("/r/x.qimg is asked no more: the server answered 410 Gone"), "{}", run.err);
    run.good();
    assert!(bench.holds("platform_b", "v2.img"));
    let empty = Server::new(file(&bench), |_, _, stream| whole(b"# nothing", stream, ""));
    bench.at(&["plan", &empty.url.replace("x.qimg", "x.mirrors")]).bad("HTTP");
}
