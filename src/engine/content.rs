//! Reading what is installed: scrub and firmware.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::Engine;
use super::transition::{self, Change};
use super::trust::SignatureCheck;
use super::view::{SlotView, View};
use crate::bundle::frame::STORED_UNIT;
use crate::bundle::manifest::{Kind, largest_frame};
use crate::device::{AlignedBuf, BlockDevice, Region};
use crate::error::{Error, NO_ERROR, Result};
use crate::host::journal::Event;
use crate::host::{Access, DiskLock};
use crate::progress::{Cancel, Phase, Progress, Silent};
use crate::slot::{Content, Record};
use crate::stage;
use crate::units::{Blake3, ByteOffset, Extent, Group, MIB, Slot};
use crate::workers;

/// The result of a scrub that found nothing wrong.
#[derive(Debug, Clone, Serialize)]
pub struct ScrubReport {
    /// The slot.
    pub slot: Slot,
    /// Version of what it holds.
    pub version: String,
    /// Principals and fingerprints of the keys that have signed it, by the current trusted keys; `None`: it is unsigned, or no
    /// trusted keys are configured.
    pub signed_by: Option<String>,
    /// Whether it was installed without a check of its signature.
    pub unsigned: bool,
    /// The groups that were read.
    pub groups: Vec<Group>,
    /// Bytes that were read and verified.
    pub bytes: u64,
    /// Frames that were read and verified.
    pub frames: u64,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// A firmware blob of a slot.
#[derive(Debug, Clone, Serialize)]
pub struct FirmwareReport {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its BLAKE3.
    pub blake3: Blake3,
}

impl Engine<'_> {
    /// Lends the platform slot that does not run to `use_it`, for measurements. What it held is lost: it is made unbootable
    /// and void first. The end of the slot, where its record would be looked for, is not lent: whatever `use_it` writes,
    /// and wherever the power fails, the slot stays void.
    ///
    /// # Errors
    /// [`Error::OnTrial`], [`Error::SwitchPending`], [`Error::SlotInUse`], [`Error::Busy`]; class Disk and Io; those of `use_it`.
    pub fn lend_target<T>(&self, use_it: impl FnOnce(&str, Arc<dyn BlockDevice>) -> Result<T>) -> Result<T> {
        let act = |lock: &DiskLock| {
            let view = self.view_for_change()?;
            let away = transition::of(&Change::Lend, &view)?;
            let slot = view.target(Group::Platform)?;
            let partition = view.slots.require(Group::Platform, slot)?;
            let device: Arc<dyn BlockDevice> =
                self.machine.open_partition(partition, Access::Exclusive)?.into();
            let lent = Extent { at: ByteOffset(0), len: device.len().saturating_sub(MIB) };
            let lent = Region::new(Arc::clone(&device), lent).filter(|lent| lent.len() > 0);
            let lent = lent.ok_or_else(|| Error::Argument {
                what: format!("slot {slot}"),
                problem: format!("of its {} bytes the last {MIB} cannot be measured with", device.len()),
            })?;
            self.run(lock, &view, &away, &[(Group::Platform, slot, &*device)])?;
            use_it(&partition.name, Arc::new(lent))
        };
        self.change("bench", act, |_| "measured".to_owned())
    }

    /// Reads an installed slot from the medium and verifies it against its record; without `group` the
    /// platform slot, and the software slot where it has a record. The journal stores when a slot was read, and the outcome.
    ///
    /// # Errors
    /// [`Error::NoRecord`], [`Error::SlotDamaged`]; class Trust where no trusted key has signed what it holds; class Io;
    /// [`Error::Interrupted`].
    pub fn scrub(
        &self,
        slot: Slot,
        group: Option<Group>,
        jobs: Option<NonZeroUsize>,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<ScrubReport> {
        let result = self.scrub_slot(slot, group, jobs, cancel, progress);
        let event = match &result {
            Ok(report) => {
                Event::new("verify", NO_ERROR, format!("slot {slot} ({}) is sound", report.version))
            }
            Err(error) => Event::new("verify", error.code(), error.to_string()),
        };
        // One that was stopped, or of a part, says nothing of the slot.
        let of_all = group.is_none() && !matches!(result, Err(Error::Interrupted { .. }));
        if let (true, Ok(key)) = (of_all, self.journal_key()) {
            self.journal.update(&key, &mut |record| {
                record.scrubs.insert(slot.to_string(), event.clone());
            });
        }
        result
    }

    fn scrub_slot(
        &self,
        slot: Slot,
        group: Option<Group>,
        jobs: Option<NonZeroUsize>,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<ScrubReport> {
        let start = Instant::now();
        let view = self.view()?;
        let wanted = |held: &&SlotView| match group {
            Some(group) => held.group == group,
            None => held.group == Group::Platform || held.record().is_some(),
        };
        let held: Vec<&SlotView> =
            view.all().iter().filter(|held| held.slot == slot).filter(wanted).collect();
        if held.is_empty() {
            // The requested group is missing on this disk.
            view.slots.require(group.unwrap_or(Group::Platform), slot)?;
        }
        let mut report = ScrubReport {
            slot,
            version: String::new(),
            signed_by: None,
            unsigned: false,
            groups: Vec::new(),
            bytes: 0,
            frames: 0,
            seconds: 0.0,
        };
        let whole = |held: &&SlotView| self.record_of(held).map(|_| ());
        held.iter().try_for_each(whole)?;
        let records = held.iter().map(|held| Ok((*held, record(held)?))).collect::<Result<Vec<_>>>()?;
        for (_, record) in &records {
            match view.provenance(&[record])? {
                SignatureCheck::Signed(names) => report.signed_by = Some(names),
                SignatureCheck::Unsigned => report.unsigned = true,
                SignatureCheck::NotJudged => {}
            }
        }
        let lens = records.iter().flat_map(|(_, record)| &record.layout.places).map(|place| place.len);
        progress.begin(Phase::Scrub, lens.sum());
        for (held, record) in records {
            let device = self.machine.open_partition(&held.partition, Access::Read)?;
            let job = stage::ReadBack {
                device: &*device,
                record,
                jobs: workers::limit_jobs(
                    jobs,
                    workers::default_jobs(),
                    workers::worker_memory(largest_frame(&record.manifest.payloads) as u64),
                    progress,
                ),
                // Scrubbing is the thorough check, and no upgrade waits for it.
                sha256: true,
                cancel,
                doing: "verifying the slot",
            };
            let mut damage = stage::read_back(&job, progress)?;
            if damage.is_some() {
                // A prepare that has begun meanwhile tears the record before its first byte. Only what differs twice under
                // one record is damage.
                self.still_there(held)?;
                damage = stage::read_back(&job, &Silent)?;
                self.still_there(held)?;
            }
            if let Some(damage) = damage {
                return Err(Error::SlotDamaged {
                    group: held.group,
                    slot,
                    payload: damage.payload,
                    bad: damage.bad,
                    frames: damage.frames,
                    first: damage.at,
                });
            }
            report.version.clone_from(&record.manifest.version);
            report.groups.push(held.group);
            for place in &record.layout.places {
                report.bytes += place.len;
                report.frames += record.manifest.payloads[place.payload].frames();
            }
        }
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// An error if a slot holds no longer what it held.
    fn still_there(&self, before: &SlotView) -> Result<()> {
        let view = self.view()?;
        let now = view.held(before.group, before.slot);
        match now.map(|now| self.record_of(now)).transpose()? {
            Some(record)
                if before
                    .record()
                    .is_some_and(|before| before.manifest.bytes() == record.manifest.bytes()) =>
            {
                Ok(())
            }
            _ => Err(being_written(before)),
        }
    }

    /// The record of a slot. A slot that is being written has an error of its own.
    fn record_of<'h>(&self, held: &'h SlotView) -> Result<&'h Record> {
        if matches!(held.content, Content::Torn { .. }) && self.machine.is_locked()? {
            return Err(being_written(held));
        }
        record(held)
    }

    /// The firmware blobs of a platform slot.
    ///
    /// # Errors
    /// [`Error::NoRecord`].
    pub fn firmware_list(&self, slot: Slot) -> Result<Vec<FirmwareReport>> {
        let view = self.view()?;
        let record = record(platform(&view, slot)?)?;
        let blobs = record.manifest.payloads.iter().filter(|payload| payload.kind == Kind::Firmware);
        Ok(blobs
            .map(|payload| FirmwareReport {
                name: payload.name.clone(),
                version: payload.version.clone(),
                size: payload.size,
                blake3: payload.blake3,
            })
            .collect())
    }

    /// Writes a firmware blob of a platform slot to `out`, each frame after it was verified. Returns its size.
    ///
    /// # Errors
    /// [`Error::NoRecord`], [`Error::Argument`] where there is no such blob, [`Error::SlotDamaged`],
    /// [`Error::Output`]; class Io.
    pub fn firmware_extract(&self, slot: Slot, name: &str, out: &mut dyn Write) -> Result<u64> {
        let view = self.view()?;
        let held = platform(&view, slot)?;
        let record = record(held)?;
        let mut payloads = record.manifest.payloads.iter().enumerate();
        let found = payloads.find(|(_, payload)| payload.kind == Kind::Firmware && payload.name == name);
        let Some((number, payload)) = found else {
            return Err(Error::Argument {
                what: format!("firmware '{name}'"),
                problem: format!("slot {slot} has none of that name; see 'qstage firmware list'"),
            });
        };
        let device = self.machine.open_partition(&held.partition, Access::Read)?;
        let mut buffer = AlignedBuf::zeroed((payload.frame_size as usize).next_multiple_of(STORED_UNIT));
        for frame in record.frames(number) {
            let verified = match record.frame_at(frame, &*device)?.read_back(&mut buffer) {
                Err(Error::ReadBack { payload: name, at: first, .. }) => {
                    let (group, frames) = (Group::Platform, payload.frames());
                    return Err(Error::SlotDamaged { group, slot, payload: name, bad: 1, frames, first });
                }
                other => other?,
            };
            out.write_all(&verified)
                .map_err(|source| Error::Output { path: format!("firmware '{name}'").into(), source })?;
        }
        Ok(payload.size)
    }
}

fn platform(view: &View, slot: Slot) -> Result<&SlotView> {
    view.held(Group::Platform, slot)
        .ok_or_else(|| Error::Internal { what: "a platform slot was resolved but not read".to_owned() })
}

fn being_written(held: &SlotView) -> Error {
    Error::UpgradeBusy { doing: format!("{} is being written", held.partition.name) }
}

fn record(held: &SlotView) -> Result<&Record> {
    match &held.content {
        Content::Whole(record, _) => Ok(record),
        Content::Torn { .. } => Err(Error::NoRecord {
            group: held.group,
            slot: held.slot,
            found: "a prepare began and did not end".to_owned(),
        }),
        Content::Nothing { why, .. } => {
            Err(Error::NoRecord { group: held.group, slot: held.slot, found: why.clone() })
        }
    }
}
