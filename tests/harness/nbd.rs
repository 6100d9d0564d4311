//! A disk that hangs and fails on demand: a loop device over nbdkit, by FUSE.
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::clock::HANG;
use super::load::bound;
use super::machine::tool;

/// The device. The drop resumes all waiting requests and removes it.
pub(crate) struct Nbd {
    kit: Child,
    fuse: Option<Child>,
    pub(crate) device: PathBuf,
    mount: PathBuf,
    control: PathBuf,
    trigger: PathBuf,
}

impl Nbd {
    /// A device over `image`, with sockets and a mount point in `dir`.
    pub(crate) fn new(image: &Path, dir: &Path) -> Self {
        Self::delayed(image, dir, 0)
    }

    /// The same, whose reads and writes each take the given number of seconds.
    pub(crate) fn delayed(image: &Path, dir: &Path, seconds: u32) -> Self {
        let (socket, mount) = (dir.join("nbd"), dir.join("mounted"));
        let (control, trigger) = (dir.join("control"), dir.join("trigger"));
        File::create(&mount).unwrap();
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !holds() {
                assert!(begun.elapsed() < HANG, "{what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let mut kit = bound("nbdkit");
        kit.args(["--foreground", "--filter=pause", "--filter=error", "--filter=delay", "-U"]).arg(&socket);
        kit.arg("file").arg(image).arg(format!("pause-control={}", control.display()));
        kit.args([format!("rdelay={seconds}"), format!("wdelay={seconds}")]);
        kit.args(["error=EIO", "error-rate=3%"]).arg(format!("error-file={}", trigger.display()));
        let kit = kit.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From here on the drop removes everything, also if a step below fails.
        let mut nbd = Self { kit, fuse: None, device: PathBuf::new(), mount, control, trigger };
        until("nbdkit", &|| socket.exists() && nbd.control.exists());
        // One connection: with four this nbdkit (1.32) shuts down after a flush.
        let mut fuse = bound("nbdfuse");
        fuse.args(["-C", "1"]).arg(&nbd.mount).arg("--unix").arg(&socket);
        nbd.fuse = Some(fuse.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("nbdfuse", &|| fs::metadata(&nbd.mount).is_ok_and(|meta| meta.len() > 0));
        nbd.device = tool("losetup", &["--find", "--show", nbd.mount.to_str().unwrap()]).trim().into();
        nbd
    }

    /// Makes all requests hang, or resumes them.
    pub(crate) fn pause(&self, hangs: bool) {
        let Ok(mut control) = UnixStream::connect(&self.control) else {
            assert!(std::thread::panicking(), "nbdkit is gone");
            return;
        };
        let asked = control.write_all(if hangs { b"p" } else { b"r" });
        asked.and_then(|()| control.read_exact(&mut [0])).unwrap();
    }

    /// A guard whose drop resumes the requests. Create it after the values that wait for the device, so that a failed test
    /// ends too.
    pub(crate) fn goes_on(&self) -> GoesOn<'_> {
        GoesOn(self)
    }

    /// Ends the server of the FUSE file system; the mount and the loop device stay.
    pub(crate) fn crash(&mut self) {
        if let Some(fuse) = &mut self.fuse {
            fuse.kill().and_then(|()| fuse.wait()).unwrap();
        }
    }

    /// Makes some requests fail with EIO, or none.
    pub(crate) fn fail(&self, fails: bool) {
        if fails {
            File::create(&self.trigger).unwrap();
        } else {
            let _ = fs::remove_file(&self.trigger);
        }
    }
}

/// Whether a thread of this process waits in the kernel and cannot be interrupted; see proc_pid_stat(5).
pub(crate) fn is_held(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    })
}

/// Guard of [`Nbd::goes_on`].
pub(crate) struct GoesOn<'a>(&'a Nbd);

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        self.0.pause(false);
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.fail(false);
        self.pause(false);
        let ends = |command: &mut Command| {
            let begun = Instant::now();
            while !command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
                && begun.elapsed() < Duration::from_secs(10)
            {
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        if !self.device.as_os_str().is_empty() {
            ends(Command::new("losetup").arg("--detach").arg(&self.device));
        }
        if self.fuse.is_some() {
            ends(Command::new("umount").arg(&self.mount));
        }
        for child in self.fuse.iter_mut().chain([&mut self.kit]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
