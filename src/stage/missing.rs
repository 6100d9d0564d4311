//! How much has to come for what the slot does not hold yet.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::base::RunningFrames;
use super::{Sources, Target, frame_at, wanted};
use crate::bundle::Bundle;
use crate::bundle::frame::Frame;
use crate::bundle::manifest::{Payload, largest_frame};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::progress::{Cancel, Phase, Progress};
use crate::units::Group;
use crate::workers::{self, Abort};

/// Most bytes that are read of a bundle or delta for slots of these groups, its head included. Of a bundle on a server,
/// without what the running slot holds at the same place. Reads nothing.
pub fn expected_bytes(bundle: &Bundle, groups: &[Group], sources: Option<&Sources<'_>>) -> u64 {
    let frames = to_load(bundle, |payload| groups.contains(&payload.kind.group()), sources);
    bundle.payloads_at() + bytes(bundle, &frames)
}

/// Most bytes of the frames of a payload that are copied from the running slot or made with ranges of it, and the name of
/// that slot's partition; `None`: none are. By its record; reads nothing.
pub fn from_running<'s>(
    bundle: &Bundle,
    payload: usize,
    sources: Option<&'s Sources<'_>>,
) -> Option<(u64, &'s str)> {
    let sources = sources?;
    let base = sources.bases.get(payload)?.as_ref()?;
    let copies = RunningFrames::new(&sources.bases);
    let from_it = |frame: &Frame<'_>| match bundle.delta() {
        Some(delta) => delta.recipe(frame).base_len() > 0,
        None => copies.has(*frame),
    };
    let frames = bundle.release().frames(payload).filter(from_it);
    let bytes = frames.map(|frame| frame.len() as u64).sum();
    (bytes > 0).then_some((bytes, &*base.partition))
}

/// The same without what `targets` hold already: each of their frames is looked at.
///
/// # Errors
/// [`Error::Interrupted`](crate::Error::Interrupted).
pub fn missing_bytes(
    bundle: &Bundle,
    targets: &[Target],
    sources: Option<&Sources<'_>>,
    jobs: NonZeroUsize,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<u64> {
    let frames = to_load(bundle, |payload| wanted(targets, payload), sources);
    progress.begin(Phase::Probe, frames.iter().map(|frame| frame.len() as u64).sum());
    let (abort, next) = (Abort::new(cancel, "looking at the slot"), AtomicUsize::new(0));
    let found = AtomicU64::new(0);
    let (mut buffers, len) = AlignedBuf::shared(jobs, largest_frame(&bundle.manifest().payloads));
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            if frame_at(targets, *frame)?.find(buffer).is_some() {
                found.fetch_add(bundle.packed(frame).into(), Ordering::Relaxed);
            }
            progress.advance(frame.len() as u64);
        }
        Ok(())
    })?;
    Ok(bundle.payloads_at() + bytes(bundle, &frames) - found.into_inner())
}

fn bytes(bundle: &Bundle, frames: &[Frame<'_>]) -> u64 {
    frames.iter().map(|frame| u64::from(bundle.packed(frame))).sum()
}

/// The frames for which bytes of the bundle or delta are needed.
fn to_load<'b>(
    bundle: &'b Bundle,
    wanted: impl Fn(&Payload) -> bool,
    sources: Option<&Sources<'_>>,
) -> Vec<Frame<'b>> {
    let copied = sources.filter(|_| bundle.delta().is_none() && bundle.is_remote());
    let copies = copied.map(|sources| RunningFrames::new(&sources.bases));
    let payloads = bundle.manifest().payloads.iter().enumerate().filter(|(_, payload)| wanted(payload));
    payloads
        .flat_map(|(number, _)| bundle.release().frames(number))
        .filter(|frame| bundle.packed(frame) > 0)
        .filter(|frame| !copies.as_ref().is_some_and(|copies| copies.has(*frame)))
        .collect()
}
