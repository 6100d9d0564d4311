//! External inputs of a boot: Debian's cloud kernel, which has NVMe, ext4 and GPT built in, and the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
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
    tool("sh", &[concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/guests/kernel.sh"), text(dir)]);
    dir.join("kernel")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
