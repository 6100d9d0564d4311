//! `status` and `slots`: what the disk says, and the last error.

use super::Engine;
use super::view::{Held, View};
use crate::error::{Error, NO_ERROR, Result};
use crate::slot::{Content, Verdict};
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
        let mut status = Status {
            install_path: String::new(),
            state: UpgradeState::UpgradeIdle,
            details: String::new(),
            error_message: String::new(),
            error_state: NO_ERROR.to_owned(),
            is_blocked: false,
            blocked_reason: String::new(),
        };
        if let Some(error) = journal.last_error {
            status.error_state = error.code;
            status.error_message = error.message;
            status.install_path = journal.install_path.unwrap_or_default();
        }
        match (torn, trial, prepared) {
            (Some(held), ..) if locked => {
                status.state = UpgradeState::UpgradePreparing;
                status.details = format!("writing {}", held.partition.name);
                // The error of an earlier attempt is not one of this.
                status.error_state = NO_ERROR.to_owned();
                status.error_message.clear();
                status.install_path = origin(held);
            }
            (Some(held), ..) => {
                status.details = format!("{} was not prepared to the end", held.partition.name);
                status.install_path = origin(held);
                if status.error_state == NO_ERROR {
                    // Killed, or the power failed: nobody could write down why.
                    let error = Error::Interrupted { doing: format!("preparing {}", held.partition.name) };
                    status.error_state = error.code().to_owned();
                    status.error_message =
                        format!("preparing {} was cut short; run it again to go on", held.partition.name);
                }
            }
            (None, Some(held), _) => {
                status.state = UpgradeState::UpgradeTrial;
                status.details = trial_details(&view, held);
                status.install_path = origin(held);
            }
            (None, None, Some(held)) => {
                status.state = UpgradeState::UpgradePrepared;
                let version = held.record().map_or("", |record| record.manifest.version.as_str());
                status.details = format!("{version} is prepared in {}", held.partition.name);
                status.install_path = origin(held);
            }
            (None, None, None) => status.details = failed_trial(&view),
        }
        if let Some(reason) = self.blocked(&view)? {
            status.is_blocked = true;
            status.blocked_reason = reason;
        }
        Ok(status)
    }

    /// Why no upgrade may begin now, whatever the bundle.
    fn blocked(&self, view: &View) -> Result<Option<String>> {
        if let Some(held) = view.on_trial().next() {
            return Ok(Some(Error::OnTrial { slot: held.slot, fallback: !held.slot }.to_string()));
        }
        let target = view.slots.require(Group::Platform, view.target(Group::Platform)?)?;
        let by = self.machine.in_use(target)?;
        Ok(by.map(|by| Error::SlotInUse { partition: target.name.clone(), by }.to_string()))
    }

    /// What every slot is and holds.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn slots(&self) -> Result<SlotsReport> {
        let view = self.view()?;
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
                booted: held.group == Group::Platform && view.running(held.group) == Some(held.slot),
                boots_next: view.next(held.group) == Some(held.slot),
                version: claims.map(|claims| claims.version.clone()),
                product: claims.map(|claims| claims.product.clone()),
                blake3: image.map(|(_, payload)| payload.blake3),
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
            table: view.loaded.state().to_string(),
            switch_method: self.switch_method(&view)?,
            boot_before: view.boot_before(),
            slots: slots.collect(),
        })
    }
}

fn trial_details(view: &View, held: &Held) -> String {
    let version = held.record().map_or("", |record| record.manifest.version.as_str());
    let name = &held.partition.name;
    if held.group == Group::Platform && view.running(Group::Platform) != Some(held.slot) {
        format!("{version} is selected in {name}; reboot to start it")
    } else {
        format!("{version} is on trial in {name}; 'qstage mark-good' ends it")
    }
}

/// What is to be said of a trial that ended without a verdict.
fn failed_trial(view: &View) -> String {
    let tried = |held: &&Held| {
        held.state == SlotState::Bad && held.mark().is_some_and(|mark| mark.verdict == Verdict::Trying)
    };
    let Some(held) = view.all().iter().find(tried) else { return String::new() };
    let version = held.record().map_or("", |record| record.manifest.version.as_str());
    format!(
        "{version} in {} was tried and did not prove good; slot {} runs again",
        held.partition.name, !held.slot
    )
}

fn origin(held: &Held) -> String {
    match &held.content {
        Content::Whole(record, _) => record.origin.clone(),
        Content::Torn { origin, .. } => origin.clone(),
        Content::Nothing { .. } => String::new(),
    }
}
