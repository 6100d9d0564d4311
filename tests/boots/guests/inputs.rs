//! External inputs of a boot: Debian's cloud kernel, which has NVMe, ext4 and GPT built in, and the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{tool, which};

/// The files that are the same for all boots.
#[derive(Debug)]
pub struct Inputs {
    /// The kernel, as boot loaders take it.
    pub kernel: PathBuf,
    /// Its modules with their modules.dep: the directory of that name below lib/modules.
    pub modules: PathBuf,
    /// A busybox that needs no libraries.
    pub busybox: PathBuf,
    /// The program under test, without its debugging information.
    pub qstage: PathBuf,
}

impl Inputs {
    /// Fetches what is not there yet. One process at a time does; the others wait.
    pub(super) fn get() -> &'static Self {
        static INPUTS: OnceLock<Inputs> = OnceLock::new();
        INPUTS.get_or_init(|| {
            let dir = dir();
            fs::create_dir_all(&dir).unwrap();
            let lock = File::create(dir.join("lock")).unwrap();
            lock.lock().unwrap();
            let kernel = unpacked(&dir);
            let modules = fs::read_dir(kernel.join("lib/modules")).unwrap().next().unwrap().unwrap().path();
            let boot = fs::read_dir(kernel.join("boot")).unwrap().map(|entry| entry.unwrap().path());
            let image = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz");
            let vmlinuz = boot.into_iter().find(image).unwrap();
            let qstage = dir.join("qstage");
            let temporary = dir.join("qstage.new");
            let paths = ["-o", text(&temporary), env!("CARGO_BIN_EXE_qstage")];
            tool("strip", &paths);
            fs::rename(&temporary, &qstage).unwrap();
            Inputs { kernel: vmlinuz, modules, busybox: which("busybox").unwrap(), qstage }
        })
    }
}

/// Where they are kept: beside the builds, so that a second run downloads nothing.
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("boots")
}

/// The unpacked package of the kernel that this release of Debian calls its cloud kernel.
fn unpacked(dir: &Path) -> PathBuf {
    let root = dir.join("kernel");
    if root.join("lib/modules").is_dir() {
        return root;
    }
    // A meta package: it depends on the package of the current version.
    let depends = tool("apt-cache", &["depends", "linux-image-cloud-amd64"]);
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).unwrap_or_else(|| {
        panic!("apt knows no linux-image-cloud-amd64: 'apt-get update' as root, or put a kernel into {root:?}")
    });
    let download = dir.join("download");
    let _ = fs::remove_dir_all(&download);
    fs::create_dir_all(&download).unwrap();
    let apt = Command::new("apt-get").args(["-qq", "download", package]).current_dir(&download).output();
    let apt = apt.unwrap();
    assert!(apt.status.success(), "apt-get download: {}", String::from_utf8_lossy(&apt.stderr));
    let deb = fs::read_dir(&download).unwrap().next().unwrap().unwrap().path();
    let temporary = dir.join("kernel.new");
    let _ = fs::remove_dir_all(&temporary);
    tool("dpkg-deb", &["--extract", text(&deb), text(&temporary)]);
    let version = fs::read_dir(temporary.join("lib/modules")).unwrap().next().unwrap().unwrap().file_name();
    tool("busybox", &["depmod", "-b", text(&temporary), version.to_str().unwrap()]);
    fs::remove_dir_all(&download).unwrap();
    fs::rename(&temporary, &root).unwrap();
    root
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
