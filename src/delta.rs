//! The command `qstage delta`: files in, delta file out. It needs neither the signing key nor trust in the release.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::bundle::delta::{self, Base, BaseRef, MEMBER, Options, Tally};
use crate::bundle::feed::Feed;
use crate::bundle::frame::FrameDecoder;
use crate::bundle::manifest::{Kind, Payload, largest_frame};
use crate::bundle::writer::{write_front, write_members};
use crate::bundle::{Bundle, Trust, archive};
use crate::device::AlignedBuf;
use crate::error::{Error, Result};
use crate::pack::Destination;
use crate::progress::{Cancel, Phase, Progress};
use crate::source::mapped::MappedFile;
use crate::source::{InputTimeout, open_source};
use crate::workers::{self, Abort};

/// Input and options of a delta.
#[derive(Debug, Clone)]
pub struct DeltaSpec {
    /// What runs before the upgrade: a bundle, or the image of its platform.
    pub old: PathBuf,
    /// Bundle of the new release.
    pub new: PathBuf,
    /// zstd level; see [`Options::level`].
    pub level: Option<i32>,
    /// Whether frames that no base makes smaller are left out; see [`Options::lean`].
    pub lean: bool,
    /// Whether a delta that saves little is made, too.
    pub force: bool,
    /// Number of workers; `None`: as many as are useful.
    pub jobs: Option<NonZeroUsize>,
}

/// Report about a delta that was made.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaReport {
    /// Path of the delta.
    pub path: PathBuf,
    /// Its size in bytes.
    pub delta_bytes: u64,
    /// Size in bytes of the bundle that it replaces.
    pub bundle_bytes: u64,
    /// Number of frames by the way in which they are made.
    pub frames: Tally,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Size of a delta, in tenths of the size of the bundle, above which it is refused unless forced.
const WORTH_TENTHS: u64 = 8;

/// Makes a delta. It appears under its name only once it is whole and durable.
///
/// # Errors
/// [`Error::Open`] and those of the bundles; [`Error::DeltaGain`]; [`Error::Output`], [`Error::OutputExists`],
/// [`Error::Interrupted`].
pub fn make(
    spec: &DeltaSpec,
    out: Destination<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<DeltaReport> {
    let start = Instant::now();
    out.check(&[("OLD", &spec.old), ("NEW", &spec.new)])?;
    let bundle = open(&spec.new, cancel)?;
    let images = images(spec, &bundle, &out, progress, cancel)?;
    let bases: Vec<Option<Base<'_>>> =
        images.iter().map(|image| image.as_ref().map(|(image, of)| Base { image, of: *of })).collect();
    let path = out.path();
    let failed = |source| Error::Output { path: path.clone(), source };
    let mut members = out.scratch()?;
    let mut writer = BufWriter::with_capacity(1 << 20, &mut members);
    let options = Options { level: spec.level, lean: spec.lean, jobs: spec.jobs };
    let head = delta::make(&bundle, &bases, options, &mut writer, cancel, progress)?;
    writer.flush().map_err(failed)?;
    drop(writer);

    let (manifest, bundle_bytes) = (bundle.manifest(), bundle.size()?);
    let mut front = Vec::new();
    let index = bundle.release().index().bytes();
    write_front(&mut front, manifest.bytes(), manifest.signature(), index, manifest.created)?;
    write_members(&mut front, &[(MEMBER, &head)], manifest.created)?;
    let delta_bytes = front.len() as u64 + members.stream_position().map_err(failed)?;
    if delta_bytes > bundle_bytes / 10 * WORTH_TENTHS && !spec.force {
        return Err(Error::DeltaGain { delta: delta_bytes, bundle: bundle_bytes });
    }
    let delta_bytes = out.publish(|mut file| {
        file.write_all(&front).map_err(failed)?;
        members.seek(SeekFrom::Start(0)).map_err(failed)?;
        std::io::copy(&mut members, &mut file).map_err(failed)?;
        Ok(())
    })?;
    let mut frames = Tally::default();
    let made = delta::Delta::parse(head, bundle.release())?;
    (0..manifest.payloads.len()).for_each(|payload| frames.add(&made, bundle.release(), payload));
    let seconds = start.elapsed().as_secs_f64();
    Ok(DeltaReport { path, delta_bytes, bundle_bytes, frames, seconds })
}

/// Opens a whole bundle in a file. The signature is checked when the delta is applied; here nothing depends on it.
fn open(path: &Path, cancel: &Cancel) -> Result<Bundle> {
    let bundle =
        Bundle::open(open_source(path, InputTimeout::default(), cancel)?, &Trust::dangerously_unsigned())?
            .whole()?;
    if bundle.is_seekable() {
        return Ok(bundle);
    }
    let problem = "is no regular file; a delta is made of bundles that can be read anywhere".to_owned();
    Err(Error::Argument { what: path.display().to_string(), problem })
}

/// Image that each payload of the bundle starts from; `None` if there is none. From an old bundle it is the payload of
/// the same kind and name, unpacked to a file without a name beside `out`; an old image is that of the platform.
fn images(
    spec: &DeltaSpec,
    bundle: &Bundle,
    out: &Destination<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Option<(MappedFile, BaseRef)>>> {
    let payloads = &bundle.manifest().payloads;
    if !is_bundle(&spec.old)? {
        let image = MappedFile::open(&spec.old)?;
        let of = BaseRef::of(&image);
        let mut image = Some((image, of));
        let base = |payload: &Payload| if payload.kind == Kind::Platform { image.take() } else { None };
        return Ok(payloads.iter().map(base).collect());
    }
    let old = open(&spec.old, cancel)?;
    let same = |one: &Payload, other: &Payload| (one.kind, &one.name) == (other.kind, &other.name);
    let wanted = |base: &Payload| payloads.iter().any(|payload| same(payload, base));
    progress.begin(Phase::Verify, old.manifest().payloads.iter().filter(|p| wanted(p)).map(|p| p.size).sum());
    payloads
        .iter()
        .map(|payload| {
            let base = old.manifest().payloads.iter().find(|base| same(payload, base));
            base.map(|base| unpack(&old, base, out, spec.jobs, progress, cancel)).transpose()
        })
        .collect()
}

/// Whether a file begins as a bundle does, with the member `manifest.json`. An image may begin with anything else.
fn is_bundle(path: &Path) -> Result<bool> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let mut block = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(archive::BLOCK as u64).read_to_end(&mut block).map_err(failed)?;
    Ok(block.first_chunk().is_some_and(|header| archive::is_named(header, "manifest.json")))
}

/// Unpacks a payload to a file that is gone with the process. Returns its image, and size and hash by the manifest: each
/// frame is verified against the index, which is bound to the hash of the whole.
fn unpack(
    bundle: &Bundle,
    payload: &Payload,
    out: &Destination<'_>,
    jobs: Option<NonZeroUsize>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(MappedFile, BaseRef)> {
    let path = out.path();
    let failed = |source| Error::Output { path: path.clone(), source };
    let file = out.scratch()?;
    file.set_len(payload.size).map_err(failed)?;
    let (abort, feed) =
        (Abort::new(cancel, "unpacking the base"), Feed::new(bundle, |other| std::ptr::eq(other, payload)));
    let jobs = jobs.unwrap_or_else(workers::default_jobs);
    let (mut buffers, len) = AlignedBuf::shared(jobs, largest_frame(std::slice::from_ref(payload)));
    workers::run_with(buffers.chunks_exact_mut(len), &abort, |buffer| {
        let (mut compressed, mut decoder) = (Vec::new(), FrameDecoder::new()?);
        while let Some(claim) = feed.claim(&mut compressed, &abort)? {
            feed.load(&claim, &mut compressed)?;
            let frame = decoder.decode(&claim, &compressed, buffer)?;
            // Frames of zeroes stay holes.
            if !frame.is_zero() {
                file.write_all_at(&frame, claim.extent().at.0).map_err(failed)?;
            }
            progress.advance(frame.len() as u64);
        }
        Ok(())
    })?;
    let of = BaseRef { size: payload.size, blake3: payload.blake3 };
    Ok((MappedFile::of(file).map_err(failed)?, of))
}
