//! A bundle that changes between the plan and the prepare, or during the prepare: signed as well, but another. The BLAKE3 of its
//! manifest binds both.

use std::fs;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::harness::machine::{Bench, MIB};
use crate::harness::web::{Asked, Server, ranges, whole};

/// A machine with 1.0, the bundle of 2.0, and one of the same size with 3.0 that the same key has signed.
fn bench() -> Bench {
    let bench = Bench::installed();
    bench.image("v3.img", 3 * MIB + 4321, 3);
    bench.pack("v3", "3.0", &["--platform", "v3.img", "--frame-size", "256K"]);
    bench
}

fn planned(bench: &Bench, from: &str) -> String {
    let plan = bench.at(&["plan", from, "--json"]).plan();
    assert_eq!(plan["target_version"], "2.0");
    plan["manifest"].as_str().unwrap().to_owned()
}

/// Refuses `from`, which has 3.0 by now, and writes nothing; then prepares what was planned from another place.
fn is_refused(bench: &Bench, from: &str, manifest: &str) {
    let before = bench.hash();
    let text = bench.at(&["prepare", from, "--manifest", manifest]).bad("OTHER_BUNDLE");
    assert!(text.contains(manifest), "{text}");
    bench.at(&["prepare", from, "--manifest", manifest, "--dry-run"]).bad("OTHER_BUNDLE");
    assert_eq!(bench.hash(), before, "{from}: the disk was written");
}

#[test]
fn a_file_that_is_replaced_or_rewritten_is_refused() {
    let bench = bench();
    fs::copy(bench.path("v2.qimg"), bench.path("x.qimg")).unwrap();
    let manifest = planned(&bench, "x.qimg");
    // Another file by the same name.
    fs::copy(bench.path("v3.qimg"), bench.path("new")).unwrap();
    fs::rename(bench.path("new"), bench.path("x.qimg")).unwrap();
    is_refused(&bench, "x.qimg", &manifest);
    // The same file with other content.
    fs::copy(bench.path("v2.qimg"), bench.path("x.qimg")).unwrap();
    assert_eq!(planned(&bench, "x.qimg"), manifest);
    fs::write(bench.path("x.qimg"), fs::read(bench.path("v3.qimg")).unwrap()).unwrap();
    is_refused(&bench, "x.qimg", &manifest);
    // And a pipe.
    let v3 = fs::read(bench.path("v3.qimg")).unwrap();
    bench.piped(&["prepare", "-", "--manifest", &manifest], &v3).bad("OTHER_BUNDLE");
    bench.at(&["prepare", "v2.qimg", "--manifest", &manifest]).good();
    assert!(bench.holds("platform_b", "v2.img"));
}

#[test]
fn a_server_that_sends_another_bundle_is_refused() {
    for manners in [ranges as fn(&Asked, &[u8], &mut std::net::TcpStream) -> _, |_, file, stream| {
        whole(file, stream, "")
    }] {
        let bench = bench();
        let sent = Arc::new(Mutex::new(fs::read(bench.path("v2.qimg")).unwrap()));
        let current = Arc::clone(&sent);
        let server = Server::new(Vec::new(), move |asked, _, stream| {
            let file = current.lock().unwrap().clone();
            manners(asked, &file, stream)
        });
        let manifest = planned(&bench, &server.url);
        *sent.lock().unwrap() = fs::read(bench.path("v3.qimg")).unwrap();
        is_refused(&bench, &server.url, &manifest);
        *sent.lock().unwrap() = fs::read(bench.path("v2.qimg")).unwrap();
        bench.at(&["prepare", &server.url, "--manifest", &manifest]).good();
        assert!(bench.holds("platform_b", "v2.img"));
    }
}

/// After the head was read: each frame is the one of the planned manifest, or nothing becomes of the slot.
#[test]
fn a_file_that_is_rewritten_during_the_prepare_makes_no_slot() {
    let bench = bench();
    fs::copy(bench.path("v2.qimg"), bench.path("x.qimg")).unwrap();
    let manifest = planned(&bench, "x.qimg");
    let running = bench.start(
        &["prepare", "x.qimg", "--manifest", &manifest, "--max-rate", "256K", "--json"],
        Stdio::null(),
    );
    // Its slot is torn, so the head was read. The rest takes it 12 s.
    while bench.state("platform_b", &[]) == "empty" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::write(bench.path("x.qimg"), fs::read(bench.path("v3.qimg")).unwrap()).unwrap();
    let run = running.end();
    run.bad("BUNDLE_FRAME_DIGEST");
    assert_eq!(bench.state("platform_a", &[]), "good");
    assert_eq!(bench.state("platform_b", &[]), "torn");
    // The file that was planned is prepared in what is left.
    bench.at(&["prepare", "v2.qimg", "--manifest", &manifest]).good();
    assert!(bench.holds("platform_b", "v2.img"));
}
