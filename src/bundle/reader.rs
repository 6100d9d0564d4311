//! Opens a bundle: everything before the payloads is read, bounded, and verified before any payload byte.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use super::archive::{self, BLOCK, END_LEN};
use super::delta::{self, DELTA_MAX, Delta};
use super::frame::Frame;
use super::index::Index;
use super::kind;
use super::manifest::{MANIFEST_MAX, Manifest, Payload, limit};
use super::release::Release;
use super::signature::SIGNATURE_MAX;
use super::source::{ReadAt, Source, read_failed};
use super::trust::Trust;
use crate::error::{Class, Error, Result};
use crate::units::Blake3;
use crate::workers::lock;

/// BLAKE3 of the manifest at the front of a file. Nothing is verified: it only identifies a bundle.
///
/// # Errors
/// Class Bundle; [`Error::Source`].
pub fn manifest_digest(file: impl Read + Send + 'static) -> Result<Blake3> {
    let source = Source::Stream(Box::new(file));
    let (bytes, _) =
        BundleInput { source, at: 0, ahead: None }.front_member("manifest.json", MANIFEST_MAX)?;
    Ok(Blake3(*blake3::hash(&bytes).as_bytes()))
}

/// An open bundle or delta: its manifest is authenticated, and its index matches the manifest.
pub struct Bundle {
    release: Release,
    /// The recipes of a delta; `None` for a bundle.
    delta: Option<Delta>,
    /// The same input if it is a file, which workers read in parallel; `None` for a stream.
    file: Option<Arc<dyn ReadAt>>,
    input: Mutex<BundleInput>,
    /// Offset of the header of the first payload, in bytes.
    payloads_at: u64,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manifest = self.manifest();
        write!(f, "Bundle({} {})", manifest.product, manifest.version)
    }
}

impl Bundle {
    /// Reads and checks manifest, signature and index. Of a file, the size and the archive's whole skeleton are
    /// checked as well, so that a truncated or extended bundle is refused before anything is written. For a stream
    /// that is only possible as it is read.
    ///
    /// # Errors
    /// Any of the classes Bundle and Trust; [`Error::Source`].
    pub fn open(source: Source, trust: &Trust) -> Result<Self> {
        let mut input = BundleInput { source, at: 0, ahead: None };
        let (bytes, mtime) = input.front_member("manifest.json", MANIFEST_MAX)?;
        let (signature, signature_time) = input.front_member("manifest.json.sig", SIGNATURE_MAX)?;
        let manifest = trust.verify(bytes, signature)?;
        for (member, time) in [("manifest.json", mtime), ("manifest.json.sig", signature_time)] {
            if time != manifest.created {
                return Err(Error::TarHeader {
                    member: member.to_owned(),
                    at: 0,
                    problem: format!("the time is {time}, the manifest was created at {}", manifest.created),
                });
            }
        }
        // Bounded by INDEX_MAX, because the manifest was checked.
        let mut index = vec![0; manifest.index.size as usize];
        input.header("index.bin", manifest.index.size, manifest.created)?;
        input.fill(&mut index, "index.bin")?;
        input.padding("index.bin", manifest.index.size)?;
        let release = Release::new(manifest, index)?;
        let file = match &input.source {
            Source::File(file) => Some(Arc::clone(file)),
            Source::Stream(_) | Source::Response(..) => None,
        };
        let delta = input.delta(&release)?;
        let bundle = Self { payloads_at: input.at, release, delta, file, input: Mutex::new(input) };
        bundle.check_skeleton()?;
        bundle.check_announced()?;
        Ok(bundle)
    }

    /// The release: manifest and index.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// The bundle itself; an error for a delta. For callers that need every byte of the images.
    ///
    /// # Errors
    /// [`Error::Delta`].
    pub fn whole(self) -> Result<Self> {
        if self.delta.is_none() {
            return Ok(self);
        }
        Err(Error::Delta {
            problem: "only prepare, plan, inspect, and verify with a base take a delta".to_owned(),
        })
    }

    /// Whether any part can be read at any time, repeatedly.
    pub fn is_seekable(&self) -> bool {
        self.file.is_some()
    }

    /// Whether it is read from a server, piece by piece.
    pub fn is_remote(&self) -> bool {
        self.file.as_deref().is_some_and(ReadAt::is_remote)
    }

    /// Whether it is read from a server, from start to end.
    pub fn is_response(&self) -> bool {
        matches!(lock(&self.input).source, Source::Response(..))
    }

    /// Recipes of the frames, if it is a delta.
    pub fn delta(&self) -> Option<&Delta> {
        self.delta.as_ref()
    }

    /// Name and size in bytes of the member with the frames of a payload.
    pub(super) fn member(&self, payload: usize) -> (String, u64) {
        let described = &self.manifest().payloads[payload];
        match &self.delta {
            Some(delta) => (described.delta_member(), delta.packed_size(&self.release, payload)),
            None => (described.member(), self.release.compressed_size(payload)),
        }
    }

    /// Bytes of a frame in its member.
    pub fn packed(&self, frame: &Frame<'_>) -> u32 {
        self.delta.as_ref().map_or_else(|| frame.entry().compressed, |delta| delta.recipe(frame).packed)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.release.manifest
    }

    /// Its index.
    pub fn index(&self) -> &Index {
        self.release.index()
    }

    /// Size in bytes from the first payload's header to the end of the archive.
    pub fn payloads_len(&self) -> Result<u64> {
        let too_large = || Error::Manifest { problem: "the payloads exceed 2^64 bytes".to_owned() };
        let members = 0..self.manifest().payloads.len();
        let len = members
            .map(|number| archive::member_len(self.member(number).1))
            .try_fold(END_LEN as u64, |sum, len| sum.checked_add(len?));
        len.ok_or_else(too_large)
    }

    /// Bytes before the first payload of the whole bundle of a release, with the header of that.
    pub(crate) fn front_len(release: &Release) -> u64 {
        let parts = [release.manifest.bytes(), release.manifest.signature(), release.index().bytes()];
        let members = parts.into_iter().filter_map(|part| archive::member_len(part.len() as u64));
        members.sum::<u64>() + BLOCK as u64
    }

    /// Where the header of the first payload begins, in bytes.
    pub fn payloads_at(&self) -> u64 {
        self.payloads_at
    }

    /// Size of the whole bundle in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(self.payloads_len()?.saturating_add(self.payloads_at))
    }

    /// The seekable input, or `None` for a stream.
    pub(super) fn file(&self) -> Option<&dyn ReadAt> {
        self.file.as_deref()
    }

    /// Runs `work` on the input; streams are read here, one reader at a time.
    pub(super) fn with_input<T>(&self, work: impl FnOnce(&mut BundleInput) -> Result<T>) -> Result<T> {
        work(&mut lock(&self.input))
    }

    /// Lets `check` read the `len` bytes at `at` of a file whose skeleton was not read when it was opened. If one
    /// of several servers sends wrong bytes, another one is tried.
    pub(super) fn check_remote(
        &self,
        at: u64,
        len: u64,
        check: impl Fn(&mut BundleInput) -> Result<()>,
    ) -> Result<()> {
        let Some(file) = self.file.as_ref().filter(|file| file.is_remote()) else { return Ok(()) };
        loop {
            let mut input = BundleInput { source: Source::File(Arc::clone(file)), at, ahead: None };
            match check(&mut input) {
                Err(problem) if problem.class() == Class::Bundle && file.distrust(at, len) => {}
                result => return result,
            }
        }
    }

    /// Checks the announced size of a stream, before anything is written.
    fn check_announced(&self) -> Result<()> {
        let expected = self.size()?;
        match lock(&self.input).source {
            Source::Response(_, Some(got)) if got != expected => Err(Error::SourceLength { expected, got }),
            _ => Ok(()),
        }
    }

    /// Checks a file: its size, every member's header, every byte of padding, and the end.
    fn check_skeleton(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let (expected, got) = (self.size()?, file.len());
        if file.is_remote() {
            // The headers are read later with the frames after them: each would be a round trip here.
            return if got == expected { Ok(()) } else { Err(Error::SourceLength { expected, got }) };
        }
        if got < expected {
            return Err(Error::Truncated { what: "a payload".to_owned(), at: got });
        }
        if got > expected {
            return Err(Error::TrailingBytes { at: expected });
        }
        let mut input =
            BundleInput { source: Source::File(Arc::clone(file)), at: self.payloads_at, ahead: None };
        for number in 0..self.manifest().payloads.len() {
            let (member, size) = self.member(number);
            input.header(&member, size, self.manifest().created)?;
            input.at += size;
            input.padding(&member, size)?;
        }
        input.end()
    }
}

/// `read_exact` whose error has the number of bytes read before it: a user wants to know where a transfer broke
/// off.
fn read_counted(stream: &mut dyn Read, buf: &mut [u8]) -> Result<(), (u64, io::Error)> {
    let mut got = 0;
    while got < buf.len() {
        match stream.read(&mut buf[got..]) {
            Ok(0) => return Err((got as u64, io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => got += len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((got as u64, e)),
        }
    }
    Ok(())
}

/// The bundle's bytes with a position. On a file it is the offset of the next read; on a stream it is the number of
/// bytes consumed.
pub(super) struct BundleInput {
    source: Source,
    pub(super) at: u64,
    /// The block at `at`, if a stream has been read one block ahead to identify the next member.
    ahead: Option<[u8; BLOCK]>,
}

/// The error of the first header, with what the file looks like instead of a bundle. Of a short file `header` has what there is.
fn named(error: Error, header: &[u8; BLOCK]) -> Error {
    match error {
        Error::TarHeader { member, at, problem } => {
            Error::TarHeader { member, at, problem: problem + &kind::looks_like(header) }
        }
        Error::Truncated { what, at } => Error::Truncated { what: what + &kind::looks_like(header), at },
        other => other,
    }
}

impl BundleInput {
    /// Fills `buf` from the position and advances it.
    pub(super) fn fill(&mut self, buf: &mut [u8], what: &str) -> Result<()> {
        let at = self.at;
        let result = match &mut self.source {
            Source::File(file) => file.read_exact_at(buf, at).map_err(|source| (at.max(file.len()), source)),
            Source::Stream(stream) | Source::Response(stream, _) => {
                read_counted(stream, buf).map_err(|(got, source)| (at + got, source))
            }
        };
        // A second worker that reaches the end must find the same end.
        result.map_err(|(at, source)| {
            self.at = at;
            read_failed(what, at, source)
        })?;
        self.at += buf.len() as u64;
        Ok(())
    }

    /// A member before the payloads: its header names its size, which is bounded before it is allocated.
    fn front_member(&mut self, name: &str, max: u64) -> Result<(Vec<u8>, u64)> {
        let at = self.at;
        let mut header = [0; BLOCK];
        let filled = self.fill(&mut header, &format!("the tar header of {name}"));
        let read = filled.and_then(|()| archive::read_header(&header, name, at));
        let (size, mtime) = read.map_err(|error| if at == 0 { named(error, &header) } else { error })?;
        limit(&format!("{name} in bytes"), size, max)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes, name)?;
        self.padding(name, size)?;
        Ok((bytes, mtime))
    }

    /// `delta.bin`, if it is the next member; else the position stays where it is.
    fn delta(&mut self, release: &Release) -> Result<Option<Delta>> {
        let at = self.at;
        let mut header = [0; BLOCK];
        let first = release.manifest.payloads.first().map(Payload::member).unwrap_or_default();
        self.fill(&mut header, &format!("the tar header of {first}"))?;
        if !archive::is_named(&header, delta::MEMBER) {
            self.at = at;
            self.ahead = Some(header);
            return Ok(None);
        }
        let (size, _) = archive::read_header(&header, delta::MEMBER, at)?;
        archive::check_header(&header, delta::MEMBER, size, release.manifest.created, at)?;
        limit("delta.bin in bytes", size, DELTA_MAX)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes, delta::MEMBER)?;
        self.padding(delta::MEMBER, size)?;
        Delta::parse(bytes, release).map(Some)
    }

    /// Checks the header of a member whose fields are all known.
    pub(super) fn header(&mut self, name: &str, size: u64, mtime: u64) -> Result<()> {
        let at = self.at;
        let mut header = [0; BLOCK];
        match self.ahead.take() {
            Some(ahead) => {
                header = ahead;
                self.at += BLOCK as u64;
            }
            None => self.fill(&mut header, &format!("the tar header of {name}"))?,
        }
        archive::check_header(&header, name, size, mtime, at)
    }

    /// Checks the zeroes after a member.
    pub(super) fn padding(&mut self, name: &str, size: u64) -> Result<()> {
        let at = self.at;
        let mut padding = [0; BLOCK];
        let padding = &mut padding[..archive::padding(size) as usize];
        self.fill(padding, &format!("the padding of {name}"))?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Error::TarHeader {
                member: name.to_owned(),
                at,
                problem: "its padding is not zero".into(),
            });
        }
        Ok(())
    }

    /// Checks the end-of-archive mark, and that nothing follows it.
    pub(super) fn end(&mut self) -> Result<()> {
        let at = self.at;
        let mut end = [0; END_LEN];
        self.fill(&mut end, "the end-of-archive mark")?;
        if end.iter().any(|&byte| byte != 0) {
            return Err(Error::TarHeader {
                member: "the end of the archive".to_owned(),
                at,
                problem: "another member instead of two blocks of zeroes".to_owned(),
            });
        }
        match &mut self.source {
            // The size of a file was compared when it was opened.
            Source::File(_) => Ok(()),
            Source::Stream(stream) | Source::Response(stream, _) => {
                let more = stream.read(&mut [0]).map_err(|source| read_failed("the end", self.at, source))?;
                if more == 0 { Ok(()) } else { Err(Error::TrailingBytes { at: self.at }) }
            }
        }
    }

    /// Skips `len` bytes: a stream is read, a file not.
    pub(super) fn skip(
        &mut self,
        mut len: u64,
        what: &str,
        mut tick: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        if matches!(self.source, Source::File(_)) {
            self.at += len;
            return Ok(());
        }
        let mut bytes = vec![0; 256 << 10];
        while len > 0 {
            tick()?;
            let part = len.min(bytes.len() as u64);
            self.fill(&mut bytes[..part as usize], what)?;
            len -= part;
        }
        Ok(())
    }
}
