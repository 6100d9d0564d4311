//! The one place of the command line that knows how the machine's parts are had.

use std::path::Path;

use super::config::Settings;
use crate::bundle::{Bundle, Source, Trust};
use crate::engine::{Engine, Policy};
use crate::error::Result;
use crate::host::{self, FileJournal, LocalDisk};
use crate::progress::Cancel;

/// The disk and the state file of this run.
pub(super) struct Host {
    disk: LocalDisk,
    journal: FileJournal,
}

impl Host {
    /// Opens what the settings name.
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let disk = LocalDisk::open(settings.disk()?, settings.sector_size)?;
        Ok(Self { disk, journal: FileJournal::new(&settings.state_dir) })
    }

    /// The engine on this disk.
    pub(super) fn engine(&self, policy: Policy) -> Engine<'_> {
        Engine::new(&self.disk, &self.journal, policy)
    }
}

/// Opens a source of bundle bytes: a path, or `-` for standard input.
pub(super) fn source(from: &Path) -> Result<Source> {
    host::open_source(from)
}

/// Opens a bundle, which includes its signature.
pub(super) fn bundle(from: &Path, trust: &Trust) -> Result<Bundle> {
    Bundle::open(source(from)?, trust)
}

/// A stop request that SIGINT and SIGTERM raise.
pub(super) fn cancel_on_signals() -> Result<Cancel> {
    host::cancel_on_signals()
}
