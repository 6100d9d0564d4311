//! The command `qstage delta`: files in, delta file out. It needs neither the signing key nor trust in the release. And
//! `qstage verify --base`, which applies a delta and keeps nothing.

mod base;
mod check;
mod file;

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

pub use self::base::file_name;
pub use self::check::{CheckReport, check};
use crate::bundle::delta::{self, Base, MEMBER, Options, Tally};
use crate::bundle::writer::{write_front, write_members};
use crate::error::{Error, Result};
use crate::pack::Destination;
use crate::progress::{Cancel, Progress};

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
    let bundle = base::open(&spec.new, cancel)?;
    let images = base::images(&spec.old, &bundle, &out, spec.jobs, progress, cancel)?;
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
