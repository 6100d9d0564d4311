//! The verbs. The only module that knows both the pure core (table, boot flags, records) and the shell (disk,
//! locks, journal); the command line and the service call nothing else.
//!
//! What is on the disk decides. Nothing is remembered elsewhere but history and the last error.

mod act;
mod checks;
mod commit_method;
mod content;
mod delta;
mod dry_run;
mod efi_variables;
mod epoch;
mod prepare;
mod remedy;
mod repair;
mod report;
mod runs;
mod software;
mod switch;
pub(crate) mod transition;
mod trial;
mod trust;
mod view;

use std::num::NonZeroUsize;
use std::sync::Arc;

pub use commit_method::{CommitMethod, TrialStart};
pub use content::{FirmwareReport, ScrubReport};
pub use repair::RepairReport;
pub use software::{SoftwareImage, SoftwareSwap};
pub use transition::{Act, Change, Transition};
pub use trial::FailedTrial;

use crate::boot::BootFlag;
use crate::bundle::pick::Whole;
use crate::error::{Class, Error, NO_ERROR, Result, sentence};
use crate::gpt::TableMethod;
use crate::host::journal::{Event, Journal, JournalRecord, LastError};
use crate::host::trust::TrustFile;
use crate::host::{DiskLock, Machine};
use crate::progress::Cancel;
use crate::units::{Blake3, Downtime, Slot};
use view::View;

/// Default number of tries of a trial. ChromeOS, Flatcar and Bottlerocket use between 1 and 6.
pub const DEFAULT_TRIES: u8 = 3;

/// Properties of the machine, and permissions of the caller.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The bits that determine what boots.
    pub boot_flag: BootFlag,
    /// How the partition table is changed.
    pub table: TableMethod,
    /// The running slot as stated by the caller; `None`: the kernel or the firmware is asked.
    pub booted: Option<Slot>,
    /// The release (BLAKE3 of its manifest) whose software the caller has started itself, where it has: a slot on trial is
    /// taken for running then.
    pub software_started: Option<Blake3>,
    /// Whether a container of ours runs the software: its slot is in use while it runs.
    pub container: bool,
    /// The compatibility string of this machine; `None`: that of the running slot's record.
    pub product: Option<String>,
    /// The file that a new boot entry starts.
    pub efi_loader: String,
    /// How often a new slot is tried before the loader falls back, 1 to 15.
    pub tries: u8,
    /// Most bytes that may come over the network for an upgrade.
    pub max_download: Option<u64>,
    /// Accept a bundle that has failed its trial on this machine.
    pub retry: bool,
    /// Accept a version older than the running one.
    pub allow_downgrade: bool,
    /// Accept an epoch lower than the highest that has been good here, and a running slot that cannot be compared with.
    pub allow_epoch_rollback: bool,
    /// Accept another product and a running version below the bundle's minimum.
    pub override_product: bool,
    /// Whether the other platform slot loses its flags when one is marked good, so that nothing falls back to it any more.
    pub prevent_late_fallback: bool,
    /// The keys by which the signatures of installed releases are judged; `None`: they are not.
    pub trust: Option<TrustFile>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            boot_flag: BootFlag::default(),
            table: TableMethod::default(),
            booted: None,
            software_started: None,
            container: false,
            product: None,
            efi_loader: crate::efi::default_loader().to_owned(),
            tries: DEFAULT_TRIES,
            max_download: None,
            retry: false,
            allow_downgrade: false,
            allow_epoch_rollback: false,
            override_product: false,
            prevent_late_fallback: false,
            trust: None,
        }
    }
}

/// How to prepare.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Number of workers; `None`: [`stage::default_jobs`](crate::stage::default_jobs).
    pub jobs: Option<NonZeroUsize>,
    /// Maximum rate of writes in bytes per second; `None`: no limit.
    pub max_rate: Option<u64>,
    /// In the background: minimum rate of writes in bytes per second, below which there are no pauses; `None`: no minimum.
    pub min_rate: Option<u64>,
    /// Whether to give way to other processes that wait for the disk; see [`Throttle`](crate::host::load::throttle::Throttle).
    pub background: bool,
    /// Whether to read the slot back from the medium.
    pub read_back: bool,
    /// Whether to verify the SHA-256 of the whole images too; see [`stage::StageOptions`](crate::stage::StageOptions).
    pub sha256: bool,
    /// Raised to stop.
    pub cancel: Cancel,
    /// Where the bundle comes from: `install_path` of the status.
    pub origin: String,
    /// Of a delta: the whole bundle, for frames that cannot be made.
    pub whole: Option<Arc<Whole>>,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            jobs: None,
            max_rate: None,
            min_rate: None,
            background: false,
            read_back: true,
            sha256: false,
            cancel: Cancel::default(),
            origin: String::new(),
            whole: None,
        }
    }
}

/// The verbs on one disk.
pub struct Engine<'a> {
    machine: &'a dyn Machine,
    journal: &'a dyn Journal,
    policy: Policy,
    cancel: Cancel,
}

impl<'a> Engine<'a> {
    /// An engine. Nothing is read or locked before a verb is called.
    pub fn new(machine: &'a dyn Machine, journal: &'a dyn Journal, policy: Policy) -> Self {
        Self { machine, journal, policy, cancel: Cancel::default() }
    }

    /// Looks at `cancel` once a verb that changes the disk has its lock, and not after its first write: it ends before that
    /// or goes through to its end. (`prepare` is long and looks at its own in [`PrepareOptions`] all the time.)
    #[must_use]
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Runs a verb that changes the disk, under its lock, and records its outcome for `status` and the history.
    fn change<T>(
        &self,
        verb: &str,
        act: impl FnOnce(&DiskLock) -> Result<T>,
        done: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        self.change_from(verb, "", act, done)
    }

    /// The same for a bundle that comes from `origin`, which is shown with a failure.
    fn change_from<T>(
        &self,
        verb: &str,
        origin: &str,
        act: impl FnOnce(&DiskLock) -> Result<T>,
        done: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        let lock = match self.machine.lock() {
            Ok(lock) => lock,
            // The holder of the lock reports its own outcome; this attempt must not overwrite it.
            Err(error @ Error::Busy { .. }) => return Err(error),
            Err(error) => return self.keep(verb, origin, Err(error), done),
        };
        let result =
            self.cancel.check(&format!("{verb} waited; nothing was changed")).and_then(|()| act(&lock));
        // Before the journal: its disk may be slow, and others wait for this one.
        drop(lock);
        self.keep(verb, origin, result, done)
    }

    fn keep<T>(
        &self,
        verb: &str,
        origin: &str,
        result: Result<T>,
        done: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        let event = match &result {
            Ok(value) => Event::new(verb, NO_ERROR, done(value)),
            Err(error) => Event::new(verb, error.code(), error.to_string()),
        };
        self.write_down(event, origin, result.as_ref().err(), |_, _| {});
        result
    }

    /// Records an outcome: as a line of the history, and as the last error, which a success clears. `origin` is where its
    /// bundle came from, if it had one; `more` sets other fields of the record.
    fn write_down(
        &self,
        event: Event,
        origin: &str,
        error: Option<&Error>,
        more: impl Fn(&mut JournalRecord, &Event),
    ) {
        let Ok(key) = self.journal_key() else { return };
        // A refusal changed nothing: the operator has seen it, the state of the upgrade is the same as before.
        if error.is_none_or(|error| error.class() != Class::Refused) {
            self.journal.update(&key, &mut |record| {
                let (code, message, time) = (event.code.clone(), event.message.clone(), event.time.clone());
                record.last_error = error.map(|_| LastError { code, message, time });
                record.install_path = error.map(|_| origin.to_owned());
                more(record, &event);
            });
        }
        self.journal.append(&key, &event);
    }

    /// Records a bundle that was refused when it was opened as a failed prepare: what cannot be opened never reaches
    /// [`prepare`](Self::prepare). `origin` is what `status` shows as its install path. Returns the error.
    pub fn bundle_refused(&self, origin: &str, error: Error) -> Error {
        // A prepare that runs meanwhile reports its own outcome; and a wrong flag is no property of the bundle.
        let told = error.class() != Class::Usage && !self.machine.is_locked().unwrap_or(true);
        if told {
            let event = Event::new("prepare", error.code(), sentence(&error));
            self.write_down(event, origin, Some(&error), |_, _| {});
        }
        error
    }

    /// Records the outcome of a swap of the container, with its downtime.
    pub fn swapped<T>(&self, result: Result<T>, done: impl FnOnce(&T) -> (String, Downtime)) -> Result<T> {
        let (mut event, downtime) = match &result {
            Ok(value) => {
                let (message, downtime) = done(value);
                (Event::new("swap", NO_ERROR, message), downtime)
            }
            Err(error) => {
                let downtime = match error {
                    Error::SwappedBack { downtime, .. } => *downtime,
                    _ => Downtime(None),
                };
                (Event::new("swap", error.code(), error.to_string()), downtime)
            }
        };
        event.downtime_ms = downtime.0;
        // What failed before the flip was no swap.
        let swapped = matches!(&result, Ok(_) | Err(Error::SwappedBack { .. } | Error::SwapBack { .. }));
        self.write_down(event, "", result.as_ref().err(), |record, event| {
            if swapped {
                record.last_swap = Some(event.clone());
            }
            if event.code == NO_ERROR {
                record.last_success = Some(event.time.clone());
            }
        });
        result
    }

    /// Clears the last error without an upgrade: an operator has seen it.
    pub fn clear_error(&self) {
        self.write_down(
            Event::new("clear", NO_ERROR, "the error was cleared".to_owned()),
            "",
            None,
            |_, _| {},
        );
    }

    /// The last swap of the container; `None` if there was none, or the journal is lost.
    ///
    /// # Errors
    /// Class Disk and Io: the disk cannot be identified.
    pub fn last_swap(&self) -> Result<Option<Event>> {
        Ok(self.journal_record()?.last_swap)
    }

    /// What the journal stores of this disk besides its history; the default if it is lost.
    ///
    /// # Errors
    /// Class Disk and Io: the disk cannot be identified.
    pub fn journal_record(&self) -> Result<JournalRecord> {
        Ok(self.journal.load(&self.journal_key()?))
    }

    /// The key of this disk in the journal: its GUID, which moves with it.
    fn journal_key(&self) -> Result<String> {
        let loaded = crate::commit::load(&*self.machine.disk(), self.machine.name())?;
        Ok(loaded.table()?.header().disk_guid.to_string())
    }

    /// What was done to this disk, oldest first, as far as it is kept.
    ///
    /// # Errors
    /// Class Disk and Io: the disk cannot be identified.
    pub fn history(&self) -> Result<Vec<Event>> {
        Ok(self.journal.history(&self.journal_key()?))
    }

    /// Adds an event to the history that no verb could record: its process was killed, or a later step failed.
    ///
    /// # Errors
    /// As [`history`](Self::history).
    pub fn note(&self, verb: &str, code: &str, message: &str) -> Result<()> {
        self.journal.append(&self.journal_key()?, &Event::new(verb, code, message.to_owned()));
        Ok(())
    }

    fn view(&self) -> Result<View> {
        View::read(self.machine, &self.policy)
    }
}
