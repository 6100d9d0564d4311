//! `service.json` in the state directory: the upgrade as it was last shown. It may be lost, as all of `/var`: the disk has
//! what is staged and what boots, and counts if the two differ.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::Flock;

use crate::error::{Error, Result};
use crate::host::files::{lock_file, private_directory, replace};
use crate::service::owner::upgrade::LocalUpgrade;

const FILE: &str = "service.json";
const LOCK: &str = "service.lock";

/// Prevents a second service with the same state directory until the drop: socket and port only exclude services with the
/// same address.
///
/// # Errors
/// [`Error::Busy`]. If the lock cannot be created, for instance on a read-only /var, the service runs without it.
pub(in crate::service) fn only_service(dir: &Path) -> Result<Option<Flock<File>>> {
    // Without waiting: a service holds the lock until its end.
    match private_directory(dir, false).and_then(|()| lock_file(&dir.join(LOCK), Duration::ZERO)) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            Err(Error::Busy { disk: dir.display().to_string(), holder: "another service".to_owned() })
        }
        Err(error) => {
            tracing::warn!("{}: cannot be locked: {error}", dir.display());
            Ok(None)
        }
    }
}

/// The file of the upgrade's state.
#[derive(Debug)]
pub(in crate::service) struct UpgradeFile {
    dir: PathBuf,
    last: Option<LocalUpgrade>,
    /// The last failure to write: the same one is logged once.
    failed: Option<String>,
}

impl UpgradeFile {
    pub(in crate::service) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), last: None, failed: None }
    }

    /// The stored state; the default if there is none, or it cannot be read.
    pub(in crate::service) fn load(&self) -> LocalUpgrade {
        let text = fs::read_to_string(self.dir.join(FILE)).unwrap_or_default();
        if text.is_empty() {
            return LocalUpgrade::default();
        }
        serde_json::from_str(&text).unwrap_or_else(|problem| {
            tracing::warn!("{FILE} cannot be read and is ignored: {problem}");
            LocalUpgrade::default()
        })
    }

    /// Stores the state durably; it is shown only after that. Progress alone is not worth a flush: after a crash it is void.
    pub(in crate::service) fn keep(&mut self, upgrade: &LocalUpgrade) {
        let kept = LocalUpgrade { progress: 0, ..upgrade.clone() };
        if self.last.as_ref() == Some(&kept) {
            return;
        }
        let written = serde_json::to_vec_pretty(&kept).map_err(std::io::Error::from).and_then(|bytes| {
            private_directory(&self.dir, false).and_then(|()| replace(&self.dir, FILE, &bytes, 0o600))
        });
        match written {
            Ok(()) => (self.last, self.failed) = (Some(kept), None),
            // A full or read-only /var must not stop an upgrade.
            Err(error) => {
                let error = error.to_string();
                if self.failed.as_ref() != Some(&error) {
                    tracing::warn!("{}: the state is not stored: {error}", self.dir.display());
                    self.failed = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::owner::upgrade::{Failure, Phase};

    #[test]
    fn there_is_one_service_for_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = only_service(dir.path()).unwrap();
        assert!(first.is_some());
        assert_eq!(only_service(dir.path()).unwrap_err().code(), "UPGRADE_ERROR_BUSY");
        drop(first);
        assert!(only_service(dir.path()).unwrap().is_some());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(only_service(&dir.path().join("file")).unwrap().is_none(), "no directory, no lock");
    }

    #[test]
    fn what_was_kept_is_found_and_garbage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("made/when/needed");
        let mut store = UpgradeFile::new(&place);
        assert_eq!(store.load(), LocalUpgrade::default());
        let error = Some(Failure { code: "C".into(), message: "m\"\n".into() });
        let upgrade =
            LocalUpgrade { phase: Phase::Prepared, error, progress: 100, ..LocalUpgrade::default() };
        store.keep(&upgrade);
        assert_eq!(UpgradeFile::new(&place).load(), LocalUpgrade { progress: 0, ..upgrade.clone() });
        // Progress alone writes nothing.
        let before = fs::metadata(place.join(FILE)).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        store.keep(&LocalUpgrade { progress: 3, ..upgrade });
        assert_eq!(fs::metadata(place.join(FILE)).unwrap().modified().unwrap(), before);
        for garbage in ["{", "[]", "{\"phase\":\"flying\"}"] {
            fs::write(place.join(FILE), garbage).unwrap();
            assert_eq!(store.load(), LocalUpgrade::default());
        }
    }
}
