//! Behaviour that needs a separate process: signals, standard input, the page cache after a read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::clock::Clock;
use crate::harness::loops;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loops::{cached, scratch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qstage::bundle::source::{Source, read_failed};
use qstage::host::signals::cancel_on_signals;
use qstage::progress::Cancel;
use qstage::source::{InputTimeout, open_source};

const MIB: u64 = 1 << 20;

/// This binary once more, running only the test `name` below, which is no test but the child's part.
fn child(name: &str, stdin: Stdio) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("process::{name}"), "--ignored", "--nocapture"])
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The next line of the child that begins with "child: ".
fn said(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some(at) = line.find("child: ") {
            return line[at + 7..].trim().to_owned();
        }
        line.clear();
    }
    panic!("the child said nothing more");
}

#[test]
#[ignore = "the child's part"]
fn child_reads_stdin() {
    let cancel = Cancel::default();
    cancel_on_signals(&cancel).unwrap();
    match open_source(Path::new("-"), InputTimeout::default(), &cancel).unwrap() {
        Source::File(file) => println!("child: file of {}", file.len()),
        Source::Stream(mut stream) | Source::Response(mut stream, _) => {
            println!("child: stream");
            let mut all = Vec::new();
            match stream.read_to_end(&mut all) {
                Ok(len) => println!("child: {len}"),
                Err(e) => println!("child: {} after {}", read_failed("the bundle", 0, e).code(), all.len()),
            }
        }
    }
    // Busy with something that does not look at the flag.
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn the_first_signal_ends_a_blocked_read_and_the_second_the_process() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = child("child_reads_stdin", Stdio::piped());
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut stdin = child.stdin.take().unwrap();
        assert_eq!(said(&mut lines), "stream");
        stdin.write_all(b"12345").unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        std::thread::sleep(Duration::from_millis(100));
        let begun = Clock::start();
        kill(pid, signal).unwrap();
        assert_eq!(said(&mut lines), "UPGRADE_ERROR_INTERRUPTED after 5");
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "the first signal asks, it does not kill");
        kill(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal as i32));
    }
}

#[test]
fn standard_input_is_seekable_where_it_can_be() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 1000]).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[1; 1000]).unwrap();
    drop(writer);
    for (stdin, expected) in
        [(Stdio::from(file), &["file of 900"][..]), (Stdio::from(pipe), &["stream", "1000"][..])]
    {
        let mut child = child("child_reads_stdin", stdin);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let heard: Vec<String> = expected.iter().map(|_| said(&mut lines)).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(heard, expected);
    }
}

/// Reads all of `path` as workers do, a frame each, and gives the most that was cached meanwhile.
fn read_by_four(path: &Path, frame: u64, done: bool) -> u64 {
    let Source::File(source) = open_source(path, InputTimeout::default(), &Cancel::default()).unwrap() else {
        panic!("not a file")
    };
    let (next, most) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut buf = vec![0; frame as usize];
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let at = n * frame;
                    if at >= source.len() {
                        break;
                    }
                    let len = frame.min(source.len() - at);
                    source.read_exact_at(&mut buf[..len as usize], at).unwrap();
                    if done {
                        source.done_with(at, len);
                    }
                    if n % 8 == 0 {
                        most.fetch_max(cached(path), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    most.load(Ordering::Relaxed)
}

#[test]
fn a_bundle_does_not_fill_the_page_cache() {
    let dir = scratch();
    let path = dir.path().join("bundle");
    fs::write(&path, vec![0x5a; 64 * MIB as usize]).unwrap();
    // Dirty pages cannot be dropped.
    File::open(&path).unwrap().sync_all().unwrap();
    assert!(cached(&path) > 60 * MIB, "the premise: writing has cached it");
    drop(open_source(&path, InputTimeout::default(), &Cancel::default()).unwrap());
    assert_eq!(cached(&path), 0, "what nobody reads any more is dropped at the end");
    for frame in [MIB, 300_001, 4096 + 1] {
        let most = read_by_four(&path, frame, true);
        assert!(most <= 8 * MIB, "frames of {frame}: {most} bytes were cached");
        assert_eq!(cached(&path), 0);
    }
    assert!(read_by_four(&path, MIB, false) > 40 * MIB, "the judge can tell the difference");
}
