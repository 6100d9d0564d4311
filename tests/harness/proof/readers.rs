//! Readers of a disk, written from the documentation of the formats: records, images, flags, and foreign bytes.

use qstage::boot::BootFlag;
use qstage::units::MIB;

use super::{SLOTS, extent, unnamed_blocks};
use crate::harness::tables::Reader;

/// State of a slot's record, read by the offsets that slot/footer.rs documents.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordState {
    Nothing,
    Torn,
    Whole(serde_json::Value),
}

/// Reads the record at the end of a slot.
pub fn record(slot: &[u8]) -> RecordState {
    let end = slot.len() / 4096 * 4096;
    let footer = &slot[end - 4096..end];
    let u32_at = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().unwrap());
    if &footer[..8] != b"QSTGSLOT" || u32_at(8) != 1 || u32_at(4092) != crc32fast::hash(&footer[..4092]) {
        return RecordState::Nothing;
    }
    if u32_at(12) == 2 {
        return RecordState::Torn;
    }
    let at = u64::from_le_bytes(footer[16..24].try_into().unwrap()) as usize;
    let lengths = [u32_at(24), u32_at(28), u32_at(32)].map(|len| len as usize);
    let body = &slot[at..at + lengths.iter().sum::<usize>()];
    if crc32fast::hash(body) != u32_at(36) {
        return RecordState::Nothing;
    }
    RecordState::Whole(serde_json::from_slice(&body[..lengths[0]]).unwrap())
}

/// Whether the slot holds the images of the manifest at their places, by BLAKE3.
pub fn holds(slot: &[u8], group: &str, manifest: &serde_json::Value) -> bool {
    let mut free = 0;
    manifest["payloads"].as_array().unwrap().iter().all(|payload| {
        if (payload["kind"] == "software") != (group == "software") {
            return true;
        }
        let (at, len) =
            (usize::next_multiple_of(free, MIB as usize), payload["size"].as_u64().unwrap() as usize);
        free = (at + len).next_multiple_of(4096);
        slot.get(at..at + len)
            .is_some_and(|image| payload["blake3"].as_str() == Some(blake3::hash(image).to_hex().as_str()))
    })
}

/// The platform and the software that boot by these flags, by the tables that boot.rs documents.
pub fn boots(
    image: &[u8],
    block: u32,
    flag: BootFlag,
    reader: Reader,
) -> Option<(Option<char>, Option<char>)> {
    let (platform, software) = crate::harness::tables::selection(image, block, reader)?;
    if flag == BootFlag::Priority {
        return Some((platform, software));
    }
    let named = crate::harness::tables::named(image, block, reader)?;
    let active: Vec<&str> =
        named.iter().filter(|(_, bits)| bits & 4 != 0).map(|(name, _)| name.as_str()).collect();
    let platform = match active[..] {
        ["platform_a"] => Some('a'),
        ["platform_b"] => Some('b'),
        // gptmbr: "Missing OS" and "Multiple active partitions".
        _ => None,
    };
    Some((platform, software))
}

/// Checks that everything that qstage must not change is as in `before`: bytes outside of slots and table, the foreign
/// partition's attributes, the bits of our entries that are no boot flags, and the entries' other bytes.
pub fn foreign_intact(before: &[u8], after: &[u8], block: u32, flag: BootFlag) -> Result<(), String> {
    let data = extent(before, block, "data");
    if before[data.clone()] != after[data] {
        return Err("the foreign partition changed".to_owned());
    }
    if before[..block as usize] != after[..block as usize] {
        return Err("block 0 changed".to_owned());
    }
    if let Some(bytes) = unnamed_blocks(block, before.len())
        .into_iter()
        .find(|bytes| before[bytes.clone()] != after[bytes.clone()])
    {
        return Err(format!("bytes that are not ours changed, within {bytes:?}"));
    }
    let read = |image: &[u8]| {
        let (array, size) = crate::harness::tables::entries(image, block, Reader::Fallback)?;
        let mut array = array.to_vec();
        for entry in array.chunks_mut(size) {
            let name: Vec<u16> = entry[56..128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
            let name = String::from_utf16_lossy(&name);
            let mask: u64 = match (name.trim_end_matches('\0'), flag) {
                ("platform_a" | "platform_b", BootFlag::Legacy) => 4,
                (name, _) if SLOTS.contains(&name) => 0x1ff << 48,
                _ => 0,
            };
            let bits = u64::from_le_bytes(entry[48..56].try_into().unwrap());
            entry[48..56].copy_from_slice(&(bits & !mask).to_le_bytes());
        }
        Some(array)
    };
    match (read(before), read(after)) {
        (Some(before), Some(after)) if before == after => Ok(()),
        (Some(_), Some(_)) => Err("more than boot flags changed in the table".to_owned()),
        _ => Err("no valid copy of the table".to_owned()),
    }
}
