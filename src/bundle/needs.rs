//! The platform that a software-only bundle needs: it carries none. Pure.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::check_word;
use crate::error::{Error, Result};
use crate::units::Blake3;
use crate::version;

/// The platform that a software-only bundle needs: one image by its digest, or the images of a range of versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeededPlatform {
    /// BLAKE3 of the platform image, as printed by `b3sum`; `None`: the versions decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Blake3>,
    /// The oldest version of the platform; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    /// The newest version of the platform; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_version: Option<String>,
}

impl NeededPlatform {
    /// Checks that it names a digest or a range, and not both: a reader must not choose between them.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |problem: &str| Err(Error::Manifest { problem: format!("needs_platform {problem}") });
        let range = [("min_version", &self.min_version), ("max_version", &self.max_version)];
        for (what, version) in range {
            version.as_ref().map_or(Ok(()), |version| check_word(what, version))?;
        }
        match (&self.blake3, &self.min_version, &self.max_version) {
            (None, None, None) => bad("names no platform"),
            (Some(_), None, None) => Ok(()),
            (Some(_), ..) => bad("has a digest and versions; one of them decides"),
            (None, Some(min), Some(max)) if version::compare(min, max) == Ordering::Greater => {
                bad("has a range that is empty")
            }
            (None, ..) => Ok(()),
        }
    }

    /// Whether a platform image of this version and digest is such a one.
    pub fn admits(&self, version: &str, digest: &Blake3) -> bool {
        let beyond = |bound: &Option<String>, order| {
            bound.as_ref().is_some_and(|bound| version::compare(version, bound) == order)
        };
        self.blake3.is_none_or(|needed| needed == *digest)
            && !beyond(&self.min_version, Ordering::Less)
            && !beyond(&self.max_version, Ordering::Greater)
    }
}

/// In messages, after "needs".
impl fmt::Display for NeededPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.blake3, &self.min_version, &self.max_version) {
            (Some(digest), ..) => write!(f, "the platform image with BLAKE3 {digest}"),
            (None, Some(min), Some(max)) if min == max => write!(f, "platform {min}"),
            (None, Some(min), Some(max)) => write!(f, "platform {min} to {max}"),
            (None, Some(min), None) => write!(f, "platform {min} or later"),
            (None, None, Some(max)) => write!(f, "platform {max} or earlier"),
            (None, None, None) => f.write_str("no platform"),
        }
    }
}

/// The form of the command line: a digest, `VERSION`, `MIN..MAX`, `MIN..` or `..MAX`; both ends are part of the range.
impl FromStr for NeededPlatform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(digest) = text.parse() {
            return Ok(Self { blake3: Some(digest), ..Self::default() });
        }
        let bound = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        let needed = Self { blake3: None, min_version: bound(min), max_version: bound(max) };
        needed.check().map_err(|_| {
            "expected the BLAKE3 of a platform image, or versions: 1.4, 1.4..1.9, 1.4.. or ..1.9".to_owned()
        })?;
        Ok(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(text: &str) -> NeededPlatform {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_has_both_of_its_ends() {
        for (need, versions, admitted) in [
            ("1.4", "1.4", true),
            ("1.4", "1.4.1", false),
            ("1.4..1.9", "1.4", true),
            ("1.4..1.9", "1.9", true),
            ("1.4..1.9", "1.10", false),
            ("1.4..1.9", "1.3", false),
            ("1.4..", "2", true),
            ("1.4..", "1.4~rc1", false),
            ("..1.9", "1.0", true),
            ("..1.9", "2.0", false),
        ] {
            assert_eq!(needed(need).admits(versions, &Blake3([1; 32])), admitted, "{need} {versions}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_image() {
        let digest = Blake3([1; 32]);
        assert!(needed(&"01".repeat(32)).admits("any", &digest));
        assert!(!needed(&"02".repeat(32)).admits("any", &digest));
    }

    #[test]
    fn what_it_says_can_be_read() {
        for (text, shown) in [
            ("1.4", "platform 1.4"),
            ("1.4..1.9", "platform 1.4 to 1.9"),
            ("1.4..", "platform 1.4 or later"),
            ("..1.9", "platform 1.9 or earlier"),
        ] {
            assert_eq!(needed(text).to_string(), shown);
        }
        for text in ["", "..", "2..1", "a b", "1.4..x/y"] {
            assert!(text.parse::<NeededPlatform>().is_err(), "{text}");
        }
    }
}
