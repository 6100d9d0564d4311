//! The one place of the command line that knows how the machine's parts are had.

use std::path::Path;

use super::output;
use crate::bundle::{Bundle, Source, Trust};
use crate::config::Settings;
use crate::device::Mode;
use crate::engine::{Engine, Policy};
use crate::error::{Error, Result};
use crate::host::record::FileJournal;
use crate::host::{LocalDisk, signals};
use crate::progress::Cancel;
use crate::source::address::Address;
use crate::source::open_source;
use crate::source::web::Web;

/// The disk and the state file of this run.
pub(super) struct Host {
    disk: LocalDisk,
    journal: FileJournal,
}

impl Host {
    /// For verbs that only look: works without the right to write.
    pub(super) fn open_to_look(settings: &Settings) -> Result<Self> {
        Self::open(settings, Mode::Read)
    }

    /// For verbs that change something.
    pub(super) fn open_to_change(settings: &Settings) -> Result<Self> {
        Self::open(settings, Mode::Write)
    }

    fn open(settings: &Settings, mode: Mode) -> Result<Self> {
        let disk = LocalDisk::open(settings.disk()?, mode, settings.sector_size)?
            .with_efivars(settings.efivars.clone())
            .assuming_unused(settings.assume_unused);
        Ok(Self { disk, journal: FileJournal::new(&settings.state_dir, output::note) })
    }

    /// The engine on this disk.
    pub(super) fn engine(&self, policy: Policy) -> Engine<'_> {
        Engine::new(&self.disk, &self.journal, policy)
    }
}

/// Opens a source of bundle bytes: a path, an http(s) or file URL, or `-` for standard input.
pub(super) fn source(from: &Path, web: &Web, cancel: &Cancel) -> Result<Source> {
    match Address::parse(from)? {
        Address::Web(url) => web.open(&url, cancel),
        Address::File(path) => open_source(&path, cancel),
        Address::Stdin => open_source(Path::new("-"), cancel),
    }
}

/// Opens a bundle, which includes its signature.
pub(super) fn bundle(from: &Path, trust: &Trust, web: &Web, cancel: &Cancel) -> Result<Bundle> {
    bundle_or_delta(from, trust, web, cancel)?.whole()
}

/// Opens a bundle, or a delta that stands for one.
pub(super) fn bundle_or_delta(from: &Path, trust: &Trust, web: &Web, cancel: &Cancel) -> Result<Bundle> {
    Bundle::open(source(from, web, cancel)?, trust)
}

/// A stop request that signals raise. Only verbs that look at it ask for it: those that change nothing and are short die
/// by a signal as any program does.
pub(super) fn cancel_on_signals() -> Result<Cancel> {
    raised_by(signals::cancel_on_signals)
}

/// The same for verbs that switch: they end before their first write or go through to their end.
pub(super) fn defer_signals() -> Result<Cancel> {
    raised_by(signals::defer)
}

fn raised_by(register: fn(&Cancel) -> std::io::Result<()>) -> Result<Cancel> {
    let cancel = Cancel::default();
    register(&cancel).map_err(|problem| Error::Internal { what: format!("signal handlers: {problem}") })?;
    Ok(cancel)
}
