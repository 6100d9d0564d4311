//! The engine as the service uses it. It is opened for every verb, as on the command line: so no change of the disk by
//! others is missed, and no descriptor prevents the disk from being detached.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Mode;
use crate::engine::{Change, Engine, Policy};
use crate::error::{Error, Result};
use crate::host::LocalDisk;
use crate::host::journal::{Event, FileJournal, JournalRecord};
use crate::service::owner::upgrade::{Failure, FallenBack, SeenDisk};
use crate::service::owner::waiting_period::uptime;
use crate::state::{SlotsReport, Status, SwitchReport};
use crate::units::{Blake3, BlockSize, Slot};

/// The parameters for opening the disk.
#[derive(Debug, Clone)]
pub struct Place {
    /// The disk.
    pub disk: PathBuf,
    /// Sector size of an image file; `None`: as the table shows.
    pub sector_size: Option<BlockSize>,
    /// Directory of the EFI variables; `None`: those of this machine.
    pub efivars: Option<PathBuf>,
    /// Whether a slot counts as unused if its use cannot be determined.
    pub assume_unused: bool,
    /// Directory of the journal and of the service's own files.
    pub state_dir: PathBuf,
    /// The policy, with the facts that the configuration gives of the machine.
    pub policy: Policy,
    /// The software that the service has started.
    pub started: StartedSoftware,
}

/// The release (BLAKE3 of its manifest) whose software the service has started by a command; no other process knows that. All
/// clones share it.
#[derive(Debug, Clone, Default)]
pub struct StartedSoftware(Arc<Mutex<Option<Blake3>>>);

impl StartedSoftware {
    pub(in crate::service) fn set(&self, release: Option<Blake3>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = release;
    }

    fn get(&self) -> Option<Blake3> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Result of one look at the disk.
#[derive(Debug, Clone)]
pub struct DiskView {
    /// `status` of the engine.
    pub status: Status,
    /// `slots` of the engine.
    pub slots: SlotsReport,
    /// The facts that decide the state of the upgrade.
    pub disk: SeenDisk,
    /// What the journal stores of the disk: the last swap, success and scrubs.
    pub journal: JournalRecord,
}

impl Place {
    pub(in crate::service) fn with<T>(
        &self,
        mode: Mode,
        act: impl FnOnce(&Engine<'_>) -> Result<T>,
    ) -> Result<T> {
        let disk = LocalDisk::open(&self.disk, mode, self.sector_size)?
            .with_efivars(self.efivars.clone())
            .assuming_unused(self.assume_unused);
        let journal = FileJournal::new(&self.state_dir, |notice| tracing::warn!("{notice}"));
        let policy = Policy { software_started: self.started.get(), ..self.policy.clone() };
        act(&Engine::new(&disk, &journal, policy))
    }

    /// Looks at the disk; changes nothing and takes no lock.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn look(&self) -> Result<DiskView> {
        self.with(Mode::Read, |engine| {
            let (status, slots) = (engine.status()?, engine.slots()?);
            let mut disk = SeenDisk::new(&slots, &status.install_path, &boot_id(), uptime());
            disk.fallen = engine.failed_trial()?.map(|failed| FallenBack {
                version: failed.version,
                origin: failed.origin,
                failure: Failure::from(&failed.error),
            });
            Ok(DiskView { status, slots, disk, journal: engine.journal_record()? })
        })
    }

    /// See [`Engine::commit`].
    pub(in crate::service) fn commit(&self) -> Result<SwitchReport> {
        self.with(Mode::Write, |engine| engine.commit(false))
    }

    /// See [`Engine::mark_good`].
    pub(in crate::service) fn mark_good(&self, slot: Option<Slot>) -> Result<SwitchReport> {
        self.with(Mode::Write, |engine| engine.mark_good(slot))
    }

    /// See [`Engine::roll_back`].
    pub(in crate::service) fn roll_back(&self) -> Result<SwitchReport> {
        self.with(Mode::Write, |engine| engine.roll_back())
    }

    /// What a commit would write; see [`Engine::dry_run`].
    pub(in crate::service) fn commit_dry_run(&self) -> Result<SwitchReport> {
        self.with(Mode::Read, |engine| engine.commit(true))
    }

    /// What a roll-back would select; see [`Engine::dry_run`].
    pub(in crate::service) fn roll_back_dry_run(&self) -> Result<SwitchReport> {
        self.with(Mode::Read, |engine| engine.dry_run(&Change::RollBack(None)))
    }

    /// Discards the prepared bundle; returns `None` if there is none.
    pub(in crate::service) fn discard(&self) -> Result<Option<SwitchReport>> {
        match self.with(Mode::Write, |engine| engine.cancel()) {
            Ok(report) => Ok(Some(report)),
            Err(Error::NothingToCancel { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Discards what a prepare has begun that was just stopped, and records that later, see
    /// [`record_cancelled`](Self::record_cancelled).
    pub(in crate::service) fn discard_begun(&self) -> Result<SwitchReport> {
        self.with(Mode::Write, |engine| engine.cancel_unrecorded())
    }

    /// Records in the history that a prepare was cancelled: the outcome of [`discard_begun`](Self::discard_begun), and what
    /// the prepare ended with.
    pub(in crate::service) fn record_cancelled(&self, discarded: Result<SwitchReport>, failure: &Failure) {
        let recorded = self.with(Mode::Read, |engine| {
            engine.record_cancel(discarded);
            engine.note("prepare", &failure.code, &failure.message)
        });
        if let Err(error) = recorded {
            tracing::warn!("the history could not be written: {error}");
        }
    }

    /// See [`Engine::history`].
    pub(in crate::service) fn history(&self) -> Result<Vec<Event>> {
        self.with(Mode::Read, |engine| engine.history())
    }

    /// The history of the only disk in the journal, for a disk that cannot be read.
    pub(in crate::service) fn only_history(&self) -> Vec<Event> {
        FileJournal::new(&self.state_dir, |_| {}).only_history()
    }

    /// Records that a bundle was refused; see [`Engine::bundle_refused`].
    pub(in crate::service) fn refused(&self, path: &str, failure: &Failure) {
        let error = Error::remote(&failure.code, &failure.message);
        let noted = self.with(Mode::Read, |engine| Ok(engine.bundle_refused(path, error)));
        if let Err(error) = noted {
            tracing::warn!("the refusal could not be recorded: {error}");
        }
    }

    /// See [`Engine::clear_error`].
    pub(in crate::service) fn clear(&self) -> Result<()> {
        self.with(Mode::Read, |engine| {
            engine.clear_error();
            Ok(())
        })
    }

    /// Records in the history what the engine could not: the end of a process, a failed restart.
    pub(in crate::service) fn note(&self, verb: &str, failure: &Failure) {
        let noted = self.with(Mode::Read, |engine| engine.note(verb, &failure.code, &failure.message));
        if let Err(error) = noted {
            tracing::warn!("the history could not be written: {error}");
        }
    }
}

/// The kernel's identifier of this boot; empty if it has none, and then not used.
fn boot_id() -> String {
    let read = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"));
    read.unwrap_or_default().trim().to_owned()
}
