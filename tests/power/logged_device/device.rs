//! A block device of the kernel that logs each write and flush, and fails at given sectors:
//! file < blkdebug < blklogwrites in qemu-storage-daemon(1), exported over FUSE, with a loop device on it.
#![allow(unreachable_pub, reason = "a part of one test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::load::bound;
use crate::harness::machine::tool;
use crate::harness::tables::Op;

/// What fails.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// Each write that touches this sector.
    Write(u64),
    /// Each flush.
    Flush,
}

/// The device; detached, and its daemon ended, when dropped.
pub struct Logged {
    dir: PathBuf,
    node: String,
    daemon: Child,
}

impl Logged {
    /// A device over a copy of `image` in `dir`.
    pub fn new(dir: &Path, image: &[u8], fault: Fault) -> Self {
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        fs::write(path("disk"), image).unwrap();
        for empty in ["log", "export"] {
            File::create(path(empty)).unwrap();
        }
        let fails = |kind: &str, at: Option<u64>| {
            let mut rule = json!({ "event": "none", "iotype": kind, "errno": 5 });
            if let Some(at) = at {
                rule["sector"] = json!(at);
            }
            rule
        };
        let rules = match fault {
            Fault::None => vec![],
            // A range that is zeroed is another kind of request than one that is written.
            Fault::Write(at) => vec![fails("write", Some(at)), fails("write-zeroes", Some(at))],
            Fault::Flush => vec![fails("flush", None)],
        };
        let mut faulty = json!({ "driver": "blkdebug", "node-name": "faulty", "image": "disk" });
        // An empty list is an unknown option to it.
        if !rules.is_empty() {
            faulty["inject-error"] = json!(rules);
        }
        let nodes = [
            json!({ "driver": "file", "node-name": "disk", "filename": path("disk") }),
            json!({ "driver": "file", "node-name": "log", "filename": path("log") }),
            faulty,
            json!({ "driver": "blklogwrites", "node-name": "logged", "file": "faulty", "log": "log" }),
        ];
        let mut command = bound("qemu-storage-daemon");
        for node in nodes {
            command.args(["--blockdev", &node.to_string()]);
        }
        let export = json!({ "type": "fuse", "id": "export", "node-name": "logged", "mountpoint": path("export"), "writable": true });
        // A monitor on standard output greets when everything before it on the command line is done.
        command.args([
            "--export",
            &export.to_string(),
            "--chardev",
            "stdio,id=monitor",
            "--monitor",
            "monitor",
        ]);
        let mut daemon = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut greeting = String::new();
        BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut greeting).unwrap();
        let mut logged = Self { dir: dir.to_owned(), node: String::new(), daemon };
        assert!(greeting.contains("QMP"), "qemu-storage-daemon: {greeting}");
        logged.node = tool("losetup", &["--find", "--show", &path("export")]).trim().to_owned();
        logged
    }

    /// The node in /dev.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Detaches it; what the disk holds then.
    pub fn end(mut self) -> Vec<u8> {
        self.close();
        fs::read(self.dir.join("disk")).unwrap()
    }

    /// The same, and what reached it. Only a daemon that ended in good order has written the head of its log.
    pub fn end_with_log(mut self) -> (Vec<u8>, Vec<Op>) {
        self.close();
        (fs::read(self.dir.join("disk")).unwrap(), replay(&fs::read(self.dir.join("log")).unwrap()))
    }

    fn close(&mut self) {
        if !self.node.is_empty() {
            let _ = Command::new("/usr/sbin/losetup").args(["--detach", &self.node]).status();
            self.node.clear();
        }
        // SIGTERM has it write the log's end and unmount; a hang must not outlive the test.
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        let until = Instant::now() + Duration::from_secs(20);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        while !matches!(self.daemon.try_wait(), Ok(Some(_))) {
            if Instant::now() > until {
                let _ = self.daemon.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(None)) {
            self.close();
        }
        let _ = Command::new("umount").args(["--quiet", "--lazy"]).arg(self.dir.join("export")).status();
    }
}

/// The writes and flushes of a log in the format of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes):
/// a sector that counts entries, then each entry: a sector with place, length and flags, and the data.
fn replay(log: &[u8]) -> Vec<Op> {
    let u64_at = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    assert_eq!((u64_at(0), u64_at(8)), (0x6a_7366_7773_6872, 1), "magic and version of the log");
    let mut ops = Vec::new();
    let mut at = 512;
    for _ in 0..u64_at(16) {
        let (sector, sectors, flags) = (u64_at(at), u64_at(at + 8) as usize, u64_at(at + 16));
        at += 512;
        // A flush comes before the data of its entry, FUA after it. Discards carry no data, and none is expected: a
        // discard may leave anything.
        assert_eq!(flags & 4, 0, "a discard of {sectors} sectors at {sector}");
        if flags & 1 != 0 {
            ops.push(Op::Sync);
        }
        if sectors > 0 {
            ops.push(Op::Write(sector * 512, log[at..at + sectors * 512].to_vec()));
            at += sectors * 512;
        }
        if flags & 2 != 0 {
            ops.push(Op::Sync);
        }
    }
    ops
}
