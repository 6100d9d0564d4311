//! Frames of kind 5 that are made and applied, damaged, or made to harm.

use super::*;
use crate::bundle::delta::align::{encode, in_prefix};
use crate::bundle::delta::encoder::compress;
use crate::bundle::delta::index::Match;
use crate::bundle::delta::tests::noise;
use crate::units::{ByteOffset, Extent};

/// A frame like code that was laid out anew: addresses differ, some bytes are new, some moved.
fn pair() -> (Vec<u8>, Vec<u8>, Vec<Match>) {
    let prefix = noise(1, 20_000);
    let mut frame =
        [&noise(2, 100)[..], &prefix[5_000..12_000], &noise(3, 50)[..], &prefix[1_000..4_000]].concat();
    let (one, other) = (Match { at: 2_000, base: 6_900, len: 40 }, Match { at: 8_000, base: 1_850, len: 60 });
    for at in (0..frame.len()).step_by(90) {
        if !(one.at..one.end()).contains(&at) && !(other.at..other.end()).contains(&at) {
            frame[at] = frame[at].wrapping_add(0x40);
        }
    }
    (prefix, frame, vec![one, other])
}

fn applied(prefix: &[u8], packed: &[u8], len: usize) -> Result<Vec<u8>, &'static str> {
    let mut out = vec![0; len];
    apply(prefix, packed, &mut Streams::default(), &mut out).map(|()| out)
}

#[test]
fn changed_addresses_take_less_than_a_plain_frame() {
    let (prefix, frame, matches) = pair();
    let packed = encode(&frame, &prefix, &matches, 9).unwrap().unwrap();
    assert!(applied(&prefix, &packed, frame.len()).unwrap() == frame);
    let plain = compress(&frame, &prefix, 9).unwrap();
    assert!(packed.len() * 10 < plain.len() * 9, "{} {}", packed.len(), plain.len());
    assert!(encode(&frame, &prefix, &[], 9).unwrap().is_none(), "nothing to align");
}

#[test]
fn any_change_of_its_bytes_is_an_error_or_other_bytes() {
    let (prefix, frame, matches) = pair();
    let packed = encode(&frame, &prefix, &matches, 9).unwrap().unwrap();
    for len in 0..packed.len() {
        assert!(applied(&prefix, &packed[..len], frame.len()).is_err(), "{len} bytes");
    }
    let mut bytes = packed.clone();
    for bit in 0..packed.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        // It must come back; whatever it is, the index judges it.
        let _ = applied(&prefix, &bytes, frame.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for len in [0, 1, frame.len() - 1, frame.len() + 1] {
        assert!(applied(&prefix, &packed, len).is_err(), "a frame of {len} bytes");
    }
    assert!(applied(&prefix[..9_000], &packed, frame.len()).is_err(), "a shorter prefix");
}

/// Bytes of a frame with these streams.
fn packed(streams: [&[u8]; STREAMS]) -> Vec<u8> {
    let parts = streams.map(|stream| compress(stream, &[], 1).unwrap());
    let lengths = parts[..4].iter().flat_map(|part| (part.len() as u32).to_le_bytes());
    lengths.chain(parts.concat()).collect()
}

#[test]
fn streams_are_used_up_and_stay_within_their_bounds() {
    let prefix = b"0123456789";
    let good = packed([&[1, 5, 4], &[1, 3], &[1], &[1], b"ab"]);
    assert_eq!(applied(prefix, &good, 7).unwrap(), b"a24456b");
    for (streams, why) in [
        ([&[1, 5, 4][..], &[1, 3], &[1], &[1], b"abc"], "another number of bytes"),
        ([&[1, 5, 4], &[1, 3], &[1], &[1], b"a"], "another number of bytes"),
        ([&[3, 5, 4], &[1, 3], &[1], &[1], b"ab"], ENDS),
        ([&[1, 5], &[1, 3], &[1], &[1], b"ab"], ENDS),
        ([&[1, 5, 12], &[1, 3], &[1], &[1], b"ab"], BEYOND),
        ([&[1, 5, 3], &[1, 3], &[1], &[1], b"ab"], BEYOND),
        ([&[1, 7, 4], &[7], &[], &[], b"a"], TOO_LONG),
        ([&[1, 5, 4], &[1], &[1], &[1], b"ab"], ENDS),
        ([&[1, 5, 4], &[1, 3], &[0], &[1], b"ab"], ENDS),
        ([&[1, 5, 4], &[1, 3], &[2], &[1], b"ab"], ENDS),
        ([&[1, 5, 4], &[4], &[2], &[1, 1], b"ab"], "beyond its copy"),
        ([&[1, 5, 4], &[6], &[1], &[1], b"ab"], "beyond its copy"),
        ([&[1, 5, 4], &[5, 0], &[], &[], b"ab"], LEFT_OVER),
        ([&[1, 5, 4], &[5], &[1], &[1], b"ab"], LEFT_OVER),
        ([&[0xff, 0xff, 0xff, 0xff, 0xff, 1], &[], &[], &[], b"ab"], "32 bits"),
        ([&[0xff, 0xff, 0xff, 0xff, 0x1f], &[], &[], &[], b"ab"], "32 bits"),
        // Nothing but no-ops, more of them than the frame has bytes.
        ([&[0; 9], &[], &[], &[], b"abcdefg"], TOO_LONG),
        ([&[], &[], &[], &[], b"abcdefgh"], TOO_LONG),
    ] {
        let problem = applied(prefix, &packed(streams), 7).unwrap_err();
        assert!(problem.contains(why), "{streams:?}: {problem}");
    }
}

/// What a stream declares is believed only up to the size of the frame, and never exceeded.
#[test]
fn a_bomb_is_refused_before_memory_is_taken() {
    let zeroes = vec![0; 64 << 20];
    for at in 0..STREAMS {
        let mut streams: [&[u8]; STREAMS] = [&[]; STREAMS];
        streams[at] = &zeroes;
        assert_eq!(applied(b"", &packed(streams), 4096).unwrap_err(), TOO_LONG);
    }
    // A declared size that is smaller than what comes.
    let mut small = packed([&[], &[], &[], &[], &zeroes[..4000]]);
    let declared = small.windows(2).rposition(|two| two == (4000_u16 - 256).to_le_bytes()).unwrap();
    small[declared..declared + 2].copy_from_slice(&100_u16.to_le_bytes());
    assert!(applied(b"", &small, 4096).is_err());
    assert!(applied(b"", &[0xff; LENGTHS + 9], 4096).is_err());
    // Two frames, and none.
    let one = compress(b"ab", &[], 1).unwrap();
    let empty = compress(b"", &[], 1).unwrap();
    let lengths = (empty.len() as u32).to_le_bytes().repeat(4);
    for literals in [[&one[..], &one].concat(), Vec::new()] {
        let bytes = [&lengths[..], &empty.repeat(4), &literals].concat();
        assert!(applied(b"", &bytes, 4).unwrap_err().contains("one zstd frame"));
    }
}

#[test]
fn matches_are_moved_into_the_prefix_or_left_out() {
    let ranges = [(100, 50), (500, 100)].map(|(at, len)| Extent { at: ByteOffset(at), len });
    let at = |at, base, len| Match { at, base, len };
    let matches = [at(0, 120, 10), at(20, 140, 40), at(70, 300, 40), at(110, 510, 20), at(140, 90, 40)];
    assert_eq!(in_prefix(&matches, &ranges), [at(0, 20, 10), at(20, 40, 10), at(110, 60, 20)]);
}
