//! Files in, bundle file out: `pack` and `sign`. A bundle appears under its name only when it is complete and durable, and
//! replaces a file only on request.

mod destination;

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

pub use destination::Destination;
pub(crate) use destination::temporary_directory;

use crate::bundle::manifest::Kind;
use crate::bundle::needs::NeededPlatform;
use crate::bundle::writer::{Compression, PayloadInput, ReleaseInfo, pack_payloads, write_front};
use crate::bundle::{Bundle, ReadAt, Source, Trust, signature};
use crate::error::{Error, Result};
use crate::host::signer;
use crate::progress::{Cancel, Progress};
use crate::source::mapped::MappedFile;

/// Parameters of [`pack`].
#[derive(Debug, Clone)]
pub struct PackSpec {
    /// Compatibility string.
    pub product: String,
    /// Version of the bundle and of all its payloads.
    pub version: String,
    /// The oldest running version that may install the bundle; `None`: any.
    pub min_version: Option<String>,
    /// Anti-rollback epoch.
    pub epoch: u64,
    /// Time of creation in seconds since 1970 UTC.
    pub created: u64,
    /// The platform image; `None`: the bundle is software-only.
    pub platform: Option<PathBuf>,
    /// The platform that a software-only bundle needs.
    pub needs_platform: Option<NeededPlatform>,
    /// The software image; `None`: the bundle has none.
    pub software: Option<PathBuf>,
    /// Names and files of firmware blobs.
    pub firmware: Vec<(String, PathBuf)>,
    /// File of the key to sign with; `None`: the bundle is unsigned.
    pub key: Option<PathBuf>,
    /// Compression level of zstd.
    pub level: i32,
    /// Uncompressed size of a frame in bytes.
    pub frame_size: u32,
    /// Number of workers; `None`: by the number of cores.
    pub jobs: Option<NonZeroUsize>,
}

impl PackSpec {
    /// All files that are read, with their option names.
    fn inputs(&self) -> Vec<(&'static str, &Path)> {
        let firmware = self.firmware.iter().map(|(_, path)| ("--firmware", path));
        let one = [
            ("--platform", self.platform.as_ref()),
            ("--software", self.software.as_ref()),
            ("--key", self.key.as_ref()),
        ];
        let one = one.into_iter().filter_map(|(option, path)| Some((option, path?)));
        one.chain(firmware).map(|(option, path)| (option, path.as_path())).collect()
    }
}

/// Result of [`pack`].
#[derive(Debug, Clone, Serialize)]
pub struct PackReport {
    /// The bundle.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bundle_bytes: u64,
    /// Uncompressed size of all images in bytes.
    pub image_bytes: u64,
    /// Whether it is signed.
    pub signed: bool,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Result of [`sign`].
#[derive(Debug, Clone, Serialize)]
pub struct SignReport {
    /// The bundle.
    pub path: PathBuf,
    /// The key or signature file that was added; `None`: signatures were only removed.
    pub added: Option<PathBuf>,
    /// Fingerprint of the key whose signatures were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<String>,
    /// Number of signatures in the bundle now.
    pub signatures: usize,
}

/// Packs and signs a bundle. Causes of a late failure, an output that must not be written and a key that does not sign, are
/// found before the first image is read.
///
/// # Errors
/// [`Error::Open`] and [`Error::Argument`] for inputs; [`Error::OutputExists`]; those of [`pack_payloads`];
/// [`Error::Signing`]; [`Error::Output`].
pub fn pack(
    spec: &PackSpec,
    out: Destination<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<PackReport> {
    let start = Instant::now();
    out.check(&spec.inputs())?;
    if let Some(key) = &spec.key {
        signer::try_out(key)?;
    }
    let mut images = Vec::new();
    if let Some(path) = &spec.platform {
        images.push((Kind::Platform, "platform".to_owned(), open_image(path)?));
    }
    if let Some(path) = &spec.software {
        images.push((Kind::Software, "software".to_owned(), open_image(path)?));
    }
    for (name, path) in &spec.firmware {
        images.push((Kind::Firmware, name.clone(), open_image(path)?));
    }
    let inputs: Vec<PayloadInput<'_>> = images
        .iter()
        .map(|(kind, name, image)| PayloadInput {
            kind: *kind,
            name: name.clone(),
            version: spec.version.clone(),
            image,
        })
        .collect();
    let identity = ReleaseInfo {
        product: spec.product.clone(),
        version: spec.version.clone(),
        min_version: spec.min_version.clone(),
        epoch: spec.epoch,
        created: spec.created,
        needs_platform: spec.needs_platform.clone(),
    };
    let compression = Compression { level: spec.level, frame_size: spec.frame_size, jobs: spec.jobs };

    let path = out.path();
    let failed = |source: io::Error| Error::Output { path: path.clone(), source };
    let mut payloads = out.scratch()?;
    let mut writer = BufWriter::with_capacity(1 << 20, &mut payloads);
    let packed = pack_payloads(&identity, &inputs, compression, &mut writer, cancel, progress);
    // The writer of the format knows no path.
    let packed = packed.map_err(|error| match error {
        Error::Output { source, .. } => failed(source),
        other => other,
    })?;
    writer.flush().map_err(failed)?;
    drop(writer);
    let manifest = packed.fields.to_bytes()?;
    let signature = match &spec.key {
        Some(key) => signer::sign(&manifest, key)?,
        None => String::new(),
    };
    let bundle_bytes = out.publish(|mut file| {
        write_front(&mut file, &manifest, signature.as_bytes(), &packed.index, spec.created)?;
        payloads.seek(SeekFrom::Start(0)).map_err(failed)?;
        io::copy(&mut payloads, &mut file).map_err(failed)?;
        Ok(())
    })?;
    Ok(PackReport {
        path,
        bundle_bytes,
        image_bytes: packed.fields.payloads.iter().map(|payload| payload.size).sum(),
        signed: spec.key.is_some(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Opens an image to pack. An empty one is the result of a failed build; it is refused here by its path, since the check of
/// the manifest, which would refuse it too, has no path.
fn open_image(path: &Path) -> Result<MappedFile> {
    let image = MappedFile::open(path)?;
    if image.is_empty() {
        let problem = "is empty; an image has at least one byte".to_owned();
        return Err(Error::Argument { what: path.display().to_string(), problem });
    }
    Ok(image)
}

/// Source of a signature that is added.
#[derive(Debug, Clone, Copy)]
pub enum Signer<'a> {
    /// A key file: private, or public with the private half in an agent.
    Key(&'a Path),
    /// A signature file that `ssh-keygen -Y sign -n qimg` made elsewhere for `manifest.json`.
    Detached(&'a Path),
}

/// Adds a signature to a bundle, removes those of the key with the fingerprint `remove`, or both; in place (`out` is `None`) or to
/// another file. Other signatures stay. So keys can be rotated without a bundle that some machine refuses: the new key signs
/// as well, before the signature of the old one is removed.
///
/// # Errors
/// Those of opening a bundle; [`Error::Signing`], [`Error::SignatureFormat`], [`Error::TooLarge`], [`Error::Output`],
/// [`Error::OutputExists`]; [`Error::Argument`] if the key has not signed the bundle, or no signature would be left.
pub fn sign<'a>(
    bundle: &'a Path,
    signer: Option<Signer<'_>>,
    remove: Option<&str>,
    out: Option<Destination<'a>>,
) -> Result<SignReport> {
    if let Some(out) = &out {
        let mut inputs = vec![("BUNDLE", bundle)];
        if let Some(Signer::Key(with) | Signer::Detached(with)) = signer {
            inputs.push(("the option of the signature", with));
        }
        out.check(&inputs)?;
    }
    let open = |source| Error::Open { path: bundle.to_owned(), source };
    let mut file = File::open(bundle).map_err(open)?;
    let source =
        PlainFile { len: file.metadata().map_err(open)?.len(), file: file.try_clone().map_err(open)? };
    // To add a signature does not mean to trust the existing ones.
    let opened = Bundle::open(Source::File(Arc::new(source)), &Trust::dangerously_unsigned())?.whole()?;
    let manifest = opened.manifest();
    let mut signatures = manifest.signature().to_vec();
    if let Some(fingerprint) = remove {
        let left = signature::without(&signatures, fingerprint)?;
        let refused =
            |problem: &str| Err(Error::Argument { what: "--remove".into(), problem: problem.into() });
        if left.len() == signatures.len() {
            return refused("that key has not signed this bundle");
        }
        if left.is_empty() && signer.is_none() {
            return refused(
                "no signature would be left, and no machine would accept the bundle; add one with --key",
            );
        }
        signatures = left;
    }
    let added = match signer {
        None => None,
        Some(Signer::Key(path)) => Some((signer::sign(manifest.bytes(), path)?, path)),
        Some(Signer::Detached(path)) => {
            let bytes =
                std::fs::read(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
            Some((signature::import(&bytes)?, path))
        }
    };
    // A second signature by the same key, if deterministic, changes nothing.
    if let Some((added, _)) =
        added.as_ref().filter(|(added, _)| !String::from_utf8_lossy(&signatures).contains(added))
    {
        signatures.extend_from_slice(added.as_bytes());
    }
    let count = signature::parse(&signatures)?.len();
    let out = out.unwrap_or(Destination::Replaced(bundle));
    let written = out.path();
    let failed = |source: io::Error| Error::Output { path: written.clone(), source };
    out.publish(|mut to| {
        write_front(&mut to, manifest.bytes(), &signatures, opened.index().bytes(), manifest.created)?;
        file.seek(SeekFrom::Start(opened.payloads_at())).map_err(failed)?;
        io::copy(&mut file, &mut to).map_err(failed)?;
        Ok(())
    })?;
    let added = added.map(|(_, path)| path.to_owned());
    Ok(SignReport { path: written, added, removed: remove.map(str::to_owned), signatures: count })
}

/// A file that is read through the page cache, since it is about to be copied anyway.
struct PlainFile {
    file: File,
    len: u64,
}

impl ReadAt for PlainFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, at)
    }
}
