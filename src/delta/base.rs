//! The old release: a bundle, whose images are unpacked, or the image of its platform.

use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::file::ImageFile;
use crate::bundle::delta::BaseRef;
use crate::bundle::manifest::{Kind, Payload};
use crate::bundle::unpack::{Unpacked, Unpacking};
use crate::bundle::{Bundle, Trust, archive};
use crate::error::{Error, Result};
use crate::pack::Destination;
use crate::progress::{Cancel, Phase, Progress};
use crate::source::beside;
use crate::source::{InputTimeout, open_source};
use crate::units::Group;
use crate::workers::{self, Abort};

/// File name of the delta from `old` to `new`, by which `qstage prepare` finds it beside the bundle on a server: the name of
/// `new`, and the BLAKE3 of the old platform image, or of the software image where there is no platform.
///
/// # Errors
/// [`Error::Open`] and those of the bundle.
pub fn file_name(old: &Path, new: &Path, cancel: &Cancel) -> Result<String> {
    let base = if is_bundle(old)? {
        let bundle = open(old, cancel)?;
        let manifest = bundle.manifest();
        let image = |group| manifest.group(group).next().map(|(_, payload)| payload.blake3);
        let none = || Error::Internal { what: "a bundle without an image".to_owned() };
        Group::BOTH.into_iter().find_map(image).ok_or_else(none)?
    } else {
        BaseRef::of(&ImageFile::open(old)?)?.blake3
    };
    let name = new.file_name().unwrap_or_default().display();
    Ok(format!("{name}{}", beside::suffix(base)))
}

/// Opens a whole bundle in a file. The signature is checked when the delta is applied; here nothing depends on it.
pub(super) fn open(path: &Path, cancel: &Cancel) -> Result<Bundle> {
    let source = open_source(path, InputTimeout::default(), cancel)?;
    let bundle = Bundle::open(source, &Trust::dangerously_unsigned())?.whole()?;
    if bundle.is_seekable() {
        return Ok(bundle);
    }
    let problem = "is no regular file; a delta is made of bundles that can be read anywhere".to_owned();
    Err(Error::Argument { what: path.display().to_string(), problem })
}

/// Image that each payload of the bundle starts from; `None` if there is none. From an old bundle it is the payload of
/// the same kind and name, unpacked to a file without a name beside `out`; an old image is that of the platform.
pub(super) fn images(
    old: &Path,
    bundle: &Bundle,
    out: &Destination<'_>,
    jobs: Option<NonZeroUsize>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Option<(ImageFile, BaseRef)>>> {
    let payloads = &bundle.manifest().payloads;
    if !is_bundle(old)? {
        let image = ImageFile::open(old)?;
        let of = BaseRef::of(&image)?;
        let mut image = Some((image, of));
        let base = |payload: &Payload| if payload.kind == Kind::Platform { image.take() } else { None };
        return Ok(payloads.iter().map(base).collect());
    }
    let old = open(old, cancel)?;
    let same = |one: &Payload, other: &Payload| (one.kind, &one.name) == (other.kind, &other.name);
    let wanted = |base: &Payload| payloads.iter().any(|payload| same(payload, base));
    progress.begin(Phase::Verify, old.manifest().payloads.iter().filter(|p| wanted(p)).map(|p| p.size).sum());
    payloads
        .iter()
        .map(|payload| {
            let base = old.manifest().payloads.iter().find(|base| same(payload, base));
            base.map(|base| unpack(&old, base, out, jobs, progress, cancel)).transpose()
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
) -> Result<(ImageFile, BaseRef)> {
    let path = out.path();
    let failed = |source| Error::Output { path: path.clone(), source };
    let file = out.scratch()?;
    file.set_len(payload.size).map_err(failed)?;
    let (abort, jobs) =
        (Abort::new(cancel, "unpacking the base"), jobs.unwrap_or_else(workers::default_jobs));
    Unpacking { bundle, payload, jobs }.each(
        &abort,
        |_| true,
        || Ok(()),
        |(), Unpacked { claim, frame, .. }| {
            // Frames of zeroes stay holes.
            if !frame.is_zero() {
                file.write_all_at(&frame, claim.extent().at.0).map_err(failed)?;
            }
            progress.advance(frame.len() as u64);
            Ok(())
        },
    )?;
    let of = BaseRef { size: payload.size, blake3: payload.blake3 };
    Ok((ImageFile::of(file, path)?, of))
}
