//! A disk with software slots, a small real service in squashfs images, and qstage to swap them.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::clock::Clock;
use super::ports::free_port;
use serde_json::Value;

pub(crate) use crate::harness::loops as host;
use host::{Loop, run, scratch, text};

/// Whether containers can run here.
pub(crate) fn can_run() -> bool {
    let there =
        |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !host::is_root() {
        return false;
    }
    if there("systemd-nspawn") && there("setsid") {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI has systemd-nspawn (package systemd-container)");
    eprintln!("SKIPPED: needs systemd-nspawn (package systemd-container)");
    false
}

/// Builds the service into a directory; once per machine, so that no copy is left over.
fn app(dir: &Path) -> PathBuf {
    let [source, tries] = [
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/containers/app.c"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/containers/tries.c"),
    ];
    let program = dir.join("service");
    if !program.exists() {
        run("cc", &["-O1", "-static", "-o", text(&program), source, tries]);
    }
    program
}

/// Makes the program one that cannot start, by some modes.
fn spoil(program: &Path, mode: &str) {
    let executable = fs::Permissions::from_mode(if mode == "not-executable" { 0o644 } else { 0o755 });
    match mode {
        "no-program" => fs::remove_file(program).unwrap(),
        "no-interpreter" => fs::write(program, "#!/usr/bin/nothing\n").unwrap(),
        "foreign" => {
            // ELF for IBM S/390.
            let mut bytes = fs::read(program).unwrap();
            bytes[18..20].copy_from_slice(&22u16.to_le_bytes());
            fs::write(program, bytes).unwrap();
        }
        _ => {}
    }
    if program.exists() {
        fs::set_permissions(program, executable).unwrap();
    }
}

/// An image of the service in `mode` that says `version`.
pub(crate) fn image_of(place: &Path, version: &str, mode: &str, file_system: &str) -> PathBuf {
    let at = |name: &str| place.join(name);
    let root = at(&format!("root-{version}"));
    for dir in ["proc", "sys", "dev", "run", "tmp", "etc", "usr", "var", "state"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(app(place), root.join("app")).unwrap();
    spoil(&root.join("app"), mode);
    fs::write(root.join("mode"), mode).unwrap();
    fs::write(root.join("version"), version).unwrap();
    let image = at(&format!("{version}.image"));
    match file_system {
        "squashfs" => run("mksquashfs", &[text(&root), text(&image), "-noappend", "-quiet", "-no-progress"]),
        "erofs" => run("mkfs.erofs", &["--quiet", text(&image), text(&root)]),
        _ => run("mkfs.ext4", &["-q", "-d", text(&root), text(&image), "6M"]),
    };
    image
}

/// Form in which qstage gets the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A loop device with nodes for its partitions.
    Nodes,
    /// An image file.
    File,
}

/// A machine: disk, configuration, run directory. The drop stops its container.
pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    loop_device: Option<Loop>,
}

impl Machine {
    /// A disk with version 1.0 in slots a, whose service runs in `mode`; `more` lines go into `[container]`.
    pub(crate) fn new(disk: Disk, mode: &str, more: &str) -> Self {
        let dir = scratch();
        let port = free_port();
        let mut machine = Self { dir, port, loop_device: None };
        let at = |name: &str| machine.dir.path().join(name);
        fs::write(at("platform.img"), vec![0x50; 1 << 20]).unwrap();
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", text(&at("key"))]);
        let key = fs::read_to_string(at("key.pub")).unwrap();
        let key: Vec<&str> = key.split(' ').collect();
        fs::write(at("trusted"), format!("x namespaces=\"qimg\" {} {}\n", key[0], key[1])).unwrap();
        let first = machine.bundle("1.0", mode);
        let at = |name: &str| machine.dir.path().join(name);
        let image = at("disk.img");
        let trust = at("trusted");
        let init =
            ["init", text(&image), "--slot-size", "8M", "--software-size", "8M", "--bundle", text(&first)];
        let done = qstage(&[&init[..], &["--trust", text(&trust)]].concat());
        assert!(done.status.success(), "{}", said(&done));
        let path = match disk {
            Disk::File => image,
            Disk::Nodes => {
                let device = Loop::new(&image, 512, &[]);
                device.nodes();
                let path = device.0.clone();
                machine.loop_device = Some(device);
                path
            }
        };
        let at = |name: &str| machine.dir.path().join(name);
        let probe = format!("probe = \"http://127.0.0.1:{port}/\"\n");
        let probe = if more.contains("probe =") { "" } else { &probe };
        let deadline = if more.contains("deadline =") { "" } else { "deadline = 5\n" };
        let stop = if more.contains("stop_timeout =") { "" } else { "stop_timeout = 1\n" };
        // The clients of these tests run on the host.
        let network = if more.contains("network =") { "" } else { "network = \"host\"\n" };
        let more = more.replace("PORT", &port.to_string());
        let config = format!(
            "disk = \"{}\"\ntrust = \"{}\"\nstate_dir = \"{}\"\n[service]\nimage_paths = [\"/\"]\n[container]\ncommand = [\"/app\", \"{port}\"]\n\
             {probe}{network}state = \"{}:/state\"\nrun_dir = \"{}\"\n{stop}\
             {deadline}options = [\"--resolv-conf=off\", \"--timezone=off\"]\n{more}\n",
            path.display(),
            at("trusted").display(),
            at("journal").display(),
            at("state").display(),
            at("run").display(),
        );
        fs::write(at("config.toml"), config).unwrap();
        machine
    }

    /// Packs a bundle with the same platform, and a service in `mode` that reports `version`.
    pub(crate) fn bundle(&self, version: &str, mode: &str) -> PathBuf {
        self.bundle_of(version, mode, "squashfs")
    }

    /// The same with another file system.
    pub(crate) fn bundle_of(&self, version: &str, mode: &str, file_system: &str) -> PathBuf {
        let at = |name: &str| self.dir.path().join(name);
        let (image, bundle) =
            (image_of(self.dir.path(), version, mode, file_system), at(&format!("{version}.qimg")));
        let done = qstage(&[
            "pack",
            "--force",
            "--product",
            "demo",
            "--version",
            version,
            "--platform",
            text(&at("platform.img")),
            "--software",
            text(&image),
            "--key",
            text(&at("key")),
            "-o",
            text(&bundle),
        ]);
        assert!(done.status.success(), "{}", said(&done));
        bundle
    }

    /// Prepares a new version.
    pub(crate) fn prepare(&self, version: &str, mode: &str) {
        let bundle = self.bundle(version, mode);
        self.good(&["prepare", text(&bundle)]);
    }

    /// Runs a verb on this machine.
    pub(crate) fn run(&self, verb: &[&str]) -> Output {
        qstage(&self.line(verb))
    }

    fn line(&self, verb: &[&str]) -> Vec<String> {
        let config = self.dir.path().join("config.toml");
        let mut line: Vec<String> = verb.iter().map(|&word| word.to_owned()).collect();
        line.extend(["--config".to_owned(), text(&config).to_owned()]);
        // A block device that this machine did not boot from.
        if self.loop_device.is_some() && !verb.contains(&"--service") {
            line.extend(["--booted", "a"].map(str::to_owned));
        }
        line
    }

    /// A verb as a command that the test starts itself.
    pub(crate) fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qstage"));
        command.args(self.line(verb)).stdin(Stdio::null());
        command
    }

    /// Runs a verb that must succeed; returns its output.
    pub(crate) fn good(&self, verb: &[&str]) -> String {
        let output = self.run(verb);
        assert!(output.status.success(), "{verb:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same; returns its one JSON object.
    pub(crate) fn json(&self, verb: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[verb, &["--json"]].concat())).unwrap()
    }

    /// The current response of the service; `None` if it does not respond.
    pub(crate) fn answer(&self) -> Option<String> {
        answer(self.port)
    }

    /// States of the software slots a and b by `slots`, and the selected one.
    pub(crate) fn software(&self) -> (String, String, String) {
        let slots = self.json(&["slots"]);
        let all: Vec<&Value> =
            slots["slots"].as_array().unwrap().iter().filter(|slot| slot["group"] == "software").collect();
        let state = |at: usize| all[at]["state"].as_str().unwrap().to_owned();
        let next = all.iter().find(|slot| slot["boots_next"] == true);
        (state(0), state(1), next.map_or("none", |slot| slot["slot"].as_str().unwrap()).to_owned())
    }

    /// Versions in the order of their starts, as the service wrote them into its state directory.
    pub(crate) fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("state/starts")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The last line of the history.
    pub(crate) fn last_event(&self) -> Value {
        let disk = fs::read_dir(self.dir.path().join("journal")).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(disk.join("history.jsonl")).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    /// Mounts below the run directory, including the shared one itself.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let own = text(self.dir.path()).to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
        targets.filter(|target| target.starts_with(&own)).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.run(&["container", "stop"]);
        for target in self.mounts().into_iter().rev() {
            let _ = Command::new("umount").args(["--lazy", &target]).output();
        }
    }
}

/// The response to one request; `None` if there is none.
pub(crate) fn answer(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut got = String::new();
    stream.read_to_string(&mut got).ok()?;
    got.starts_with("HTTP/1.0 200").then(|| got.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

/// Polls the service until it is stopped; records the longest gap between two good responses, and the number of missing ones.
pub(crate) struct Poller {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<(Duration, usize)>,
}

impl Poller {
    pub(crate) fn new(port: u16) -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let asked = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut last, mut gap, mut missing) = (Clock::start(), Duration::ZERO, 0);
            while !asked.load(std::sync::atomic::Ordering::Relaxed) {
                if answer(port).is_some() {
                    gap = gap.max(last.elapsed());
                    last = Clock::start();
                } else {
                    missing += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (gap, missing)
        });
        Self { stop, thread }
    }

    pub(crate) fn done(self) -> (Duration, usize) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Runs qstage.
pub(crate) fn qstage<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Standard output and standard error of a program.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}
