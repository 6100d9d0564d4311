//! Files in, bundle file out: `pack` and `sign`. A bundle appears under its name only when it is whole and durable.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::bundle::manifest::Kind;
use crate::bundle::writer::{Compression, Identity, Input, pack_payloads, write_front};
use crate::bundle::{Bundle, ReadAt, Source, Trust, signature};
use crate::error::{Error, Result};
use crate::host::signer;
use crate::progress::{Cancel, Progress};
use crate::source::mapped::MappedFile;

/// What to pack.
#[derive(Debug, Clone)]
pub struct PackSpec {
    /// Compatibility string.
    pub product: String,
    /// Version of the bundle and of all its payloads.
    pub version: String,
    /// The oldest version that may install it directly.
    pub min_version: Option<String>,
    /// Anti-rollback epoch.
    pub epoch: u64,
    /// Time of creation in seconds since 1970 UTC.
    pub created: u64,
    /// The platform image.
    pub platform: PathBuf,
    /// The software image.
    pub software: Option<PathBuf>,
    /// Names and files of firmware blobs.
    pub firmware: Vec<(String, PathBuf)>,
    /// The key to sign with; without one the bundle is unsigned.
    pub key: Option<PathBuf>,
    /// zstd level.
    pub level: i32,
    /// Bytes in a frame.
    pub frame_size: u32,
    /// Number of workers; `None`: as many as are useful.
    pub jobs: Option<NonZeroUsize>,
}

/// What was packed.
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

/// What was signed.
#[derive(Debug, Clone, Serialize)]
pub struct SignReport {
    /// The bundle.
    pub path: PathBuf,
    /// The key or signature file that was added.
    pub added: PathBuf,
    /// How many signatures it carries now.
    pub signatures: usize,
}

/// Packs and signs a bundle.
///
/// # Errors
/// [`Error::Open`] and [`Error::Argument`] for inputs; those of [`pack_payloads`]; [`Error::Signing`]; [`Error::Output`].
pub fn pack(spec: &PackSpec, out: &Path, progress: &dyn Progress, cancel: &Cancel) -> Result<PackReport> {
    let start = Instant::now();
    let mut images = vec![(Kind::Platform, "platform".to_owned(), open_image(&spec.platform)?)];
    if let Some(path) = &spec.software {
        images.push((Kind::Software, "software".to_owned(), open_image(path)?));
    }
    for (name, path) in &spec.firmware {
        images.push((Kind::Firmware, name.clone(), open_image(path)?));
    }
    let inputs: Vec<Input<'_>> = images
        .iter()
        .map(|(kind, name, image)| Input {
            kind: *kind,
            name: name.clone(),
            version: spec.version.clone(),
            image,
        })
        .collect();
    let identity = Identity {
        product: spec.product.clone(),
        version: spec.version.clone(),
        min_version: spec.min_version.clone(),
        epoch: spec.epoch,
        created: spec.created,
    };
    let compression = Compression { level: spec.level, frame_size: spec.frame_size, jobs: spec.jobs };

    let failed = |source: io::Error| Error::Output { path: out.to_owned(), source };
    let mut payloads = unnamed_file(out)?;
    let mut writer = BufWriter::with_capacity(1 << 20, &mut payloads);
    let packed = pack_payloads(&identity, &inputs, compression, &mut writer, cancel, progress)?;
    writer.flush().map_err(failed)?;
    drop(writer);
    let manifest = packed.claims.to_bytes()?;
    let signature = match &spec.key {
        Some(key) => signer::sign(&manifest, key)?,
        None => String::new(),
    };
    let bundle_bytes = publish(out, |file| {
        write_front(file, &manifest, signature.as_bytes(), &packed.index, spec.created)?;
        payloads.seek(SeekFrom::Start(0)).map_err(failed)?;
        io::copy(&mut payloads, file).map_err(failed)?;
        Ok(())
    })?;
    Ok(PackReport {
        path: out.to_owned(),
        bundle_bytes,
        image_bytes: packed.claims.payloads.iter().map(|payload| payload.size).sum(),
        signed: spec.key.is_some(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// An image to pack. An empty one is the trace of a build that failed, and is named by its path: the manifest, which
/// would refuse it as well, knows none.
fn open_image(path: &Path) -> Result<MappedFile> {
    let image = MappedFile::open(path)?;
    if image.is_empty() {
        let problem = "is empty; an image has at least one byte".to_owned();
        return Err(Error::Argument { what: path.display().to_string(), problem });
    }
    Ok(image)
}

/// What adds a signature.
#[derive(Debug, Clone, Copy)]
pub enum Signer<'a> {
    /// A key file: private, or public with the private half in an agent.
    Key(&'a Path),
    /// A signature that `ssh-keygen -Y sign -n qimg` made elsewhere over `manifest.json`.
    Detached(&'a Path),
}

/// Adds a signature to a bundle, in place or to another file. The signatures that are there stay; who adds the one
/// of a new key before the old one is retired rotates keys without a bundle that some machine refuses.
///
/// # Errors
/// Those of opening a bundle; [`Error::Signing`], [`Error::SignatureFormat`], [`Error::TooLarge`], [`Error::Output`].
pub fn sign(bundle: &Path, signer: Signer<'_>, out: Option<&Path>) -> Result<SignReport> {
    let open = |source| Error::Open { path: bundle.to_owned(), source };
    let mut file = File::open(bundle).map_err(open)?;
    let source =
        PlainFile { len: file.metadata().map_err(open)?.len(), file: file.try_clone().map_err(open)? };
    // Adding a signature is not trusting those that are there.
    let opened = Bundle::open(Source::File(Arc::new(source)), &Trust::dangerously_unsigned())?.whole()?;
    let manifest = opened.manifest();
    let (added, path) = match signer {
        Signer::Key(path) => (signer::sign(manifest.bytes(), path)?, path),
        Signer::Detached(path) => {
            let bytes =
                std::fs::read(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
            (signature::import(&bytes)?, path)
        }
    };
    let mut signatures = manifest.signature().to_vec();
    let text = String::from_utf8_lossy(&signatures);
    // Signing twice with a key whose signatures do not vary changes nothing.
    if !text.contains(&added) {
        signatures.extend_from_slice(added.as_bytes());
    }
    let count = signature::parse(&signatures)?.len();
    let out = out.unwrap_or(bundle);
    let failed = |source: io::Error| Error::Output { path: out.to_owned(), source };
    publish(out, |to| {
        write_front(to, manifest.bytes(), &signatures, opened.index().bytes(), manifest.created)?;
        file.seek(SeekFrom::Start(opened.payloads_at())).map_err(failed)?;
        io::copy(&mut file, to).map_err(failed)?;
        Ok(())
    })?;
    Ok(SignReport { path: out.to_owned(), added: path.to_owned(), signatures: count })
}

/// A file that is read through the page cache: it is about to be copied anyway.
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

/// Where a file is made before it gets its name: beside it, so that the rename is within one file system.
fn part_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    PathBuf::from(name)
}

/// A file without a name beside `out`: it is gone with the process, however that ends.
pub(crate) fn unnamed_file(out: &Path) -> Result<File> {
    let path = part_of(out);
    let failed = |source| Error::Output { path: path.clone(), source };
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}

/// Writes a file under a temporary name, makes it durable, and gives it its name. Returns its size in bytes. On
/// failure nothing is left behind, and a file that already had the name is as it was.
pub(crate) fn publish(out: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<u64> {
    let part = part_of(out);
    let failed = |source| Error::Output { path: out.to_owned(), source };
    let result = (|| {
        let mut file = File::options().write(true).create_new(true).open(&part).map_err(failed)?;
        write(&mut file)?;
        file.sync_all().map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        std::fs::rename(&part, out).map_err(failed)?;
        let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(len)
    })();
    if result.is_err() {
        // Whether this works or not, the error to report is the first one.
        let _ = std::fs::remove_file(&part);
    }
    result
}
