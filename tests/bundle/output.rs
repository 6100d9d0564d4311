//! Output files of `pack`, `sign` and `delta`: never an input, and an existing file only on request. `qstage pack -o` with
//! its own input image once destroyed the image.

use crate::harness::machine;

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::process::{Command, Stdio};

use machine::{Bench, MIB};
use nix::sys::stat::Mode;

/// Images, a key, and two bundles of 1 MiB.
fn bench() -> Bench {
    let bench = Bench::new();
    for (name, seed) in [("v1", 1), ("v2", 2)] {
        bench.image(&format!("{name}.img"), MIB, seed);
        bench.pack(name, "1", &["--platform", &format!("{name}.img")]);
    }
    bench
}

const PACK: [&str; 7] = ["pack", "--product", "demo", "--version", "2", "--platform", "v1.img"];

#[test]
fn no_input_is_overwritten_by_whatever_name() {
    let bench = bench();
    fs::hard_link(bench.path("v1.img"), bench.path("hard.img")).unwrap();
    symlink("v1.img", bench.path("soft.img")).unwrap();
    fs::write(bench.path("nic.bin"), "nic").unwrap();
    let pack = [&PACK[..], &["--software", "v2.img", "--firmware", "nic=nic.bin", "--key", "key"]].concat();
    let files = ["v1.img", "hard.img", "soft.img", "v2.img", "nic.bin", "key", "v1.qimg", "v2.qimg"];
    let before = files.map(|name| fs::read(bench.path(name)).unwrap());
    let sign = ["sign", "v1.qimg", "--key", "key"];
    let delta = ["delta", "v1.qimg", "v2.qimg"];
    for force in [&[][..], &["--force"]] {
        for (verb, out, option) in [
            (&pack[..], "v1.img", "--platform"),
            (&pack, "hard.img", "--platform"),
            (&pack, "soft.img", "--platform"),
            (&pack, "v2.img", "--software"),
            (&pack, "nic.bin", "--firmware"),
            (&pack, "key", "--key"),
            (&sign, "key", "option of the signature"),
            (&delta, "v1.qimg", "OLD"),
            (&delta, "v2.qimg", "NEW"),
        ] {
            let text = bench.run(&[verb, &["-o", out], force].concat()).bad("ARGUMENT");
            assert!(text.contains(out) && text.contains(option), "{text}");
        }
    }
    assert!(before == files.map(|name| fs::read(bench.path(name)).unwrap()));
    assert!(fs::symlink_metadata(bench.path("soft.img")).unwrap().is_symlink());
}

#[test]
fn a_file_is_replaced_only_if_asked_for() {
    let bench = bench();
    let sign = ["sign", "v1.qimg", "--key", "key"];
    let delta = ["delta", "v1.qimg", "v2.qimg"];
    for verb in [&PACK[..], &sign, &delta] {
        fs::write(bench.path("out"), "last year's").unwrap();
        let text = bench.run(&[verb, &["-o", "out"]].concat()).bad("OUTPUT_EXISTS");
        assert!(text.contains("out") && text.contains("--force"), "{text}");
        assert_eq!(fs::read(bench.path("out")).unwrap(), b"last year's");
        bench.run(&[verb, &["-o", "out", "--force"]].concat()).good();
        assert!(fs::read(bench.path("out")).unwrap().starts_with(b"manifest.json"), "{verb:?}");
        // What is no file is not replaced at all: as root that would be /dev/null.
        nix::unistd::mkfifo(&bench.path("pipe"), Mode::S_IRWXU).unwrap();
        let text = bench.run(&[verb, &["-o", "pipe", "--force"]].concat()).bad("ARGUMENT");
        assert!(text.contains("'-' is standard output"), "{text}");
        assert!(fs::symlink_metadata(bench.path("pipe")).unwrap().file_type().is_fifo());
        fs::remove_file(bench.path("pipe")).unwrap();
    }
    // In place is what `sign` is for.
    bench.run(&["sign", "v1.qimg", "--key", "key"]).good();
}

#[test]
fn a_bundle_goes_to_standard_output() {
    let bench = bench();
    let run = |args: &[&str]| bench.command(args).env("SOURCE_DATE_EPOCH", "1").output().unwrap();
    let pack = [&PACK[..], &["--key", "key"]].concat();
    let sign = ["sign", "v1.qimg", "--key", "key"];
    let delta = ["delta", "v1.qimg", "v2.qimg"];
    for (verb, note) in
        [(&pack[..], "from 1.0 MiB of images"), (&sign, "signatures: 1"), (&delta, "instead of")]
    {
        assert!(run(&[verb, &["-o", "file", "--force"]].concat()).status.success());
        let piped = run(&[verb, &["-o", "-", "--force"]].concat());
        let told = String::from_utf8(piped.stderr).unwrap();
        assert!(piped.status.success() && told.contains(note), "{told}");
        assert!(piped.stdout == fs::read(bench.path("file")).unwrap(), "{verb:?} has other bytes in a pipe");
        assert!(!bench.path("-").exists());
        let text = bench.run(&[verb, &["-o", "-", "--json"]].concat()).bad("ARGUMENT");
        assert!(text.contains("--json"), "{text}");
        // A reader that goes away has no bundle.
        let mut child =
            bench.command(&[verb, &["-o", "-", "--force"]].concat()).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(7), "{verb:?}");
    }
}

/// script(1) gives it a terminal.
#[test]
fn a_bundle_does_not_go_to_a_terminal() {
    let bench = bench();
    let line = format!("{} {} -o -", env!("CARGO_BIN_EXE_qstage"), PACK.join(" "));
    let out = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(bench.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("terminal") && out.status.code() == Some(2), "{text}");
}

/// A key that does not sign is found at once, not after the images have been compressed.
#[test]
fn the_key_is_tried_before_anything_is_read() {
    let bench = bench();
    fs::write(bench.path("nokey"), "no key").unwrap();
    let pack = ["pack", "--product", "demo", "--version", "2", "--platform", "missing.img", "-o", "x.qimg"];
    bench.run(&[&pack[..], &["--key", "nokey"]].concat()).bad("SIGNING");
    bench.run(&[&pack[..], &["--key", "key"]].concat()).bad("OPEN");
}
