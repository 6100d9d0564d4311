//! Deltas that are truncated, damaged or malicious: refused, or recipes within their bounds.

use super::*;
use crate::bundle::delta::tests::release;

const FRAME: u32 = 4096;

/// Kind, ranges, and number of bytes in the member.
type Entry<'a> = (FrameKind, &'a [(u64, u64)], u32);

fn extents(ranges: &[(u64, u64)]) -> Vec<Extent> {
    ranges.iter().map(|(at, len)| Extent { at: ByteOffset(*at), len: *len }).collect()
}

/// A delta of two whole frames and a partial one, from a base of 20,000 bytes.
fn delta(release: &Release, entries: &[Entry<'_>]) -> Vec<u8> {
    delta_from(20_000, release, entries)
}

fn delta_from(size: u64, release: &Release, entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(blake3::hash(release.manifest.bytes()).as_bytes());
    push_payload(&mut bytes, FRAME, Some(BaseRef { size, blake3: Blake3([7; 32]) }));
    for (kind, ranges, packed) in entries {
        push_entry(&mut bytes, *kind, &extents(ranges), *packed);
    }
    bytes
}

#[test]
fn what_was_written_is_read() {
    let release = release(&[1; 10_000], FRAME);
    let entries: [Entry<'_>; 3] = [
        (FrameKind::InPlace, &[], 0),
        (FrameKind::Copy, &[(15_904, 4096)], 0),
        (FrameKind::Patch, &[(0, 1), (2, 100)], 77),
    ];
    let delta = Delta::parse(delta(&release, &entries), &release).unwrap();
    assert_eq!(delta.base(0), Some(BaseRef { size: 20_000, blake3: Blake3([7; 32]) }));
    assert_eq!(delta.base(1), None);
    for ((kind, ranges, packed), frame) in entries.into_iter().zip(release.frames(0)) {
        let recipe = delta.recipe(&frame);
        assert_eq!((recipe.kind, recipe.packed), (kind, packed));
        let expected = if kind == FrameKind::InPlace { &[(0, 4096)] } else { ranges };
        assert_eq!(recipe.ranges().collect::<Vec<_>>(), extents(expected));
    }
    assert_eq!(delta.packed_size(&release, 0), 77);
    assert!(!delta.needs_bundle(&release, 0));
}

#[test]
fn each_rule_refuses() {
    let release = release(&[1; 10_000], FRAME);
    let last =
        |entry: Entry<'_>| delta(&release, &[(FrameKind::Zero, &[], 0), (FrameKind::Bundle, &[], 0), entry]);
    let good = last((FrameKind::Patch, &[(0, 8192)], 9));
    assert!(Delta::parse(good.clone(), &release).is_ok());
    let many: Vec<(u64, u64)> = (0..17).map(|i| (i * 2, 1)).collect();
    assert!(Delta::parse(last((FrameKind::Patch, &many[1..], 9)), &release).is_ok(), "16 ranges");
    let cases: &[(&str, Vec<u8>)] = &[
        ("16 ranges", last((FrameKind::Patch, &many, 9))),
        ("two frames", last((FrameKind::Patch, &[(0, 8193)], 9))),
        ("beyond the base", last((FrameKind::Patch, &[(19_999, 2)], 9))),
        ("beyond the base", last((FrameKind::Patch, &[(u64::MAX, 2)], 9))),
        ("overlap", last((FrameKind::Patch, &[(10, 10), (19, 1)], 9))),
        ("ascend", last((FrameKind::Patch, &[(100, 1), (0, 1)], 9))),
        ("empty", last((FrameKind::Patch, &[(100, 0)], 9))),
        ("its length", last((FrameKind::Patch, &[], 0))),
        ("its length", last((FrameKind::Patch, &[], compress_bound(1808) as u32 + 1))),
        ("its ranges", last((FrameKind::Copy, &[(0, 1809)], 0))),
        ("its ranges", last((FrameKind::Copy, &[], 0))),
        ("its ranges", last((FrameKind::Copy, &[(0, 1000), (2000, 808)], 0))),
        ("its length", last((FrameKind::Copy, &[(0, 1808)], 1))),
        ("its length", last((FrameKind::Zero, &[], 1))),
        ("its ranges", last((FrameKind::Zero, &[(0, 1)], 0))),
        ("its ranges", last((FrameKind::InPlace, &[(0, 1)], 0))),
        ("its length", last((FrameKind::Bundle, &[], 1))),
        ("after its last entry", [&good[..], &[0]].concat()),
        ("another manifest", [&good[..9], &[good[9] ^ 1], &good[10..]].concat()),
        ("frame size", [&good[..40], &[1], &good[41..]].concat()),
        ("base of size 0", [&good[..44], &[0; 8], &good[52..]].concat()),
        ("reserved", [&good[..86], &[1], &good[87..]].concat()),
        ("as this version", [&b"qdelta\0\x02"[..], &good[8..]].concat()),
    ];
    for (word, bytes) in cases {
        let error = Delta::parse(bytes.clone(), &release).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_DELTA", "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let error = Delta::parse(vec![0; DELTA_MAX as usize + 1], &release).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_BUNDLE_LIMIT");
    // A frame that only a later version can make is taken from the bundle, whatever its ranges.
    for kind in 6..=255 {
        let mut bytes = last((FrameKind::Patch, &[(5, 10)], 9));
        let at = bytes.len() - ENTRY_LEN - RANGE_LEN;
        bytes[at] = kind;
        let delta = Delta::parse(bytes, &release).unwrap();
        let recipe = delta.recipe(&release.frame(0, 2));
        assert_eq!(
            (recipe.kind, recipe.packed, recipe.ranges().count()),
            (FrameKind::Bundle, 9, 0),
            "{kind}"
        );
    }
}

/// What is in place lies within the base too, which may be shorter than the image.
#[test]
fn a_frame_in_place_ends_with_the_base_at_most() {
    let release = release(&[1; 10_000], FRAME);
    let in_place = [(FrameKind::Zero, &[][..], 0), (FrameKind::Bundle, &[], 0), (FrameKind::InPlace, &[], 0)];
    let parse = |size: u64| Delta::parse(delta_from(size, &release, &in_place), &release).is_ok();
    assert_eq!([9_999, 10_000, 10_001].map(parse), [false, true, true]);
}

/// Every truncation and every changed bit gives an error, or recipes within the base, two frames and the compression
/// bound.
#[test]
fn whatever_it_says_it_stays_within_its_bounds() {
    let release = release(&[1; 10_000], FRAME);
    let good = delta(
        &release,
        &[
            (FrameKind::Patch, &[(0, 5000), (6000, 3192)], 4000),
            (FrameKind::Copy, &[(1, 4096)], 0),
            (FrameKind::InPlace, &[], 0),
        ],
    );
    for len in 0..good.len() {
        assert!(Delta::parse(good[..len].to_vec(), &release).is_err(), "{len} bytes");
    }
    let mut parsed = 0;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(delta) = Delta::parse(bytes, &release) else { continue };
        parsed += 1;
        let base = delta.base(0).map_or(0, |base| base.size);
        for frame in release.frames(0) {
            let recipe = delta.recipe(&frame);
            assert!(recipe.ranges().all(|range| range.at.0 + range.len <= base), "bit {bit}");
            assert!(recipe.base_len() <= 8192 && recipe.packed as usize <= compress_bound(frame.len()));
        }
    }
    assert!(parsed > 256, "the hash of the base alone has as many bits");
}
