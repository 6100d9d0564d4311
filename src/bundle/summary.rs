//! Summary of a bundle, for people and programs.

use serde::Serialize;

use super::archive::{self, END_LEN};
use super::delta::Tally;
use super::manifest::Provenance;
use super::needs::NeededPlatform;
use super::reader::Bundle;
use super::signature::{self, SignatureBlock};
use crate::error::Result;
use crate::units::{Blake3, Sha256};

/// Summary of a bundle.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Compatibility string.
    pub product: String,
    /// Version.
    pub version: String,
    /// The oldest version that may install it directly; `None`: any.
    pub min_version: Option<String>,
    /// Anti-rollback epoch.
    pub epoch: u64,
    /// Time of creation in seconds since 1970 UTC.
    pub created: u64,
    /// The platform that a software-only bundle needs; `None`: the bundle carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_platform: Option<NeededPlatform>,
    /// Principal and fingerprint of the trusted signer; `None` if trust was not checked.
    pub signed_by: Option<String>,
    /// Fingerprints of all keys that claim to have signed it, trusted or not.
    pub signatures: Vec<String>,
    /// Size of the bundle in bytes.
    pub bundle_bytes: u64,
    /// Its payloads.
    pub payloads: Vec<PayloadSummary>,
    /// Statistics of a delta; `None` for a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaSummary>,
}

/// Statistics of a delta. They are not authenticated: they only concern where bytes come from.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaSummary {
    /// For each payload, the BLAKE3 of its base image; `None` if it has no base.
    pub bases: Vec<Option<Blake3>>,
    /// Number of frames by kind.
    pub frames: Tally,
    /// Size in bytes of the bundle that it replaces.
    pub stands_for: u64,
}

/// Summary of a payload.
#[derive(Debug, Clone, Serialize)]
pub struct PayloadSummary {
    /// `platform`, `software` or `firmware/<name>`.
    pub name: String,
    /// Name of its member in the archive.
    pub member: String,
    /// Version.
    pub version: String,
    /// Uncompressed size in bytes.
    pub size: u64,
    /// Compressed size in bytes.
    pub compressed: u64,
    /// Frame size in bytes.
    pub frame_size: u32,
    /// Number of frames.
    pub frames: u64,
    /// BLAKE3 of the image.
    pub blake3: Blake3,
    /// SHA-256 of the image.
    pub sha256: Sha256,
}

impl Bundle {
    /// Summarizes the bundle.
    ///
    /// # Errors
    /// [`Error::SignatureFormat`](crate::Error::SignatureFormat): if trust was not checked, the signatures have not
    /// been parsed before.
    pub fn summary(&self) -> Result<Summary> {
        let manifest = self.manifest();
        let signatures = signature::parse(manifest.signature())?;
        let payloads = manifest.payloads.iter().enumerate().map(|(number, payload)| PayloadSummary {
            name: payload.to_string(),
            member: payload.member(),
            version: payload.version.clone(),
            size: payload.size,
            compressed: self.release().compressed_size(number),
            frame_size: payload.frame_size,
            frames: payload.frames(),
            blake3: payload.blake3,
            sha256: payload.sha256,
        });
        let signed = |candidate: &SignatureBlock| {
            candidate.fingerprint().unwrap_or_else(|| "of a kind that is not known".to_owned())
        };
        Ok(Summary {
            product: manifest.product.clone(),
            version: manifest.version.clone(),
            min_version: manifest.min_version.clone(),
            epoch: manifest.epoch,
            created: manifest.created,
            needs_platform: manifest.needs_platform.clone(),
            signed_by: manifest.provenance().signer().map(str::to_owned),
            signatures: signatures.iter().map(signed).collect(),
            bundle_bytes: self.size()?,
            payloads: payloads.collect(),
            delta: self.delta_summary(),
        })
    }
}

impl Bundle {
    fn delta_summary(&self) -> Option<DeltaSummary> {
        let (delta, release) = (self.delta()?, self.release());
        let payloads = 0..release.manifest.payloads.len();
        let mut frames = Tally::default();
        payloads.clone().for_each(|payload| frames.add(delta, release, payload));
        let index = release.index().bytes().len() as u64;
        let front = [release.manifest.bytes().len() as u64, release.manifest.signature().len() as u64, index];
        let members =
            front.into_iter().chain(payloads.clone().map(|payload| release.compressed_size(payload)));
        Some(DeltaSummary {
            bases: payloads.map(|payload| delta.base(payload).map(|base| base.blake3)).collect(),
            frames,
            stands_for: members.filter_map(archive::member_len).sum::<u64>() + END_LEN as u64,
        })
    }
}

impl Provenance {
    /// Principal and fingerprint of the signer; `None` if it was not a signature.
    pub fn signer(&self) -> Option<&str> {
        match self {
            Self::Signature(signer) => Some(signer),
            Self::Record | Self::Unsigned => None,
        }
    }
}
