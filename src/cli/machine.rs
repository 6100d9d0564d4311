//! Construction of disk, journal, bundle source and stop request for the verbs; the one place that does so.

use std::path::Path;
use std::sync::Arc;

use super::output;
use super::progress::Reporter;
use crate::boot::BootFlag;
use crate::bundle::{Bundle, Source, Trust};
use crate::config::Settings;
use crate::device::Mode;
use crate::engine::{Engine, Policy};
use crate::error::{Error, Result};
use crate::host::efivars::EFIVARS;
use crate::host::files::private_directory;
use crate::host::journal::FileJournal;
use crate::host::{LocalDisk, signals};
use crate::progress::{Cancel, Progress};
use crate::sandbox::{self, Kept};
use crate::selector;
use crate::source::address::{Address, Url};
use crate::source::allowed::{Allowed, Permitted};
use crate::source::http::{Notice, Web};
use crate::source::{InputTimeout, open_source, opened_source};

/// The disk and the journal of this run.
pub(super) struct Host {
    disk: LocalDisk,
    journal: FileJournal,
}

impl Host {
    /// For read-only verbs: works without write permission.
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

    /// The paths that a read-only verb opens after it has read a bundle: the disk, its partitions, devices that may expose
    /// them.
    pub(super) fn kept_to_look(&self, settings: &Settings) -> Kept {
        let (own, others) = self.disk.nodes();
        let state = [settings.state_dir.clone()];
        let read = own.into_iter().chain(others).chain(state).chain(settings.efivars.clone()).collect();
        Kept { read, ..Kept::default() }
    }

    /// The same for a verb that changes something: it writes slots, table, EFI variables and journal.
    pub(super) fn kept_to_change(&self, settings: &Settings) -> Kept {
        let (own, others) = self.disk.nodes();
        // Only an existing directory can be permitted. If it cannot be created, the write of the journal reports that.
        let _ = private_directory(&settings.state_dir, true);
        let write = own.into_iter().chain([settings.state_dir.clone()]).collect();
        let efivars = || settings.efivars.clone().unwrap_or_else(|| EFIVARS.into());
        let efivars = (settings.boot_flag == BootFlag::Efi).then(efivars);
        Kept { read: others, write, efivars, network: false }
    }

    /// The engine on this disk.
    pub(super) fn engine(&self, policy: Policy) -> Engine<'_> {
        Engine::new(&self.disk, &self.journal, policy)
    }
}

/// Sets the disk for a read-only verb: without a named one, the disk that a selector would select. A verb that changes
/// something needs it named: it must not find the stick of an installer instead.
pub(super) fn find_disk(settings: &mut Settings) -> Result<()> {
    settings.disk = Some(selector::locate(settings.disk.as_deref(), &output::note)?);
    Ok(())
}

/// Input with a bundle: a file or pipe is already open, a web server has not been contacted yet.
pub(super) enum OpenedInput {
    /// A file, a pipe.
    Open(Source),
    /// A URL.
    Web(Address),
}

/// The same in a process that has dropped its rights; only this type can be read.
pub(super) struct ConfinedInput(OpenedInput);

impl OpenedInput {
    /// The same as [`open`](Self::open), for a caller that may name only bundles in `allowed`; `None`: all.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for what is not `allowed`; class Io.
    pub(super) fn open_allowed(
        from: &Path,
        allowed: Option<&Allowed>,
        timeout: InputTimeout,
        cancel: &Cancel,
    ) -> Result<Self> {
        let Some(allowed) = allowed else { return Self::open(from, timeout, cancel) };
        match allowed.open(&from.to_string_lossy())? {
            Permitted::Web(url) => Ok(Self::Web(Address::Web(url))),
            Permitted::File(file) => opened_source(file, from, timeout, cancel).map(Self::Open),
        }
    }

    /// Opens a path, or `-` for standard input; an http(s) URL is not contacted yet.
    pub(super) fn open(from: &Path, timeout: InputTimeout, cancel: &Cancel) -> Result<Self> {
        match Address::parse(from)? {
            address @ Address::Web(_) => Ok(Self::Web(address)),
            Address::File(path) => open_source(&path, timeout, cancel).map(Self::Open),
            Address::Stdin => open_source(Path::new("-"), timeout, cancel).map(Self::Open),
        }
    }

    /// Drops all rights except `kept`; to be called before any thread is started, since existing threads retain theirs.
    pub(super) fn confine(self, kept: Kept, web: &Web, progress: &dyn Progress) -> Result<ConfinedInput> {
        let mut kept = kept;
        kept.network |= matches!(self, Self::Web(_));
        kept.read.extend(web.files());
        for missing in sandbox::enter(&kept)?.missing {
            progress.notice(&format!("the bundle is read with more rights than it takes: {missing}"));
        }
        Ok(ConfinedInput(self))
    }

    /// Reads the head of a bundle with all rights retained: for `init` and `bench`, which make disks and measure.
    pub(super) fn unconfined(
        self,
        trust: &Trust,
        web: &Web,
        cancel: &Cancel,
        notice: &Notice,
    ) -> Result<Bundle> {
        self.bundle(trust, web, cancel, notice)?.whole()
    }

    fn bundle(self, trust: &Trust, web: &Web, cancel: &Cancel, notice: &Notice) -> Result<Bundle> {
        match self {
            Self::Open(source) => Bundle::open(source, trust),
            Self::Web(Address::Web(url)) => {
                web.read(&url, cancel, notice, |source| Bundle::open(source, trust))
            }
            Self::Web(other) => Err(Error::Internal { what: format!("{other} is no web server") }),
        }
    }
}

impl ConfinedInput {
    /// Reads the head of the bundle or delta, and checks its signature.
    pub(super) fn bundle(self, trust: &Trust, web: &Web, cancel: &Cancel, notice: &Notice) -> Result<Bundle> {
        self.0.bundle(trust, web, cancel, notice)
    }

    /// The address, where it is on a web server.
    pub(super) fn url(&self) -> Option<&Url> {
        match &self.0 {
            OpenedInput::Web(Address::Web(url)) => Some(url),
            OpenedInput::Web(_) | OpenedInput::Open(_) => None,
        }
    }
}

/// Notices of a transfer as lines on standard error, for verbs that show no progress.
pub(super) fn notes() -> Notice {
    Arc::new(output::note)
}

/// Notices of a transfer among the progress of a verb, as long as the reporter exists.
pub(super) fn notices(progress: &Arc<Reporter>) -> Notice {
    let progress = Arc::downgrade(progress);
    Arc::new(move |message| {
        if let Some(progress) = progress.upgrade() {
            progress.notice(message);
        }
    })
}

/// A stop request that signals raise. Only for verbs that check it: short verbs that change nothing are ended by a signal as
/// any program is.
pub(super) fn cancel_on_signals() -> Result<Cancel> {
    raised_by(signals::cancel_on_signals)
}

/// The same for verbs that switch: they stop before their first write, or run to the end.
pub(super) fn defer_signals() -> Result<Cancel> {
    raised_by(signals::defer)
}

fn raised_by(register: fn(&Cancel) -> std::io::Result<()>) -> Result<Cancel> {
    let cancel = Cancel::default();
    register(&cancel).map_err(|problem| Error::Internal { what: format!("signal handlers: {problem}") })?;
    Ok(cancel)
}
