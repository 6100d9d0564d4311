//! Mistakes on the command line, in files that it names, and in the configuration.

use std::fs::{self, File};
use std::process::Stdio;

use crate::harness::machine::Bench;

#[test]
fn configuration() {
    let bench = Bench::installed();
    for (text, told) in
        [("boot_flags = \"legacy\"\n", "boot_flags"), ("tries = 0\n", "tries"), ("jobs = [\n", "line 4")]
    {
        bench.config(text);
        let message = bench.at(&["slots"]).bad("CONFIG");
        assert!(message.contains("config.toml") && message.contains(told), "{message}");
    }
    bench.run(&["slots", "--config", "missing.toml"]).bad("CONFIG");
    fs::write(bench.path("config.toml"), "").unwrap();
    bench.at(&["plan", "v1.qimg"]).bad("ARGUMENT");
}

#[test]
fn files_that_cannot_be_read_or_written() {
    let bench = Bench::installed();
    let pack = ["pack", "--product", "demo", "--version", "1"];
    bench.run(&[&pack[..], &["-o", "x.qimg", "--platform", "none.img"]].concat()).bad("OPEN");
    bench.run(&[&pack[..], &["-o", "no/such/x.qimg", "--platform", "v1.img"]].concat()).bad("OUTPUT");
    bench.run(&[&pack[..], &["-o", "v2.qimg", "--platform", "v1.img"]].concat()).bad("OUTPUT_EXISTS");
    let message = bench
        .run(&[&pack[..], &["-o", "x.qimg", "--platform", "v1.img", "--key", "none"]].concat())
        .bad("SIGNING");
    assert!(message.contains("none"), "{message}");
    assert!(!bench.path("x.qimg").exists());
    let rest: Vec<_> =
        fs::read_dir(bench.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!rest.iter().any(|name| name.to_string_lossy().contains("part")), "{rest:?}");
    for (verb, from) in [("prepare", "none.qimg"), ("prepare", "."), ("plan", "none.qimg")] {
        bench.at(&[verb, from]).bad("OPEN");
    }
    bench.at(&["slots", "--disk", "none.img"]).bad("OPEN");
    bench.at(&["slots", "--disk", "."]).bad("OPEN");
    bench.at(&["firmware", "extract", "nic", "--slot", "a"]).bad("ARGUMENT");

    // Not a text that is no key, and a signature for something else.
    fs::write(bench.path("manifest.json"), "{}").unwrap();
    crate::harness::machine::tool(
        "ssh-keygen",
        &["-q", "-Y", "sign", "-n", "file", "-f", &bench.text("key"), &bench.text("manifest.json")],
    );
    let message = bench.run(&["sign", "v1.qimg", "--signature", "manifest.json.sig"]).bad("SIGNATURE_FORMAT");
    assert!(message.contains("qimg"), "{message}");
}

/// Standard input is a directory: it opens, and the first read fails.
#[test]
fn a_source_that_fails() {
    let bench = Bench::installed();
    let before = bench.hash();
    let args = ["prepare", "-", "--config", "config.toml"];
    let run = bench.command(&args).stdin(Stdio::from(File::open(bench.path("")).unwrap())).output().unwrap();
    crate::harness::machine::Run::from(run).bad("SOURCE");
    assert_eq!(bench.hash(), before);
}
