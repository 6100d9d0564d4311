//! `status` and `slots`: the state of the disk, and the last error.

use super::Engine;
use super::checks::blocked;
use super::remedy::remedy;
use super::view::{SlotView, View};
use crate::error::{Error, NO_ERROR, Result};
use crate::slot::{Content, Mark, Verdict};
use crate::state::{SlotReport, SlotState, SlotsReport, Status, UpgradeState};
use crate::units::Group;

impl Engine<'_> {
    /// The state of the upgrade. Takes no lock and changes nothing.
    ///
    /// # Errors
    /// Class Disk and Io: where the disk cannot be read, there is no status.
    pub fn status(&self) -> Result<Status> {
        let locked = self.machine.is_locked()?;
        let view = self.view()?;
        let journal = self.journal.load(&view.table.header().disk_guid.to_string());
        let find = |state: SlotState| view.all().iter().find(|held| held.state == state);
        let (torn, prepared, trial) =
            (find(SlotState::Torn), find(SlotState::Prepared), find(SlotState::Trial));
        let mut status = Status::idle();
        if let Some(error) = journal.last_error {
            status.error_state = error.code;
            status.error_message = error.message;
            status.install_path = journal.install_path.unwrap_or_default();
        }
        match (torn, trial, prepared) {
            (Some(held), ..) if locked => {
                status.state = UpgradeState::UpgradePreparing;
                // The error of an earlier attempt is not one of this.
                status.error_state = NO_ERROR.to_owned();
                status.error_message.clear();
                status.install_path = origin(held);
            }
            (Some(held), ..) => {
                status.details = format!("{} was not prepared to the end", held.partition.name);
                status.install_path = origin(held);
                if status.error_state == NO_ERROR {
                    // Killed, or the power failed: no process could record the reason.
                    let error = Error::Interrupted { doing: format!("preparing {}", held.partition.name) };
                    status.error_state = error.code().to_owned();
                    status.error_message =
                        format!("preparing {} was cut short; run it again to continue", held.partition.name);
                }
            }
            (None, Some(held), _) => {
                status.state = UpgradeState::UpgradeTrial;
                status.details = trial_details(&view, held);
                status.install_path = origin(held);
            }
            (None, None, Some(held)) => {
                status.state = UpgradeState::UpgradePrepared;
                status.details = format!("{} is prepared in {}", version(held), held.partition.name);
                status.install_path = origin(held);
            }
            (None, None, None) => {
                // From the disk, not from the journal: it holds after the loss of /var, and until the slot is written anew.
                if let (Some(error), NO_ERROR) = (view.fell_back(), status.error_state.as_str()) {
                    status.error_state = error.code().to_owned();
                    status.error_message = error.to_string();
                    status.install_path = view
                        .all()
                        .iter()
                        .find(|held| view.failure(held).is_some())
                        .map(origin)
                        .unwrap_or_default();
                }
            }
        }
        // A running prepare has the slot open exclusively, which would look like another use.
        if let Some(reason) = self.blocked(&view, locked)? {
            status.is_blocked = true;
            status.blocked_reason = reason;
        }
        Ok(status)
    }

    /// Why no upgrade may begin now, whatever the bundle.
    fn blocked(&self, view: &View, locked: bool) -> Result<Option<String>> {
        if let Some(obstacle) = blocked(view) {
            return Ok(Some(obstacle.to_string()));
        }
        if let Err(error) = view.check_known() {
            return Ok(Some(error.to_string()));
        }
        if locked {
            return Ok(None);
        }
        // Where something is prepared, the slots that a commit selects; else all that a prepare may write.
        let prepared = |group: &Group| {
            view.all().iter().any(|held| held.group == *group && held.state == SlotState::Prepared)
        };
        let any = Group::BOTH.iter().any(prepared);
        for group in Group::BOTH.into_iter().filter(|group| !any || prepared(group)) {
            let Some(target) = view.slots.get(group, view.target(group)?) else { continue };
            let error = match self.machine.in_use(target) {
                Ok(None) => continue,
                Ok(Some(by)) => Error::SlotInUse { partition: target.name.clone(), by },
                Err(error @ Error::UseUnknown { .. }) => error,
                Err(error) => return Err(error),
            };
            return Ok(Some(error.to_string()));
        }
        Ok(None)
    }

    /// State and content of every slot.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn slots(&self) -> Result<SlotsReport> {
        let view = self.view()?;
        let runs = view.runs();
        let slots = view.all().iter().map(|held| {
            let claims = held.record().map(|record| &*record.manifest);
            let image = claims.and_then(|claims| claims.group(held.group).next());
            SlotReport {
                group: held.group,
                slot: held.slot,
                partition: held.partition.number,
                partuuid: held.partition.guid.to_string(),
                size: held.partition.extent.len,
                state: held.state,
                booted: runs.is_running(held.group, held.slot),
                boots_next: view.boots_next(held.group) == Some(held.slot),
                reason: view.failure(held).or_else(|| trial_reason(held)),
                version: claims.map(|claims| claims.version.clone()),
                unsigned: held.record().is_some_and(|record| record.unsigned),
                product: claims.map(|claims| claims.product.clone()),
                created: claims.map(|claims| claims.created),
                blake3: image.map(|(_, payload)| payload.blake3),
                manifest: held.record().map(|record| record.manifest.digest()),
                firmware: claims
                    .filter(|_| held.group == Group::Platform)
                    .map(|claims| {
                        claims.group(held.group).skip(1).map(|(_, blob)| blob.name.clone()).collect()
                    })
                    .unwrap_or_default(),
                priority: held.attributes.priority(),
                tries: held.attributes.tries(),
                successful: held.attributes.successful(),
                legacy_bootable: held.attributes.legacy_bootable(),
                boot_entry: view.boot_entry(held.group, held.slot),
            }
        });
        Ok(SlotsReport {
            disk: self.machine.name().to_owned(),
            boot_flag: self.policy.boot_flag,
            table: match view.check_foreign_flags() {
                Ok(()) => view.loaded.describe(),
                Err(error) => format!("{}; {error}", view.loaded.describe()),
            },
            switch_method: self.switch_method(&view)?,
            boot_before: view.boot_before(),
            booted_unknown: view.unknown().map(str::to_owned),
            remedy: remedy(&view),
            slots: slots.collect(),
            runs,
        })
    }
}

/// The reason in the mark of a slot that is on trial or ruled out. That of a trial of one boot is written before the boot,
/// for the case that it fails.
fn trial_reason(held: &SlotView) -> Option<String> {
    let told = |mark: &&Mark| match held.state {
        SlotState::Trial => matches!(mark.verdict, Verdict::Bad | Verdict::Failed),
        SlotState::Bad => mark.verdict != Verdict::Good,
        _ => false,
    };
    held.mark().filter(told).map(|mark| mark.reason.clone())
}

/// The version of what a slot holds, with "(unsigned)" if no trusted key has signed it.
fn version(held: &SlotView) -> String {
    let record = held.record();
    let version = record.map_or("", |record| record.manifest.version.as_str());
    let unsigned = record.is_some_and(|record| record.unsigned);
    format!("{version}{}", if unsigned { " (unsigned)" } else { "" })
}

fn trial_details(view: &View, held: &SlotView) -> String {
    let version = version(held);
    let name = &held.partition.name;
    if view.unknown().is_some() {
        return format!("{version} is on trial in {name}; whether it runs already is not known");
    }
    let runs = view.runs().of(held.group).slot() == Some(held.slot);
    if !runs && held.group == Group::Software {
        format!("{version} is selected in {name}; restart the software to start it")
    } else if !runs && !view.is_selected(held) {
        format!("{version} in {name} is about to be started by kexec")
    } else if !runs {
        format!("{version} is selected in {name}; reboot to start it")
    } else {
        let failing = held.mark().filter(|mark| mark.verdict == Verdict::Failed);
        let failing = failing.map(|mark| format!("; its last failure: {}", mark.reason)).unwrap_or_default();
        format!("{version} is on trial in {name}; 'qstage mark-good' ends it{failing}")
    }
}

fn origin(held: &SlotView) -> String {
    match &held.content {
        Content::Whole(record, _) => record.origin.clone(),
        Content::Torn { origin, .. } => origin.clone(),
        Content::Nothing { .. } => String::new(),
    }
}
