//! What the workers do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::blank::{self, Blank};
use super::ledger::{Duty, Ledger, Spot};
use super::{Options, Outcome, Target, make_zero, probe, readback, sync, target_of};
use crate::bundle::Bundle;
use crate::bundle::feed::{Claim, Feed};
use crate::bundle::frame::{FrameDecoder, VerifiedFrame, wrong};
use crate::bundle::manifest::{Payload, largest_frame};
use crate::bundle::sha256::ImageHashes;
use crate::device::{self, AlignedBuf};
use crate::error::{Error, Result};
use crate::progress::{Phase, Progress};
use crate::units::ByteOffset;
use crate::workers::{self, Abort, Sequencer};

/// Everything that the workers of one run share.
struct Run<'a> {
    targets: &'a [Target],
    options: &'a Options<'a>,
    feed: Feed<'a>,
    blanks: BTreeMap<u64, Blank>,
    probing: probe::Probing,
    hashes: Option<Sequencer<ImageHashes>>,
    ledger: Option<&'a Ledger>,
    abort: &'a Abort<'a>,
    written: AtomicU64,
    zeroed: AtomicU64,
    reused: AtomicU64,
}

/// What one worker owns.
struct Hands<'a> {
    compressed: Vec<u8>,
    buffer: &'a mut [u8],
    decoder: FrameDecoder,
}

/// Writes all frames; flushes and reads back, by the way, what `ledger` asks for.
pub(super) fn write_frames(
    bundle: &Bundle,
    targets: &[Target],
    options: &Options<'_>,
    ledger: Option<&Ledger>,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let payloads = &bundle.manifest().payloads;
    let wanted = |payload: &Payload| target_of(targets, payload).is_some();
    let feed = Feed::new(bundle, wanted);
    let abort = Abort::new(options.cancel, "writing the slot");
    progress.begin(Phase::Write, feed.total());
    let probing = probe::Probing::sample(targets, &abort)?;
    let blanks = blank::make(bundle, targets, options, probing.resembles(), ledger, &abort)?;
    let run = Run {
        targets,
        options,
        feed,
        blanks,
        probing,
        hashes: options.sha256.then(|| Sequencer::new(ImageHashes::new(payloads.len()))),
        ledger,
        abort: &abort,
        written: AtomicU64::new(0),
        zeroed: AtomicU64::new(0),
        reused: AtomicU64::new(0),
    };
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, largest_frame(payloads));
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        let mut hands = Hands { compressed: Vec::new(), buffer, decoder: FrameDecoder::new()? };
        loop {
            run.duties(hands.buffer)?;
            let Some(claim) = run.feed.claim(&mut hands.compressed, run.abort)? else { return Ok(()) };
            run.frame(&claim, &mut hands)?;
            progress.advance(u64::from(claim.payload.frame_extent(claim.frame).1));
        }
    })?;
    if let Some(hashes) = run.hashes {
        hashes.into_inner().check(payloads, wanted)?;
    }
    Ok(Outcome {
        written: run.written.into_inner(),
        zeroed: run.zeroed.into_inner(),
        reused: run.reused.into_inner(),
    })
}

/// Reads back what was not read back by the way. Everything is durable by now.
pub(super) fn read_rest(
    targets: &[Target],
    options: &Options<'_>,
    ledger: Ledger,
    progress: &dyn Progress,
) -> Result<()> {
    let rest = ledger.into_rest();
    let abort = Abort::new(options.cancel, "reading the slot back");
    let largest =
        targets.iter().map(|target| largest_frame(&target.record.manifest.payloads)).max().unwrap_or(0);
    progress.begin(Phase::ReadBack, rest.iter().map(|spot| len_of(targets, spot)).sum());
    let next = AtomicUsize::new(0);
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, largest);
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        while let Some(spot) = rest.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            (options.pace)(0)?;
            read_back_frame(targets, spot, buffer)?;
            progress.advance(len_of(targets, spot));
        }
        Ok(())
    })?;
    Ok(())
}

fn len_of(targets: &[Target], spot: &Spot) -> u64 {
    u64::from(targets[spot.target].record.manifest.payloads[spot.payload].frame_extent(spot.frame).1)
}

fn read_back_frame(targets: &[Target], spot: &Spot, buffer: &mut [u8]) -> Result<()> {
    let target = &targets[spot.target];
    let record = &target.record;
    let payload = &record.manifest.payloads[spot.payload];
    let Some(place) = record.layout.place(spot.payload) else {
        return Err(Error::Internal { what: format!("{payload} has no place in a slot") });
    };
    let found = readback::check_frame(&*target.device, record, place, spot.frame, spot.zero, buffer)?;
    found.map(drop).map_err(|_| Error::ReadBack {
        payload: payload.to_string(),
        frame: spot.frame,
        at: place.at + payload.frame_extent(spot.frame).0,
    })
}

impl Run<'_> {
    /// Flushes and reads back until a frame may be written.
    fn duties(&self, buffer: &mut [u8]) -> Result<()> {
        let Some(ledger) = self.ledger else { return Ok(()) };
        while let Some(duty) = ledger.duty() {
            self.abort.check()?;
            match duty {
                Duty::Flush(spots) => {
                    sync(self.targets)?;
                    ledger.flushed(spots);
                }
                Duty::Read(spot) => {
                    (self.options.pace)(0)?;
                    read_back_frame(self.targets, &spot, buffer)?;
                    ledger.read();
                }
            }
        }
        Ok(())
    }

    /// Brings one frame into its place.
    fn frame(&self, claim: &Claim<'_>, hands: &mut Hands<'_>) -> Result<()> {
        let (image_at, len) = claim.payload.frame_extent(claim.frame);
        let place = target_of(self.targets, claim.payload).and_then(|(number, target)| {
            Some((number, target, target.record.layout.place(claim.payload_number)?))
        });
        let Some((number, target, place)) = place else {
            return Err(Error::Internal { what: format!("{} has no place in a slot", claim.payload) });
        };
        let at = ByteOffset(place.at + image_at);
        let reused = |frame: &VerifiedFrame<'_>| {
            self.reused.fetch_add(u64::from(len), Ordering::Relaxed);
            self.hash(claim, frame)
        };
        let blank = self.blanks.get(&claim.ordinal);
        let zero = blank.map(|blank| blank.zero);
        if blank.is_some_and(|blank| blank.found) {
            hands.buffer.fill(0);
            let (payload, frame, entry) = (claim.payload, claim.frame, claim.entry);
            let frame = VerifiedFrame::check_known(hands.buffer, payload, frame, entry, zero);
            return frame.map_or_else(
                |got| Err(wrong(claim.payload, claim.frame, claim.entry, got)),
                |frame| reused(&frame),
            );
        }
        if blank.is_none()
            && let Some(frame) =
                self.probing.look(claim.ordinal, || probe::frame_in_place(target, claim, at, hands.buffer))
        {
            return reused(&frame);
        }
        self.feed.load(claim, &mut hands.compressed)?;
        let frame = hands.decoder.decode(
            &hands.compressed,
            claim.payload,
            claim.frame,
            claim.entry,
            zero,
            hands.buffer,
        )?;
        if blank.is_some() {
            // The slot holds these zeroes already; the bundle is checked all the same.
            self.zeroed.fetch_add(u64::from(len), Ordering::Relaxed);
            return self.hash(claim, &frame);
        }
        (self.options.pace)(u64::from(len))?;
        if frame.is_zero() {
            make_zero(target, at.0, frame.stored().len() as u64)?;
            self.zeroed.fetch_add(u64::from(len), Ordering::Relaxed);
        } else {
            device::write(&*target.device, &target.partition, frame.stored(), at)?;
            self.written.fetch_add(u64::from(len), Ordering::Relaxed);
        }
        if let Some(ledger) = self.ledger {
            let spot = Spot { target: number, payload: claim.payload_number, frame: claim.frame, zero };
            ledger.wrote([spot], u64::from(len));
        }
        self.hash(claim, &frame)
    }

    /// SHA-256 is sequential by nature: each worker waits for its turn.
    fn hash(&self, claim: &Claim<'_>, frame: &VerifiedFrame<'_>) -> Result<()> {
        let Some(hashes) = &self.hashes else { return Ok(()) };
        hashes.turn(claim.ordinal, self.abort, |hashes| {
            hashes.update(claim.payload_number, frame);
            Ok(())
        })
    }
}
