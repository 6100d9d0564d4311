//! A file system in memory that fills up and has room again.
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::machine::tool;

/// The file system; the drop unmounts it.
pub(crate) struct TinyDisk(PathBuf);

impl TinyDisk {
    /// Mounts one of 256 KiB at `place`.
    pub(crate) fn new(place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", "size=256k,mode=700", "none", place.to_str().unwrap()]);
        Self(place.to_owned())
    }

    /// Takes all room, or gives it back.
    pub(crate) fn fill(&self, full: bool) {
        let file = self.0.join("filler");
        if full {
            let mut file = File::create(file).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
        } else {
            let _ = fs::remove_file(file);
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily: what still has a file open in it ends soon.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
