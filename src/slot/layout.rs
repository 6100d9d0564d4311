//! The layout of a bundle's parts in a slot. Pure.

use super::UNIT;
use crate::bundle::manifest::ManifestFields;
use crate::error::{Error, Result};
use crate::units::{Group, MIB};

/// Location of one payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedPayload {
    /// Index of the payload in the manifest.
    pub payload: usize,
    /// Offset in the slot in bytes.
    pub at: u64,
    /// Size in bytes.
    pub len: u64,
}

impl PlacedPayload {
    /// Offset of the first page after it.
    fn end(&self) -> u64 {
        (self.at + self.len).next_multiple_of(UNIT)
    }
}

/// The layout of a slot for one bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The payloads, in order.
    pub places: Vec<PlacedPayload>,
    /// Offset of the record's body in bytes.
    pub body_at: u64,
    /// Length of the record's body without padding, in bytes.
    pub body_len: u64,
    /// Offset of the mark in bytes.
    pub mark_at: u64,
    /// Offset of the footer in bytes.
    pub footer_at: u64,
}

impl Layout {
    /// Offset of the footer in a slot of `size` bytes; `None` if the slot is too small for one.
    pub fn footer_at(size: u64) -> Option<u64> {
        (size / UNIT * UNIT).checked_sub(UNIT).filter(|at| *at >= UNIT)
    }

    /// Lays out the payloads of `group`. `body_len` is the length of manifest, signature and index in bytes, `size`
    /// that of the slot called `partition`.
    ///
    /// # Errors
    /// [`Error::SlotTooSmall`] with the size that is needed.
    pub fn new(
        fields: &ManifestFields,
        group: Group,
        body_len: u64,
        size: u64,
        partition: &str,
    ) -> Result<Self> {
        let mut places = Vec::new();
        let mut free = 0_u64;
        // No sum here overflows: the manifest's limits keep each image below 4 TiB and their number below 65.
        for (payload, described) in fields.group(group) {
            let place = PlacedPayload { payload, at: free.next_multiple_of(MIB), len: described.size };
            free = place.end();
            places.push(place);
        }
        let behind = body_len.next_multiple_of(UNIT) + 2 * UNIT;
        let too_small =
            || Error::SlotTooSmall { partition: partition.to_owned(), needed: free + behind, size };
        let footer_at = Self::footer_at(size).ok_or_else(too_small)?;
        let body_at =
            (footer_at + UNIT).checked_sub(behind).filter(|at| *at >= free).ok_or_else(too_small)?;
        Ok(Self { places, body_at, body_len, mark_at: footer_at - UNIT, footer_at })
    }

    /// The location of a payload; `None` if it belongs to the other group.
    pub fn place(&self, payload: usize) -> Option<&PlacedPayload> {
        self.places.iter().find(|place| place.payload == payload)
    }

    /// The ranges that must read as zero: between payloads, and from the last one to the record. As (offset,
    /// length) in bytes.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let ends = self.places.iter().map(PlacedPayload::end);
        let starts = self.places.iter().skip(1).map(|place| place.at).chain([self.body_at]);
        ends.zip(starts).map(|(end, start)| (end, start - end)).filter(|(_, len)| *len > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::manifest::tests::sample;

    #[test]
    fn a_slot_is_covered_without_overlap() {
        let fields = sample();
        for group in Group::BOTH {
            for size in [2 * MIB, 2 * MIB + 512, 64 * MIB + 3584] {
                let layout = Layout::new(&fields, group, 5000, size, "x").unwrap();
                // Payloads, gaps, body, mark and footer in order of position meet exactly.
                let mut parts: Vec<(u64, u64)> =
                    layout.places.iter().map(|p| (p.at, p.end() - p.at)).collect();
                parts.extend(layout.gaps());
                parts.push((layout.body_at, 8192));
                parts.push((layout.mark_at, UNIT));
                parts.push((layout.footer_at, UNIT));
                parts.sort_unstable();
                let mut at = 0;
                for (start, len) in parts {
                    assert_eq!(start, at, "{group} {size}");
                    at = start + len;
                }
                assert_eq!(at, size / UNIT * UNIT);
            }
        }
        let platform = Layout::new(&fields, Group::Platform, 5000, 2 * MIB, "x").unwrap();
        assert_eq!(platform.places.iter().map(|p| (p.payload, p.at)).collect::<Vec<_>>(), [(0, 0), (2, MIB)]);
    }

    #[test]
    fn the_needed_size_is_exact() {
        let fields = sample();
        let Err(Error::SlotTooSmall { needed, .. }) = Layout::new(&fields, Group::Software, 5000, 0, "x")
        else {
            panic!("an empty slot was accepted");
        };
        assert!(Layout::new(&fields, Group::Software, 5000, needed, "x").is_ok());
        assert!(Layout::new(&fields, Group::Software, 5000, needed - 1, "x").is_err());
    }
}
