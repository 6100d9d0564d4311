//! The file with the trusted keys of this machine.

use std::path::{Path, PathBuf};

use super::files::read_trusted;
use crate::bundle::Trust;
use crate::bundle::trust::{Demand, TRUST_MAX};
use crate::error::{Error, Result};

/// Default file of the trusted keys.
pub const DEFAULT_TRUST: &str = "/etc/qstage/allowed_signers";

/// The file of the trusted keys, and what is demanded of a bundle. It is read whenever a signature is judged: a key that was
/// removed from the file no longer counts, whatever was prepared before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFile {
    /// The `allowed_signers` file.
    pub path: PathBuf,
    /// Demands beyond one signature by one of the keys.
    pub demand: Demand,
}

impl TrustFile {
    /// Whether the path exists.
    pub fn is_there(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Reads the current keys.
    ///
    /// # Errors
    /// [`Error::TrustFile`]: the file cannot be read, others can write to it, or it holds no usable key.
    pub fn read(&self) -> Result<Trust> {
        read(&self.path).map(|trust| trust.demanding(self.demand.clone()))
    }
}

/// Reads an `allowed_signers` file that only root and the caller can change.
///
/// # Errors
/// [`Error::TrustFile`].
pub fn read(path: &Path) -> Result<Trust> {
    let bytes = read_trusted(path, TRUST_MAX).map_err(|problem| {
        let problem = format!("{problem}; name another file with --trust");
        Error::TrustFile { path: path.to_owned(), problem }
    })?;
    let trust = Trust::parse(path, &bytes)?;
    tracing::debug!("trusted keys {}: {} count now", path.display(), trust.keys().0);
    Ok(trust)
}
