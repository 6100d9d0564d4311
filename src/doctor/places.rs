//! The files and programs of the machine that are read, below a root directory: tests have one of their own.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::program::Program;

/// Number of bytes of a file that are read at most.
const LONGEST: u64 = 4 << 20;

/// The files and programs of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    root: PathBuf,
    /// Whether programs may be run: they report about `/` only.
    asks: bool,
}

impl Default for Places {
    fn default() -> Self {
        Self { root: "/".into(), asks: true }
    }
}

impl Places {
    /// A directory instead of the machine.
    #[cfg(test)]
    pub(super) fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), asks: false }
    }

    /// Path below the root of a file of the machine.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    /// Whether a file exists.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    /// Content of a file; empty if it cannot be read.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> String {
        let mut bytes = Vec::new();
        let read = fs::File::open(self.at(path)).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes));
        read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The files of a directory whose names begin with a prefix, as paths of the machine, sorted.
    pub(super) fn files(&self, dir: &str, prefix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.at(dir)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<PathBuf> =
            names.filter(|name| name.starts_with(prefix)).map(|name| Path::new(dir).join(name)).collect();
        found.sort();
        found
    }

    /// Output of a program; `None` if it does not end with 0 within the time limit, or if programs may not be run.
    pub(super) fn ask(&self, program: &str, args: &[&str]) -> Option<String> {
        const LIMIT: Duration = Duration::from_secs(60);
        if !self.asks {
            return None;
        }
        let outcome = Program::new(program, LIMIT).args(args).answer().run().ok()?;
        outcome.end.success().then(|| String::from_utf8_lossy(&outcome.answer).into_owned())
    }

    /// Whether a program is on the search path of helper programs.
    pub(super) fn has_program(&self, name: &str) -> bool {
        crate::host::program::PATH.split(':').any(|dir| self.has(Path::new(dir).join(name)))
    }
}
