//! The files of the repository, for the rules on them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

/// Path (from the repository) and text of each Rust file of `src` and `tests`.
pub(super) fn files() -> Vec<(String, String)> {
    below(&["src", "tests"], |path| path.extension().is_some_and(|ext| ext == "rs"))
}

/// The same of each document, manifest, script and sample: text that people read. Not those of `target` directories, nor
/// fixtures of other kinds.
pub(super) fn documents() -> Vec<(String, String)> {
    let mut found = below(&["src", "fixtures", "examples"], |path| {
        path.extension().is_some_and(|ext| ["md", "toml", "sh", "conf"].iter().any(|known| ext == *known))
    });
    found.extend(below(&["fixtures/packaging"], |path| path.extension().is_none_or(|ext| ext == "service")));
    found.extend(below(&["scripts"], |path| path.extension().is_none_or(|ext| ext == "py" || ext == "sh")));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "md" || ext == "toml") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Path and text of the wanted files below some directories.
fn below(directories: &[&str], wanted: impl Fn(&Path) -> bool) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut open) =
        (Vec::new(), directories.iter().map(|dir| root.join(dir)).collect::<Vec<_>>());
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if wanted(&path) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
