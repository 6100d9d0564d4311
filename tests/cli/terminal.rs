//! Progress bars on a terminal, also on one whose output is stopped.
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, Winsize, tcflow, tcsetwinsize};

use crate::harness::machine::Bench;

/// A terminal: the end that shows, and the end of programs.
fn terminal() -> (OwnedFd, File) {
    let shows = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&shows).unwrap();
    unlockpt(&shows).unwrap();
    let name = ptsname(&shows, Vec::new()).unwrap();
    let end = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (shows, end)
}

/// Runs `prepare` with its notes and bars there; how it ended, within a minute.
fn prepare(bench: &Bench, end: &File) -> Option<i32> {
    prepare_to(bench, Stdio::piped(), end.try_clone().unwrap().into())
}

/// The same with other streams.
fn prepare_to(bench: &Bench, out: Stdio, err: Stdio) -> Option<i32> {
    let mut command = bench.command(&["prepare", "v2.qimg", "--max-rate", "4M", "--config", "config.toml"]);
    command.env("TERM", "xterm").stdout(out).stderr(err);
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the terminal holds it");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Before: Ctrl-S held the upgrade, and with it the lock of the disk.
#[test]
fn a_stopped_terminal_does_not_hold_the_work() {
    let bench = Bench::installed();
    let (_shows, end) = terminal();
    tcflow(&end, Action::OOff).unwrap();
    assert_eq!(prepare(&bench, &end), Some(0));
    assert_eq!(bench.state("platform_b", &[]), "prepared");
    tcflow(&end, Action::OOn).unwrap();
}

/// Writes up to `most` bytes to a terminal that no program reads, one by one; returns how many it had room for. A thread of the
/// kernel moves them on, and makes room thereby: it is full when it stays full.
fn fill(end: &File, most: usize) -> usize {
    let flags = fcntl_getfl(end).unwrap();
    fcntl_setfl(end, flags | OFlags::NONBLOCK).unwrap();
    let (mut end, mut written, mut refused) = (end, 0, 0);
    while written < most && refused < 50 {
        match end.write(b"x") {
            Ok(len) => (written, refused) = (written + len, 0),
            Err(_) => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    fcntl_setfl(end, flags).unwrap();
    written
}

/// A terminal whose program was stopped reads nothing, and takes what its buffer has room for. Before: one with room for a part
/// of the result held the process for ever.
#[test]
fn a_terminal_that_nobody_reads_holds_neither_the_work_nor_the_end() {
    let bench = Bench::installed();
    let room = fill(&terminal().1, usize::MAX);
    let (_shows, end) = terminal();
    assert_eq!(fill(&end, room - 10), room - 10);
    assert_eq!(prepare_to(&bench, end.try_clone().unwrap().into(), Stdio::null()), Some(11));
    assert_eq!(bench.state("platform_b", &[]), "prepared");
    assert!(fill(&end, 1) == 0, "there was room for all of it: this test shows nothing");
}

#[test]
fn a_terminal_shows_a_bar_and_is_clean_afterwards() {
    let bench = Bench::installed();
    let (shows, end) = terminal();
    assert_eq!(prepare(&bench, &end), Some(0));
    drop(end);
    let mut text = Vec::new();
    // It ends with EIO where no program has the other end any more.
    let _ = File::from(shows).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("writing [") && text.contains("3.0 MiB"), "{text:?}");
    let last = text.rsplit("\x1b[2K").next().unwrap();
    assert!(!last.contains('['), "the bar is still there: {text:?}");
}

/// The texts of the drawings, without control sequences.
fn drawings(text: &str) -> Vec<String> {
    let visible = |part: &str| {
        let mut pieces = part.split("\x1b[");
        let first = pieces.next().unwrap_or_default().to_owned();
        first
            + &pieces
                .map(|piece| {
                    piece.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).get(1..).unwrap_or("")
                })
                .collect::<String>()
    };
    text.split(['\r', '\n']).flat_map(|part| part.split("\x1b[2K")).map(visible).collect()
}

#[test]
fn a_bar_fits_the_width_and_keeps_its_figures() {
    let bench = Bench::installed();
    for (columns, figures) in [(40, "%"), (60, "% "), (100, "] "), (200, "] "), (0, "] ")] {
        let (shows, end) = terminal();
        tcsetwinsize(&end, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        assert_eq!(prepare(&bench, &end), Some(0));
        drop(end);
        bench.at(&["cancel"]).good();
        // What is in place would be passed in an instant, unseen.
        bench.blank("platform_b");
        let mut text = Vec::new();
        let _ = File::from(shows).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let drawn = drawings(&text);
        let width = if columns == 0 { 80 } else { columns.into() };
        assert!(drawn.iter().all(|line| line.chars().count() <= width), "{columns}: {drawn:?}");
        assert!(
            drawn.iter().any(|line| line.contains("writing") && line.contains(figures)),
            "{columns}: {drawn:?}"
        );
        assert!(
            drawn.iter().any(|line| line.contains("zeroing") && line.contains(figures)),
            "{columns}: {drawn:?}"
        );
        assert!(
            !text.contains("0/0") && !text.contains("0 B/0 B") && !text.contains("NaN"),
            "{columns}: {text:?}"
        );
    }
}

/// The bytes that the drawings of a phase show as done.
fn figures<'a>(drawn: &'a [String], phase: &str) -> BTreeSet<&'a str> {
    let bars = drawn.iter().filter(|line| line.trim_start().starts_with(&format!("{phase} [")));
    bars.filter_map(|line| line.split_once("] ")?.1.split('/').next()).collect()
}

/// Before: bars stood still while a slot was zeroed. The image is mostly zeroes. What is in place is compared faster than a bar is
/// drawn here; `stage::progress_tests` has the steps of that phase.
#[test]
fn a_bar_moves_in_each_phase() {
    const MIB: u64 = 1 << 20;
    let bench = Bench::new();
    for (name, version, len, whole) in [("v1", "1.0", MIB, MIB), ("v2", "2.0", 16 * MIB, 96 * MIB)] {
        let image = bench.image(&format!("{name}.img"), len, 1);
        File::options().write(true).open(image).unwrap().set_len(whole).unwrap();
        bench.pack(name, version, &["--platform", &format!("{name}.img"), "--level", "1"]);
    }
    bench.at(&["init", "disk.img", "--slot-size", "192M", "--bundle", "v1.qimg"]).good();
    let drawn = {
        let (shows, end) = terminal();
        tcsetwinsize(&end, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        // The terminal holds few of the drawings: they are read while the program runs.
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = File::from(shows).read_to_end(&mut text);
            text
        });
        let mut command =
            bench.command(&["prepare", "v2.qimg", "--max-rate", "64M", "--config", "config.toml"]);
        let done = command.env("TERM", "xterm").stdout(Stdio::null()).stderr(end).status().unwrap();
        drop(command);
        assert!(done.success());
        drawings(&String::from_utf8_lossy(&reader.join().unwrap()))
    };
    for phase in ["writing", "zeroing"] {
        let shown = figures(&drawn, phase);
        assert!(shown.len() >= 3, "{phase}: {shown:?}\n{drawn:?}");
    }
}

/// A pipe whose writer pauses is said, beside the bar, and again while it lasts; no bar shows 0 of 0.
#[test]
fn a_silent_pipe_is_said_beside_the_bar() {
    let bench = Bench::installed();
    let (shows, end) = terminal();
    tcsetwinsize(&end, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut command = bench.command(&["prepare", "-", "--config", "config.toml"]);
    command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(end);
    let mut child = command.spawn().unwrap();
    drop(command);
    let bundle = std::fs::read(bench.path("v2.qimg")).unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&bundle[..bundle.len() / 2]).unwrap();
    let (mut text, mut shows, mut pipe) = (Vec::new(), File::from(shows), Some(pipe));
    let mut part = [0; 4096];
    // It ends with EIO where no program has the other end any more.
    while let Ok(len @ 1..) = shows.read(&mut part) {
        text.extend_from_slice(&part[..len]);
        let drawn = drawings(&String::from_utf8_lossy(&text));
        // The figures go on meanwhile: the time left grows.
        let bars: BTreeSet<_> = drawn.iter().filter(|line| line.contains("writing [")).collect();
        let said = |line: &String| {
            line.contains("no data from standard input for ") && line.contains(" s; last progress ")
        };
        if bars.len() > 6
            && drawn.iter().any(said)
            && let Some(mut pipe) = pipe.take()
        {
            pipe.write_all(&bundle[bundle.len() / 2..]).unwrap();
        }
    }
    assert!(child.wait().unwrap().success());
    let drawn = drawings(&String::from_utf8_lossy(&text));
    assert!(pipe.is_none(), "{drawn:?}");
    assert!(drawn.iter().all(|line| !line.contains("a request to stop")), "{drawn:?}");
    assert!(drawn.iter().all(|line| !line.contains("0 B/0 B")), "{drawn:?}");
}
