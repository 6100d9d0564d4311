//! A slot in use is not written, through whatever device it is used, and in whatever namespace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::loops::{Loop, Mount, eventually, is_root, run, text};
use crate::harness::machine::{Bench, MIB, Run};

/// An image whose slot b holds a file system.
fn with_file_system() -> Bench {
    let bench = Bench::installed();
    let (at, _) = bench.extent("platform_b");
    let fs = bench.path("fs.img");
    std::fs::File::create(&fs).unwrap().set_len(4 * MIB).unwrap();
    run("mkfs.ext4", &["-q", text(&fs)]);
    bench.poke(at, &std::fs::read(&fs).unwrap());
    bench
}

/// A loop device over slot b alone.
fn slot_b(bench: &Bench, over: &Path) -> Loop {
    let (at, len) = bench.extent("platform_b");
    Loop::new(over, 512, &["--offset", &at.to_string(), "--sizelimit", &len.to_string()])
}

/// A shell that does something, says so, and stays until its input ends; ended with the test.
struct Sitting(Child);

impl Sitting {
    fn new(program: &str, args: &[&str], script: &str) -> Self {
        let script = format!("{script} && echo done && exec cat");
        let mut child = Command::new(program)
            .args([args, &["sh", "-c", &script]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let sitting = Self(child);
        assert_eq!(line, "done\n");
        sitting
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const OTHER_NAMESPACE: &[&str] = &["--mount", "--propagation", "private"];

/// Refused, without a byte written, by the image file and by a loop device over it; free when the user is gone.
#[track_caller]
fn refused_until(bench: &Bench, user: impl Sized, what: &str) {
    let disk = Loop::new(&bench.disk(), 512, &[]);
    let before = bench.hash();
    for disk in [&bench.disk(), &disk.0] {
        let on = ["--disk", text(disk), "--booted", "a"];
        let prepare = || bench.at(&[&["prepare", "v2.qimg"], &on[..]].concat());
        let message = prepare().bad("SLOT_IN_USE");
        // A process that dropped its rights cannot look into other namespaces: then the kernel decides, without a name.
        let named = message.contains(what) || message.contains("refuses exclusive access");
        assert!(message.contains("platform_b") && named, "{message}");
        bench.at(&[&["prepare", "v2.qimg", "--assume-unused"], &on[..]].concat()).bad("SLOT_IN_USE");
        let plan = bench.at(&[&["plan", "v2.qimg", "--json"], &on[..]].concat()).plan();
        assert_eq!(plan["blocked_by"][0]["code"], "UPGRADE_ERROR_SLOT_IN_USE", "{plan}");
        let status = bench.at(&[&["status"], &on[..]].concat()).json();
        assert_eq!(status["is_blocked"], true);
        assert!(status["blocked_reason"].as_str().unwrap().contains(what), "{status}");
    }
    bench.at(&["init", &bench.text("disk.img"), "--force", "--slot-size", "8M"]).bad("SLOT_IN_USE");
    assert_eq!(bench.hash(), before);
    drop(user);
    eventually(|| {
        let run: Run = bench.at(&["plan", "v2.qimg", "--json"]);
        let plan = run.plan();
        if plan["blocked_by"].as_array().unwrap().is_empty() { Ok(()) } else { Err(plan.to_string()) }
    });
    bench.at(&["prepare", "v2.qimg"]).good();
}

#[test]
fn mounted_where_only_another_namespace_sees_it() {
    if !is_root() {
        return;
    }
    let bench = with_file_system();
    let window = slot_b(&bench, &bench.disk());
    let script = format!("mount -o ro {} {}", text(&window.0), text(&bench.path(".")));
    let sitting = Sitting::new("unshare", OTHER_NAMESPACE, &script);
    let process = format!("in the mount namespace of process {}", sitting.0.id());
    refused_until(&bench, (sitting, window), &process);
}

#[test]
fn unmounted_lazily_while_a_process_sits_in_it() {
    if !is_root() {
        return;
    }
    let bench = with_file_system();
    let window = slot_b(&bench, &bench.disk());
    let at = bench.path("mnt");
    let mount = Mount::new(&window.0, &at, "ro");
    let sitting = Sitting::new("env", &["-C", text(&at)], "umount -l .");
    drop(mount);
    refused_until(&bench, (sitting, window), "unmounted lazily");
}

/// The second loop device shows it under another name of the file, which is then taken away.
#[test]
fn reached_through_other_devices_and_names() {
    if !is_root() {
        return;
    }
    for by in
        ["a hard link that is gone", "a loop device over a loop device", "a whole loop device with nodes"]
    {
        let bench = with_file_system();
        let (link, at): (PathBuf, PathBuf) = (bench.path("link.img"), bench.path("mnt"));
        std::fs::hard_link(bench.disk(), &link).unwrap();
        let outer = Loop::new(&link, 512, &[]);
        let (node, inner) = match by {
            "a hard link that is gone" => {
                let inner = slot_b(&bench, &link);
                (inner.0.clone(), Some(inner))
            }
            "a loop device over a loop device" => {
                let inner = slot_b(&bench, &outer.0);
                (inner.0.clone(), Some(inner))
            }
            _ => {
                outer.nodes();
                (outer.node(2), None)
            }
        };
        let mount = Mount::new(&node, &at, "ro");
        std::fs::remove_file(&link).unwrap();
        // The mount first, then the inner device, then the outer one.
        refused_until(&bench, (mount, inner, outer), "is mounted at");
    }
}

/// In a container the image may lie at another path: the inode is the same.
#[test]
fn named_by_a_bind_mount() {
    if !is_root() {
        return;
    }
    let bench = with_file_system();
    let window = slot_b(&bench, &bench.disk());
    let _mount = Mount::new(&window.0, &bench.path("mnt"), "ro");
    std::fs::write(bench.path("bound.img"), "").unwrap();
    let script = format!(
        "mount --bind disk.img bound.img && exec {} prepare v2.qimg --disk bound.img --booted a --trust {} --state-dir st",
        env!("CARGO_BIN_EXE_qstage"),
        bench.text("allowed_signers"),
    );
    let mut command = Command::new("unshare");
    command.args(OTHER_NAMESPACE).args(["sh", "-c", &script]).current_dir(bench.path("."));
    Run::from(command.output().unwrap()).bad("SLOT_IN_USE");
}

/// Without the kernel's tables no user of a slot is visible, which does not mean that there is none.
#[test]
fn nothing_is_taken_for_idle_where_nothing_can_be_seen() {
    if !is_root() {
        return;
    }
    let bench = Bench::installed();
    let blind = |args: &str| {
        let script = format!(
            "umount -l /sys && exec {} {args} --config config.toml --state-dir st",
            env!("CARGO_BIN_EXE_qstage")
        );
        let mut command = Command::new("unshare");
        command.args(OTHER_NAMESPACE).args(["sh", "-c", &script]).current_dir(bench.path("."));
        Run::from(command.output().unwrap())
    };
    let before = bench.hash();
    let message = blind("prepare v2.qimg").bad("USE_UNKNOWN");
    assert!(message.contains("sysfs") && message.contains("--assume-unused"), "{message}");
    let status = blind("status").json();
    assert_eq!(status["is_blocked"], true, "{status}");
    assert_eq!(bench.hash(), before);
    blind("prepare v2.qimg --assume-unused").good();
    assert!(bench.holds("platform_b", "v2.img"));
}
