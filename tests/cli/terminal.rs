//! Progress bars on a terminal, also on one whose output is stopped.
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Action, tcflow};

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
    let mut command = bench.command(&["prepare", "v2.qimg", "--max-rate", "4M", "--config", "config.toml"]);
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(end.try_clone().unwrap());
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
    assert!(text.contains("writing [") && text.contains("3.00 MiB"), "{text:?}");
    let last = text.rsplit("\x1b[2K").next().unwrap();
    assert!(!last.contains('['), "the bar is still there: {text:?}");
}
