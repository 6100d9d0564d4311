//! Signatures of installed releases, verified by the current trusted keys: a key that was withdrawn after a prepare counts no
//! more.

use std::fmt;
use std::path::Path;

use super::view::View;
use crate::error::Result;
use crate::host::trust::DEFAULT_TRUST;
use crate::slot::Record;

/// Result of the signature check of what is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SignatureCheck {
    /// Principals and fingerprints of the keys.
    Signed(String),
    /// It was installed without a check of its signature.
    Unsigned,
    /// Not checked: no trusted keys are configured.
    NotJudged,
}

/// Its wording after a version in a sentence.
impl fmt::Display for SignatureCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => f.write_str(" (unsigned)"),
            Self::Signed(_) | Self::NotJudged => Ok(()),
        }
    }
}

impl View {
    /// The signatures of these records, of one release. They are not checked if no file of keys is configured and the default
    /// one does not exist, on a disk image for example.
    ///
    /// # Errors
    /// [`Error::TrustFile`](crate::Error::TrustFile) where the keys cannot be read; those of
    /// [`Trust::judge`](crate::Trust::judge) where no trusted key has signed.
    pub(super) fn provenance(&self, records: &[&Record]) -> Result<SignatureCheck> {
        if records.iter().any(|record| record.unsigned) {
            return Ok(SignatureCheck::Unsigned);
        }
        let Some(file) = &self.policy.trust else { return Ok(SignatureCheck::NotJudged) };
        if file.path == Path::new(DEFAULT_TRUST) && !file.is_there() {
            return Ok(SignatureCheck::NotJudged);
        }
        let trust = file.read()?;
        let mut names = SignatureCheck::NotJudged;
        for record in records {
            names =
                SignatureCheck::Signed(trust.judge(record.manifest.bytes(), record.manifest.signature())?);
        }
        Ok(names)
    }
}
