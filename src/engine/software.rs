//! The software group as the container runtime needs it: which slot is to run, and the steps of its trial. None of it
//! changes a platform slot, so a container that fails never causes a reboot.

use super::Engine;
use super::transition::{self, Change, no_image, software};
use super::view::View;
use crate::bundle::manifest::Kind;
use crate::error::{Error, NO_ERROR, Result};
use crate::host::MountSource;
use crate::host::journal::Event;
use crate::state::{SlotState, SwitchReport, UpgradeType};
use crate::units::{Blake3, Group, Slot};

/// A software image that lies whole in its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftwareImage {
    /// Its slot.
    pub slot: Slot,
    /// Name of the partition.
    pub partition: String,
    /// What to mount.
    pub source: MountSource,
    /// Version of the bundle that it came with.
    pub version: String,
    /// BLAKE3 of the image by the signed record: two images that have the same are the same.
    pub blake3: Blake3,
    /// How its trial stands.
    pub state: SlotState,
    /// Whether the flags select it.
    pub selected: bool,
}

/// What a software commit would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftwareSwap {
    /// What is selected now, if anything is.
    pub old: Option<SoftwareImage>,
    /// What is prepared.
    pub new: SoftwareImage,
}

impl Engine<'_> {
    /// What a commit would swap, checked as the commit itself checks it. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NotPrepared`]; [`Error::NeedsReboot`] where the platform changes too; class Disk and Io.
    pub fn software_swap(&self) -> Result<SoftwareSwap> {
        if self.prepared_type()? == UpgradeType::SoftwareAndPlatform {
            return Err(Error::NeedsReboot);
        }
        let view = self.view()?;
        let old = match view.in_service(Group::Software) {
            Some(slot) => self.image(&view, slot)?,
            None => None,
        };
        let slot = view.target(Group::Software)?;
        let new = self.image(&view, slot)?.ok_or_else(|| no_image(&view, slot))?;
        Ok(SoftwareSwap { old, new })
    }

    /// The image that the flags select to run. Where the selected one came with another platform than the one that
    /// runs, while the other one fits and is good, it is the other one: the boot loader went back to the
    /// old platform, and the software follows it. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSoftware`] where no slot holds a whole image that may run; class Disk and Io.
    pub fn software_selected(&self) -> Result<SoftwareImage> {
        let view = self.view()?;
        let slot = view.in_service(Group::Software).ok_or_else(|| Error::NoSoftware {
            problem: "no software slot may start by its flags".to_owned(),
        })?;
        self.image(&view, slot)?.ok_or_else(|| no_image(&view, slot))
    }

    /// The image in a slot; `None` where none lies there whole.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn software_image(&self, slot: Slot) -> Result<Option<SoftwareImage>> {
        self.image(&self.view()?, slot)
    }

    /// Whether the platform that runs is still on trial: then the verdict on both is one, and not the container's.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn platform_on_trial(&self) -> Result<bool> {
        let view = self.view()?;
        Ok(view.on_trial().any(|held| held.group == Group::Platform))
    }

    /// Counts one start of a software slot that is on trial, durably, before it is made: a start that takes the
    /// machine down must not be repeated for ever. Returns the tries that are left, `None` where it is not on trial.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn software_try(&self, slot: Slot) -> Result<Option<u8>> {
        let lock = self.machine.lock()?;
        let view = self.view_for_change()?;
        let counted = transition::of(&Change::SoftwareTry(slot), &view)?;
        self.run(&lock, &view, &counted, &[])?;
        let left = software(&view, slot)?.attributes.tries().checked_sub(1);
        Ok(left.filter(|_| !counted.acts.is_empty()))
    }

    /// Marks one software slot good and selects it: its container is healthy. Writes nothing where that is so.
    ///
    /// # Errors
    /// [`Error::NoSoftware`] where it holds nothing whole; class Disk and Io.
    pub fn software_good(&self, slot: Slot) -> Result<SwitchReport> {
        self.switch("mark-good", &Change::SoftwareGood(slot))
    }

    /// Takes the selection away from software slot `from`, which becomes bad, and gives it to the other one, which must
    /// be good.
    ///
    /// # Errors
    /// [`Error::NoFallback`]; class Disk and Io.
    pub fn software_back(&self, from: Slot, reason: &str) -> Result<SwitchReport> {
        self.switch("roll-back", &Change::SoftwareBack(from, reason))
    }

    /// Keeps the outcome of a step that went on after its writes (a swap) for `status` and the history.
    pub fn outcome<T>(&self, verb: &str, result: Result<T>, done: impl FnOnce(&T) -> String) -> Result<T> {
        self.keep(verb, "", result, done)
    }

    /// Adds a line to the history that is neither a success nor a failure of a verb.
    pub fn remark(&self, verb: &str, message: String) {
        if let Ok(key) = self.journal_key() {
            self.journal.append(&key, &Event::new(verb, NO_ERROR, message));
        }
    }

    fn image(&self, view: &View, slot: Slot) -> Result<Option<SoftwareImage>> {
        let Some(held) = view.held(Group::Software, slot) else { return Ok(None) };
        let Some(record) = held.record() else { return Ok(None) };
        let Some(payload) = record.manifest.payload(Kind::Software) else { return Ok(None) };
        Ok(Some(SoftwareImage {
            slot,
            partition: held.partition.name.clone(),
            source: self.machine.mount_source(&held.partition)?,
            version: record.manifest.version.clone(),
            blake3: payload.blake3,
            state: held.state,
            selected: view.in_service(Group::Software) == Some(slot),
        }))
    }
}
