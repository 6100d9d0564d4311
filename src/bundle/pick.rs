//! Random access to single frames of a seekable bundle.

use super::archive;
use super::frame::Frame;
use super::reader::Bundle;
use super::source::read_failed;
use crate::error::{Error, Result};

/// A whole bundle with the place of each of its frames: the source of frames that a delta cannot make.
pub struct Picker<'a> {
    bundle: &'a Bundle,
    /// For each payload and frame, the offset of its compressed bytes.
    places: Vec<Vec<u64>>,
}

impl<'a> Picker<'a> {
    /// Computes the places of all frames.
    pub fn new(bundle: &'a Bundle) -> Self {
        let (release, mut at) = (bundle.release(), bundle.payloads_at());
        let payloads = 0..release.manifest.payloads.len();
        let places = payloads.map(|payload| {
            at += archive::BLOCK as u64;
            let start = at;
            let frames = release.frames(payload);
            let places = frames.map(|frame| {
                let place = at;
                at += u64::from(frame.entry().compressed);
                place
            });
            let places: Vec<u64> = places.collect();
            at += archive::padding(at - start);
            places
        });
        Self { bundle, places: places.collect() }
    }

    /// Reads the compressed bytes of a frame of the same release.
    ///
    /// # Errors
    /// [`Error::Source`], [`Error::Truncated`], [`Error::Interrupted`].
    pub fn load(&self, frame: &Frame<'_>, compressed: &mut Vec<u8>) -> Result<()> {
        let place = self.places.get(frame.payload_number()).and_then(|all| all.get(frame.number() as usize));
        let (Some(file), Some(at)) = (self.bundle.file(), place) else {
            return Err(Error::Internal { what: "no such frame, or a stream".to_owned() });
        };
        compressed.resize(frame.entry().compressed as usize, 0);
        let member = || frame.payload().member();
        file.read_exact_at(compressed, *at).map_err(|source| read_failed(&member(), *at, source))
    }
}
