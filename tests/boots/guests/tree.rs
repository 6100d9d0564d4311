//! The files of a small system in memory, which are written as an initramfs or as an ext4 image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Inputs, tool};

#[derive(Clone, Debug)]
enum Node {
    Dir,
    File(u32, Vec<u8>),
    Link(String),
}

/// Files by their path, without a slash in front.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    /// A system to be: busybox with a link for each of its tools, the program, and empty mount points.
    pub fn system(inputs: &Inputs) -> Self {
        let mut tree =
            Self::new().program("bin/busybox", &inputs.busybox).program("bin/qstage", &inputs.qstage);
        for applet in tool("busybox", &["--list"]).lines().filter(|applet| *applet != "busybox") {
            tree.put(&format!("bin/{applet}"), Node::Link("/bin/busybox".to_owned()));
        }
        for dir in ["proc", "sys", "dev", "run", "tmp", "mnt", "root", "etc"] {
            tree.put(dir, Node::Dir);
        }
        tree
    }

    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.put(path, Node::File(0o644, bytes.into()));
        self
    }

    /// A shell script. The first line is added.
    pub fn script(mut self, path: &str, text: &str) -> Self {
        self.put(path, Node::File(0o755, format!("#!/bin/sh\n{text}").into_bytes()));
        self
    }

    /// A copy of a file of this machine.
    pub fn copy(self, path: &str, from: &Path) -> Self {
        self.file(path, fs::read(from).unwrap_or_else(|error| panic!("{from:?}: {error}")))
    }

    pub fn without(mut self, path: &str) -> Self {
        self.0.remove(path);
        self
    }

    /// A program of this machine with the libraries that it is linked to, in the places where it looks for them.
    pub fn program(mut self, path: &str, from: &Path) -> Self {
        self.put(path, Node::File(0o755, fs::read(from).unwrap()));
        let ldd = std::process::Command::new("ldd").arg(from).output().unwrap();
        for line in String::from_utf8_lossy(&ldd.stdout).lines() {
            // "libc.so.6 => /lib/…/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)"
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.put(&library[1..], Node::File(0o755, fs::read(library).unwrap()));
            }
        }
        self
    }

    /// Modules of the kernel with those that they need; `modprobe` in the guest finds them.
    pub fn modules(mut self, inputs: &Inputs, names: &[&str]) -> Self {
        let dep = fs::read_to_string(inputs.modules.join("modules.dep")).unwrap();
        let at = format!("lib/modules/{}", inputs.modules.file_name().unwrap().to_str().unwrap());
        let base = |path: &str| path.rsplit('/').next().unwrap().split('.').next().unwrap().replace('-', "_");
        let mut wanted = BTreeSet::new();
        for name in names {
            let line =
                dep.lines().find(|line| base(line.split(':').next().unwrap()) == name.replace('-', "_"));
            let line = line.unwrap_or_else(|| panic!("this kernel has no module {name}"));
            wanted.extend(line.replace(':', " ").split_whitespace().map(str::to_owned));
        }
        for path in wanted {
            self.put(
                &format!("{at}/{path}"),
                Node::File(0o644, fs::read(inputs.modules.join(&path)).unwrap()),
            );
        }
        self.file(&format!("{at}/modules.dep"), dep)
    }

    fn put(&mut self, path: &str, node: Node) {
        let mut parent = path;
        while let Some((dir, _)) = parent.rsplit_once('/') {
            self.0.entry(dir.to_owned()).or_insert(Node::Dir);
            parent = dir;
        }
        self.0.insert(path.to_owned(), node);
    }

    /// As a cpio archive (format newc, see initramfs-buffer-format in the kernel's documentation).
    pub fn cpio(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut member = |number: usize, path: &str, mode: u32, data: &[u8]| {
            let fields = [number, mode as usize, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, path.len() + 1, 0];
            out.extend(b"070701");
            fields.iter().for_each(|field| out.extend(format!("{field:08x}").into_bytes()));
            out.extend(path.bytes().chain([0]));
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(data);
            out.resize(out.len().next_multiple_of(4), 0);
        };
        for (number, (path, node)) in self.0.iter().enumerate() {
            match node {
                Node::Dir => member(number, path, 0o040_755, &[]),
                Node::File(mode, bytes) => member(number, path, 0o100_000 | mode, bytes),
                Node::Link(to) => member(number, path, 0o120_777, to.as_bytes()),
            }
        }
        member(0, "TRAILER!!!", 0, &[]);
        out
    }

    /// Into a directory of this machine.
    pub fn unpack(&self, dir: &Path) {
        for (path, node) in &self.0 {
            let at = dir.join(path);
            match node {
                Node::Dir => fs::create_dir_all(at).unwrap(),
                Node::File(mode, bytes) => {
                    fs::write(&at, bytes).unwrap();
                    fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
                }
                Node::Link(to) => symlink(to, at).unwrap(),
            }
        }
    }

    /// The tree as an ext4 image of the given size in bytes. Without a journal: it is mounted read-only. No root is needed.
    pub fn ext4(&self, image: &Path, size: u64) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        self.unpack(dir.path());
        let _ = fs::remove_file(image);
        fs::File::create(image).unwrap().set_len(size).unwrap();
        let options = ["-q", "-b", "4096", "-m", "0", "-O", "^has_journal,^metadata_csum,^orphan_file"];
        let from = ["-d", dir.path().to_str().unwrap(), image.to_str().unwrap()];
        tool("mkfs.ext4", &[&options[..], &from].concat());
    }
}
