//! The trusted keys as a file of this machine.

use std::path::{Path, PathBuf};

use super::files::read_trusted;
use crate::bundle::Trust;
use crate::bundle::trust::{Demand, TRUST_MAX};
use crate::error::{Error, Result};

/// Where the trusted keys are unless somebody names another file.
pub const DEFAULT_TRUST: &str = "/etc/qstage/allowed_signers";

/// Where the trusted keys are, and what is asked of a bundle. It is read when a signature is judged: a key that was taken out of the
/// file counts no longer, whatever was prepared before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFile {
    /// The `allowed_signers` file.
    pub path: PathBuf,
    /// What is asked beyond a signature by one of its keys.
    pub demand: Demand,
}

impl TrustFile {
    /// Whether anything is at its path.
    pub fn is_there(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// Reads the keys of now.
    ///
    /// # Errors
    /// [`Error::TrustFile`]: it cannot be read, others can write it, or it holds no usable key.
    pub fn read(&self) -> Result<Trust> {
        read(&self.path).map(|trust| trust.demanding(self.demand.clone()))
    }
}

/// Reads an `allowed_signers` file that nobody but root or the caller can change.
///
/// # Errors
/// [`Error::TrustFile`].
pub fn read(path: &Path) -> Result<Trust> {
    let bytes = read_trusted(path, TRUST_MAX).map_err(|problem| {
        let problem = format!("{problem}; name another file with --trust");
        Error::TrustFile { path: path.to_owned(), problem }
    })?;
    Trust::parse(path, &bytes)
}
