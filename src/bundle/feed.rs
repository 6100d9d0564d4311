//! Distributes the frames of a bundle to workers.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Mutex;

use super::archive::{self, BLOCK, END_LEN};
use super::frame::Frame;
use super::manifest::Payload;
use super::reader::{Bundle, BundleInput};
use super::source::read_failed;
use crate::error::{Class, Error, Result};
use crate::workers::{Abort, lock};

/// Bytes that a bundle has for a frame from which on it is worth fetching them in one piece: less is soon copied.
const READ_WHOLE: u64 = 64 << 10;

/// Hands out frames in the order of the bundle; every worker holds one at a time. A stream is read under the lock,
/// so memory is bounded by the number of workers and back-pressure needs no queue. Of a file, only the position is
/// taken under the lock; reading happens in parallel, and only if the frame is needed.
pub struct Feed<'a> {
    bundle: &'a Bundle,
    wanted: Vec<bool>,
    position: Mutex<Position>,
    seekable: bool,
}

#[derive(Clone, Copy, Default)]
struct Position {
    payload: usize,
    frame: u64,
    /// Number of frames handed out before.
    ordinal: u64,
    /// Offset of the next frame's bytes; only maintained for files.
    at: u64,
    /// Whether the end of the archive was reached.
    ended: bool,
}

/// A frame that a worker has taken, with its offset in the bundle.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    frame: Frame<'a>,
    /// Number of frames handed out before it: its turn in a [`Sequencer`](crate::workers::Sequencer).
    pub ordinal: u64,
    at: u64,
}

impl<'a> Deref for Claim<'a> {
    type Target = Frame<'a>;

    fn deref(&self) -> &Frame<'a> {
        &self.frame
    }
}

impl<'a> Feed<'a> {
    /// A feed of the payloads for which `wanted` returns true; the others are skipped.
    pub fn new(bundle: &'a Bundle, wanted: impl Fn(&Payload) -> bool) -> Self {
        Self {
            bundle,
            wanted: bundle.manifest().payloads.iter().map(wanted).collect(),
            position: Mutex::new(Position { at: bundle.payloads_at(), ..Position::default() }),
            seekable: bundle.file().is_some(),
        }
    }

    /// Total of uncompressed bytes in this feed.
    pub fn total(&self) -> u64 {
        let payloads = self.bundle.manifest().payloads.iter();
        payloads.zip(&self.wanted).filter(|(_, wanted)| **wanted).map(|(payload, _)| payload.size).sum()
    }

    /// Declares which frames will be loaded, so that they may be fetched ahead of the workers, together with every header
    /// and padding between them.
    pub fn expect(&self, will_load: impl Fn(&Frame<'a>) -> bool) {
        let Some(file) = self.bundle.file() else { return };
        let mut run: Option<(u64, u64)> = None;
        let mut declare = |from: u64, to: u64| match &mut run {
            _ if from == to => {}
            Some((_, end)) if *end == from => *end = to,
            earlier => {
                if let Some((from, to)) = earlier.replace((from, to)) {
                    file.will_read(from, to - from);
                }
            }
        };
        let mut at = self.bundle.payloads_at();
        let mut begins = Vec::new();
        for (number, wanted) in self.wanted.iter().enumerate() {
            let (_, size) = self.bundle.member(number);
            let frames = at + BLOCK as u64;
            let mut end = frames + size + archive::padding(size);
            if *wanted {
                // Without the first header of a bundle: it was read when that was opened.
                let read = number == 0 && self.bundle.delta().is_none();
                declare(if read { frames } else { at }, frames);
                let mut from = frames;
                for frame in self.bundle.release().frames(number) {
                    let to = from + u64::from(self.bundle.packed(&frame));
                    begins.extend([from, to].into_iter().filter(|_| to - from >= READ_WHOLE));
                    if will_load(&frame) {
                        declare(from, to);
                    }
                    from = to;
                }
                if number + 1 == self.wanted.len() {
                    end += END_LEN as u64;
                }
                declare(frames + size, end);
            }
            at = end;
        }
        begins.dedup();
        if file.is_remote() {
            file.will_begin_at(begins);
        }
        if let Some((from, to)) = run {
            file.will_read(from, to - from);
        }
    }

    /// Whether loading a frame costs a round trip, unless it was declared before.
    pub fn is_remote(&self) -> bool {
        self.bundle.file().is_some_and(super::source::ReadAt::is_remote)
    }

    /// The bundle whose frames it hands out.
    pub fn bundle(&self) -> &'a Bundle {
        self.bundle
    }

    /// Bytes that the bundle has for a claimed frame.
    pub fn packed(&self, claim: &Claim<'_>) -> u64 {
        self.bundle.packed(claim).into()
    }

    /// Declares that a claimed frame will be loaded, so that it may be fetched meanwhile. Returns its size in the bundle
    /// in bytes.
    pub fn expect_one(&self, claim: &Claim<'_>) -> u64 {
        let len = self.packed(claim);
        if let Some(file) = self.bundle.file().filter(|_| len > 0) {
            file.will_read(claim.at, len);
        }
        len
    }

    /// Declares that a claimed frame will not be loaded: it is in place already.
    pub fn pass(&self, claim: &Claim<'_>) {
        let len = self.packed(claim);
        if let Some(file) = self.bundle.file().filter(|_| len > 0) {
            file.will_not_read(claim.at, len);
        }
    }

    /// Reports a problem with the bytes of a claimed frame. Returns whether loading it again may bring other bytes:
    /// if one of several servers sends wrong bytes, another one is tried.
    pub fn has_another(&self, claim: &Claim<'_>, problem: &Error) -> bool {
        let len = u64::from(self.bundle.packed(claim));
        problem.class() == Class::Bundle
            && self.bundle.file().is_some_and(|file| file.distrust(claim.at, len))
    }

    /// Takes the next frame. A stream's bytes are put into `compressed`; a file's are fetched by
    /// [`load`](Self::load). `None` after the last one; by then the end of the archive has been checked.
    pub fn claim(&self, compressed: &mut Vec<u8>, abort: &Abort<'_>) -> Result<Option<Claim<'a>>> {
        let manifest = self.bundle.manifest();
        let release = self.bundle.release();
        let mut position = lock(&self.position);
        loop {
            abort.check()?;
            let Some(payload) = manifest.payloads.get(position.payload) else {
                // Checked once, whatever the result: a second worker would find the stream at its end and report it
                // as truncated.
                let ended = std::mem::replace(&mut position.ended, true);
                if !ended && !self.seekable {
                    self.bundle.with_input(BundleInput::end)?;
                } else if !ended && self.wanted.last() == Some(&true) {
                    self.bundle.check_remote(position.at, END_LEN as u64, BundleInput::end)?;
                }
                return Ok(None);
            };
            let number = position.payload;
            if position.frame == 0 {
                // Enters a member. The headers of a file were checked when it was opened.
                let (member, size) = self.bundle.member(number);
                if self.seekable {
                    if self.wanted[number] {
                        // The first one was read when the bundle was opened, to distinguish a delta from a bundle.
                        let read = Cell::new(number == 0);
                        let header = |input: &mut BundleInput| input.header(&member, size, manifest.created);
                        self.bundle.check_remote(position.at, BLOCK as u64, |input| {
                            if read.take() { self.bundle.with_input(header) } else { header(input) }
                        })?;
                    }
                    position.at += BLOCK as u64;
                } else {
                    self.bundle.with_input(|input| input.header(&member, size, manifest.created))?;
                }
                if !self.wanted[number] {
                    if self.seekable {
                        position.at += size;
                    } else {
                        self.bundle.with_input(|input| input.skip(size, &member, || abort.check()))?;
                    }
                    position.frame = payload.frames();
                }
            }
            if position.frame == payload.frames() {
                // Leaves the member.
                let (member, size) = self.bundle.member(number);
                if self.seekable {
                    if self.wanted[number] {
                        let len = archive::padding(size);
                        self.bundle.check_remote(position.at, len, |input| input.padding(&member, size))?;
                    }
                    position.at += archive::padding(size);
                } else {
                    self.bundle.with_input(|input| input.padding(&member, size))?;
                }
                position.payload += 1;
                position.frame = 0;
                continue;
            }
            let frame = release.frame(number, position.frame);
            let claim = Claim { frame, ordinal: position.ordinal, at: position.at };
            let len = self.bundle.packed(&frame);
            if !self.seekable {
                compressed.resize(len as usize, 0);
                self.bundle.with_input(|input| input.fill(compressed, &payload.member()))?;
            }
            position.at += u64::from(len);
            position.frame += 1;
            position.ordinal += 1;
            return Ok(Some(claim));
        }
    }

    /// Fetches the compressed bytes of a claimed frame into `compressed`, unless they are there already.
    pub fn load(&self, claim: &Claim<'_>, compressed: &mut Vec<u8>) -> Result<()> {
        let Some(file) = self.bundle.file() else { return Ok(()) };
        let len = self.bundle.packed(claim);
        if len == 0 {
            compressed.clear();
            return Ok(());
        }
        // The size was right when it was opened: if it ends early now, another process is truncating it.
        file.read_into(compressed, claim.at, len as usize)
            .map_err(|source| read_failed(&claim.payload().member(), claim.at, source))?;
        file.done_with(claim.at, compressed.len() as u64);
        Ok(())
    }
}
