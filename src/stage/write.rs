//! The work of each worker: write frames, flush, read back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::base::RunningFrames;
use super::download::Download;
use super::ledger::{Ledger, NextStep};
use super::patch::{Patcher, Work};
use super::{StageOptions, StageOutcome, Target, frame_at, make_zero, probe, sync, target_of, wanted, zero};
use crate::bundle::Bundle;
use crate::bundle::feed::{Claim, Feed};
use crate::bundle::frame::{Frame, FrameDecoder, VerifiedFrame, ZeroState};
use crate::bundle::manifest::largest_frame;
use crate::bundle::sha256::ImageHashes;
use crate::device::{self, AlignedBuf};
use crate::error::{Error, Result};
use crate::progress::{Phase, Progress};
use crate::slot::FrameAt;
use crate::workers::{self, Abort, Sequencer};

/// State shared by the workers of one run.
struct Run<'r, 'a> {
    targets: &'a [Target],
    options: &'r StageOptions<'a>,
    feed: Feed<'a>,
    patcher: Option<Patcher<'r>>,
    /// Frames that need not come over the network.
    copies: Option<RunningFrames<'a>>,
    download: Download,
    zeroes: BTreeMap<u64, Frame<'a>>,
    prober: probe::Prober,
    hashes: Option<Sequencer<ImageHashes>>,
    ledger: Option<&'r Ledger<FrameAt<'a>>>,
    abort: &'r Abort<'r>,
    progress: &'r dyn Progress,
    written: AtomicU64,
    zeroed: AtomicU64,
    reused: AtomicU64,
}

/// Bytes of a remote bundle that all workers together may defer, so that they are fetched in parallel meanwhile.
const DEFERRED_BYTES: u64 = 8 << 20;
/// Maximum number of frames that one worker may defer.
const DEFERRED_FRAMES: usize = 256;

/// Deferred frames of one worker: not in place, and requested from the server.
#[derive(Default)]
struct Deferred<'a> {
    frames: VecDeque<(Claim<'a>, u64)>,
    bytes: u64,
}

impl<'a> Deferred<'a> {
    fn push(&mut self, claim: Claim<'a>, len: u64) {
        self.frames.push_back((claim, len));
        self.bytes += len;
    }

    fn pop(&mut self) -> Option<Claim<'a>> {
        let (claim, len) = self.frames.pop_front()?;
        self.bytes -= len;
        Some(claim)
    }

    /// Whether another frame may be added: at least one, further ones up to `most` bytes in all.
    fn has_room(&self, most: u64) -> bool {
        self.frames.is_empty() || self.bytes < most && self.frames.len() < DEFERRED_FRAMES
    }
}

/// Buffers of one worker.
struct Scratch<'a> {
    compressed: Vec<u8>,
    buffer: &'a mut [u8],
    decoder: FrameDecoder,
}

/// Writes all frames; flushes and reads back in between, as `ledger` demands.
pub(super) fn write_frames<'a>(
    bundle: &'a Bundle,
    targets: &'a [Target],
    options: &StageOptions<'a>,
    ledger: Option<&Ledger<FrameAt<'a>>>,
    progress: &dyn Progress,
) -> Result<StageOutcome> {
    let payloads = &bundle.manifest().payloads;
    let feed = Feed::new(bundle, |payload| wanted(targets, payload));
    let abort = Abort::new(options.cancel, "writing the slot");
    let patcher = match (bundle.delta(), options.sources) {
        (None, _) => None,
        (Some(delta), Some(sources)) => {
            Some(Patcher::new(delta, sources, options.jobs, largest_frame(payloads)))
        }
        (Some(_), None) => return Err(Error::Internal { what: "a delta without its base".to_owned() }),
    };
    let copied = options.sources.filter(|_| patcher.is_none() && feed.is_remote());
    let copies = copied.map(|sources| RunningFrames::new(&sources.bases));
    let prober = match options.look {
        true => probe::Prober::every(),
        false => probe::Prober::sample(bundle.release(), targets, feed.is_remote(), &abort, progress)?,
    };
    // Where some of it may be in place, only what turns out not to be is requested.
    feed.expect(|frame| !prober.has_matches() && !copies.as_ref().is_some_and(|copies| copies.has(*frame)));
    let most = options.sources.and_then(|sources| sources.most);
    let zeroes = zero::find(bundle, targets, options, prober.has_matches(), &abort, progress)?;
    progress.begin(Phase::Write, feed.total());
    let zeroes = zero::make(&zeroes, targets, options, ledger, &abort, progress)?;
    let run = Run {
        targets,
        options,
        feed,
        patcher,
        copies,
        download: Download::new(bundle.payloads_at(), most, bundle.delta().is_some()),
        zeroes,
        prober,
        hashes: options.sha256.then(|| Sequencer::new(ImageHashes::new(payloads.len()))),
        ledger,
        abort: &abort,
        progress,
        written: AtomicU64::new(0),
        zeroed: AtomicU64::new(0),
        reused: AtomicU64::new(0),
    };
    // If some frames are in place, the missing ones are requested first and awaited afterwards. Not if images are
    // hashed, which is done in order: a worker would wait for its turn while it defers the frame before.
    let ahead = match run.feed.is_remote() && run.hashes.is_none() && run.prober.has_matches() {
        true => DEFERRED_BYTES / options.jobs.get() as u64,
        false => 0,
    };
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, largest_frame(payloads));
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        let mut scratch = Scratch { compressed: Vec::new(), buffer, decoder: FrameDecoder::new()? };
        let (mut deferred, mut ended) = (Deferred::default(), false);
        loop {
            run.run_next_steps(scratch.buffer)?;
            if !ended && deferred.has_room(ahead) {
                match run.feed.claim(&mut scratch.compressed, run.abort)? {
                    None => ended = true,
                    Some(claim) if run.is_in_place(&claim, &mut scratch)? => {}
                    // What is not looked past is loaded at once, and declared already.
                    Some(claim) => {
                        let expected = ahead > 0 && !run.is_copied(&claim);
                        deferred.push(claim, if expected { run.feed.expect_one(&claim) } else { 0 });
                    }
                }
                continue;
            }
            let Some(claim) = deferred.pop() else { return Ok(()) };
            run.stage_frame(&claim, &mut scratch)?;
        }
    })?;
    if let Some(hashes) = run.hashes {
        hashes.into_inner().check(payloads, |payload| wanted(targets, payload))?;
    }
    Ok(StageOutcome {
        written: run.written.into_inner(),
        zeroed: run.zeroed.into_inner(),
        reused: run.reused.into_inner(),
        copied: run.copies.as_ref().map_or(0, RunningFrames::copied),
        downloaded: run.download.bytes(),
        made: run.patcher.map(Patcher::made),
    })
}

/// Reads back what was not read back in between. Everything is durable by now.
pub(super) fn read_rest(
    options: &StageOptions<'_>,
    ledger: Ledger<FrameAt<'_>>,
    progress: &dyn Progress,
) -> Result<()> {
    let rest = ledger.into_rest();
    let abort = Abort::new(options.cancel, "reading the slot back");
    let largest = rest.iter().map(|frame| frame.stored_len()).max().unwrap_or(0);
    progress.begin(Phase::ReadBack, rest.iter().map(|frame| frame.len() as u64).sum());
    let next = AtomicUsize::new(0);
    let (mut buffers, len) = AlignedBuf::shared(options.jobs, largest);
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        while let Some(frame) = rest.get(next.fetch_add(1, Ordering::Relaxed)) {
            abort.check()?;
            (options.pace)(0)?;
            frame.read_back(buffer)?;
            progress.advance(frame.len() as u64);
        }
        Ok(())
    })?;
    Ok(())
}

impl<'a> Run<'_, 'a> {
    /// Flushes and reads back until a frame may be written.
    fn run_next_steps(&self, buffer: &mut [u8]) -> Result<()> {
        let Some(ledger) = self.ledger else { return Ok(()) };
        while let Some(step) = ledger.next_step() {
            self.abort.check()?;
            match step {
                NextStep::Flush(frames) => {
                    sync(self.targets)?;
                    ledger.flushed(frames);
                }
                NextStep::Read(frame) => {
                    (self.options.pace)(0)?;
                    frame.read_back(buffer)?;
                    ledger.read();
                }
            }
        }
        Ok(())
    }

    /// Whether a frame is in place already; if so, it is completed.
    fn is_in_place(&self, claim: &Claim<'a>, scratch: &mut Scratch<'_>) -> Result<bool> {
        let frame = self.frame_at(claim)?;
        let Some(verified) = self.in_place(claim.ordinal, &frame, scratch.buffer)? else { return Ok(false) };
        self.feed.pass(claim);
        self.reused.fetch_add(frame.len() as u64, Ordering::Relaxed);
        // Zeroes were counted when they were found.
        if frame.zero_state() == ZeroState::Unproven {
            self.progress.reuse(frame.len() as u64);
        }
        self.hash(claim.ordinal, &frame, &verified)?;
        Ok(true)
    }

    /// Whether a frame should come from the running slot.
    fn is_copied(&self, claim: &Claim<'a>) -> bool {
        self.copies.as_ref().is_some_and(|copies| copies.has(**claim))
    }

    fn frame_at(&self, claim: &Claim<'a>) -> Result<FrameAt<'a>> {
        frame_at(self.targets, self.zeroes.get(&claim.ordinal).copied().unwrap_or(**claim))
    }

    /// Loads, verifies and writes one frame.
    fn stage_frame(&self, claim: &Claim<'a>, scratch: &mut Scratch<'_>) -> Result<()> {
        let frame = self.frame_at(claim)?;
        if let Some(copied) = self.copies.as_ref().and_then(|copies| copies.read(**claim, scratch.buffer)) {
            self.feed.pass(claim);
            return self.write(claim.ordinal, &frame, &copied);
        }
        let problem = loop {
            let loaded = self.load(claim, scratch);
            let problem = match loaded.and_then(|()| frame.verify(scratch.buffer)) {
                Ok(verified) => return self.write(claim.ordinal, &frame, &verified),
                Err(problem) => problem,
            };
            if !self.feed.has_another(claim, &problem) {
                break problem;
            }
        };
        // Only a delta can fall back: if a bundle is wrong, nothing else has the frame.
        let Some(patcher) = &self.patcher else { return Err(problem) };
        let work = Work { bundle: self.feed.bundle(), download: &self.download, progress: self.progress };
        patcher.fall_back(&frame, problem, &mut scratch.decoder, scratch.buffer, &work)?;
        let verified = frame.verify(scratch.buffer)?;
        self.write(claim.ordinal, &frame, &verified)
    }

    /// Loads the frame from bundle or delta into the buffer, not verified yet.
    fn load(&self, claim: &Claim<'a>, scratch: &mut Scratch<'_>) -> Result<()> {
        self.download.take(self.feed.packed(claim))?;
        self.feed.load(claim, &mut scratch.compressed)?;
        match &self.patcher {
            None => scratch.decoder.decompress(claim, &scratch.compressed, scratch.buffer),
            Some(patcher) => patcher.fill(claim, &scratch.compressed, self.abort, scratch.buffer),
        }
    }

    /// The frame, if the slot holds it already and probing is worth it.
    fn in_place<'b>(
        &self,
        ordinal: u64,
        frame: &FrameAt<'_>,
        buffer: &'b mut [u8],
    ) -> Result<Option<VerifiedFrame<'b>>> {
        match frame.zero_state() {
            ZeroState::Unproven => Ok(self.prober.look(ordinal, || frame.find(buffer))),
            ZeroState::Zero => Ok(None),
            ZeroState::ZeroInPlace => {
                buffer.fill(0);
                frame.verify(buffer).map(Some)
            }
        }
    }

    /// Writes a frame, unless its zeroes are in place already: then the bundle has been verified all the same.
    fn write(&self, ordinal: u64, frame: &FrameAt<'a>, verified: &VerifiedFrame<'_>) -> Result<()> {
        let len = verified.len() as u64;
        if frame.zero_state() != ZeroState::Unproven {
            self.zeroed.fetch_add(len, Ordering::Relaxed);
            return self.hash(ordinal, frame, verified);
        }
        (self.options.pace)(len)?;
        let target = target_of(self.targets, frame.payload().kind.group())?;
        if verified.is_zero() {
            make_zero(target, frame.stored())?;
            self.zeroed.fetch_add(len, Ordering::Relaxed);
        } else {
            device::write(&*target.device, &target.partition, verified.stored(), frame.stored().at)?;
            self.written.fetch_add(len, Ordering::Relaxed);
        }
        self.progress.advance(len);
        if let Some(ledger) = self.ledger {
            ledger.wrote([*frame], len);
        }
        self.hash(ordinal, frame, verified)
    }

    /// SHA-256 is sequential by nature: each worker waits for its turn.
    fn hash(&self, ordinal: u64, frame: &FrameAt<'_>, verified: &VerifiedFrame<'_>) -> Result<()> {
        let Some(hashes) = &self.hashes else { return Ok(()) };
        hashes.turn(ordinal, self.abort, |hashes| {
            hashes.update(frame.payload_number(), verified);
            Ok(())
        })
    }
}
