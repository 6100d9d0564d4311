//! Writes bundles. Frames are compressed on all cores and appended in order. The payload part of the archive is
//! written first, to a file of its own, because manifest and index, which come before it, are known last.

use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use zstd::bulk::Compressor;

use super::archive::{self, BLOCK, END_LEN};
use super::frame::{chaining_value, is_zero};
use super::index::{FrameEntry, merge, push_entry};
use super::manifest::{
    FORMAT, FORMAT_SOFTWARE_ONLY, INDEX_ENTRY_LEN, IndexRef, Kind, ManifestFields, Payload,
};
use super::needs::NeededPlatform;
use super::sha256::Hasher;
use crate::error::{Error, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::units::{Blake3, Sha256};
use crate::workers::{self, Abort, Queue};

/// The compression levels of zstd that suit files that are packed once and unpacked often.
pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=22;

/// Maximum bytes of compressed frames that wait for an earlier one.
const WAITING_MAX: usize = 64 << 20;

/// An image to pack: its bytes are readable from several threads.
pub trait Image: Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Whether a range is known to be a hole, which reads as zero, without reading it.
    fn is_hole(&self, _at: u64, _len: u64) -> bool {
        false
    }

    /// Brings the range into memory, so that a wait for its medium can be reported. Called before the bytes are used.
    fn load(&self, _at: u64, _len: u64) {}

    /// Declares that the range is not needed any more; an implementation may free its memory.
    fn release(&self, _at: u64, _len: u64) {}
}

impl Image for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// One payload to pack.
pub struct PayloadInput<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its name; for platform and software the name of the kind.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its content.
    pub image: &'a dyn Image,
}

/// Fields of the manifest besides the payloads.
#[derive(Debug, Clone)]
pub struct ReleaseInfo {
    /// Compatibility string.
    pub product: String,
    /// Version of the bundle.
    pub version: String,
    /// The oldest version that may install it directly; `None`: any.
    pub min_version: Option<String>,
    /// Anti-rollback epoch.
    pub epoch: u64,
    /// Time of creation in seconds since 1970 UTC.
    pub created: u64,
    /// The platform that is needed by a bundle that carries none; `None`: it carries one.
    pub needs_platform: Option<NeededPlatform>,
}

/// Settings of the compression.
#[derive(Debug, Clone, Copy)]
pub struct Compression {
    /// zstd level, one of [`LEVELS`].
    pub level: i32,
    /// Frame size in bytes, a power of two.
    pub frame_size: u32,
    /// Number of workers; `None` for [`workers::default_jobs`].
    pub jobs: Option<NonZeroUsize>,
}

/// Manifest and index of a packed bundle.
pub struct Packed {
    /// The content of `manifest.json`.
    pub fields: ManifestFields,
    /// The bytes of `index.bin`.
    pub index: Vec<u8>,
}

/// Compresses the payloads and writes the payload part of the archive, its end included, to `out`. Reproducible:
/// the result depends on content, level, frame size and the version of zstd, not on the number of workers.
///
/// # Errors
/// [`Error::Argument`] for invalid inputs, [`Error::Manifest`] for names and versions, [`Error::TooLarge`];
/// [`Error::Output`], [`Error::Interrupted`].
pub fn pack_payloads<W: Write + Seek + Send>(
    identity: &ReleaseInfo,
    inputs: &[PayloadInput<'_>],
    compression: Compression,
    out: &mut W,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Packed> {
    let mut fields = ManifestFields {
        format: if identity.needs_platform.is_some() { FORMAT_SOFTWARE_ONLY } else { FORMAT },
        product: identity.product.clone(),
        version: identity.version.clone(),
        min_version: identity.min_version.clone(),
        epoch: identity.epoch,
        created: identity.created,
        needs_platform: identity.needs_platform.clone(),
        payloads: Vec::new(),
        index: IndexRef { size: 0, blake3: Blake3([0; 32]) },
    };
    let mut inputs: Vec<_> = inputs.iter().collect();
    inputs.sort_by_key(|input| (input.kind, input.name.clone()));
    for input in &inputs {
        let payload = Payload {
            kind: input.kind,
            name: input.name.clone(),
            version: input.version.clone(),
            size: input.image.bytes().len() as u64,
            frame_size: compression.frame_size,
            blake3: Blake3([0; 32]),
            sha256: Sha256([0; 32]),
        };
        fields.index.size +=
            if payload.frame_size == 0 { 0 } else { payload.frames() * INDEX_ENTRY_LEN as u64 };
        fields.payloads.push(payload);
    }
    if !LEVELS.contains(&compression.level) {
        return Err(Error::Argument {
            what: "compression level".to_owned(),
            problem: format!("{} is not within {LEVELS:?}", compression.level),
        });
    }
    // Everything that a reader would refuse is refused before hours of compression, not after.
    fields.to_bytes()?;

    progress.begin(Phase::Pack, fields.payloads.iter().map(|payload| payload.size).sum());
    let mut index = Vec::with_capacity(fields.index.size as usize);
    for (input, payload) in inputs.iter().zip(&mut fields.payloads) {
        pack_payload(input.image, payload, identity.created, compression, out, &mut index, cancel, progress)?;
    }
    out.write_all(&[0; END_LEN]).map_err(output)?;
    fields.index.blake3 = Blake3(*blake3::hash(&index).as_bytes());
    Ok(Packed { fields, index })
}

fn output(source: std::io::Error) -> Error {
    Error::Output { path: "the bundle".into(), source }
}

/// Memory of a compressor at level 19 with frames of 1 MiB, in bytes, measured; at level 3 it is half of that.
const COMPRESSOR: u64 = 20 << 20;

#[allow(clippy::too_many_arguments, reason = "the one caller is above; a struct would only rename the list")]
fn pack_payload<W: Write + Seek + Send>(
    image: &dyn Image,
    payload: &mut Payload,
    mtime: u64,
    compression: Compression,
    out: &mut W,
    index: &mut Vec<u8>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    /// What happens in order: hashing, appending, adding to the index.
    struct Tail<'a, W> {
        sha256: Hasher,
        out: &'a mut W,
        written: u64,
        index: &'a mut Vec<u8>,
    }
    struct CompressedFrame<'a> {
        at: u64,
        plain: &'a [u8],
        compressed: Vec<u8>,
        value: Blake3,
    }
    let header_at = out.stream_position().map_err(output)?;
    out.write_all(&[0; BLOCK]).map_err(output)?;
    let first_entry = index.len();
    let (abort, next) = (Abort::new(cancel, "packing"), AtomicU64::new(0));
    let frame_size = compression.frame_size as usize;
    let bytes = workers::worker_memory(frame_size as u64) + COMPRESSOR;
    let jobs = workers::limit_jobs(compression.jobs, workers::default_jobs(), bytes, progress);
    // Incompressible frames wait at their full size.
    let ahead = (WAITING_MAX / frame_size).max(jobs.get()) as u64;
    let tail = Tail { sha256: Hasher::default(), out, written: 0, index };
    let queue = Queue::new(tail, ahead);
    let append = |tail: &mut Tail<'_, W>, piece: CompressedFrame<'_>| {
        tail.sha256.update(piece.plain);
        tail.out.write_all(&piece.compressed).map_err(output)?;
        tail.written += piece.compressed.len() as u64;
        push_entry(tail.index, FrameEntry { compressed: piece.compressed.len() as u32, value: piece.value });
        image.release(piece.at, piece.plain.len() as u64);
        progress.advance(piece.plain.len() as u64);
        Ok(())
    };
    let (bytes, shape) = (image.bytes(), &*payload);
    let zeroes = vec![0; frame_size];
    workers::run(jobs, &abort, || {
        let zstd = |problem: std::io::Error| Error::Internal { what: format!("zstd: {problem}") };
        let mut compressor = Compressor::new(compression.level).map_err(zstd)?;
        // Zero frames are compressed once: all but the last have the same length.
        let mut zero_frame: Option<Vec<u8>> = None;
        loop {
            abort.check()?;
            let frame = next.fetch_add(1, Ordering::Relaxed);
            if frame >= shape.frames() {
                return Ok(());
            }
            let (at, len) = shape.frame_extent(frame);
            let len = len as usize;
            // A hole is not even read: mapping it would read it from the file system as zeroes. Its zeroes are
            // hashed all the same: BLAKE3 counts its chunks from the start of the image and SHA-256 is one long
            // chain, so neither value of zeroes at one place follows from that at another. The format has both. Of
            // 8 GiB of holes the chain takes 4 s with SHA instructions, and BLAKE3 beside it 1.2 s of another core.
            let hole = image.is_hole(at, len as u64);
            let plain = if hole {
                &zeroes[..len]
            } else {
                image.load(at, len as u64);
                &bytes[at as usize..at as usize + len]
            };
            let compressed = match &zero_frame {
                Some(compressed) if len == zeroes.len() && (hole || is_zero(plain)) => compressed.clone(),
                _ => compressor.compress(plain).map_err(zstd)?,
            };
            if zero_frame.is_none() && len == zeroes.len() && is_zero(plain) {
                zero_frame = Some(compressed.clone());
            }
            let value = chaining_value(plain, at, shape.frames() == 1);
            queue.put(frame, CompressedFrame { at, plain, compressed, value }, &abort, append)?;
        }
    })?;
    let Tail { sha256, out, written, index } = queue.into_inner();
    payload.sha256 = sha256.finish();
    let entries = &index[first_entry..];
    let value = |frame: u64| {
        let mut value = [0; 32];
        value.copy_from_slice(&entries[frame as usize * INDEX_ENTRY_LEN + 4..][..32]);
        Blake3(value)
    };
    payload.blake3 = merge(&value, payload.frames());

    out.write_all(&[0; BLOCK][..archive::padding(written) as usize]).map_err(output)?;
    let end = out.stream_position().map_err(output)?;
    out.seek(SeekFrom::Start(header_at)).map_err(output)?;
    out.write_all(&archive::header(&payload.member(), written, mtime)?).map_err(output)?;
    out.seek(SeekFrom::Start(end)).map_err(output)?;
    Ok(())
}

/// Writes everything before the payloads: manifest, signatures, index.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::Output`].
pub fn write_front(
    out: &mut impl Write,
    manifest: &[u8],
    signature: &[u8],
    index: &[u8],
    created: u64,
) -> Result<()> {
    super::manifest::limit(
        "manifest.json.sig in bytes",
        signature.len() as u64,
        super::signature::SIGNATURE_MAX,
    )?;
    let members = [("manifest.json", manifest), ("manifest.json.sig", signature), ("index.bin", index)];
    write_members(out, &members, created)
}

/// Writes whole members.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn write_members(out: &mut impl Write, members: &[(&str, &[u8])], created: u64) -> Result<()> {
    for (name, bytes) in members {
        let size = bytes.len() as u64;
        out.write_all(&archive::header(name, size, created)?).map_err(output)?;
        out.write_all(bytes).map_err(output)?;
        out.write_all(&[0; BLOCK][..archive::padding(size) as usize]).map_err(output)?;
    }
    Ok(())
}
