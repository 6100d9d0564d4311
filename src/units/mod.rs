//! Quantities that must not be confused: a byte offset with a block number, slot `a` with slot `b`.

pub(crate) mod size;
pub(crate) mod text;

use std::fmt;
use std::ops::Not;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One mebibyte in bytes: the alignment of partitions and of firmware blobs inside a slot.
pub const MIB: u64 = 1 << 20;

/// A position on a device or in an image, in bytes from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct ByteOffset(pub u64);

/// A logical block address: a position on a disk in units of its [`BlockSize`] (UEFI 2.10, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

impl Lba {
    /// The byte position of this block; `None` if it is beyond 2^64 bytes.
    pub fn offset(self, block: BlockSize) -> Option<ByteOffset> {
        self.0.checked_mul(u64::from(block.bytes())).map(ByteOffset)
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The logical block size of a disk: 512 or 4096 bytes, the two that NVMe, SCSI and eMMC ship.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes ("4Kn").
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// The block size of that many bytes; `None` if qstage does not support it.
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// A contiguous range of bytes on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Offset of the first byte.
    pub at: ByteOffset,
    /// Length in bytes.
    pub len: u64,
}

/// One of the two slots of an A/B pair. `!slot` is the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Slot `a`.
    A,
    /// Slot `b`.
    B,
}

impl Slot {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];
}

impl Not for Slot {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "a" | "A" => Ok(Self::A),
            "b" | "B" => Ok(Self::B),
            _ => Err(format!("'{text}' is no slot: write a or b")),
        }
    }
}

/// Kind of content of a pair of slots. Each group has one GPT partition per slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The operating system image with its firmware: `platform_a` and `platform_b`.
    Platform,
    /// The software (container) image: `software_a` and `software_b`.
    Software,
}

impl Group {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::Platform, Self::Software];

    /// The name of the GPT partition of a slot.
    pub const fn partition_name(self, slot: Slot) -> &'static str {
        match (self, slot) {
            (Self::Platform, Slot::A) => "platform_a",
            (Self::Platform, Slot::B) => "platform_b",
            (Self::Software, Slot::A) => "software_a",
            (Self::Software, Slot::B) => "software_b",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Platform => "platform",
            Self::Software => "software",
        })
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "platform" => Ok(Self::Platform),
            "software" => Ok(Self::Software),
            _ => Err(format!("'{text}' is no group: write platform or software")),
        }
    }
}

/// Renders bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    // Only lower case: b3sum and sha256sum print it so, and one spelling per value keeps documents canonical.
    if text.len() != 2 * N || !text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                unhex(text).map(Self).ok_or_else(|| "expected 64 lower-case hexadecimal digits".to_owned())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest!(
    /// A BLAKE3 hash, as printed by `b3sum`.
    Blake3
);
digest!(
    /// A SHA-256 hash (FIPS 180-4), as printed by `sha256sum`.
    Sha256
);

/// A GUID in its on-disk byte order: the first three fields little-endian (UEFI 2.10, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// All zero: the type of an unused partition entry.
    pub const NIL: Self = Self([0; 16]);
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.0;
        f.pad(&format!(
            "{}-{}-{}-{}-{}",
            hex(&[g[3], g[2], g[1], g[0]]),
            hex(&[g[5], g[4]]),
            hex(&[g[7], g[6]]),
            hex(&g[8..10]),
            hex(&g[10..16])
        ))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

impl FromStr for Guid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|&c| c != '-').collect::<String>().to_ascii_lowercase();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let b: [u8; 16] = match (groups.as_slice(), unhex(&digits)) {
            ([8, 4, 4, 4, 12], Some(bytes)) => bytes,
            _ => return Err(format!("'{text}' is no GUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")),
        };
        let mut out = b;
        out[..4].copy_from_slice(&[b[3], b[2], b[1], b[0]]);
        out[4..8].copy_from_slice(&[b[5], b[4], b[7], b[6]]);
        Ok(Self(out))
    }
}

/// Milliseconds for which software was down, by its health probe; `None` if unknown, because it was down before.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Downtime(pub Option<f64>);

impl fmt::Display for Downtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ms) => write!(f, "{ms:.0} ms"),
            None => f.write_str("unknown (it was down before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_downtime_is_not_zero() {
        assert_eq!(Downtime(Some(127.4)).to_string(), "127 ms");
        assert!(Downtime(None).to_string().starts_with("unknown"));
    }

    #[test]
    fn guid_text_is_mixed_endian() {
        let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
        let guid: Guid = text.parse().unwrap();
        // Bytes as UEFI 2.10 table 5-7 (EFI System Partition) lies on a disk.
        assert_eq!(guid.0[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert_eq!(guid.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Guid>().unwrap(), guid);
        assert!("c12a7328f81f11d2ba4b00a0c93ec93b".parse::<Guid>().is_err());
    }

    #[test]
    fn digests_have_one_spelling() {
        let text = "ab".repeat(32);
        assert_eq!(text.parse::<Blake3>().unwrap().to_string(), text);
        assert!(text.to_uppercase().parse::<Blake3>().is_err());
        assert!(text[1..].parse::<Sha256>().is_err());
    }

    #[test]
    fn the_other_slot() {
        assert_eq!(!Slot::A, Slot::B);
        assert_eq!(!!Slot::A, Slot::A);
    }
}
