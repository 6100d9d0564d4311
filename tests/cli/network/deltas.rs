use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::machine::forge::Parts;
use crate::harness::machine::{Bench, MIB, Noise};
use crate::harness::ports::free_port;
use crate::harness::web::{Asked, Daemon, Server, ranges, status, whole};

/// What the heads of a delta and of its bundle take, and headers of answers.
const HEAD: u64 = 16 << 10;
const FRAME: u64 = 256 << 10;

/// A machine that runs 1.0, and 3.0 as bundle and as delta beside it.
struct Shop {
    bench: Bench,
    port: u16,
    nginx: Daemon,
    delta: String,
}

impl Shop {
    fn new() -> Self {
        let bench = Bench::installed();
        let image = std::fs::read(bench.path("v1.img")).unwrap();
        let mut image = [image, Noise(5).bytes(8 << 20)].concat();
        std::fs::write(bench.path("v1.img"), &image).unwrap();
        image[300_000..300_100].fill(b'x');
        image[900_000..900_100].fill(b'x');
        image.splice(2_000_000..2_000_000, Noise(7).bytes(5000));
        std::fs::write(bench.path("v3.img"), image).unwrap();
        bench.pack("v1", "1.0", &["--platform", "v1.img", "--frame-size", "256K"]);
        bench.pack("v3", "3.0", &["--platform", "v3.img", "--frame-size", "256K"]);
        std::fs::remove_file(bench.disk()).unwrap();
        bench.at(&["init", "disk.img", "--slot-size", "16M", "--bundle", "v1.qimg"]).good();
        let delta = format!("v3.qimg.from-{}.qdelta", Self::base(&bench, "v1.img"));
        bench.run(&["delta", "v1.qimg", "v3.qimg", "-o", &delta]).good();
        let port = free_port();
        let nginx = Daemon::nginx(&bench, port, "", "");
        Self { bench, port, nginx, delta }
    }

    fn base(bench: &Bench, image: &str) -> String {
        let hash = blake3::hash(&std::fs::read(bench.path(image)).unwrap());
        hash.to_hex()[..16].to_owned()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v3.qimg", self.port)
    }

    /// The same files by a server that sends them only from front to back.
    fn without_ranges(&self) -> Server {
        let read = |name: &str| std::fs::read(self.bench.path(name)).unwrap();
        let (delta, bundle) = (read(&self.delta), read("v3.qimg"));
        Server::of_all(move |asked, stream| match asked.path.ends_with(".qdelta") {
            true => whole(&delta, stream, ""),
            false => whole(&bundle, stream, ""),
        })
    }

    fn len(&self, name: &str) -> u64 {
        std::fs::metadata(self.bench.path(name)).unwrap().len()
    }

    /// Forgets what was prepared and what was asked.
    fn again(&self) {
        self.bench.run(&["cancel", "--config", "config.toml"]);
        self.bench.blank("platform_b");
        self.nginx.forget();
    }

    fn prepare(&self, more: &[&str]) -> Value {
        let url = self.url();
        let report = self.bench.at(&[&["prepare", &url, "--json"], more].concat()).json();
        assert!(self.bench.holds("platform_b", "v3.img"));
        report
    }
}

/// Two requests: the delta, and the manifest of the bundle, which shows that it is the same release.
#[test]
fn a_delta_beside_a_url_is_taken() {
    let shop = Shop::new();
    let before = shop.bench.vital();
    let plan = shop.bench.at(&["plan", &shop.url(), "--json"]).json();
    let expected = plan["transfer_bytes"].as_u64().unwrap();
    assert!(expected <= shop.len(&shop.delta), "{plan}");
    assert_eq!(plan["blocked_by"], serde_json::json!([]));
    shop.nginx.forget();
    let report = shop.prepare(&[]);
    assert_eq!(report["delta"]["fallen_back_bytes"], 0, "{report}");
    assert_eq!(report["downloaded_bytes"], expected, "{report}");
    assert_eq!(report["delta"]["downloaded_bytes"], expected, "{report}");
    assert!(shop.nginx.sent() < shop.len(&shop.delta) + HEAD, "{:?}", shop.nginx.log(0));
    assert_eq!(shop.nginx.log(2).len(), 2, "{:?}", shop.nginx.log(0));
    assert_eq!(shop.bench.vital(), before, "what runs was touched");
    // The two frames with changed bytes and the one with the insertion; all others are in place or only moved.
    let (copied, patched) = (shop.len("v3.img") - 3 * FRAME, 3 * FRAME);
    let delta = &report["delta"];
    assert_eq!(
        (&delta["copied_bytes"], &delta["patched_bytes"]),
        (&copied.into(), &patched.into()),
        "{report}"
    );
    let history = shop.bench.at(&["history"]).good();
    let line = format!("{:.1} KiB downloaded, 10.3 MiB copied, 768.0 KiB patched", expected as f64 / 1024.0);
    assert!(history.contains(&format!("3.0 is prepared: {line}, 0 B fallen back")), "{line}: {history}");
    // Prepared again: nothing but heads.
    shop.nginx.forget();
    shop.prepare(&[]);
    assert!(shop.nginx.sent() < 4 * HEAD, "{:?}", shop.nginx.log(0));
    // Not wanted: neither requested nor taken.
    shop.again();
    let report = shop.prepare(&["--no-delta"]);
    assert_eq!(report["delta"], Value::Null);
    assert!(shop.nginx.log(1).iter().all(|line| !line.contains("404")));
    shop.bench.config("[network]\ndeltas = false\n");
    shop.again();
    assert_eq!(shop.prepare(&[])["delta"], Value::Null);
}

/// None, one of another release, one that is cut, changed or no delta at all: the bundle is read, and the upgrade succeeds.
#[test]
fn a_delta_of_no_use_costs_the_bundle_and_nothing_else() {
    let shop = Shop::new();
    let good = std::fs::read(shop.bench.path(&shop.delta)).unwrap();
    let mut bent = Parts::of(&shop.bench, &shop.delta);
    bent.member("delta.bin")[0] ^= 1;
    shop.bench.run(&["delta", "v1.qimg", "v2.qimg", "-o", "other.qdelta", "--force"]).good();
    let files: [Option<Vec<u8>>; 6] = [
        None,
        Some(std::fs::read(shop.bench.path("other.qdelta")).unwrap()),
        Some(good[..good.len() / 2].to_vec()),
        Some(bent.bytes()),
        Some(std::fs::read(shop.bench.path("v3.qimg")).unwrap()),
        Some(b"<html>".to_vec()),
    ];
    for (number, file) in files.into_iter().enumerate() {
        shop.again();
        let path = shop.bench.path(&shop.delta);
        match &file {
            Some(bytes) => std::fs::write(path, bytes).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        let run = shop.bench.at(&["prepare", &shop.url()]);
        assert_eq!(run.err.contains("is of no use"), file.is_some(), "{number}: {}", run.err);
        run.good();
        assert!(shop.bench.holds("platform_b", "v3.img"), "{number}");
        if file.is_none() {
            let none = shop.nginx.log(2).iter().filter(|line| line.starts_with("404")).count();
            assert_eq!(none, 1, "{:?}", shop.nginx.log(0));
        }
    }
    // A damaged delta that names itself is refused all the same.
    shop.again();
    let url = format!("http://127.0.0.1:{}/other.qdelta", shop.port);
    std::fs::write(shop.bench.path("other.qdelta"), bent.bytes()).unwrap();
    shop.bench.at(&["prepare", &url]).bad("DELTA");
}

/// A frame that cannot be made, since the delta or what runs is damaged, comes by range from the bundle at the URL.
#[test]
fn frames_that_cannot_be_made_come_by_range() {
    let shop = Shop::new();
    let good = std::fs::read(shop.bench.path(&shop.delta)).unwrap();
    let mut bad = Parts::of(&shop.bench, &shop.delta);
    let member = bad.member("platform.img.delta");
    let middle = member.len() / 2;
    member[middle] ^= 1;
    bad.save(&shop.bench, &shop.delta);
    shop.nginx.forget();
    let report = shop.prepare(&[]);
    let frame = FRAME;
    assert_eq!(report["delta"]["fallen_back_bytes"], frame, "{report}");
    // It was one of the patched ones, and comes in addition.
    assert_eq!(report["delta"]["patched_bytes"], 2 * frame, "{report}");
    assert_eq!(report["delta"]["copied_bytes"], shop.len("v3.img") - 3 * frame, "{report}");
    let history = shop.bench.at(&["history"]).good();
    assert!(history.contains("512.0 KiB patched, 256.0 KiB fallen back"), "{history}");
    assert!(shop.nginx.sent() < shop.len(&shop.delta) + frame + 4 * HEAD, "{:?}", shop.nginx.log(0));

    std::fs::write(shop.bench.path(&shop.delta), good).unwrap();
    shop.again();
    let (start, _) = shop.bench.extent("platform_a");
    let at = 4 * frame;
    shop.bench.poke(start + at + 70_000, b"damage");
    let report = shop.prepare(&[]);
    assert_eq!(report["delta"]["base_damaged"], at, "{report}");
    let lost = report["delta"]["fallen_back_bytes"].as_u64().unwrap();
    assert!((1..=2 * frame).contains(&lost), "{report}");
    let sent = shop.nginx.sent();
    assert!(sent < shop.len(&shop.delta) + lost + 4 * HEAD, "{sent}: {:?}", shop.nginx.log(0));
    // A delta from a file, and its bundle at the URL.
    shop.again();
    let url = shop.url();
    let report = shop.bench.at(&["prepare", &shop.delta, "--bundle", &url, "--json"]).json();
    assert_eq!(report["delta"]["fallen_back_bytes"], lost, "{report}");
    assert!(shop.bench.holds("platform_b", "v3.img"));
    assert!(shop.nginx.sent() < lost + 4 * HEAD, "{:?}", shop.nginx.log(0));
}

/// A server without ranges has no single frames: if one cannot be made, all of the bundle is read.
#[test]
fn a_delta_that_cannot_be_applied_costs_the_bundle_of_a_server_without_ranges() {
    let shop = Shop::new();
    let (start, _) = shop.bench.extent("platform_a");
    let server = shop.without_ranges();
    // Nothing is damaged: of the bundle only the manifest is looked at.
    let report = shop.bench.at(&["prepare", &server.url, "--json"]).json();
    assert_eq!(report["delta"]["fallen_back_bytes"], 0, "{report}");
    assert_eq!(server.requests(), 2);
    shop.bench.poke(start + 4 * FRAME + 70_000, b"damage");
    for more in [&[][..], &["--max-download", "20M"]] {
        shop.again();
        let server = shop.without_ranges();
        let run = shop.bench.at(&[&["prepare", &*server.url], more].concat());
        assert!(run.err.contains("(UPGRADE_ERROR_BASE_DAMAGED); all of the bundle"), "{}", run.err);
        run.good();
        assert!(shop.bench.holds("platform_b", "v3.img"));
        assert_eq!(server.requests(), 3);
    }
    let history = shop.bench.at(&["history"]).good();
    assert!(!history.contains("failed"), "{history}");
    // More than may come.
    shop.again();
    shop.bench.at(&["prepare", &server.url, "--max-download", "5M"]).bad("BASE_DAMAGED");
    // A delta in a file, whose bundle turns out to have no single frames.
    shop.again();
    shop.bench.at(&["prepare", &shop.delta, "--bundle", &server.url]).good();
    assert!(shop.bench.holds("platform_b", "v3.img"));
    // Frames that were left out: the bundle is read at once.
    shop.again();
    shop.bench.run(&["delta", "v1.qimg", "v2.qimg", "-o", &shop.delta, "--lean", "--force"]).good();
    std::fs::copy(shop.bench.path("v2.qimg"), shop.bench.path("v3.qimg")).unwrap();
    let run = shop.bench.at(&["prepare", &shop.without_ranges().url]);
    assert!(run.err.contains("is of no use") && run.err.contains("left out"), "{}", run.err);
    run.good();
    assert!(shop.bench.holds("platform_b", "v2.img"));
}

/// The skeleton of a delta on a server is checked as it is read: a wrong one costs the bundle.
#[test]
fn a_delta_whose_end_is_wrong_costs_the_bundle() {
    let shop = Shop::new();
    let mut bytes = std::fs::read(shop.bench.path(&shop.delta)).unwrap();
    *bytes.last_mut().unwrap() = 1;
    std::fs::write(shop.bench.path(&shop.delta), bytes).unwrap();
    let run = shop.bench.at(&["prepare", &shop.url()]);
    assert!(run.err.contains("all of the bundle is read instead"), "{}", run.err);
    run.good();
    assert!(shop.bench.holds("platform_b", "v3.img"));
}

/// The notice names the mirror that has the delta, not the first address.
#[test]
fn the_mirror_that_has_the_delta_is_named() {
    let shop = Shop::new();
    let bundle = std::fs::read(shop.bench.path("v3.qimg")).unwrap();
    let other = Server::of_all(move |asked, stream| match asked.path.ends_with(".qdelta") {
        true => status("404 Not Found", "", stream),
        false => whole(&bundle, stream, ""),
    });
    shop.bench.config(&format!("[network]\nmirrors = [\"{}\"]\n", shop.url()));
    let run = shop.bench.at(&["prepare", &other.url]);
    let named = format!("{}.from-{} is taken", shop.url(), shop.delta.split_once(".from-").unwrap().1);
    assert!(run.err.contains(&named), "{}", run.err);
    run.good();
    assert!(shop.bench.holds("platform_b", "v3.img"));
}

/// Killed and run again: only what is not in the slot comes.
#[test]
fn a_delta_that_was_interrupted_goes_on() {
    let shop = Shop::new();
    let url = shop.url();
    let mut sent = 0;
    for round in 0..4 {
        let args: &[&str] = &["prepare", &url, "--max-rate", "8M", "--jobs", "2"];
        let running = shop.bench.start(args, Stdio::null());
        if round < 3 {
            std::thread::sleep(Duration::from_millis(350));
            running.signal(Signal::SIGKILL);
            running.end();
        } else {
            running.end().good();
        }
        sent = shop.nginx.sent();
        shop.nginx.forget();
    }
    assert!(shop.bench.holds("platform_b", "v3.img"));
    let head = 2 * HEAD + shop.len(&shop.delta) / 2;
    assert!(sent < head, "the last run read {sent} of {}", shop.len(&shop.delta));
}

/// A server without ranges sends all of a bundle or nothing, with its length or without.
#[test]
fn no_more_comes_than_may_from_a_server_without_ranges() {
    let bench = Bench::installed();
    let (file, before) = (std::fs::read(bench.path("v2.qimg")).unwrap(), bench.hash());
    let (exact, less) = (file.len().to_string(), (file.len() - 1).to_string());
    let silent = |_: &Asked, file: &[u8], stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        stream.write_all(file)
    };
    let sized = |_: &Asked, file: &[u8], stream: &mut TcpStream| whole(file, stream, "");
    for server in [Server::new(file.clone(), sized), Server::new(file, silent)] {
        let message = bench.at(&["prepare", &server.url, "--max-download", &less]).bad("DOWNLOAD_LIMIT");
        assert!(message.contains(&exact) && message.contains(&less), "{message}");
        assert_eq!(bench.hash(), before, "the disk was written");
        let plan = bench.at(&["plan", &server.url, "--max-download", &less, "--json"]).plan();
        assert_eq!(plan["blocked_by"][0]["code"], "UPGRADE_ERROR_DOWNLOAD_LIMIT", "{plan}");
        bench.at(&["prepare", &server.url, "--max-download", &exact, "--dry-run"]).good();
    }
}

/// More than may come is refused before the slot is touched; what is in place does not count.
#[test]
fn no_more_comes_than_may() {
    let shop = Shop::new();
    let (url, before) = (shop.url(), shop.bench.hash());
    let most = (shop.len(&shop.delta) + HEAD).to_string();
    let message =
        shop.bench.at(&["prepare", &url, "--no-delta", "--max-download", "200K"]).bad("DOWNLOAD_LIMIT");
    assert!(message.contains("204800 may") && message.contains("put a delta"), "{message}");
    assert_eq!(shop.bench.hash(), before, "the disk was written");
    let plan = shop.bench.at(&["plan", &url, "--no-delta", "--max-download", "200K", "--json"]).plan();
    assert_eq!(plan["blocked_by"][0]["code"], "UPGRADE_ERROR_DOWNLOAD_LIMIT", "{plan}");
    // The delta is small enough, to the byte that its plan names.
    let expected = shop.bench.at(&["plan", &url, "--json"]).plan()["transfer_bytes"].as_u64().unwrap();
    let (exact, less) = (expected.to_string(), (expected - 1).to_string());
    let plan = |limit: &str| shop.bench.at(&["plan", &url, "--max-download", limit, "--json"]).plan();
    assert_eq!(plan(&exact)["blocked_by"], serde_json::json!([]));
    let blocked = plan(&less);
    assert_eq!(blocked["transfer_bytes"], expected, "{blocked}");
    assert_eq!(blocked["blocked_by"][0]["code"], "UPGRADE_ERROR_DOWNLOAD_LIMIT", "{blocked}");
    let message = shop.bench.at(&["prepare", &url, "--max-download", &less]).bad("DOWNLOAD_LIMIT");
    assert!(message.contains(&exact) && message.contains(&less), "{message}");
    assert!(!message.contains("put a delta"), "it is one: {message}");
    assert_eq!(shop.bench.hash(), before, "the disk was written");
    shop.prepare(&["--max-download", &exact]);
    // What was prepared before and torn since is not counted: half of it is there.
    shop.again();
    shop.prepare(&["--no-delta"]);
    shop.bench.at(&["cancel"]).good();
    let (at, _) = shop.bench.extent("platform_b");
    shop.bench.poke(at + MIB, &Noise(99).bytes(100));
    shop.bench.config("[network]\nmax_download = \"600K\"\ndeltas = false\n");
    let report = shop.prepare(&[]);
    assert!(report["downloaded_bytes"].as_u64() < Some(600 << 10), "{report}");
    // A damaged base may make it too much on the way.
    shop.again();
    let (start, _) = shop.bench.extent("platform_a");
    for frame in 0..40 {
        shop.bench.poke(start + frame * (256 << 10) + 1000, b"damage");
    }
    shop.bench.config("");
    shop.bench.at(&["prepare", &url, "--max-download", &most]).bad("DOWNLOAD_LIMIT");
    shop.prepare(&[]);
}

/// A dry run names what the running slot supplies, and refuses what the verb would refuse.
#[test]
fn a_dry_run_names_what_comes_from_the_running_slot() {
    let shop = Shop::new();
    let (url, before) = (shop.url(), shop.bench.hash());
    let lines = |args: &[&str]| {
        let report = shop.bench.at(&[&["prepare", "--dry-run", "--json"], args].concat()).json();
        let lines = report["plan"].as_array().unwrap().clone();
        let from = lines.iter().filter_map(Value::as_str).filter(|line| line.contains("of them from"));
        from.map(str::to_owned).collect::<Vec<_>>()
    };
    for args in [&[&*url][..], &[&url, "--no-delta"], &[&shop.delta]] {
        let from = lines(args);
        let [line] = &from[..] else { panic!("{args:?}: {from:#?}") };
        assert!(line.starts_with("write LBA") && line.ends_with(" of them from platform_a"), "{line}");
    }
    assert_eq!(lines(&["v3.qimg"]), [""; 0], "a file is read whole");
    let limited = ["prepare", &url, "--no-delta", "--max-download", "200K", "--dry-run"];
    shop.bench.at(&limited).bad("DOWNLOAD_LIMIT");
    assert_eq!(shop.bench.hash(), before, "the disk was written");
}

/// A URL that is good for one request: nothing else is asked there.
#[test]
fn a_url_with_a_query_has_no_delta() {
    let shop = Shop::new();
    let file = std::fs::read(shop.bench.path("v3.qimg")).unwrap();
    let once = Server::new(file, |asked, file, stream| match asked.number {
        1 if asked.path.ends_with("?token=1") => ranges(asked, file, stream),
        _ => status("403 Forbidden", "", stream),
    });
    shop.bench.at(&["prepare", &format!("{}?token=1", once.url)]).good();
    assert!(shop.bench.holds("platform_b", "v3.img"));
}

/// The service prepares by this program: a delta is taken below the addresses that the configuration names.
#[test]
fn a_service_takes_deltas_too() {
    let shop = Shop::new();
    shop.bench.config(&format!("[service]\nimage_urls = [\"http://127.0.0.1:{}/\"]\n", shop.port));
    let name = format!("{}\0", shop.url());
    let plan = shop.bench.piped(&["plan", "x", "--for-service", "--json"], name.as_bytes()).json();
    assert!(plan["transfer_bytes"].as_u64() <= Some(shop.len(&shop.delta)), "{plan}");
    let report = shop.bench.piped(&["prepare", "x", "--for-service", "--json"], name.as_bytes()).json();
    assert_eq!(report["delta"]["fallen_back_bytes"], 0, "{report}");
    assert!(shop.bench.holds("platform_b", "v3.img"));
}
