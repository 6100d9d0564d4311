//! The writes of a staging as values, in the order of [`stage`](super::stage): what a dry run of `prepare` prints.

use super::{Sources, from_running};
use crate::bundle::Bundle;
use crate::slot::{Layout, UNIT};
use crate::units::{ByteOffset, Extent, Group, size};

/// One step of a staging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageStep {
    /// A write to the slot of a group, within a range in bytes from the start of the slot.
    Write(Group, Extent, String),
    /// All writes before it are durable before the next one begins.
    Barrier,
    /// A range of the slot of a group is read again and compared.
    ReadBack(Group, Extent, String),
}

/// The steps of a staging of `bundle` into the slots of these groups. Writes between two barriers have no order among
/// them, and the range of an image is an upper bound: what is in place already is not written. The same holds of the bytes
/// that come from the running slot.
pub fn planned(
    targets: &[(Group, &Layout)],
    bundle: &Bundle,
    sources: Option<&Sources<'_>>,
    read_back: bool,
) -> Vec<StageStep> {
    let extent = |at: u64, len: u64| Extent { at: ByteOffset(at), len };
    let footer = |group: Group, layout: &Layout, what: &str| {
        let (at, what) = (extent(layout.footer_at, UNIT), format!("the footer: {what}"));
        [StageStep::Write(group, at, what.clone()), StageStep::Barrier, StageStep::ReadBack(group, at, what)]
    };
    let mut steps = Vec::new();
    for (group, layout) in targets {
        steps.extend(footer(*group, layout, "torn"));
    }
    for (group, layout) in targets {
        let gaps = layout.gaps().into_iter();
        let zeroes = "zeroes between the images and the record".to_owned();
        steps.extend(gaps.map(|(at, len)| StageStep::Write(*group, extent(at, len), zeroes.clone())));
    }
    let mut images = Vec::new();
    for (group, layout) in targets {
        for place in &layout.places {
            let Some(payload) = bundle.manifest().payloads.get(place.payload) else { continue };
            let at = extent(place.at, place.len.next_multiple_of(UNIT));
            let running = from_running(bundle, place.payload, sources)
                .map(|(bytes, partition)| format!(", up to {} of them from {partition}", size::human(bytes)));
            images.push((*group, at, format!("{payload}"), running.unwrap_or_default()));
        }
    }
    let write = |(group, at, what, running): &(Group, Extent, String, String)| {
        StageStep::Write(*group, *at, format!("{what}, the frames that are not in place{running}"))
    };
    steps.extend(images.iter().map(write));
    steps.push(StageStep::Barrier);
    if read_back {
        steps.extend(images.into_iter().map(|(group, at, what, _)| StageStep::ReadBack(group, at, what)));
    }
    for (group, layout) in targets {
        let body = extent(layout.body_at, layout.body_len.next_multiple_of(UNIT));
        steps.extend([
            StageStep::Write(*group, body, "the record".to_owned()),
            StageStep::Write(*group, extent(layout.mark_at, UNIT), "the mark: void".to_owned()),
            StageStep::Barrier,
        ]);
        steps.extend(footer(*group, layout, "whole"));
    }
    steps
}
