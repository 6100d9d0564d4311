//! The running images as sources of frames: for deltas, and for bundles that come over the network.

use super::Engine;
use super::checks::CheckedUpgrade;
use super::view::View;
use crate::bundle::Bundle;
use crate::bundle::delta::{BaseRef, Delta, FrameKind};
use crate::bundle::manifest::{Payload, Provenance, largest_frame};
use crate::bundle::pick::Whole;
use crate::error::{Error, Result};
use crate::host::Access;
use crate::progress::{Cancel, Progress};
use crate::slot::{Layout, Record};
use crate::stage::{self, BaseSlot, DeltaOutcome, Sources, Target, within_limit};
use crate::state::AppliedDelta;
use crate::units::{Blake3, Group, Slot};
use crate::workers;

impl Engine<'_> {
    /// BLAKE3 of the images that run, by the records of their slots: that of the platform, then that of the software. The
    /// names of deltas begin with it.
    ///
    /// # Errors
    /// Class Disk and Io.
    pub fn running_images(&self) -> Result<Vec<Blake3>> {
        let view = self.view()?;
        let image = |group| {
            let record = view.record_in_service(group)?;
            record.manifest.group(group).next().map(|(_, payload)| payload.blake3)
        };
        Ok(Group::BOTH.into_iter().filter_map(image).collect())
    }

    /// Refuses a delta that cannot be applied to what runs. Changes nothing.
    ///
    /// # Errors
    /// [`Error::DeltaBase`], [`Error::BaseWritable`], [`Error::DeltaFrame`], [`Error::Delta`]; class Disk and Io.
    pub fn check_delta(&self, bundle: &Bundle, whole: Option<&Whole>) -> Result<()> {
        let view = self.view()?;
        let upgrade = CheckedUpgrade::new(&view, bundle.manifest(), bundle.release().record_len())?;
        self.sources(&view, &upgrade, bundle, whole).map(drop)
    }

    /// What runs, as far as frames of `bundle` can be had from it: a delta is applied to it, and of a bundle on a server
    /// what it holds at the same place need not come. It is opened for reading only.
    ///
    /// # Errors
    /// [`Error::DeltaBase`] where another one runs, or none that a record names; [`Error::BaseWritable`];
    /// [`Error::DeltaFrame`] where frames were left to a bundle that is not given; [`Error::Delta`] where it is another;
    /// [`Error::DownloadLimit`] where all of it has to come, and may not.
    pub(super) fn sources<'a>(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        bundle: &Bundle,
        whole: Option<&'a Whole>,
    ) -> Result<Option<Sources<'a>>> {
        let most = self.policy.max_download.filter(|_| bundle.is_remote());
        if bundle.is_response() {
            within_limit(bundle.size()?, self.policy.max_download, bundle.delta().is_some())?;
        }
        let bases = match bundle.delta() {
            Some(delta) => self.delta_bases(view, upgrade, bundle, delta, whole)?,
            None if bundle.is_remote() => self.copy_bases(view, upgrade, bundle),
            None => return Ok(None),
        };
        Ok(Some(Sources { bases, whole: whole.filter(|whole| whole.has_frames()), most }))
    }

    /// For each payload the running image of the same kind and name, where a record names one and it can be read.
    fn copy_bases(&self, view: &View, upgrade: &CheckedUpgrade, bundle: &Bundle) -> Vec<Option<BaseSlot>> {
        let base = |payload: &Payload| {
            let group = payload.kind.group();
            let (slot, record) = (view.in_service(group)?, view.record_in_service(group)?);
            let number = same_payload(record, payload).filter(|_| upgrade.writes(group))?;
            let partition = view.slots.require(group, slot).ok()?;
            // What is mounted to be written is no longer what was installed.
            let sound = self.machine.written_by(partition).is_ok_and(|by| by.is_none());
            let device = self.machine.open_partition(partition, Access::Read).ok().filter(|_| sound)?;
            Some(BaseSlot {
                partition: partition.name.clone(),
                device,
                record: record.clone(),
                payload: number,
            })
        };
        bundle.manifest().payloads.iter().map(base).collect()
    }

    fn delta_bases(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        bundle: &Bundle,
        delta: &Delta,
        whole: Option<&Whole>,
    ) -> Result<Vec<Option<BaseSlot>>> {
        if let Some(whole) = whole {
            whole.check(bundle.manifest())?;
        }
        let mut bases = Vec::new();
        for (number, payload) in bundle.manifest().payloads.iter().enumerate() {
            if !upgrade.writes(payload.kind.group()) {
                bases.push(None);
                continue;
            }
            if !whole.is_some_and(Whole::has_frames) {
                let mut frames = bundle.release().frames(number);
                if let Some(frame) = frames.find(|frame| delta.recipe(frame).kind == FrameKind::Bundle) {
                    return Err(Error::DeltaFrame {
                        payload: payload.to_string(),
                        frame: frame.number(),
                        at: frame.extent().at.0,
                        problem: "it was left out".to_owned(),
                    });
                }
            }
            let base = delta.base(number).map(|base| self.base(view, payload, base)).transpose()?;
            bases.push(base);
        }
        Ok(bases)
    }

    fn base(&self, view: &View, payload: &Payload, wanted: BaseRef) -> Result<BaseSlot> {
        let group = payload.kind.group();
        let other = |running: String| Error::DeltaBase {
            payload: payload.to_string(),
            expected: wanted.blake3,
            running,
        };
        let (Some(slot), Some(record)) = (view.in_service(group), view.record_in_service(group)) else {
            return Err(other(format!("no record says which {group} image runs")));
        };
        let number = same_payload(record, payload);
        let Some((number, found)) = number.and_then(|n| Some((n, record.manifest.payloads.get(n)?))) else {
            return Err(other(format!("{} runs, which has none", record.manifest.version)));
        };
        if (found.size, found.blake3) != (wanted.size, wanted.blake3) {
            return Err(other(format!("{} runs, whose image has {}", record.manifest.version, found.blake3)));
        }
        let partition = view.slots.require(group, slot)?;
        if let Some(by) = self.machine.written_by(partition)? {
            return Err(Error::BaseWritable { partition: partition.name.clone(), by });
        }
        Ok(BaseSlot {
            partition: partition.name.clone(),
            device: self.machine.open_partition(partition, Access::Read)?,
            record: record.clone(),
            payload: number,
        })
    }

    /// Refuses an upgrade for which more has to be downloaded than is permitted. Reads the slots it writes only if the
    /// limit would be exceeded without what they hold already.
    ///
    /// # Errors
    /// [`Error::DownloadLimit`]; [`Error::Interrupted`]; class Disk and Io.
    pub(super) fn check_limit(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        bundle: &Bundle,
        sources: Option<&Sources<'_>>,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Some(limit) = exceeded(bundle, upgrade, sources) else { return Ok(()) };
        let targets = self.targets(view, upgrade, bundle, "", Access::Read)?;
        check_download(limit, bundle, &targets, sources, cancel, progress)
    }

    /// The slots that an upgrade writes, open, with what they will say of themselves.
    pub(super) fn targets(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        bundle: &Bundle,
        origin: &str,
        access: Access,
    ) -> Result<Vec<Target>> {
        let target = |(group, slot, layout): &(Group, Slot, Layout)| {
            let partition = view.slots.require(*group, *slot)?;
            Ok(Target {
                group: *group,
                partition: partition.name.clone(),
                device: self.machine.open_partition(partition, access)?,
                record: Record {
                    release: bundle.release().clone(),
                    layout: layout.clone(),
                    origin: origin.to_owned(),
                    unsigned: *bundle.manifest().provenance() == Provenance::Unsigned,
                },
            })
        };
        upgrade.targets.iter().map(target).collect()
    }
}

/// The limit that a download would exceed if nothing of it was in place.
pub(super) fn exceeded(
    bundle: &Bundle,
    upgrade: &CheckedUpgrade,
    sources: Option<&Sources<'_>>,
) -> Option<u64> {
    let limit = sources?.most?;
    (stage::expected_bytes(bundle, &upgrade.groups(), sources) > limit).then_some(limit)
}

/// Refuses an upgrade for which more has to come than `limit` bytes. Looks at each frame of the targets.
///
/// # Errors
/// [`Error::DownloadLimit`]; [`Error::Interrupted`].
pub(super) fn check_download(
    limit: u64,
    bundle: &Bundle,
    targets: &[Target],
    sources: Option<&Sources<'_>>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    let frame = largest_frame(&bundle.manifest().payloads) as u64;
    let jobs = workers::limit_jobs(None, workers::default_jobs(), workers::worker_memory(frame), progress);
    let needed = stage::missing_bytes(bundle, targets, sources, jobs, cancel, progress)?;
    within_limit(needed, Some(limit), bundle.delta().is_some())
}

/// Place in the manifest of a record of the payload with the same kind and name.
fn same_payload(record: &Record, payload: &Payload) -> Option<usize> {
    let same = |base: &Payload| (base.kind, &base.name) == (payload.kind, &payload.name);
    record.manifest.payloads.iter().position(same)
}

impl AppliedDelta {
    /// What came of a delta.
    pub(super) fn new(made: DeltaOutcome, downloaded: u64) -> Self {
        Self {
            downloaded_bytes: downloaded,
            copied_bytes: made.copied,
            patched_bytes: made.patched,
            fallen_back_bytes: made.fallen_back,
            base_damaged: made.base_damaged,
        }
    }
}
