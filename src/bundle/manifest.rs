//! `manifest.json`: the content of a bundle. Pure: bytes in, values out.
//!
//! [`ManifestFields`] are the unauthenticated fields; a [`Manifest`] is the same with proof. It exists only after a
//! signature was verified, from a slot record that was written after that, or by an explicit unsigned mode.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use super::name::{check_product, check_word};
use super::needs::NeededPlatform;
use crate::error::{Error, Result};
use crate::units::{Blake3, Group, Sha256};

/// The format version of bundles with a platform.
pub const FORMAT: u64 = 1;
/// The format version of software-only bundles: a reader that knows only the first one refuses them by the version, and not
/// as damaged. It is the newest that this build reads.
pub const FORMAT_SOFTWARE_ONLY: u64 = 2;
/// Upper limit of the size of `manifest.json` in bytes.
pub const MANIFEST_MAX: u64 = 256 << 10;
/// Upper limit of the size of `index.bin` in bytes: 466,033 frames, 455 GiB of images at 1 MiB a frame.
pub const INDEX_MAX: u64 = 16 << 20;

/// Bytes of one entry of `index.bin`, one for each frame; [`index`](super::index) says what is in it.
pub const INDEX_ENTRY_LEN: usize = 36;
/// Smallest frame size in bytes: four BLAKE3 chunks, one page.
pub const FRAME_MIN: u32 = 4 << 10;
/// Largest frame size in bytes. Memory is workers x 2 frames, so this bounds it.
pub const FRAME_MAX: u32 = 8 << 20;
/// Maximum number of payloads in a bundle.
pub const PAYLOADS_MAX: usize = 64;

/// Kind of a payload. The order is the order in the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The operating system image: becomes the file system at the start of the platform slot.
    Platform,
    /// The container image: becomes the file system at the start of the software slot.
    Software,
    /// A blob after the platform image in the platform slot.
    Firmware,
}

impl Kind {
    /// The group whose slots hold it.
    pub const fn group(self) -> Group {
        match self {
            Self::Platform | Self::Firmware => Group::Platform,
            Self::Software => Group::Software,
        }
    }
}

/// One payload of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// Its kind.
    pub kind: Kind,
    /// Name of a firmware blob; for the others the name of their kind.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Uncompressed size in bytes, at least 1.
    pub size: u64,
    /// Frame size in bytes, a power of two; the last frame may be shorter.
    pub frame_size: u32,
    /// BLAKE3 of the whole image, as printed by `b3sum`.
    pub blake3: Blake3,
    /// SHA-256 of the whole image, as printed by `sha256sum`.
    pub sha256: Sha256,
}

impl Payload {
    /// Number of frames.
    pub fn frames(&self) -> u64 {
        self.size.div_ceil(u64::from(self.frame_size))
    }

    /// Offset in the image and length of a frame, in bytes.
    pub fn frame_extent(&self, frame: u64) -> (u64, u32) {
        let at = frame * u64::from(self.frame_size);
        (at, (self.size - at).min(u64::from(self.frame_size)) as u32)
    }

    /// Name of its member in the archive.
    pub fn member(&self) -> String {
        match self.kind {
            Kind::Platform => "platform.img.zst".to_owned(),
            Kind::Software => "software.img.zst".to_owned(),
            Kind::Firmware => format!("firmware/{}.zst", self.name),
        }
    }

    /// Name of its member in a delta.
    pub fn delta_member(&self) -> String {
        format!("{}.delta", self.member().trim_end_matches(".zst"))
    }
}

/// Size in bytes of the largest frame among some payloads; 0 if there are none.
pub fn largest_frame(payloads: &[Payload]) -> usize {
    payloads.iter().map(|payload| payload.frame_size as usize).max().unwrap_or(0)
}

/// Its name in messages: `platform`, `software`, `firmware/<name>`.
impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Platform => f.pad("platform"),
            Kind::Software => f.pad("software"),
            Kind::Firmware => write!(f, "firmware/{}", self.name),
        }
    }
}

/// Size and hash of `index.bin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRef {
    /// Its size in bytes.
    pub size: u64,
    /// Its BLAKE3.
    pub blake3: Blake3,
}

/// The fields of `manifest.json`, checked for validity but not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFields {
    /// Format version, [`FORMAT`] or [`FORMAT_SOFTWARE_ONLY`].
    pub format: u64,
    /// Compatibility string: the machines that this bundle is for.
    pub product: String,
    /// Version of the bundle, compared by [`crate::version::compare`].
    pub version: String,
    /// The oldest running version that may install it directly; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    /// Anti-rollback epoch: never goes down, needs no clock.
    pub epoch: u64,
    /// Time of creation in seconds since 1970 UTC (SOURCE_DATE_EPOCH if that is set). Information only.
    pub created: u64,
    /// The platform that the software needs, if the bundle carries none; `None`: it carries one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_platform: Option<NeededPlatform>,
    /// The payloads in the order of their members.
    pub payloads: Vec<Payload>,
    /// The index.
    pub index: IndexRef,
}

impl ManifestFields {
    /// Parses and checks `manifest.json`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::FormatVersion`], [`Error::Manifest`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        limit("manifest.json in bytes", bytes.len() as u64, MANIFEST_MAX)?;
        // The version is checked first and alone: a newer format may have fields that this one lacks, and "unknown
        // field" would hide the reason.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let json = |problem: serde_json::Error| Error::Manifest { problem: problem.to_string() };
        let version: Version = serde_json::from_slice(bytes).map_err(json)?;
        if !(FORMAT..=FORMAT_SOFTWARE_ONLY).contains(&version.format) {
            return Err(Error::FormatVersion { got: version.format, known: FORMAT_SOFTWARE_ONLY });
        }
        let fields: Self = serde_json::from_slice(bytes).map_err(json)?;
        fields.check()?;
        Ok(fields)
    }

    /// The bytes of `manifest.json`: indented JSON with a final newline.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|problem| Error::Internal { what: format!("manifest to JSON: {problem}") })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Every condition that must hold before a size in this manifest is used.
    fn check(&self) -> Result<()> {
        let bad = |problem: String| Err(Error::Manifest { problem });
        check_product(&self.product)?;
        check_word("version", &self.version)?;
        if let Some(min) = &self.min_version {
            check_word("min_version", min)?;
        }
        // The maximum of an octal tar field of 11 digits: the year 2242.
        if self.created >= 1 << 33 {
            return bad(format!("created is {}, beyond what a tar header holds", self.created));
        }
        limit("number of payloads", self.payloads.len() as u64, PAYLOADS_MAX as u64)?;
        self.check_kinds()?;
        let order = |p: &Payload| (p.kind, p.name.clone());
        let mut neighbours = self.payloads.iter().zip(self.payloads.iter().skip(1));
        if let Some((_, next)) = neighbours.find(|(a, b)| order(a) >= order(b)) {
            return bad(format!("payload {next} is out of order or there twice"));
        }
        let mut entries = 0_u64;
        for payload in &self.payloads {
            check_word("name", &payload.name)?;
            check_word("version", &payload.version)?;
            let fixed = match payload.kind {
                Kind::Platform => "platform",
                Kind::Software => "software",
                Kind::Firmware => payload.name.as_str(),
            };
            if payload.name != fixed {
                return bad(format!("payload of kind {fixed} is named '{}'", payload.name));
            }
            if payload.size == 0 {
                return bad(format!("{payload} has size 0"));
            }
            if !payload.frame_size.is_power_of_two() || !(FRAME_MIN..=FRAME_MAX).contains(&payload.frame_size)
            {
                return bad(format!(
                    "{payload}: frame size {} is no power of two from {FRAME_MIN} to {FRAME_MAX}",
                    payload.frame_size
                ));
            }
            entries = entries.saturating_add(payload.frames());
        }
        // Also bounds every image: at most 466,033 frames of at most 8 MiB, 3.6 TiB, far from overflow.
        limit("index.bin in bytes", self.index.size, INDEX_MAX)?;
        let expected = entries.saturating_mul(INDEX_ENTRY_LEN as u64);
        if self.index.size != expected {
            return bad(format!("index size {}, but the frames need {expected}", self.index.size));
        }
        Ok(())
    }

    /// The format version decides which payloads there are.
    fn check_kinds(&self) -> Result<()> {
        let bad = |problem: &str| Err(Error::Manifest { problem: problem.to_owned() });
        let kinds: Vec<Kind> = self.payloads.iter().map(|payload| payload.kind).collect();
        match (self.format, &self.needs_platform) {
            (FORMAT_SOFTWARE_ONLY, None) => bad("a software-only bundle must say which platform it needs"),
            (FORMAT_SOFTWARE_ONLY, Some(_)) if kinds != [Kind::Software] => {
                bad("a software-only bundle must have the software image and no other payload")
            }
            (FORMAT_SOFTWARE_ONLY, Some(needed)) => needed.check(),
            (_, Some(_)) => bad("needs_platform is for software-only bundles, format version 2"),
            (_, None) if kinds.first() != Some(&Kind::Platform) => {
                bad("the first payload must be the platform image")
            }
            (_, None) => Ok(()),
        }
    }

    /// The payload of a kind that occurs at most once.
    pub fn payload(&self, kind: Kind) -> Option<&Payload> {
        self.payloads.iter().find(|p| p.kind == kind)
    }

    /// The payloads in a group's slot, with their indexes in [`payloads`](Self::payloads).
    pub fn group(&self, group: Group) -> impl Iterator<Item = (usize, &Payload)> {
        self.payloads.iter().enumerate().filter(move |(_, p)| p.kind.group() == group)
    }

    /// Whether the software of this manifest is made for the platform of another one. A bundle that carries a platform is
    /// made for that one.
    pub fn runs_on(&self, platform: &Self) -> bool {
        match &self.needs_platform {
            Some(needed) => {
                let image = platform.payload(Kind::Platform);
                image.is_some_and(|image| needed.admits(&image.version, &image.blake3))
            }
            None => self.same_platform(platform),
        }
    }

    /// Whether two manifests with a platform describe the same one: image and firmware by content, versions and names of
    /// the bundle aside; see the [format](crate::manual::format).
    pub fn same_platform(&self, other: &Self) -> bool {
        let content = |fields: &Self| -> Vec<(Kind, String, u64, Blake3)> {
            fields.group(Group::Platform).map(|(_, p)| (p.kind, p.name.clone(), p.size, p.blake3)).collect()
        };
        content(self) == content(other)
    }
}

pub(super) fn limit(what: &str, got: u64, limit: u64) -> Result<()> {
    if got > limit { Err(Error::TooLarge { what: what.to_owned(), limit, got }) } else { Ok(()) }
}

/// An authenticated manifest, with the exact bytes that were signed.
#[derive(Debug, Clone)]
pub struct Manifest {
    fields: ManifestFields,
    bytes: Vec<u8>,
    signature: Vec<u8>,
    provenance: Provenance,
}

/// How a [`Manifest`] was authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provenance {
    /// By a signature of a trusted key: its fingerprint, and the principals of the trust file.
    Signature(String),
    /// By the record of a slot, which is written only after a signature was verified.
    Record,
    /// Not at all: the development mode, requested explicitly.
    Unsigned,
}

impl Manifest {
    /// For the three places that may authenticate: [`super::trust`], [`crate::slot`], and the packer for its own
    /// output.
    pub(crate) fn with_provenance(
        bytes: Vec<u8>,
        signature: Vec<u8>,
        provenance: Provenance,
    ) -> Result<Self> {
        let fields = ManifestFields::parse(&bytes)?;
        Ok(Self { fields, bytes, signature, provenance })
    }

    /// The exact bytes of `manifest.json`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// BLAKE3 of `manifest.json`: identifies the release to the bit.
    pub fn digest(&self) -> Blake3 {
        Blake3(*blake3::hash(&self.bytes).as_bytes())
    }

    /// The exact bytes of `manifest.json.sig`.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// How it was authenticated.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }
}

impl Deref for Manifest {
    type Target = ManifestFields;

    fn deref(&self) -> &ManifestFields {
        &self.fields
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> ManifestFields {
        let payload = |kind, name: &str, size| Payload {
            kind,
            name: name.to_owned(),
            version: "1.0".to_owned(),
            size,
            frame_size: 4096,
            blake3: Blake3([1; 32]),
            sha256: Sha256([2; 32]),
        };
        ManifestFields {
            format: FORMAT,
            product: "acme gateway".to_owned(),
            version: "1.0".to_owned(),
            min_version: None,
            epoch: 0,
            created: 1_700_000_000,
            needs_platform: None,
            payloads: vec![
                payload(Kind::Platform, "platform", 10_000),
                payload(Kind::Software, "software", 4096),
                payload(Kind::Firmware, "bios", 1),
            ],
            index: IndexRef { size: 5 * 36, blake3: Blake3([3; 32]) },
        }
    }

    #[test]
    fn round_trip() {
        let fields = sample();
        assert_eq!(ManifestFields::parse(&fields.to_bytes().unwrap()).unwrap(), fields);
    }

    #[test]
    fn what_is_just_within_the_limits_is_accepted() {
        let mut fields = sample();
        fields.created = (1 << 33) - 1;
        // One frame, and two.
        (fields.payloads[0].frame_size, fields.payloads[1].frame_size) = (FRAME_MAX, FRAME_MIN);
        fields.payloads[1].size = u64::from(FRAME_MIN) + 1;
        fields.payloads[2].name = "f0".to_owned();
        for number in 1..PAYLOADS_MAX - 2 {
            fields.payloads.push(Payload { name: format!("f{number:02}"), ..fields.payloads[2].clone() });
        }
        fields.payloads[2].name = "f00".to_owned();
        fields.index.size = 36 * (1 + 2 + PAYLOADS_MAX as u64 - 2);
        assert_eq!(ManifestFields::parse(&fields.to_bytes().unwrap()).unwrap(), fields);
    }

    #[test]
    fn each_rule_refuses() {
        type Break = fn(&mut ManifestFields);
        let rules: &[(&str, Break)] = &[
            ("product", |c| c.product.clear()),
            ("product", |c| c.product = "a\nb".into()),
            ("version", |c| c.version = "../x".into()),
            ("min_version", |c| c.min_version = Some(String::new())),
            ("created", |c| c.created = 1 << 33),
            ("first payload", |c| c.payloads.clear()),
            ("first payload", |c| {
                c.payloads.remove(0);
            }),
            ("out of order", |c| c.payloads.swap(1, 2)),
            ("out of order", |c| c.payloads.push(c.payloads[2].clone())),
            ("named", |c| c.payloads[0].name = "other".into()),
            ("name", |c| c.payloads[2].name = "a/b".into()),
            ("size 0", |c| c.payloads[1].size = 0),
            ("frame size", |c| c.payloads[1].frame_size = 4097),
            ("frame size", |c| c.payloads[1].frame_size = 2048),
            ("frame size", |c| c.payloads[1].frame_size = FRAME_MAX * 2),
            ("index size", |c| c.index.size += 36),
            ("index size", |c| c.payloads[0].size = u64::MAX),
        ];
        for (word, alter) in rules {
            let mut fields = sample();
            alter(&mut fields);
            let bytes = serde_json::to_vec(&fields).unwrap();
            let error = ManifestFields::parse(&bytes).unwrap_err();
            assert_eq!(error.code(), "UPGRADE_ERROR_BUNDLE_MANIFEST", "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn limits_and_versions_have_their_own_codes() {
        let code = |bytes: &[u8]| ManifestFields::parse(bytes).unwrap_err().code();
        let mut big = sample().to_bytes().unwrap();
        big.resize(MANIFEST_MAX as usize + 1, b' ');
        assert_eq!(code(&big), "UPGRADE_ERROR_BUNDLE_LIMIT");
        let mut fields = sample();
        fields.index.size = INDEX_MAX + 1;
        assert_eq!(code(&serde_json::to_vec(&fields).unwrap()), "UPGRADE_ERROR_BUNDLE_LIMIT");
        fields.payloads = vec![fields.payloads[2].clone(); PAYLOADS_MAX + 1];
        assert_eq!(code(&serde_json::to_vec(&fields).unwrap()), "UPGRADE_ERROR_BUNDLE_LIMIT");
        assert_eq!(code(br#"{"format":3,"news":1}"#), "UPGRADE_ERROR_BUNDLE_FORMAT_VERSION");
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        assert_eq!(
            code(text.replace("\"epoch\"", "\"extra\": 1, \"epoch\"").as_bytes()),
            "UPGRADE_ERROR_BUNDLE_MANIFEST"
        );
        assert_eq!(
            code(text.replace("\"epoch\": 0", "\"epoch\": 0, \"epoch\": 1").as_bytes()),
            "UPGRADE_ERROR_BUNDLE_MANIFEST"
        );
    }

    #[test]
    fn the_platform_is_compared_by_content() {
        let (a, mut b) = (sample(), sample());
        b.version = "2.0".into();
        b.payloads[0].version = "9".into();
        b.payloads[1].blake3 = Blake3([9; 32]);
        assert!(a.same_platform(&b), "software and versions do not matter");
        b.payloads[2].blake3 = Blake3([9; 32]);
        assert!(!a.same_platform(&b), "firmware does");
    }
}
