//! `EFI_LOAD_OPTION`: the content of a `Boot####` variable (UEFI 2.10, 3.1.3).
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 4 | attributes: bit 0 ACTIVE, bits 8-12 category (0 boot) |
//! | 4 | 2 | length of the device paths |
//! | 6 | | description, UTF-16LE, ended by a zero |
//! | | | device paths: nodes of type, subtype, length (u16, with these four bytes) and data; `7f ff` ends one |
//! | | | optional data for the loader |
//!
//! Parsed tolerantly: of a foreign entry only the first six bytes matter. Never rebuilt from its parts: a change is
//! a change of four bytes in a copy.

use crate::units::Guid;

const ACTIVE: u32 = 1;
const CATEGORY: u32 = 0x1f00;
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const END: u8 = 0x7f;
const END_ALL: [u8; 4] = [END, 0xff, 4, 0];
/// Length of a hard drive node, and two of its values: partition format GPT, signature type GUID (table 10.49).
const HARD_DRIVE_LEN: u16 = 42;
const GPT: u8 = 2;
const SIGNATURE_GUID: u8 = 2;

/// A partition as described in a device path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardDrive {
    /// Number in the table, from 1.
    pub number: u32,
    /// First block.
    pub start: u64,
    /// Size in blocks.
    pub blocks: u64,
    /// Unique GUID: the only field that firmware compares.
    pub guid: Guid,
}

/// A load option, byte for byte as read or built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    bytes: Vec<u8>,
    /// The bytes of the device paths, which follow the description.
    paths: std::ops::Range<usize>,
}

impl LoadOption {
    /// Takes the content of a variable. `None` if attributes, length and description do not fit into it: firmware
    /// cannot boot such an entry either.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        let len = usize::from(u16::from_le_bytes(bytes.get(4..6)?.try_into().ok()?));
        let units = bytes.get(6..)?.chunks_exact(2).position(|unit| unit == [0, 0])?;
        let start = 6 + 2 * units + 2;
        bytes.get(start..start.checked_add(len)?)?;
        Some(Self { bytes, paths: start..start + len })
    }

    /// An active option that starts `file` (backslashes between its parts) from a partition.
    pub fn build(description: &str, drive: &HardDrive, file: &str) -> Self {
        let mut path = Vec::new();
        path.extend([MEDIA, HARD_DRIVE]);
        path.extend(HARD_DRIVE_LEN.to_le_bytes());
        path.extend(drive.number.to_le_bytes());
        path.extend(drive.start.to_le_bytes());
        path.extend(drive.blocks.to_le_bytes());
        path.extend(drive.guid.0);
        path.extend([GPT, SIGNATURE_GUID]);
        let name = utf16(file);
        path.extend([MEDIA, FILE_PATH]);
        // The configuration bounds it far below 64 KiB.
        path.extend(u16::try_from(name.len() + 4).unwrap_or(u16::MAX).to_le_bytes());
        path.extend(name);
        path.extend(END_ALL);
        let mut bytes = ACTIVE.to_le_bytes().to_vec();
        bytes.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(utf16(description));
        let start = bytes.len();
        bytes.extend(&path);
        Self { paths: start..bytes.len(), bytes }
    }

    /// The content of the variable.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn attributes(&self) -> u32 {
        self.bytes.first_chunk().map_or(0, |first| u32::from_le_bytes(*first))
    }

    /// Whether the boot manager takes it from `BootOrder`: active, and an operating system rather than an
    /// application of the firmware (its setup is in `BootOrder` too).
    pub fn boots(&self) -> bool {
        self.is_active() && self.is_boot()
    }

    /// Whether it has the category that the boot manager boots on its own.
    pub fn is_boot(&self) -> bool {
        self.attributes() & CATEGORY == 0
    }

    /// Whether the ACTIVE bit is set.
    pub fn is_active(&self) -> bool {
        self.attributes() & ACTIVE != 0
    }

    /// A copy with the ACTIVE bit set or cleared.
    #[must_use]
    pub fn with_active(&self, yes: bool) -> Self {
        let mut new = self.clone();
        let attributes = if yes { self.attributes() | ACTIVE } else { self.attributes() & !ACTIVE };
        new.bytes[..4].copy_from_slice(&attributes.to_le_bytes());
        new
    }

    /// Its description; invalid UTF-16 is shown as question marks.
    pub fn description(&self) -> String {
        text(&self.bytes[6..self.paths.start])
    }

    /// The GPT partition that it starts from: that of the first hard drive node, whether the path is a full
    /// hardware path or the short form (UEFI 2.10, 3.1.2). `None` if there is no such node.
    pub fn partition(&self) -> Option<Guid> {
        let node = self.nodes().find(|node| node.starts_with(&[MEDIA, HARD_DRIVE]))?;
        let guid = node.get(24..40)?.try_into().ok()?;
        (node.len() == usize::from(HARD_DRIVE_LEN) && node[40..] == [GPT, SIGNATURE_GUID])
            .then_some(Guid(guid))
    }

    /// The file that it starts; `None` if it names none.
    pub fn file(&self) -> Option<String> {
        self.nodes().find(|node| node.starts_with(&[MEDIA, FILE_PATH])).map(|node| text(&node[4..]))
    }

    /// The complete nodes of the first device path. Those after it do not determine what boots.
    fn nodes(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[self.paths.clone()];
        std::iter::from_fn(move || {
            let len = usize::from(u16::from_le_bytes([*rest.get(2)?, *rest.get(3)?]));
            // A length below four would loop for ever.
            if len < 4 || rest.len() < len || rest[0] == END {
                return None;
            }
            let (node, after) = rest.split_at(len);
            rest = after;
            Some(node)
        })
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn text(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}
