//! The running images that a delta is applied to.

use super::Engine;
use super::checks::CheckedUpgrade;
use super::view::View;
use crate::bundle::Bundle;
use crate::bundle::delta::Kind;
use crate::bundle::manifest::Payload;
use crate::error::{Error, Result};
use crate::host::Access;
use crate::stage::{BaseSlot, DeltaOutcome, Sources};
use crate::state::AppliedDelta;

impl Engine<'_> {
    /// The images that `bundle`, where it is a delta, is applied to: those that run, each named by its slot's record.
    /// They are opened for reading only.
    ///
    /// # Errors
    /// [`Error::DeltaBase`] where another one runs, or none that a record names; [`Error::BaseWritable`];
    /// [`Error::DeltaFrame`] where frames were left to a bundle that is not given; [`Error::Delta`] where it is another.
    pub(super) fn sources<'a>(
        &self,
        view: &View,
        upgrade: &CheckedUpgrade,
        bundle: &Bundle,
        whole: Option<&'a Bundle>,
    ) -> Result<Option<Sources<'a>>> {
        let Some(delta) = bundle.delta() else { return Ok(None) };
        if let Some(whole) = whole {
            if whole.manifest().bytes() != bundle.manifest().bytes() {
                return Err(Error::Delta { problem: "the bundle beside it is another release".to_owned() });
            }
            if !whole.is_seekable() {
                return Err(Error::Delta { problem: "the bundle beside it is a stream".to_owned() });
            }
        }
        let mut bases = Vec::new();
        for (number, payload) in bundle.manifest().payloads.iter().enumerate() {
            if !upgrade.targets.iter().any(|(group, ..)| *group == payload.kind.group()) {
                bases.push(None);
                continue;
            }
            if whole.is_none() {
                let mut frames = bundle.release().frames(number);
                if let Some(frame) = frames.find(|frame| delta.recipe(frame).kind == Kind::Bundle) {
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
        Ok(Some(Sources { bases, whole }))
    }

    fn base(
        &self,
        view: &View,
        payload: &Payload,
        wanted: crate::bundle::delta::BaseRef,
    ) -> Result<BaseSlot> {
        let group = payload.kind.group();
        let other = |running: String| Error::DeltaBase {
            payload: payload.to_string(),
            expected: wanted.blake3,
            running,
        };
        let (Some(slot), Some(record)) = (view.in_service(group), view.record_in_service(group)) else {
            return Err(other(format!("no record says which {group} image runs")));
        };
        let mut installed = record.manifest.payloads.iter();
        let same = |base: &Payload| (base.kind, &base.name) == (payload.kind, &payload.name);
        let number = installed.position(same);
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
}

/// Bytes to read of a bundle or delta for this upgrade. An upper bound: what is in place already is not known yet.
pub(super) fn transfer_bytes(upgrade: &CheckedUpgrade, bundle: &Bundle) -> u64 {
    let payloads = bundle.manifest().payloads.iter().enumerate();
    let wanted = payloads
        .filter(|(_, payload)| upgrade.targets.iter().any(|(group, ..)| *group == payload.kind.group()));
    let frames = wanted.flat_map(|(number, _)| bundle.release().frames(number));
    frames.map(|frame| u64::from(bundle.packed(&frame))).sum::<u64>() + bundle.payloads_at()
}

impl From<DeltaOutcome> for AppliedDelta {
    fn from(made: DeltaOutcome) -> Self {
        Self {
            downloaded_bytes: made.downloaded,
            copied_bytes: made.copied,
            patched_bytes: made.patched,
            fallen_back_bytes: made.fallen_back,
            base_damaged: made.base_damaged,
        }
    }
}
