//! Defaults of options from the environment. The command line comes before them, the configuration after them.

use std::path::PathBuf;

/// `--config`.
pub(super) const CONFIG: &str = "QSTAGE_CONFIG";
/// `--disk`.
pub(super) const DISK: &str = "QSTAGE_DISK";
/// `--state-dir`.
pub(super) const STATE_DIR: &str = "QSTAGE_STATE_DIR";
/// `--trust`.
pub(super) const TRUST: &str = "QSTAGE_TRUST";
/// `--service`, for verbs that talk to a service anyway.
pub(super) const SERVICE: &str = "QSTAGE_SERVICE";
/// `--token-file`.
pub(super) const TOKEN_FILE: &str = "QSTAGE_TOKEN_FILE";

/// The value of a variable; an empty one counts as unset.
pub(super) fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
