//! A release: a manifest and the matching index. The two travel together, from the bundle into the record of a
//! slot.

use super::index::Index;
use super::manifest::Manifest;
use crate::error::Result;

/// What a bundle, a delta and the record of a slot have in common: the images and the hash of every frame.
#[derive(Debug, Clone)]
pub struct Release {
    /// The manifest, with the exact bytes that were signed.
    pub manifest: Manifest,
    /// Only made by [`Release::new`]: an index without its manifest would be a list of lengths without bounds.
    index: Index,
}

impl Release {
    /// The release of a manifest and the bytes of its `index.bin`.
    ///
    /// # Errors
    /// Those of [`Index::parse`].
    pub fn new(manifest: Manifest, index: Vec<u8>) -> Result<Self> {
        let index = Index::parse(index, &manifest)?;
        Ok(Self { manifest, index })
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Bytes of a slot's record that depend on the release: manifest, signatures, index.
    pub fn record_len(&self) -> u64 {
        let parts = [self.manifest.bytes(), self.manifest.signature(), self.index.bytes()];
        parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Compressed size in bytes of a payload, by its index in the manifest: the size of its member in a bundle.
    pub fn compressed_size(&self, payload: usize) -> u64 {
        self.index.compressed_size(payload, &self.manifest.payloads[payload])
    }
}
