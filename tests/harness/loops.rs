//! Real loop devices, partition nodes and mounts, which are removed however the test ends.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::clock::Clock;

/// Whether loop devices can be made. Prints SKIPPED if not; in CI that is a failure.
pub(crate) fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI runs the tests of real devices as root");
    eprintln!("SKIPPED: needs root");
    false
}

/// Runs a tool that must succeed; returns its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    attempt(program, args).unwrap_or_else(|e| panic!("{e}"))
}

/// Makes the kernel forget partitions. Another program of tests may look at every block device at this moment.
pub(crate) fn forget(partx: &[&str]) {
    eventually(|| attempt("partx", &[&["-d"], partx].concat()));
}

fn attempt(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Retries for some seconds. A mount survives in every mount namespace that was copied while it existed; tests that create
/// namespaces run in parallel, and containers start at any time.
pub(crate) fn eventually<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let begun = Clock::start();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(e) => assert!(begun.elapsed().as_secs() < 5, "still after 5 s: {e}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Waits for `done`, at most two seconds.
fn wait_until(mut done: impl FnMut() -> bool) {
    for _ in 0..100 {
        if done() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A temporary directory on a real file system: on tmpfs the page cache *is* the medium.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Creates a sparse file of `len` bytes.
pub(crate) fn sparse(path: &Path, len: u64) -> PathBuf {
    File::create(path).unwrap().set_len(len).unwrap();
    path.to_owned()
}

/// Number of bytes of a file in the page cache, by an independent judge (util-linux).
pub(crate) fn cached(path: &Path) -> u64 {
    run("fincore", &["--bytes", "--noheadings", "--output", "RES", text(path)]).parse().unwrap()
}

/// Shell commands for the start of a new mount namespace: unmount the block devices of other tests, except below `$own`. The
/// copy of a mount keeps its device in use, so that a test that runs at the same time could neither write nor detach it.
pub(crate) const LEAVE_MOUNTS: &str = r#"
    awk -v own="${own:-/none}/" '{ for (i = 7; $i != "-";) i++ }
        $(i + 2) ~ "^/dev/(loop|nbd|mapper/)" && index($5 "/", own) != 1 { print $5 }' /proc/self/mountinfo |
    while read -r at; do umount --lazy "$at"; done
"#;

/// A loop device; the drop detaches it.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    /// Attaches `file`, with further options of losetup(8).
    pub(crate) fn new(file: &Path, sector: u32, more: &[&str]) -> Self {
        let sector = sector.to_string();
        let mut args = vec!["--find", "--show", "--sector-size", &sector];
        args.extend(more);
        args.push(text(file));
        Self(run("losetup", &args).into())
    }

    /// Makes nodes for its partitions; `losetup -P` does not on every kernel.
    pub(crate) fn nodes(&self) {
        run("partx", &["-a", text(&self.0)]);
    }

    /// The node of a partition.
    pub(crate) fn node(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.0.display()).into()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = Path::new("/sys/block").join(&name);
        // A partition stays while something uses it, such as the copy of a mount in a namespace that is about to end. The
        // next test would find it on its own device.
        wait_until(|| {
            let _ = Command::new("partx").args(["-d", text(&self.0)]).output();
            !std::fs::read_dir(&known).is_ok_and(|found| {
                found.flatten().any(|e| e.file_name().to_string_lossy().starts_with(&name))
            })
        });
        let _ = Command::new("losetup").args(["-d", text(&self.0)]).output();
        // It is detached when the last descriptor is closed, also that of a probe by udev; until then the file system of its
        // image is busy.
        wait_until(|| !known.join("loop").exists());
    }
}

/// A mount; the drop removes it.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts `device` at `at`, which is created.
    pub(crate) fn new(device: &Path, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        // An exclusive open survives for an instant in a child that another thread has forked.
        eventually(|| attempt("mount", &["-o", options, text(device), text(at)]));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}
