//! Making of deltas. Frames are decompressed, compared with the base, compressed again on all cores, and appended in
//! order.

use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use super::align;
use super::encoder::compress;
use super::index::{BaseIndex, Match};
use super::parse::{push_entry, push_payload};
use super::ranges::{self, RangeLimits};
use super::reader::{BaseReader, read_ranges};
use super::survey::Survey;
use super::table;
use super::{BaseRef, Delta, FrameKind, MAGIC, PREFIX_FRAMES, RANGES_MAX};
use crate::bundle::archive::{self, BLOCK, END_LEN};
use crate::bundle::frame::is_zero;
use crate::bundle::manifest::Payload;
use crate::bundle::unpack::{Unpacked, Unpacking};
use crate::bundle::{Bundle, ReadAt, Release};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::units::{ByteOffset, Extent};
use crate::workers::{self, Abort, Queue};

/// Maximum number of bytes of frames that wait for an earlier one.
const WAITING_MAX: usize = 32 << 20;

/// zstd level where nothing is said about it.
const LEVEL: i32 = 9;
/// The same where little changed: each frame takes ten times as long.
const LEVEL_OF_LITTLE: i32 = 19;
/// Bytes that are not in the base as whole frames, up to which little changed.
const LITTLE: u64 = 64 << 20;

/// Image that the delta of a payload starts from.
pub struct Base<'a> {
    /// Its bytes. They are read as they are needed, so that a large image takes no memory.
    pub image: &'a dyn ReadAt,
    /// Its size and hash.
    pub of: BaseRef,
}

/// Options of making a delta.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// zstd level; `None`: 19 for a payload of which the base lacks at most 64 MiB of frames, else 9.
    pub level: Option<i32>,
    /// Whether frames that no base makes smaller are left out, so that the delta is of use only beside the bundle.
    pub lean: bool,
    /// Number of workers; `None`: as many as are useful.
    pub jobs: Option<NonZeroUsize>,
}

/// Number of frames of a delta by the way in which they are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Frames of zeroes.
    pub zero: u64,
    /// Frames that are in the base at the same offset.
    pub in_place: u64,
    /// Frames that are in the base at another offset.
    pub copied: u64,
    /// Frames that are compressed with ranges of the base.
    pub patched: u64,
    /// Frames that are compressed without ranges of the base.
    pub plain: u64,
    /// Frames that are taken from the bundle.
    pub from_bundle: u64,
}

impl Tally {
    /// Adds the frames of a payload.
    pub(crate) fn add(&mut self, delta: &Delta, release: &Release, payload: usize) {
        for frame in release.frames(payload) {
            let recipe = delta.recipe(&frame);
            let count = match recipe.kind {
                FrameKind::Zero => &mut self.zero,
                FrameKind::InPlace => &mut self.in_place,
                FrameKind::Copy => &mut self.copied,
                FrameKind::Patch | FrameKind::Aligned if recipe.base_len() > 0 => &mut self.patched,
                FrameKind::Patch | FrameKind::Aligned => &mut self.plain,
                FrameKind::Bundle => &mut self.from_bundle,
            };
            *count += 1;
        }
    }
}

/// Recipe and bytes of one frame.
struct Piece {
    kind: FrameKind,
    ranges: Vec<Extent>,
    packed: Vec<u8>,
    len: u64,
}

/// Makes the delta from `bases`, which has an entry for each payload of `bundle`, `None` if there is no base. Writes its
/// members and the end of the archive to `out`. Returns the bytes of `delta.bin`, which comes before them. The same
/// input gives the same bytes, whatever the number of workers. Neither base nor bundle need be trusted: the delta is
/// checked when it is applied.
///
/// # Errors
/// Those of the frames of the bundle and of reading a base; [`Error::TooLarge`], [`Error::Output`], [`Error::Interrupted`].
pub fn make<W: Write + Seek + Send>(
    bundle: &Bundle,
    bases: &[Option<Base<'_>>],
    options: Options,
    out: &mut W,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Vec<u8>> {
    let manifest = bundle.manifest();
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(blake3::hash(manifest.bytes()).as_bytes());
    for (payload, base) in manifest.payloads.iter().zip(bases) {
        push_payload(&mut head, payload.frame_size, base.as_ref().map(|base| base.of));
    }
    progress.begin(Phase::Pack, manifest.payloads.iter().map(|payload| payload.size).sum());
    for (number, (payload, base)) in manifest.payloads.iter().zip(bases).enumerate() {
        let header_at = out.stream_position().map_err(output)?;
        out.write_all(&[0; BLOCK]).map_err(output)?;
        let maker = Maker { bundle, number, base: base.as_ref(), options, cancel, progress };
        let written = maker.payload(payload, &mut head, out)?;
        out.write_all(&[0; BLOCK][..archive::padding(written) as usize]).map_err(output)?;
        let end = out.stream_position().map_err(output)?;
        out.seek(SeekFrom::Start(header_at)).map_err(output)?;
        let header = archive::header(&payload.delta_member(), written, manifest.created)?;
        out.write_all(&header).map_err(output)?;
        out.seek(SeekFrom::Start(end)).map_err(output)?;
    }
    out.write_all(&[0; END_LEN]).map_err(output)?;
    let head = table::pack(head)?;
    // A delta that a reader would refuse is not returned.
    Delta::parse(head.clone(), bundle.release())?;
    Ok(head)
}

fn output(source: std::io::Error) -> Error {
    Error::Output { path: "the delta".into(), source }
}

/// What a worker needs to find a frame in the base.
struct Search<'a> {
    index: &'a BaseIndex,
    /// zstd level.
    level: i32,
    base: BaseReader<'a>,
    /// Ranges of the base, one after the other.
    prefix: Vec<u8>,
}

/// State that all workers on a payload share.
struct Maker<'a> {
    bundle: &'a Bundle,
    number: usize,
    base: Option<&'a Base<'a>>,
    options: Options,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
}

impl Maker<'_> {
    /// Appends the frames of a payload to `out` and their entries to `head`. Returns the size of its member in bytes.
    fn payload<W: Write + Send>(&self, payload: &Payload, head: &mut Vec<u8>, out: &mut W) -> Result<u64> {
        let abort = Abort::new(self.cancel, "making a delta");
        let jobs = self.options.jobs.unwrap_or_else(workers::default_jobs);
        let index = self.base.map(|base| self.index(base, jobs, &abort)).transpose()?;
        let ahead = (WAITING_MAX / payload.frame_size as usize).max(jobs.get()) as u64;
        let queue = Queue::new((head, out, 0), ahead);
        let append = |(head, out, written): &mut (&mut Vec<u8>, &mut W, u64), piece: Piece| {
            push_entry(head, piece.kind, &piece.ranges, piece.packed.len() as u32);
            out.write_all(&piece.packed).map_err(output)?;
            *written += piece.packed.len() as u64;
            self.progress.advance(piece.len);
            Ok(())
        };
        let unpacking = Unpacking { bundle: self.bundle, payload, jobs };
        unpacking.each(
            &abort,
            |_| true,
            || {
                let known = self.base.zip(index.as_ref());
                Ok(known.map(|(base, (index, level))| Search {
                    index,
                    level: *level,
                    base: BaseReader::new(base.image),
                    prefix: Vec::new(),
                }))
            },
            |search, Unpacked { claim, packed, frame }| {
                let piece = self.frame(&frame, claim.extent(), packed, search.as_mut())?;
                queue.put(claim.ordinal, piece, &abort, append)
            },
        )?;
        Ok(queue.into_inner().2)
    }

    /// Index of the base, and the zstd level.
    fn index(&self, base: &Base<'_>, jobs: NonZeroUsize, abort: &Abort<'_>) -> Result<(BaseIndex, i32)> {
        let survey = Survey::of(self.bundle, self.number, base.image, jobs, abort)?;
        let index = BaseIndex::new(base.image, survey.wanted.as_ref(), jobs, abort)?;
        if let Some(level) = self.options.level {
            return Ok((index, level));
        }
        let little =
            survey.changed_bytes <= LITTLE || self.lacks(base, &survey, &index, jobs, abort)? <= LITTLE;
        Ok((index, if little { LEVEL_OF_LITTLE } else { LEVEL }))
    }

    /// Bytes of the changed frames that the base does not have at any offset; not all are counted above [`LITTLE`]. After the
    /// change of one file in a squashfs, most frames have only moved.
    fn lacks(
        &self,
        base: &Base<'_>,
        survey: &Survey,
        index: &BaseIndex,
        jobs: NonZeroUsize,
        abort: &Abort<'_>,
    ) -> Result<u64> {
        let lacks = AtomicU64::new(0);
        let payload = &self.bundle.manifest().payloads[self.number];
        Unpacking { bundle: self.bundle, payload, jobs }.each(
            abort,
            |frame| survey.changed.has(frame.number()) && lacks.load(Ordering::Relaxed) <= LITTLE,
            || Ok(BaseReader::new(base.image)),
            |base, Unpacked { frame, .. }| {
                if !is_zero(&frame) && moved(&index.matches(&frame, base)?, &frame, base).is_none() {
                    lacks.fetch_add(frame.len() as u64, Ordering::Relaxed);
                }
                base.check()
            },
        )?;
        Ok(lacks.into_inner())
    }

    /// Makes one frame in the smallest way.
    fn frame(
        &self,
        frame: &[u8],
        at: Extent,
        compressed: &[u8],
        search: Option<&mut Search<'_>>,
    ) -> Result<Piece> {
        let had = |kind, ranges| Piece { kind, ranges, packed: Vec::new(), len: at.len };
        if is_zero(frame) {
            return Ok(had(FrameKind::Zero, Vec::new()));
        }
        if let Some(Search { index, level, base, prefix }) = search {
            if base.has(at.at.0, frame) {
                return Ok(had(FrameKind::InPlace, Vec::new()));
            }
            let matches = index.matches(frame, base)?;
            if let Some(from) = moved(&matches, frame, base) {
                return Ok(had(FrameKind::Copy, vec![Extent { at: ByteOffset(from), len: at.len }]));
            }
            let frame_size = u64::from(self.bundle.manifest().payloads[self.number].frame_size);
            let limits = RangeLimits {
                base: base.base().len(),
                count: RANGES_MAX,
                budget: PREFIX_FRAMES * frame_size,
            };
            // The bytes at the same offset are the last guess: a table with small changes everywhere has no match.
            let ranges = ranges::with(ranges::choose(&matches, at.len, limits), at, limits);
            base.check()?;
            read_ranges(base.base(), ranges.iter().copied(), prefix)?;
            let (mut kind, mut packed) = (FrameKind::Patch, compress(frame, prefix, *level)?);
            let matches = align::in_prefix(&matches, &ranges);
            let aligned = align::encode(frame, prefix, &matches, *level)?;
            if let Some(aligned) = aligned.filter(|aligned| aligned.len() < packed.len()) {
                (kind, packed) = (FrameKind::Aligned, aligned);
            }
            if packed.len() + ranges.len() * super::RANGE_LEN < compressed.len() {
                return Ok(Piece { kind, ranges, packed, len: at.len });
            }
        }
        if self.options.lean {
            return Ok(had(FrameKind::Bundle, Vec::new()));
        }
        Ok(Piece { kind: FrameKind::Patch, ranges: Vec::new(), packed: compressed.to_vec(), len: at.len })
    }
}

/// Offset at which the base has the whole frame, judged by the longest match; `None` if it does not have it there.
fn moved(matches: &[Match], frame: &[u8], base: &mut BaseReader<'_>) -> Option<u64> {
    let longest = matches.iter().max_by_key(|found| found.len)?;
    longest.frame_start().map(|from| from as u64).filter(|from| base.has(*from, frame))
}

#[cfg(test)]
#[path = "maker_tests.rs"]
mod tests;
