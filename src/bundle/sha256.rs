//! SHA-256 (FIPS 180-4) of whole images, as printed by `sha256sum`. It is sequential, and on processors without
//! instructions for it, it takes longer than any other work on an image. Implemented by ring, which is linked for
//! TLS anyway: its assembly uses AVX where the SHA extensions are missing, and took 0.6 of the time of the portable
//! code of the crate `sha2` there (`cargo bench sha256`). With the extensions both are equally fast.

use ring::digest::{Context, SHA256};

use super::manifest::Payload;
use crate::error::{Error, Result};
use crate::units::Sha256;

/// SHA-256 of bytes that arrive in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// Appends the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes.
    pub fn finish(self) -> Sha256 {
        let mut value = [0; 32];
        value.copy_from_slice(self.0.finish().as_ref());
        Sha256(value)
    }
}

/// SHA-256 of several images whose frames come in order, with one hasher each.
pub(crate) struct ImageHashes(Vec<Hasher>);

impl ImageHashes {
    /// One hasher for each payload of the manifest.
    pub(crate) fn new(payloads: usize) -> Self {
        Self(vec![Hasher::default(); payloads])
    }

    /// Appends the next bytes of a payload.
    pub(crate) fn update(&mut self, payload: usize, bytes: &[u8]) {
        self.0[payload].update(bytes);
    }

    /// Compares the payloads for which `wanted` returns true with the manifest.
    ///
    /// # Errors
    /// [`Error::ImageDigest`].
    pub(crate) fn check(self, payloads: &[Payload], wanted: impl Fn(&Payload) -> bool) -> Result<()> {
        for (payload, hasher) in payloads.iter().zip(self.0).filter(|(payload, _)| wanted(payload)) {
            let got = hasher.finish();
            if got != payload.sha256 {
                return Err(Error::ImageDigest {
                    payload: payload.to_string(),
                    expected: payload.sha256,
                    got,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn another_implementation_agrees_however_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..300_u32).flat_map(u32::to_le_bytes).collect();
        // Every length around the blocks of 64 bytes and their padding, in two pieces, cut at every place near such
        // an edge.
        for len in (0..=200).chain(bytes.len() - 70..=bytes.len()) {
            let expected: [u8; 32] = sha2::Sha256::digest(&bytes[..len]).into();
            for cut in (0..=len).step_by(if len <= 200 { 1 } else { 13 }) {
                let mut hasher = Hasher::default();
                hasher.update(&bytes[..cut]);
                hasher.update(&bytes[cut..len]);
                assert_eq!(hasher.finish(), Sha256(expected), "{len} bytes, cut at {cut}");
            }
        }
    }
}
