//! Values made of files that may be replaced while the program runs: certificates, keys, tokens.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{Result, sentence};

/// Makes the value from the files as they are now.
type Make<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// Value that is made again after a change of one of its files.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Make<T>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    /// State of the files before the value was made.
    stamps: Vec<Option<Stamp>>,
    value: T,
    /// Message of the failure to make it again; empty: none.
    failure: String,
}

impl<T: Clone> Reloaded<T> {
    /// Makes the first value.
    ///
    /// # Errors
    /// That of `make`.
    pub fn new(files: Vec<PathBuf>, make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let stamps = stamps(&files);
        let last = Last { stamps, value: make()?, failure: String::new() };
        Ok(Self { files, make: Box::new(make), last: Mutex::new(last) })
    }

    /// Makes the first value by a function that cannot fail.
    pub fn always(files: Vec<PathBuf>, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        let last = Last { stamps: stamps(&files), value: make(), failure: String::new() };
        Self { files, make: Box::new(move || Ok(make())), last: Mutex::new(last) }
    }

    /// The present value. If its files have changed and it cannot be made, which is tried again at the next call, the previous
    /// one remains in use: of a pair of files, one is replaced before the other. The second part is what the log should
    /// have: the value is new, or why it could not be made, once per reason; `None`: neither.
    pub fn get(&self) -> (T, Option<Result<()>>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if now == last.stamps {
            return (last.value.clone(), None);
        }
        match (self.make)() {
            Ok(value) => {
                *last = Last { stamps: now, value: value.clone(), failure: String::new() };
                (value, Some(Ok(())))
            }
            Err(error) => {
                let failure = sentence(&error);
                let is_new = failure != last.failure;
                last.failure = failure;
                (last.value.clone(), is_new.then_some(Err(error)))
            }
        }
    }
}

/// State of a file: its time has the resolution of the kernel's tick, so inode and size count too.
type Stamp = (SystemTime, u64, u64);

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.ino(), about.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_pair_of_files_is_used_when_both_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["certificate", "key"].map(|name| dir.path().join(name));
        let replace = |at: usize, text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &paths[at]).unwrap();
        };
        let pair = || paths.clone().map(|path| fs::read_to_string(path).unwrap_or_default());
        replace(0, "a");
        replace(1, "a");
        let (read, path) = (paths.clone(), paths[1].clone());
        let reloaded = Reloaded::new(paths.to_vec(), move || {
            let [certificate, key] = read.each_ref().map(|path| fs::read_to_string(path).unwrap_or_default());
            let differ = || Error::Config { path: path.clone(), problem: format!("no {certificate}") };
            (certificate == key).then(|| certificate.clone()).ok_or_else(differ)
        })
        .unwrap();
        let get = || {
            let (value, news) = reloaded.get();
            (value, news.map(|news| news.map_err(|error| error.to_string())))
        };
        assert_eq!(get(), ("a".into(), None));
        replace(0, "b");
        let (value, news) = get();
        assert!(value == "a" && news.unwrap().unwrap_err().contains("no b"), "{:?}", pair());
        assert_eq!(get(), ("a".into(), None), "once");
        replace(1, "b");
        assert_eq!(get(), ("b".into(), Some(Ok(()))));
        assert_eq!(get(), ("b".into(), None));
        fs::remove_file(&paths[0]).unwrap();
        assert!(matches!(get(), (value, Some(Err(_))) if value == "b"));
        replace(0, "b");
        assert_eq!(get(), ("b".into(), Some(Ok(()))));
    }
}
