//! The verbs. The only module that knows both the pure core (table, boot flags, records) and the shell (disk,
//! locks, journal); the command line and the service call nothing else.
//!
//! What is on the disk decides. Nothing is remembered elsewhere but history and the last error.

mod checks;
mod content;
mod firmware;
mod prepare;
mod report;
mod software;
mod switch;
mod trial;
mod view;

use std::num::NonZeroUsize;

pub use content::{FirmwareReport, ScrubReport};
pub use software::{SoftwareImage, SoftwareSwap};

use crate::boot::BootFlag;
use crate::error::{Class, Error, Result};
use crate::host::record::{Event, Journal, LastError, now};
use crate::host::{DiskLock, Machine};
use crate::progress::Cancel;
use crate::units::Slot;
use view::View;

/// Tries of a trial where nobody says: what ChromeOS, Flatcar and Bottlerocket boot with lies between 1 and 6.
pub const DEFAULT_TRIES: u8 = 3;

/// What is known of the machine and allowed to the caller.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Which bits say what boots.
    pub boot_flag: BootFlag,
    /// The slot that runs, where the caller knows better than the kernel.
    pub booted: Option<Slot>,
    /// The compatibility string of this machine; where it is not given, the running slot's record says it.
    pub product: Option<String>,
    /// The file that an entry of the firmware starts, where one has to be made.
    pub efi_loader: String,
    /// How often a new slot is tried before the loader falls back, 1 to 15.
    pub tries: u8,
    /// Accept a bundle that has failed its trial on this machine.
    pub retry: bool,
    /// Accept a version older than the running one.
    pub allow_downgrade: bool,
    /// Accept an epoch lower than the running one.
    pub allow_epoch_rollback: bool,
    /// Accept another product and a running version below the bundle's minimum.
    pub override_product: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            boot_flag: BootFlag::default(),
            booted: None,
            product: None,
            efi_loader: crate::efi::default_loader().to_owned(),
            tries: DEFAULT_TRIES,
            retry: false,
            allow_downgrade: false,
            allow_epoch_rollback: false,
            override_product: false,
        }
    }
}

/// How to prepare.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Number of workers; `None`: [`workers::default_jobs`](crate::workers::default_jobs).
    pub jobs: Option<NonZeroUsize>,
    /// At most so many bytes per second are written.
    pub max_rate: Option<u64>,
    /// Whether to give way to other processes that wait for the disk; see [`Courtesy`](crate::host::load::Courtesy).
    pub background: bool,
    /// Whether to read the slot back from the medium.
    pub read_back: bool,
    /// Whether to verify the SHA-256 of the whole images too; see [`stage::Options`](crate::stage::Options).
    pub sha256: bool,
    /// Raised to stop.
    pub cancel: Cancel,
    /// Where the bundle comes from: `install_path` of the status.
    pub origin: String,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            jobs: None,
            max_rate: None,
            background: false,
            read_back: true,
            sha256: false,
            cancel: Cancel::default(),
            origin: String::new(),
        }
    }
}

/// The verbs on one disk.
pub struct Engine<'a> {
    machine: &'a dyn Machine,
    journal: &'a dyn Journal,
    policy: Policy,
}

impl<'a> Engine<'a> {
    /// An engine. Nothing is read or locked before a verb is called.
    pub fn new(machine: &'a dyn Machine, journal: &'a dyn Journal, policy: Policy) -> Self {
        Self { machine, journal, policy }
    }

    /// Runs a verb that changes the disk, under its lock, and keeps its outcome for `status` and the history.
    fn change<T>(
        &self,
        verb: &str,
        act: impl FnOnce(&DiskLock) -> Result<T>,
        done: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        let lock = match self.machine.lock() {
            Ok(lock) => lock,
            // Whoever holds the lock reports his own outcome; this attempt must not overwrite it.
            Err(error @ Error::Busy { .. }) => return Err(error),
            Err(error) => return self.keep(verb, Err(error), done),
        };
        self.keep(verb, act(&lock), done)
    }

    fn keep<T>(&self, verb: &str, result: Result<T>, done: impl FnOnce(&T) -> String) -> Result<T> {
        let Ok(key) = self.journal_key() else { return result };
        let time = now();
        let (code, message) = match &result {
            Ok(value) => (crate::error::NO_ERROR.to_owned(), done(value)),
            Err(error) => (error.code().to_owned(), error.to_string()),
        };
        // A refusal changed nothing: the operator was told, the state of the upgrade is what it was.
        let failed = result.as_ref().is_err_and(|error| error.class() != Class::Refused);
        if failed || result.is_ok() {
            self.journal.update(&key, &mut |record| {
                record.last_error = failed.then(|| LastError {
                    code: code.clone(),
                    message: message.clone(),
                    time: time.clone(),
                });
            });
        }
        self.journal.append(&key, &Event { time, verb: verb.to_owned(), code, message });
        result
    }

    /// The key of this disk in the journal: its GUID, which moves with it.
    fn journal_key(&self) -> Result<String> {
        let loaded = crate::commit::load(&*self.machine.disk(), self.machine.name())?;
        Ok(loaded.table()?.header().disk_guid.to_string())
    }

    /// What was done to this disk, oldest first, as far as it is kept.
    ///
    /// # Errors
    /// Class Disk and Io: the disk cannot be told.
    pub fn history(&self) -> Result<Vec<Event>> {
        Ok(self.journal.history(&self.journal_key()?))
    }

    /// Adds to the history what no verb could write: that its process was killed, or what followed it failed.
    ///
    /// # Errors
    /// As [`history`](Self::history).
    pub fn note(&self, verb: &str, code: &str, message: &str) -> Result<()> {
        let (verb, code, message) = (verb.to_owned(), code.to_owned(), message.to_owned());
        self.journal.append(&self.journal_key()?, &Event { time: now(), verb, code, message });
        Ok(())
    }

    fn view(&self) -> Result<View> {
        View::read(self.machine, &self.policy)
    }
}
