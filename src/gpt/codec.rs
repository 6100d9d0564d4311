//! The GPT header as bytes and as fields. Takes bytes, does no I/O.
//!
//! | offset | size | field (UEFI 2.10, table 5.5, little-endian)              |
//! |-------:|-----:|----------------------------------------------------------|
//! |      0 |    8 | signature `EFI PART`                                     |
//! |      8 |    4 | revision, 1.0 = 0x00010000                               |
//! |     12 |    4 | header size, 92 to the block size                        |
//! |     16 |    4 | CRC-32 of the header, computed with this field as zero   |
//! |     20 |    4 | reserved; preserved                                      |
//! |     24 |    8 | LBA of this header                                       |
//! |     32 |    8 | LBA of the other header                                  |
//! |     40 |    8 | first usable LBA                                         |
//! |     48 |    8 | last usable LBA                                          |
//! |     56 |   16 | disk GUID                                                |
//! |     72 |    8 | LBA of the entry array                                   |
//! |     80 |    4 | number of entries                                        |
//! |     84 |    4 | size of an entry, 128 x 2^n                              |
//! |     88 |    4 | CRC-32 of the entry array                                |
//! |     92 |      | to the end of the block: preserved                       |

use crate::units::{BlockSize, Guid, Lba};

/// The largest entry array accepted, in bytes; the usual one has 16 KiB. Checked before anything is allocated.
pub const MAX_ARRAY: u64 = 1 << 20;
/// The largest entry accepted, in bytes. Linux and the `gpt` crate accept 128 only.
pub const MAX_ENTRY: u32 = 4096;

const SIGNATURE: [u8; 8] = *b"EFI PART";
const MIN_HEADER: usize = 92;
const MIN_ENTRY: u32 = 128;

/// What is wrong with a copy of the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "a field is named for the fact it carries; the variant is documented")]
pub enum Fault {
    /// Reading the device failed.
    #[error("{what} at LBA {lba} cannot be read: {problem}")]
    Unreadable { what: &'static str, lba: Lba, problem: String },
    /// A block range is beyond the disk, or where it must not be.
    #[error("{what} at LBA {lba}, {blocks} blocks, is not within LBA {from} to {to}")]
    Outside { what: &'static str, lba: Lba, blocks: u64, from: Lba, to: Lba },
    /// The length is not that of one block.
    #[error("a header block has {got} bytes, expected 512 or 4096")]
    BlockSize { got: usize },
    /// No header begins here.
    #[error("no header signature (found {})", .got.escape_ascii())]
    Signature { got: [u8; 8] },
    /// The header is marked to be ignored, on purpose (`cgpt legacy -p`).
    #[error("the header is marked IGNOREME")]
    Ignored,
    /// A revision that is not 1.x.
    #[error("header revision {got:#010x}, expected 0x00010000")]
    Revision { got: u32 },
    /// A header size outside of its bounds.
    #[error("header size {got}, expected 92 to {block}")]
    HeaderSize { got: u32, block: u32 },
    /// The CRC of the header does not match: the header is torn or rotten.
    #[error("header CRC {got:#010x}, expected {expected:#010x}")]
    HeaderCrc { expected: u32, got: u32 },
    /// The header names another LBA as its own.
    #[error("the header says it is at LBA {got}, it is at LBA {expected}")]
    MyLba { expected: Lba, got: Lba },
    /// The usable area is empty.
    #[error("usable area from LBA {first} to {last}")]
    Usable { first: Lba, last: Lba },
    /// An invalid entry size.
    #[error("entries of {got} bytes, expected 128 x 2^n up to 4096")]
    EntrySize { got: u32 },
    /// No entries, or more than the limit.
    #[error("{count} entries of {size} bytes, expected 1 to {MAX_ARRAY} bytes in all")]
    EntryCount { count: u32, size: u32 },
    /// The array does not have the length that the header says.
    #[error("entry array of {got} bytes, expected {expected}")]
    ArrayLen { expected: usize, got: usize },
    /// The CRC of the array does not match: the array is torn or rotten.
    #[error("entry array CRC {got:#010x}, expected {expected:#010x}")]
    ArrayCrc { expected: u32, got: u32 },
}

/// A decoded header: its CRC matched and its fields are within bounds. Stores the rest of its block too and encodes
/// it unchanged.
#[derive(Debug, Clone)]
pub struct Header {
    /// LBA of this header.
    pub my_lba: Lba,
    /// LBA of the other header.
    pub alternate_lba: Lba,
    /// First LBA that a partition may use.
    pub first_usable: Lba,
    /// Last LBA that a partition may use.
    pub last_usable: Lba,
    /// GUID of the disk.
    pub disk_guid: Guid,
    /// First LBA of the entry array.
    pub entries_lba: Lba,
    /// CRC-32 of the entry array.
    pub entries_crc: u32,
    // Not public: what decode checked stays true while the header lives.
    pub(super) count: u32,
    pub(super) entry_size: u32,
    pub(super) block: BlockSize,
    pub(super) raw: Vec<u8>,
}

/// Two headers are equal if they encode to the same bytes, whatever bytes they were decoded from.
impl PartialEq for Header {
    fn eq(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }
}

impl Eq for Header {}

impl Header {
    /// Decodes the block that was read at `at`. Never panics on any input.
    pub fn decode(raw: &[u8], at: Lba) -> Result<Self, Fault> {
        let block = u32::try_from(raw.len()).ok().and_then(BlockSize::from_bytes);
        let block = block.ok_or(Fault::BlockSize { got: raw.len() })?;
        // From here on raw has at least 512 bytes, so the fixed offsets below are within it.
        let got = field(raw, 0);
        if got == *b"IGNOREME" {
            return Err(Fault::Ignored);
        }
        if got != SIGNATURE {
            return Err(Fault::Signature { got });
        }
        let revision = u32::from_le_bytes(field(raw, 8));
        if revision >> 16 != 1 {
            return Err(Fault::Revision { got: revision });
        }
        let got = u32::from_le_bytes(field(raw, 12));
        let size = got as usize;
        if !(MIN_HEADER..=raw.len()).contains(&size) {
            return Err(Fault::HeaderSize { got, block: block.bytes() });
        }
        let (expected, got) = (u32::from_le_bytes(field(raw, 16)), header_crc(raw, size));
        if expected != got {
            return Err(Fault::HeaderCrc { expected, got });
        }
        let lba = |at| Lba(u64::from_le_bytes(field(raw, at)));
        let header = Self {
            my_lba: lba(24),
            alternate_lba: lba(32),
            first_usable: lba(40),
            last_usable: lba(48),
            disk_guid: Guid(field(raw, 56)),
            entries_lba: lba(72),
            count: u32::from_le_bytes(field(raw, 80)),
            entry_size: u32::from_le_bytes(field(raw, 84)),
            entries_crc: u32::from_le_bytes(field(raw, 88)),
            block,
            raw: raw.to_vec(),
        };
        if header.my_lba != at {
            return Err(Fault::MyLba { expected: at, got: header.my_lba });
        }
        if header.first_usable > header.last_usable {
            return Err(Fault::Usable { first: header.first_usable, last: header.last_usable });
        }
        let entry = header.entry_size;
        if !entry.is_power_of_two() || !(MIN_ENTRY..=MAX_ENTRY).contains(&entry) {
            return Err(Fault::EntrySize { got: entry });
        }
        // Both are u32, so the product fits u64.
        if !(1..=MAX_ARRAY).contains(&(u64::from(header.count) * u64::from(entry))) {
            return Err(Fault::EntryCount { count: header.count, size: entry });
        }
        Ok(header)
    }

    /// The whole block, with the current fields and a matching CRC. Does not write to the disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
        put(24, &self.my_lba.0.to_le_bytes());
        put(32, &self.alternate_lba.0.to_le_bytes());
        put(40, &self.first_usable.0.to_le_bytes());
        put(48, &self.last_usable.0.to_le_bytes());
        put(56, &self.disk_guid.0);
        put(72, &self.entries_lba.0.to_le_bytes());
        put(88, &self.entries_crc.to_le_bytes());
        let crc = header_crc(&raw, u32::from_le_bytes(field(&raw, 12)) as usize);
        raw[16..20].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Number of entries in the array, used or not.
    pub const fn entry_count(&self) -> u32 {
        self.count
    }

    /// Size of an entry in bytes: 128 x 2^n, at most [`MAX_ENTRY`].
    pub const fn entry_size(&self) -> u32 {
        self.entry_size
    }

    /// Size of the header in bytes; the rest of its block has no meaning.
    pub fn header_size(&self) -> u32 {
        u32::from_le_bytes(field(&self.raw, 12))
    }

    /// Block size of the disk: the size of the block that was decoded.
    pub const fn block(&self) -> BlockSize {
        self.block
    }

    /// Size of the entry array in bytes, at most [`MAX_ARRAY`].
    pub const fn array_len(&self) -> usize {
        // Bounded by decode.
        self.count as usize * self.entry_size as usize
    }

    /// Blocks that the entry array occupies; the last one may be used in part.
    pub fn array_blocks(&self) -> u64 {
        (self.array_len() as u64).div_ceil(u64::from(self.block.bytes()))
    }
}

/// The CRC-32 of GPT (that of zlib).
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn header_crc(raw: &[u8], size: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&raw[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&raw[20..size]);
    hasher.finalize()
}

/// `N` bytes at `at`. The callers' offsets are constants within a block; a shorter input yields zeroes.
fn field<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    raw.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::header_block;
    use super::*;

    #[test]
    fn every_byte_survives_including_an_unknown_tail() {
        for (block, size) in [(512, 92), (512, 512), (4096, 200), (4096, 4096)] {
            let raw = header_block(block, size);
            let header = Header::decode(&raw, Lba(1)).unwrap();
            assert_eq!(header.encode(), raw);
            let mut moved = header.clone();
            moved.entries_lba = Lba(64);
            let encoded = moved.encode();
            // The tail is preserved, only the LBA and the CRC differ.
            let differing: Vec<usize> = (0..block).filter(|&i| encoded[i] != raw[i]).collect();
            assert!(differing.iter().all(|i| (16..20).contains(i) || (72..80).contains(i)), "{differing:?}");
            assert_eq!(Header::decode(&encoded, Lba(1)).unwrap().entries_lba, Lba(64));
        }
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let good = header_block(512, 92);
        let edited = |at: usize, bytes: &[u8]| {
            let mut raw = good.clone();
            raw[at..at + bytes.len()].copy_from_slice(bytes);
            let size = u32::from_le_bytes(field(&raw, 12)) as usize;
            let crc = header_crc(&raw, size.clamp(92, 512));
            raw[16..20].copy_from_slice(&crc.to_le_bytes());
            Header::decode(&raw, Lba(1)).unwrap_err()
        };
        assert!(matches!(Header::decode(&good[..100], Lba(1)), Err(Fault::BlockSize { got: 100 })));
        assert!(matches!(Header::decode(&good, Lba(2)), Err(Fault::MyLba { .. })));
        assert!(matches!(edited(0, b"EFI BART"), Fault::Signature { .. }));
        assert!(matches!(edited(8, &[0, 0, 2, 0]), Fault::Revision { got: 0x20000 }));
        assert!(matches!(edited(12, &91u32.to_le_bytes()), Fault::HeaderSize { got: 91, block: 512 }));
        assert!(matches!(edited(12, &513u32.to_le_bytes()), Fault::HeaderSize { .. }));
        assert!(matches!(edited(40, &u64::MAX.to_le_bytes()), Fault::Usable { .. }));
        for size in [0u32, 64, 127, 192, 8192, u32::MAX] {
            assert!(matches!(edited(84, &size.to_le_bytes()), Fault::EntrySize { .. }), "{size}");
        }
        for count in [0u32, 8193, u32::MAX] {
            assert!(matches!(edited(80, &count.to_le_bytes()), Fault::EntryCount { .. }), "{count}");
        }
    }

    #[test]
    fn what_is_just_within_the_limits_is_accepted() {
        let edited = |at: usize, bytes: &[u8]| {
            let mut raw = header_block(512, 92);
            raw[at..at + bytes.len()].copy_from_slice(bytes);
            let size = u32::from_le_bytes(field(&raw, 12)) as usize;
            let crc = header_crc(&raw, size);
            raw[16..20].copy_from_slice(&crc.to_le_bytes());
            Header::decode(&raw, Lba(1))
        };
        assert_eq!(edited(40, &8158u64.to_le_bytes()).unwrap().first_usable, Lba(8158), "one usable block");
        assert_eq!(edited(80, &8192u32.to_le_bytes()).unwrap().array_len() as u64, MAX_ARRAY);
        assert_eq!(edited(84, &MAX_ENTRY.to_le_bytes()).unwrap().entry_size(), MAX_ENTRY);
        assert_eq!(edited(12, &512u32.to_le_bytes()).unwrap().header_size(), 512);
        assert!(edited(8, &0x1_ffffu32.to_le_bytes()).is_ok(), "a later revision 1.x");
    }

    #[test]
    fn any_flipped_bit_of_the_header_is_detected() {
        let good = header_block(512, 92);
        for bit in 0..92 * 8 {
            let mut raw = good.clone();
            raw[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&raw, Lba(1)).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..5000), at: u64) {
            let _ = Header::decode(&raw, Lba(at));
        }

        /// Random fields after a valid signature and CRC: only the bounds protect the decoder.
        #[test]
        fn random_fields_never_panic(mut raw in proptest::collection::vec(any::<u8>(), 512), size in 0u32..600) {
            raw[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
            raw[12..16].copy_from_slice(&size.to_le_bytes());
            let crc = header_crc(&raw, (size as usize).clamp(92, 512));
            raw[16..20].copy_from_slice(&crc.to_le_bytes());
            let at = Lba(u64::from_le_bytes(field(&raw, 24)));
            if let Ok(header) = Header::decode(&raw, at) {
                prop_assert!(header.array_len() as u64 <= MAX_ARRAY);
                prop_assert_eq!(header.encode(), raw);
            }
        }
    }
}
