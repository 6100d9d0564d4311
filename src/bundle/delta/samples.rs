//! Samples of an image: windows of its bytes that are chosen by their content. Pure.
//!
//! A rolling hash is computed at every byte ("Gear": Xia et al., "Ddelta: a deduplication-inspired fast delta compression
//! approach", 2014). Only hashes that begin with some zero bits are used. So the same bytes are sampled in two images
//! wherever they lie.

/// Bytes that a hash covers: each shift by [`SHIFT`] moves the oldest out of its 64 bits. Shorter windows find more of
/// the code that a compiler laid out anew; below 32 bytes they mostly find bytes that are common everywhere.
pub(super) const WINDOW: usize = 32;
/// Bits by which each byte shifts the hash.
const SHIFT: usize = 64 / WINDOW;
/// One hash in `2^SAMPLE_BITS` is a sample, as long as the base is not larger than [`LARGE`].
pub(super) const SAMPLE_BITS: u32 = 6;
/// Size of a base in bytes above which samples become rarer, so that the table stays at 240 MiB.
pub(super) const LARGE: u64 = 2 << 30;
/// Number of samples that the table has room for.
pub(super) const ENTRIES: u64 = LARGE >> SAMPLE_BITS;

/// Reports hash and place of the windows whose hash begins with `bits` zero bits. Of a run of equal hashes, such as a
/// run of one byte has, only the first is reported.
pub(super) fn samples(bytes: &[u8], bits: u32, mut found: impl FnMut(u64, usize)) {
    let (mut hash, mut last) = (0_u64, 0);
    for (end, byte) in bytes.iter().enumerate() {
        hash = (hash << SHIFT).wrapping_add(GEAR[usize::from(*byte)]);
        if hash >> (u64::BITS - bits) == 0 && end + 1 >= WINDOW && hash != last {
            found(mixed(hash), end + 1 - WINDOW);
            last = hash;
        }
    }
}

/// Mixes the bits of a Gear hash, which are unevenly random, since the table needs them even (the finaliser of
/// SplitMix64).
pub(super) const fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Random number for each byte value: SplitMix64 of the byte. Other numbers change the sizes of deltas in the last digit
/// only.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        gear[byte] = mixed((byte as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        byte += 1;
    }
    gear
};
